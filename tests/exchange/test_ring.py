import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exchange.ring import MOST_SITES, RingError, RingOverflowError, decode, encode

SIZES = st.floats(-1e12, 1e12, allow_nan=False)


def added(parts: list[np.ndarray], kind: str, bound: float = 0.0) -> np.ndarray:
    words = [encode(part, kind, len(parts), bound) for part in parts]
    return decode(sum(words[1:], words[0].copy()), kind, len(parts), bound)


@settings(deadline=None)
@given(st.integers(3, 6).flatmap(lambda n: st.lists(arrays(float, 5, elements=SIZES), min_size=n, max_size=n)))
def test_sums_are_those_of_exact_arithmetic(parts):
    """To rounding of the result alone, however different the sizes of what is added."""
    exact = [math.fsum(values) for values in zip(*parts, strict=True)]

    np.testing.assert_allclose(added(parts, "sum"), exact, rtol=4e-16, atol=len(parts) * 2.0**-61)


@settings(deadline=None)
@given(st.lists(arrays(np.int64, 4, elements=st.integers(-(2**52), 2**52)), min_size=3, max_size=6))
def test_counts_are_exact(parts):
    np.testing.assert_array_equal(added(parts, "count"), np.sum(parts, axis=0).astype(float))


@pytest.mark.parametrize("n_sites", [3, 8, 50])
def test_updates_keep_what_float32_would(n_sites):
    """In as many bytes; the norm of the error over that of the sum."""
    rng = np.random.default_rng(n_sites)
    parts = [rng.normal(scale=0.01, size=500).astype(np.float32) for _ in range(n_sites)]
    exact = np.sum(parts, axis=0, dtype=np.float64)

    found = added(parts, "update", bound=0.1)

    assert encode(parts[0], "update", n_sites, 0.1).nbytes == parts[0].nbytes
    assert np.linalg.norm(found - exact) < 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("kind", ["sum", "count", "update"])
@pytest.mark.parametrize("n_sites", [3, 7, MOST_SITES])
def test_the_largest_numbers_of_all_sites_fit_and_larger_ones_are_refused(kind, n_sites):
    """All sites send the largest number that encodes, found by halving: the sum is right, not wrapped."""
    low, high = 1.0, 2.0**70
    for _ in range(200):
        middle = math.floor((low + high) / 2) if kind == "count" else (low + high) / 2
        try:
            encode(np.array([float(middle)]), kind, n_sites, bound=1e3)
            low = middle
        except RingOverflowError:
            high = middle
    words = encode(np.array([-float(low)]), kind, n_sites, bound=1e3)
    with np.errstate(over="ignore"):
        total = decode(words * words.dtype.type(n_sites), kind, n_sites, bound=1e3)

    assert high < 2.0**64
    np.testing.assert_allclose(total, [-low * n_sites], rtol=1e-6)


@pytest.mark.parametrize("kind", ["sum", "count", "update"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_no_number_of_a_likely_size_is_refused_wherever_it_stands(kind, wrong):
    values = np.zeros(200_000)
    values[150_000] = wrong

    with pytest.raises(RingError, match=r"NaN or infinite|no whole one|of size 1e\+300|too large to add"):
        encode(values, kind, 3, bound=1.0)


def test_a_count_that_is_no_whole_number_is_refused():
    with pytest.raises(RingError, match="no whole one"):
        encode(np.array([1.5]), "count", 3)
    with pytest.raises(RingError, match="bound of updates"):
        encode(np.array([1.5]), "update", 3, bound=math.inf)
    with pytest.raises(RingError, match="sites cannot add"):
        encode(np.array([1.5]), "sum", MOST_SITES + 1)
