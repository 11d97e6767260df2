"""Second moments of the recordings of some participants, from sums over frames."""

import numpy as np

from brainlm.config import WindowConfig
from brainlm.windows import prepare, usable_recordings
from cohorts import Cohort


def sum_moments(
    cohort: Cohort, window: WindowConfig, participants: list[str], n_lags: int | None = None
) -> dict[str, np.ndarray]:
    """Sum products of parcels and frames over recordings, scaled as the model sees them. The sums add.

    Parameters
    ----------
    cohort : Cohort
        The recordings.
    window : WindowConfig
        The model's.
    participants : list of str
        Whose recordings, those that are at least a window long.
    n_lags : int, optional
        Lags of the autocovariance, L; the frames of a window if not given.

    Returns
    -------
    dict
        products, next_products [P, P] and lagged_products [L], and how many frames are behind each: pairs, next_pairs,
        lagged_pairs. Missing parcels are behind none.
    """
    n_parcels, lags = cohort.atlas.n_parcels, n_lags or window.n_frames
    sums = {name: np.zeros((n_parcels, n_parcels)) for name in ("products", "pairs", "next_products", "next_pairs")}
    sums |= {name: np.zeros(lags) for name in ("lagged_products", "lagged_pairs")}
    usable = usable_recordings(cohort, window)
    for recording_id in (name for person in participants for name in usable.get(person, [])):
        recording = cohort.read(recording_id)
        values = prepare(recording, window).astype(np.float64)  # [P, T], zero where missing
        n_frames, there = values.shape[1], np.outer(recording.coverage, recording.coverage)
        sums["products"] += values @ values.T
        sums["pairs"] += n_frames * there
        sums["next_products"] += values[:, 1:] @ values[:, :-1].T
        sums["next_pairs"] += (n_frames - 1) * there
        for lag in range(min(lags, n_frames)):
            sums["lagged_products"][lag] += np.vdot(values[:, lag:], values[:, : n_frames - lag])
            sums["lagged_pairs"][lag] += (n_frames - lag) * recording.coverage.sum()
    return sums


def solve_moments(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return mean products from the sums of `sum_moments`, 0 where nothing was summed.

    Returns
    -------
    dict
        covariance [P, P], mean of ``x[t] x[t]'``; next [P, P], mean of ``x[t + 1] x[t]'``; autocovariance [L], mean
        product of a parcel's values 0, 1, … frames apart, over parcels.
    """
    names = {"covariance": ("products", "pairs"), "next": ("next_products", "next_pairs")}
    names["autocovariance"] = ("lagged_products", "lagged_pairs")
    return {name: sums[product] / np.maximum(sums[pairs], 1) for name, (product, pairs) in names.items()}
