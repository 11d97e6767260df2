import numpy as np
import pytest

from harmonization import (
    ANALYSES,
    CrossValidatedCCA,
    CrossValidatedLogistic,
    CrossValidatedPermanova,
    CrossValidatedRidge,
    HarmonizationError,
    LateFusion,
    Projection,
    Quantiles,
    RidgeRegression,
    SecondMoments,
    SiteClassification,
    SiteNetwork,
    SiteTable,
    TableError,
    add_sums,
    make_analysis,
    run_pooled,
)
from harmonization.core.protocol import Stage
from harmonization.methods.harmonizer import Harmonizer
from harmonization.probes.crossvalidation import CrossValidation
from tests.harmonization.test_pooled import CASES, name_of
from tests.support.people import make_people

PEOPLE = make_people([20, 14, 31], 12, 2, 0, 100.0, True)
OF_PEOPLE = {name_of(case): case for case in reversed(CASES)}
"""The first case of each analysis."""
OTHERS = (
    Quantiles((0.25, 0.5)),
    SecondMoments(4),
    CrossValidatedCCA(2, n_folds=2, permutations=5, message_floats=1000),
    CrossValidatedLogistic(method="combat", Cs=(1.0, 10.0)),
    CrossValidatedPermanova(method="combat", permutations=3, sizes=(20, 30)),
    CrossValidatedRidge(method="combat"),
    LateFusion(method="combat"),
    SiteClassification(method="combat", permutations=5),
    SiteNetwork(method="combat", permutations=2, rounds=3),
)
"""Those of frames, and with what more sums go along."""
EVERY = [*({name: case.make(PEOPLE) for name, case in OF_PEOPLE.items()} | {one.name: one for one in OTHERS}).values()]


def tables(name: str = RidgeRegression.name) -> list[SiteTable]:
    return OF_PEOPLE.get(name, OF_PEOPLE[RidgeRegression.name]).tables(PEOPLE)


def test_every_analysis_is_tried_here():
    assert {analysis.name for analysis in EVERY} == set(ANALYSES)


@pytest.mark.parametrize("analysis", EVERY, ids=lambda analysis: analysis.name)
def test_the_wire_changes_nothing(analysis):
    """Parameters and every state go through JSON and arrays, as between coordinator and sites."""
    over_the_wire = make_analysis(analysis.name, analysis.parameters())
    rows = tables(analysis.name)
    state = None
    while state is None or not state.done:
        total = add_sums([over_the_wire.summarize(table, state) for table in rows])
        solved = analysis.solve(total, state)
        state = over_the_wire.read_state(solved.kind, solved.to_arrays())
        assert type(state) is type(solved)

    expected = run_pooled(analysis, rows).to_arrays()
    for name, values in state.to_arrays().items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("analysis", [Projection(5), RidgeRegression()], ids=lambda analysis: analysis.name)
def test_how_rows_are_spread_over_sites_does_not_matter(analysis):
    whole = tables()[0]
    halves = [SiteTable(whole.features[rows], target=whole.target[rows]) for rows in (slice(0, 7), slice(7, 20))]

    pooled, split = run_pooled(analysis, [whole]).to_arrays(), run_pooled(analysis, halves).to_arrays()

    for name, values in pooled.items():
        np.testing.assert_allclose(split[name], values, atol=1e-9)


@pytest.mark.parametrize("analysis", [a for a in EVERY if a.additive], ids=lambda analysis: analysis.name)
def test_sums_of_additive_analyses_are_sums_of_each_row_in_every_round(analysis):
    """What noise on sums counts on: nothing of a participant's share depends on who else is there."""
    rows = tables(analysis.name)
    state = None
    while state is None or not state.done:
        for table in rows:
            alone = add_sums([analysis.summarize(table.take(np.array([row])), state) for row in range(table.n)])
            together = analysis.summarize(table, state)
            assert alone.keys() == together.keys()
            for name, values in together.items():
                scale = np.abs(values).max() + 1e-12
                np.testing.assert_allclose(alone[name] / scale, values / scale, rtol=0, atol=1e-9, err_msg=name)
        state = analysis.solve(add_sums([analysis.summarize(table, state) for table in rows]), state)


@pytest.mark.parametrize("analysis", EVERY, ids=lambda analysis: analysis.name)
def test_every_round_sends_what_is_declared_and_nothing_else(analysis):
    rows = tables(analysis.name)
    state = None
    while state is None or not state.done:
        declared = analysis.sends(rows[0].widths, state)
        for table in rows:
            sums = analysis.summarize(table, state)
            assert {name: values.shape for name, values in sums.items()} == {
                name: sent.shape for name, sent in declared.items()
            }
            assert {values.dtype for values in sums.values()} <= {np.dtype(np.float64)}
        state = analysis.solve(add_sums([analysis.summarize(table, state) for table in rows]), state)


@pytest.mark.parametrize("method", [a for a in EVERY if isinstance(a, Harmonizer)], ids=lambda method: method.name)
def test_what_a_site_may_show_of_itself_is_what_is_declared(method):
    rows = tables(method.name)
    model = run_pooled(method, rows)

    effect = method.estimate(model, rows[0]).to_arrays()

    declared = method.effect_shapes(model, rows[0].features.shape[1])
    assert {name: values.shape for name, values in effect.items()} == declared


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


@pytest.mark.parametrize("analysis", EVERY, ids=lambda analysis: analysis.name)
def test_every_state_is_a_stage_or_an_answer_after_which_nothing_is_summed(analysis):
    assert all(state.done or issubclass(state, Stage) for state in analysis.states)
    rows = tables(analysis.name)
    if hasattr(analysis, "first") and not isinstance(analysis, CrossValidation):
        with pytest.raises(HarmonizationError, match=f"is an answer of '{analysis.name}'"):
            analysis.summarize(rows[0], run_pooled(analysis, rows))


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
