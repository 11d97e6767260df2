"""Rows about their own mean, exactly zero where nothing varies."""

import numpy as np

from harmonization.core.protocol import Array

_ROUNDING = 4 * np.finfo(np.float64).eps
"""Variation, relative to the largest value, that is the rounding of equal numbers."""


def centred(values: Array) -> Array:
    """Subtract from each column of `values` [n, p] its mean over the rows that have it; missing values become 0.

    The mean is corrected by the mean of what it left, since one pass over values far from zero does not centre them.
    A column that varies by no more than rounding comes back as zeros, so that a constant is known by a sum of 0.
    """
    present = ~np.isnan(values)
    counts = np.maximum(present.sum(axis=0), 1)
    filled = np.where(present, values, 0.0)
    deviations = np.where(present, filled - filled.sum(axis=0) / counts, 0.0)
    deviations = np.where(present, deviations - deviations.sum(axis=0) / counts, 0.0)
    constant = np.abs(deviations).max(axis=0) <= _ROUNDING * np.abs(filled).max(axis=0)
    return np.where(constant, 0.0, deviations)
