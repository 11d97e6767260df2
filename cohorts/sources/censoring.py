"""Frames of high motion: put back by interpolation over time."""

import numpy as np
from scipy.interpolate import CubicSpline


def interpolate_censored(signal: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Put kept frames at their time and fill the others by a cubic spline through them, in the signal's own precision.

    Before the first kept frame and after the last one its value is held, since a spline runs away there (Power et al.
    2014, https://doi.org/10.1016/j.neuroimage.2013.08.048, fill censored frames before filtering too).

    Parameters
    ----------
    signal : numpy.ndarray
        [K, P], the kept frames; at least one.
    kept : numpy.ndarray
        [T] bool, K of them True.

    Returns
    -------
    numpy.ndarray
        [T, P]. A parcel with a value that is not finite keeps its values and is NaN in the frames between.
    """
    times = np.flatnonzero(kept)
    between = np.setdiff1d(np.arange(times[0], times[-1]), times)
    filled = np.full((len(kept), signal.shape[1]), np.nan, signal.dtype)
    filled[times] = signal
    finite = np.isfinite(signal).all(axis=0)
    if between.size:
        filled[np.ix_(between, finite)] = CubicSpline(times, signal[:, finite].astype(np.float64))(between)
    filled[: times[0], finite] = signal[0, finite]
    filled[times[-1] + 1 :, finite] = signal[-1, finite]
    return filled
