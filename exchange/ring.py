"""Numbers as integers of a ring, so that sums are exact, whatever their order, and masks cancel.

Three kinds of field, each with room for the sum of all sites; what does not fit is an error before anything is sent:

- ``count``: whole numbers modulo 2^64.
- ``sum``: float64 as two words modulo 2^64, a coarse one of 8 fraction bits and a fine one of 60, which holds what the
  coarse one left over. Together they reach from 9e-19 to 1.8e16 over the number of sites, so nobody has to agree on the
  size of numbers beforehand (docs/decisions/0009).
- ``update``: changes of weights modulo 2^32, no more bytes than float32, with as many fraction bits as a public bound
  of their size leaves.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Encoding = Literal["count", "sum", "update"]
Words = NDArray[np.unsignedinteger[Any]]
"""Words of one ring, all 64 or all 32 bits."""

_COARSE_BITS = 8
_FINE_BITS = 60
MOST_SITES = 2**11
"""Sites that may add numbers: the fine words of more could wrap."""
_PIECE = 2**16
"""Numbers encoded at a time: what they need stays in the processor's cache."""


class RingError(Exception):
    """A number cannot be encoded. The message says which and why; nothing was sent."""


class RingOverflowError(RingError):
    """A number is too large for the sum. Scale what is summed, or raise the bound of updates.

    NaN and infinity are none: no scale makes them fit, and they tell of a fault in the data.
    """


def bits_of(kind: Encoding) -> Literal[32, 64]:
    """Bits of the ring of a kind."""
    return 32 if kind == "update" else 64


def words_of(kind: Encoding) -> int:
    """Words a number takes."""
    return 2 if kind == "sum" else 1


def encode(values: NDArray[np.generic], kind: Encoding, n_sites: int, bound: float = 0.0) -> Words:
    """Encode numbers, so that those of `n_sites` sites add without wrapping.

    Parameters
    ----------
    values : numpy.ndarray
        Any shape; n numbers.
    bound : float
        For ``update``: largest absolute value that any site may send.

    Returns
    -------
    numpy.ndarray
        [n] words; for ``sum`` [2 n], the coarse ones first.

    Raises
    ------
    RingOverflowError
        If a number is larger than the ring has room for.
    RingError
        If a number is NaN, infinite, or no whole one where counts are expected, or there are too many sites.
    """
    if not 1 <= n_sites <= MOST_SITES:
        raise RingError(f"{n_sites} sites cannot add in one ring; expected 1 to {MOST_SITES}.")
    flat = np.ascontiguousarray(values).reshape(-1)
    if kind == "count":
        return _encode_counts(flat, n_sites)
    if kind == "update":
        return _encode_updates(flat, n_sites, bound)
    return _encode_sums(flat, n_sites)


def decode(words: Words, kind: Encoding, n_sites: int, bound: float = 0.0) -> NDArray[np.float64]:
    """Decode the sum of what `n_sites` sites encoded, [n] float64; arguments as of `encode`."""
    if kind == "count":
        return words.view(np.int64).astype(np.float64)
    if kind == "update":
        return np.ldexp(words.view(np.int32).astype(np.float64), -_update_bits(n_sites, bound))
    coarse, fine = words.view(np.int64).reshape(2, -1)
    return np.ldexp(coarse.astype(np.float64), -_COARSE_BITS) + np.ldexp(fine.astype(np.float64), -_FINE_BITS)


def _encode_counts(values: NDArray[np.generic], n_sites: int) -> Words:
    if values.dtype.kind not in "iu" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise RingError("a count is no whole one. Count whole things, or send a sum.")
    if values.size and float(np.abs(values.astype(np.float64)).max()) * n_sites >= 2.0**62:
        raise RingOverflowError(f"a count is too large to add over {n_sites} sites.")
    return values.astype(np.int64).view(np.uint64)


def _encode_sums(values: NDArray[np.generic], n_sites: int) -> Words:
    largest = 2.0 ** (62 - _COARSE_BITS) / n_sites
    words = np.empty((2, values.size), dtype=np.int64)
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE].astype(np.float64)
        _check(piece, largest, n_sites)
        # Each product with a power of two is exact, and so is what the coarse word leaves over.
        coarse = np.rint(np.ldexp(piece, _COARSE_BITS))
        words[0, start : start + _PIECE] = coarse
        piece -= np.ldexp(coarse, -_COARSE_BITS)
        words[1, start : start + _PIECE] = np.rint(np.ldexp(piece, _FINE_BITS))
    return words.reshape(-1).view(np.uint64)


def _encode_updates(values: NDArray[np.generic], n_sites: int, bound: float) -> Words:
    factor = 2.0 ** _update_bits(n_sites, bound)
    words = np.empty(values.size, dtype=np.int32)
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE].astype(np.float64)
        _check(piece, bound, n_sites)
        piece *= factor
        words[start : start + _PIECE] = np.rint(piece, out=piece)
    return words.view(np.uint32)


def _check(values: NDArray[np.float64], largest: float, n_sites: int) -> None:
    found = float(max(values.max(initial=0.0), -values.min(initial=0.0)))
    if math.isnan(found) or math.isinf(found):
        raise RingError("a number is NaN or infinite, and cannot be summed.")
    if found > largest:
        raise RingOverflowError(f"a number of size {found:.3g} is summed over {n_sites} sites; at most {largest:.3g}.")


def _update_bits(n_sites: int, bound: float) -> int:
    """Fraction bits of updates: n (bound 2^f + 1/2) < 2^31."""
    if not (math.isfinite(bound) and bound > 0):
        raise RingError(f"the bound of updates is {bound}; expected a number above 0.")
    return math.floor(math.log2((2.0**31 - n_sites) / (n_sites * bound)))
