import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harmonization import HarmonizationError, Quantiles, SiteTable, add_sums, run_pooled
from harmonization.core.quantiles import BASE, LARGEST, SMALLEST, QuantileModel

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.9)

values = st.one_of(
    st.floats(-1e-3, 1e-3),
    st.floats(-10, 10),
    st.floats(-5e8, 5e8),
    st.sampled_from([0.0, 1.0, 900.0]),
    st.just(np.nan),
)


def frames(columns: np.ndarray) -> SiteTable:
    return SiteTable(columns, frames=True)


def measured(*tables: np.ndarray, probabilities: tuple[float, ...] = PROBABILITIES) -> QuantileModel:
    return run_pooled(Quantiles(probabilities), [frames(table) for table in tables])


@settings(max_examples=80, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=values))
def test_quantiles_are_numpy_s_within_the_resolution(table):
    model = measured(table)

    for column, found in enumerate(model.quantiles.T):
        known = table[~np.isnan(table[:, column]), column]
        assert model.n[column] == len(known)
        if len(known):
            expected = np.quantile(known, PROBABILITIES, method="inverted_cdf")
            assert (np.abs(found - expected) <= model.resolution[:, column] * (1 + 1e-6)).all()
            assert (model.resolution[:, column] <= 2e-6 * np.abs(expected) + 2e-9).all()
        else:
            assert np.isnan(found).all()


def test_raw_signals_are_resolved_far_below_their_spread():
    signal = np.random.default_rng(0).normal(12_000, 20, size=(5_000, 4))

    model = measured(signal, probabilities=(0.25, 0.5, 0.75))

    np.testing.assert_allclose(model.quantiles, np.quantile(signal, [0.25, 0.5, 0.75], axis=0), atol=0.1)
    assert (model.resolution < 0.05).all()


def test_the_sites_answer_is_the_pooled_one_to_the_last_bit():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(400, 6)).cumsum(axis=0)
    table[rng.random(table.shape) < 0.1] = np.nan

    pooled, federated = measured(table), measured(table[:17], table[17:230], table[230:])

    for name, expected in pooled.to_arrays().items():
        np.testing.assert_array_equal(federated.to_arrays()[name], expected)


def test_equal_values_have_no_range_between_their_quartiles():
    constant = np.column_stack([np.full(50, 812.25), np.zeros(50)])

    first, _, third = measured(constant, probabilities=(0.25, 0.5, 0.75)).quantiles

    np.testing.assert_array_equal(first, third)


def test_a_round_tells_counts_of_the_next_digit_alone():
    """Never a value: neither a smallest nor a largest one."""
    analysis, table = Quantiles((0.5,)), frames(np.arange(30.0)[:, None])

    first = analysis.summarize(table, None)
    brackets = analysis.solve(first, None)
    second = analysis.summarize(table, brackets)

    assert {name: sums.shape for name, sums in {**first, **second}.items()} == {"counts": (1, 1, 256)}
    assert first["counts"].sum() == 30
    assert second["counts"].sum() == first["counts"][0, 0, brackets.prefix[0, 0]]
    assert add_sums([first, first])["counts"].sum() == 60


def test_bins_are_as_wide_as_the_guide_says():
    """docs/privacy.md: an outer bin is a quarter wider than the one before it; the finest know a value to 2e-6."""
    probabilities = (0.1, 0.5, 0.9)
    values = np.random.default_rng(0).uniform(100, 1000, size=(5000, 1))
    model = measured(values, probabilities=probabilities)
    near = model.resolution / np.quantile(values, probabilities)[:, None]
    span = np.arcsinh(LARGEST / SMALLEST)
    edges = np.sinh(np.linspace(-span, span, BASE + 1)) * SMALLEST

    assert (np.abs(edges[-1]), edges[-1] / edges[-2]) == (pytest.approx(LARGEST), pytest.approx(1.25, abs=0.01))
    assert near.max() < 2e-6


@pytest.mark.parametrize("probabilities", [(), (0.0,), (0.5, 1.2)])
def test_refuses_what_is_no_probability(probabilities):
    with pytest.raises(HarmonizationError, match="expected some between 0 and 1"):
        Quantiles(probabilities)


def test_refuses_quantiles_beyond_the_grid_and_not_single_values():
    one_spike = np.append(np.random.default_rng(0).normal(size=99), 1e30)[:, None]

    assert abs(measured(one_spike, probabilities=(0.5,)).quantiles).max() < 1
    with pytest.raises(HarmonizationError, match=r"is about as large as 1e\+09"):
        measured(np.full((5, 1), 1e30), probabilities=(0.5,))


def test_values_beyond_the_grid_are_counted_at_its_end():
    """Even where their place would overflow; a quantile among the others is found all the same."""
    values = np.array([1.0, 2.0, 3.0, 1e307, 1.7e308])[:, None]

    model = run_pooled(Quantiles((0.5,)), [SiteTable(values, frames=True)])

    assert model.quantiles[0, 0] == pytest.approx(3.0, rel=2e-6)
