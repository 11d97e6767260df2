import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from harmonization.methods.empirical_bayes import raw_effects, shrink


def standardized(n: int, p: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=p) + np.exp(0.3 * rng.normal(size=p)) * rng.normal(size=(n, p))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 12),
    p=st.integers(2, 30),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0, 1e-8, 1, 1e4]),
    shift=st.sampled_from([0, -1, 1e3]),
    scale=st.sampled_from([0, 1, 5]),
    constant=st.integers(0, 2),
)
def test_every_site_gets_finite_effects(n, p, seed, spread, shift, scale, constant):
    """Sites of two people, features alike to the last bit, constant ones, scales that differ by powers of ten."""
    rng = np.random.default_rng(seed)
    z = np.exp(scale * rng.normal(size=p)) * rng.normal(size=(n, p)) + spread * rng.normal(size=p) + shift
    z[:, :constant] = z[0, :constant]
    for prior in ("parametric", "nonparametric", "none"):
        for mean_only in (False, True):
            gamma, delta = shrink(raw_effects(z, mean_only), prior, mean_only)
            assert np.isfinite(gamma).all()
            assert (np.isfinite(delta) & (delta > 0)).all()


def test_parametric_effects_lie_between_the_feature_and_its_prior():
    raw = raw_effects(standardized(8, 300), mean_only=False)

    gamma, delta = shrink(raw, "parametric", mean_only=False)

    between = (gamma - raw.gamma) * (raw.gamma.mean() - gamma)
    assert (between >= 0).all()
    assert gamma.var() < raw.gamma.var()
    assert delta.var() < raw.delta.var()


def test_scales_that_are_all_alike_stay_and_shifts_shrink():
    column = np.random.default_rng(0).normal(size=9)
    raw = raw_effects(np.column_stack([column, column + 1, column + 5]), mean_only=False)

    gamma, delta = shrink(raw, "parametric", mean_only=False)

    np.testing.assert_allclose(delta, column.var(ddof=1))
    t2, d = raw.gamma.var(ddof=1), delta[0]
    np.testing.assert_allclose(gamma, (9 * t2 * raw.gamma + d * raw.gamma.mean()) / (9 * t2 + d))


def test_shift_of_exactly_zero_settles():
    """The relative step of a shift that stays 0 is 0 / 0."""
    z = standardized(10, 4)
    z = np.column_stack([z - z.mean(axis=0), np.arange(10) - 4.5])
    z[:, 0], z[:, 1] = z[:, 0] + 1, z[:, 1] - 1
    raw = raw_effects(np.round(z * 2**20) / 2**20, mean_only=False)
    assert raw.gamma[4] == 0

    gamma, delta = shrink(raw, "parametric", mean_only=False)

    assert np.isfinite([gamma, delta]).all()


def test_nonparametric_effect_of_one_of_two_features_is_the_others():
    raw = raw_effects(standardized(10, 2), mean_only=False)

    gamma, delta = shrink(raw, "nonparametric", mean_only=False)

    np.testing.assert_allclose(gamma, raw.gamma[::-1])
    np.testing.assert_allclose(delta, raw.delta[::-1])


def test_nonparametric_effects_do_not_underflow_at_large_sites():
    """Densities of 2,000 rows are zero in floating point; their logarithms are not."""
    z = standardized(2000, 40)
    raw = raw_effects(z, mean_only=False)

    gamma, delta = shrink(raw, "nonparametric", mean_only=False)

    for feature in (0, 17):
        others = np.delete(np.arange(40), feature)
        squares = ((z[:, feature, None] - raw.gamma[others]) ** 2).sum(axis=0)
        log_likelihood = -1000 * np.log(2 * np.pi * raw.delta[others]) - squares / (2 * raw.delta[others])
        weights = np.exp(log_likelihood - logsumexp(log_likelihood))
        np.testing.assert_allclose(gamma[feature], weights @ raw.gamma[others], rtol=1e-8)
        np.testing.assert_allclose(delta[feature], weights @ raw.delta[others], rtol=1e-8)


def test_nonparametric_memory_is_bounded_and_blocks_do_not_matter():
    """All pairs of 3,000 features at once would be 72 MB for each array."""
    raw = raw_effects(standardized(20, 3000), mean_only=False)
    tracemalloc.start()
    gamma, _ = shrink(raw, "nonparametric", mean_only=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 60e6
    feature, others = 2999, np.arange(2999)
    squares = raw.squares[feature] + 20 * (raw.gamma[feature] - raw.gamma[others]) ** 2
    log_likelihood = -10 * np.log(raw.delta[others]) - squares / (2 * raw.delta[others])
    weights = np.exp(log_likelihood - log_likelihood.max())
    assert gamma[feature] == pytest.approx(weights @ raw.gamma[others] / weights.sum(), rel=1e-10)
