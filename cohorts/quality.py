"""What makes a recording usable: coverage, length, finite values; and its temporal signal-to-noise ratio."""

import math

import numpy as np

from cohorts.atlas import Atlas
from cohorts.errors import RecordingError
from cohorts.settings import Settings


class QualityRules(Settings):
    """Thresholds below which a recording is quarantined."""

    min_frames: int = 40
    """Shortest run. Two patches of 20 frames; a study may ask for more."""
    min_coverage: float = 0.8
    """Smallest fraction of parcels with signal."""


def temporal_snr(signal: np.ndarray) -> float:
    """Median over parcels of mean/sd over time.

    NaN where the means are gone (demeaned, filtered or standardized series), since the ratio then says nothing.

    Parameters
    ----------
    signal : numpy.ndarray
        [T, P] with the signal's own mean.
    """
    deviation = signal.std(axis=0, dtype=np.float64)
    kept = deviation > 0
    if not kept.any():
        return math.nan
    ratio = float(np.median(signal.mean(axis=0, dtype=np.float64)[kept] / deviation[kept]))
    return ratio if ratio > 3 else math.nan


def check_signal(signal: np.ndarray, name: str, atlas: Atlas, rules: QualityRules) -> np.ndarray:
    """Check one recording [T, P] against its atlas and `rules`.

    Returns
    -------
    numpy.ndarray
        Coverage [P], False where a parcel is missing: all zero, constant, or NaN throughout.

    Raises
    ------
    RecordingError
        With code ``wrong-parcels``, ``too-short``, ``constant``, ``nan``, ``infinite`` or ``low-coverage``.
    """
    n_frames, n_parcels = signal.shape
    if n_parcels != atlas.n_parcels:
        raise RecordingError(
            "wrong-parcels",
            f"{name}: has {n_parcels} columns; expected the {atlas.n_parcels} parcels of {atlas.name}. "
            "Name the right atlas, or pick columns with --columns.",
        )
    if n_frames < rules.min_frames:
        raise RecordingError(
            "too-short",
            f"{name}: has {n_frames} frames; expected at least {rules.min_frames}. "
            "Leave it out, or lower --min-frames.",
        )
    if np.isinf(signal).any():
        raise RecordingError("infinite", f"{name}: holds infinite values; expected finite ones. Clean it first.")
    nan = np.isnan(signal)
    missing = nan.all(axis=0)
    if nan[:, ~missing].any():
        frames, parcels = np.nonzero(nan & ~missing)
        raise RecordingError(
            "nan",
            f"{name}: has NaN in {np.unique(frames).size} frames of {np.unique(parcels).size} parcels; expected "
            "numbers, or NaN in a whole parcel that is missing. Interpolate or drop those frames first.",
        )
    with np.errstate(invalid="ignore"):
        coverage = ~missing & (np.ptp(signal, axis=0) > 0)
    if not coverage.any():
        raise RecordingError(
            "constant", f"{name}: no parcel changes over time; expected BOLD signals. Check how it was extracted."
        )
    if coverage.mean() < rules.min_coverage:
        raise RecordingError(
            "low-coverage",
            f"{name}: {int((~coverage).sum())} of {atlas.n_parcels} parcels are zero, constant or NaN; expected "
            f"signal in at least {rules.min_coverage:.0%}. Check its field of view, or lower --min-coverage.",
        )
    return coverage


def orient(
    matrix: np.ndarray, name: str, atlas: Atlas, orientation: str = "auto", columns: slice | None = None
) -> np.ndarray:
    """Return `matrix` as frames by parcels, or refuse what is ambiguous.

    Parameters
    ----------
    matrix : numpy.ndarray
        Two-dimensional.
    orientation : {"auto", "frames-first", "parcels-first"}
        How the matrix lies; ``auto`` takes frames-first and refuses a matrix that looks otherwise.
    columns : slice, optional
        The parcels to take, where the matrix has more than the atlas.

    Raises
    ------
    RecordingError
        With code ``not-a-matrix``, ``columns``, ``connectivity``, ``ambiguous`` or ``transposed``.
    """
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise RecordingError(
            "not-a-matrix",
            f"{name}: has shape {matrix.shape} of {matrix.dtype}; expected numbers, frames by parcels. "
            "Export one matrix a recording.",
        )
    matrix = matrix.astype(np.float32, copy=False)
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
