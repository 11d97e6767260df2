import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from cohorts.sources.censoring import interpolate_censored


def test_kept_frames_stay_and_a_cubic_comes_back():
    time = np.arange(40, dtype=np.float64)
    whole = np.column_stack([time, (time - 20) ** 3 / 100, np.full(40, 7.0)])
    kept = np.ones(40, bool)
    kept[[3, 10, 11, 12, 30]] = False
    filled = interpolate_censored(whole[kept].astype(np.float32), kept)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[kept], whole[kept].astype(np.float32))
    np.testing.assert_allclose(filled, whole, atol=1e-4)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=5, max_size=60).filter(lambda kept: sum(kept) >= 2), st.integers(0, 2**32 - 1))
def test_filling_keeps_the_kept_and_holds_the_ends(kept, seed):
    where = np.flatnonzero(kept)
    signals = np.random.default_rng(seed).standard_normal((len(where), 3))
    filled = interpolate_censored(signals, np.array(kept))
    assert (filled[where] == signals).all()
    assert (filled[: where[0]] == signals[0]).all()
    assert (filled[where[-1] :] == signals[-1]).all()
    between = slice(where[0], where[-1] + 1)
    assert filled[between] == pytest.approx(CubicSpline(where, signals)(np.arange(len(kept)))[between])


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


def test_nothing_censored_changes_nothing():
    signal = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_array_equal(interpolate_censored(signal, np.ones(20, bool)), signal)
