"""Time series as numbers: which parcels carry a signal, and how a matrix lies."""

import numpy as np

from cohorts.atlas import Atlas
from cohorts.errors import RecordingError

LARGEST_VALUE = 1e15
"""Squares of what is larger, summed over a recording, no longer fit float32."""
_LEAST_OF_LEVEL = 1e-5
"""Least change over time, as a fraction of a parcel's own level: float32 keeps seven digits, of which a pipeline's
arithmetic blurs the last two. BOLD changes by one part in a hundred."""
_LEAST_OF_OTHERS = 1e-4
"""Least change, as a fraction of what the recording's strong parcels change by. Regression leaves float32's last digits
of the level, which is up to a thousand times the changes."""
_STRONG = 0.9
"""Quantile of the changes that stands for the strong parcels: neither artefacts in a few parcels set it, nor residue in
most of them."""
_LEAST_CHANGE = 1e-9
"""Least change in any unit in use: below it lies what float64 leaves of levels up to a million."""


def carries_signal(lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """Tell parcels [P], or voxels, that change over time from those that are constant but for rounding.

    The one judgment of what is covered: residue that passed for a signal would be scaled to the size of one.

    Parameters
    ----------
    lowest, highest : numpy.ndarray
        [P], the least and the largest value over time of all parcels of a recording; NaN where there are none.
    """
    lowest, highest = np.asarray(lowest, np.float64), np.asarray(highest, np.float64)
    with np.errstate(invalid="ignore"):
        change, level = highest - lowest, np.maximum(np.abs(lowest), np.abs(highest))
        carries = change > np.maximum(_LEAST_CHANGE, _LEAST_OF_LEVEL * level)
    before = 0
    while carries.sum() not in (0, before):  # until what is left does not depend on what was left out
        before = carries.sum()
        carries &= change > _LEAST_OF_OTHERS * np.quantile(change[carries], _STRONG)
    return carries


def range_over_time(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value [P] of a signal [T, P] over time, but for one frame at each end.

    A parcel that is constant in all frames but one has no signal there either: scaled, that frame would be all of it.
    Of fewer than ten frames none is left out.
    """
    left_out = min(1, len(signal) // 10)
    ordered = np.partition(signal, (left_out, len(signal) - 1 - left_out), axis=0)
    return ordered[left_out], ordered[len(signal) - 1 - left_out]


def orient(
    matrix: np.ndarray, name: str, atlas: Atlas, orientation: str = "auto", columns: slice | None = None
) -> np.ndarray:
    """Return `matrix` as frames by parcels, or refuse what is ambiguous.

    Parameters
    ----------
    matrix : numpy.ndarray
        Two-dimensional, float32.
    orientation : {"auto", "frames-first", "parcels-first"}
        How the matrix lies; ``auto`` takes frames-first and refuses a matrix that looks otherwise.
    columns : slice, optional
        The parcels to take, where the matrix has more than the atlas.

    Raises
    ------
    RecordingError
        With code ``columns``, ``connectivity``, ``ambiguous`` or ``transposed``.
    """
    if orientation == "parcels-first":
        matrix = matrix.T
    if columns and columns.stop > matrix.shape[1]:
        raise RecordingError(
            "columns",
            f"{name}: has {matrix.shape[1]} columns; --columns asks for column {columns.stop}. Correct one of them.",
        )
    n_parcels = matrix.shape[1] if columns else atlas.n_parcels
    n_rows, n_columns = matrix.shape
    if n_rows == n_columns and np.allclose(matrix, matrix.T, equal_nan=True):
        raise RecordingError(
            "connectivity",
            f"{name}: is a symmetric {n_rows} x {n_columns} matrix, as of connectivity; expected time series. "
            "Export the parcels' time series instead.",
        )
    if orientation == "auto" and n_rows == n_columns == n_parcels:
        raise RecordingError(
            "ambiguous",
            f"{name}: has {n_rows} rows and {n_columns} columns, so frames and parcels cannot be told apart. "
            "Say which with --orientation frames-first or parcels-first.",
        )
    if orientation == "auto" and n_rows == n_parcels != n_columns:
        raise RecordingError(
            "transposed",
            f"{name}: has {n_rows} rows, the number of parcels of {atlas.name}, and {n_columns} columns; expected "
            "one row a frame. It looks transposed: use --orientation parcels-first if it is.",
        )
    return matrix[:, columns] if columns else matrix
