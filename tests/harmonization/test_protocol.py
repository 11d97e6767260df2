import numpy as np
import pytest

from harmonization import (
    ANALYSES,
    ComBat,
    CrossValidatedRidge,
    HarmonizationError,
    Projection,
    Quantiles,
    Residualization,
    RidgeRegression,
    SecondMoments,
    SiteClassification,
    SiteTable,
    SiteVariance,
    TableError,
    Unharmonized,
    add_sums,
    make_analysis,
    run_pooled,
)
from tests.support.sites import make_sites

EVERY = [
    ComBat(),
    CrossValidatedRidge(method="combat"),
    Projection(5),
    Quantiles((0.25, 0.5)),
    Residualization(),
    RidgeRegression(2.0),
    SecondMoments(4),
    SiteClassification(method="combat", permutations=5),
    SiteVariance(),
    Unharmonized(),
]


def tables() -> list[SiteTable]:
    sites = make_sites((20, 14, 31), 12, offset=100.0)
    return [
        SiteTable(t.features, t.covariates, np.eye(3)[np.full(t.n, number)], seed=number)
        for number, t in enumerate(sites.tables)
    ]


def test_every_analysis_is_tried_here():
    assert {analysis.name for analysis in EVERY} == set(ANALYSES)


@pytest.mark.parametrize("analysis", EVERY, ids=lambda analysis: analysis.name)
def test_the_wire_changes_nothing(analysis):
    """Parameters and every state go through JSON and arrays, as between coordinator and sites."""
    over_the_wire = make_analysis(analysis.name, analysis.parameters())
    state = None
    while state is None or not state.done:
        total = add_sums([over_the_wire.summarize(table, state) for table in tables()])
        solved = analysis.solve(total, state)
        state = over_the_wire.read_state(solved.kind, solved.to_arrays())
        assert type(state) is type(solved)

    expected = run_pooled(analysis, tables()).to_arrays()
    for name, values in state.to_arrays().items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("analysis", [Projection(5), RidgeRegression()], ids=lambda analysis: analysis.name)
def test_how_rows_are_spread_over_sites_does_not_matter(analysis):
    whole = tables()[0]
    halves = [SiteTable(whole.features[rows], target=whole.target[rows]) for rows in (slice(0, 7), slice(7, 20))]

    pooled, split = run_pooled(analysis, [whole]).to_arrays(), run_pooled(analysis, halves).to_arrays()

    for name, values in pooled.items():
        np.testing.assert_allclose(split[name], values, atol=1e-9)


def test_refuses_sums_that_do_not_fit():
    with pytest.raises(HarmonizationError, match="different shapes"):
        add_sums([{"n": np.zeros(2)}, {"n": np.zeros(3)}])
    with pytest.raises(HarmonizationError, match="different shapes"):
        add_sums([{"n": np.zeros(2)}, {"m": np.zeros(2)}])


def test_refuses_unknown_analyses_parameters_and_states():
    with pytest.raises(HarmonizationError, match="'kriging' is not known"):
        make_analysis("kriging", {})
    with pytest.raises(HarmonizationError, match="does not take"):
        make_analysis("projection", {"components": 3})
    with pytest.raises(HarmonizationError, match="no state 'Centre2'"):
        Projection(3).read_state("Centre2", {})


@pytest.mark.parametrize(
    "broken",
    [
        {"features": np.zeros(3)},
        {"features": np.zeros((0, 2))},
        {"features": np.array([[np.nan, 1.0]])},
        {"features": np.zeros((3, 2)), "covariates": np.zeros((2, 1))},
        {"features": np.zeros((3, 2)), "target": np.array([1.0, np.inf, 0.0])},
    ],
)
def test_refuses_broken_tables(broken):
    with pytest.raises(TableError):
        SiteTable(**broken)


def test_only_frames_may_lack_values():
    assert SiteTable(np.array([[np.nan, 1.0]]), frames=True).n == 1
    with pytest.raises(TableError):
        SiteTable(np.array([[np.inf, 1.0]]), frames=True)
