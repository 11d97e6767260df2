"""Symmetric matrices on the wire: one triangle says it all."""

from functools import cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from harmonization.core.protocol import Array


def pack(matrix: Array) -> Array:
    """Upper triangle [p (p + 1) / 2] of a symmetric matrix [p, p], row by row."""
    return matrix.ravel()[_upper(len(matrix))]


def unpack(packed: Array) -> Array:
    """Symmetric matrix [p, p] of an upper triangle [p (p + 1) / 2]."""
    size = (isqrt(8 * len(packed) + 1) - 1) // 2
    upper = np.zeros((size, size))
    upper.ravel()[_upper(size)] = packed
    return upper + np.triu(upper, 1).T


@cache
def _upper(size: int) -> NDArray[np.int64]:
    """Places of the upper triangle in a flattened matrix."""
    return np.flatnonzero(np.triu(np.ones((size, size))))
