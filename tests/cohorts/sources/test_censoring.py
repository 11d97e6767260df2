import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from cohorts.sources.censoring import interpolate_censored


@settings(deadline=None)
@example([True] * 20, 0)
@given(st.lists(st.booleans(), min_size=5, max_size=60).filter(lambda kept: sum(kept) >= 2), st.integers(0, 2**32 - 1))
def test_filling_keeps_the_kept_and_holds_the_ends(kept, seed):
    where = np.flatnonzero(kept)
    signals = np.random.default_rng(seed).standard_normal((len(where), 3)).astype(np.float32)
    filled = interpolate_censored(signals, np.array(kept))
    assert filled.dtype == np.float32
    assert (filled[where] == signals).all()
    assert (filled[: where[0]] == signals[0]).all()
    assert (filled[where[-1] :] == signals[-1]).all()
    between = slice(where[0], where[-1] + 1)
    assert filled[between] == pytest.approx(
        CubicSpline(where, signals.astype(float))(np.arange(len(kept)))[between], rel=1e-5
    )


@pytest.mark.parametrize("n_kept", [1, 2, 3])
def test_few_kept_frames_are_enough(n_kept):
    kept = np.isin(np.arange(9), np.linspace(1, 7, n_kept).astype(int))
    assert np.isfinite(interpolate_censored(np.ones((n_kept, 4), np.float32), kept)).all()


def test_a_missing_parcel_stays_missing_and_harms_no_other():
    kept = np.array([True, True, False, True, True])
    signal = np.array([[0.0, np.nan, 1], [1, np.nan, 2], [3, np.nan, np.inf], [4, np.nan, 4]], np.float32)
    filled = interpolate_censored(signal, kept)
    np.testing.assert_allclose(filled[:, 0], np.arange(5), atol=1e-6)
    assert np.isnan(filled[:, 1]).all()
    np.testing.assert_array_equal(filled[:, 2], np.array([1, 2, np.nan, np.inf, 4], np.float32))
