"""Every analysis over participants gives at the sites what it gives on pooled rows, whatever the data.

Another analysis is tried by another `Case` in CASES.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from harmonization import (
    ANALYSES,
    CCA,
    Analysis,
    ComBat,
    ComBatGAM,
    ContentStyle,
    CovarianceDistance,
    CovBat,
    CrossValidatedCCA,
    CrossValidatedLogistic,
    CrossValidatedPermanova,
    CrossValidatedRidge,
    Harmonizer,
    LateFusion,
    LinearRegression,
    LogisticRegression,
    LongitudinalComBat,
    Permanova,
    Projection,
    Residualization,
    RidgeRegression,
    SiteAdversarial,
    SiteClassification,
    SiteNetwork,
    SiteSpread,
    SiteTable,
    SiteVariance,
    SoftmaxRegression,
    State,
    TwoTower,
    Unharmonized,
    add_sums,
    make_analysis,
)
from harmonization.core.registry import is_ours
from tests.support import pooled
from tests.support.conditioning import assert_as_exact_as_data, tolerance
from tests.support.people import People, make_people
from tests.support.pooled import Answer, Tables


@dataclass(frozen=True)
class Case:
    """How to try one analysis.

    Attributes
    ----------
    make : callable
        The analysis for some people.
    expected : callable or None
        Fields of its answer, by other means, from pooled people, the analysis and its tables; None if nobody else
        computes it.
    moved : callable or None
        Fields of its answer when features become ``factor * features + shift``, from its answer; None if they follow
        no rule.
    rows : callable or None
        Harmonized rows, by other means.
    target : {"number", "site", "labels", "classes"} or None
        What the tables' target is; classes are one-hot.
    n_classes : int
        Of labels and classes.
    repeats : bool
        Whether participants may have several rows.
    categories : bool
        Whether covariates may be rare categories. In training folds these could become constant.
    suits : callable
        Whether the analysis accepts people at all; others are passed over.
    solver : float
        How far from its answer the solver behind `expected` stops, relative to the answer's size.
    """

    make: Callable[[People], Analysis]
    expected: Callable[[People, Any, Tables], Answer] | None = None
    moved: Callable[[Answer, float, float], Answer] | None = None
    rows: Callable[[People, Any, Tables], np.ndarray] | None = None
    target: str | None = None
    n_classes: int = 2
    repeats: bool = False
    categories: bool = True
    suits: Callable[[People], bool] = lambda people: True
    solver: float = 0.0

    def people(self, drawn: dict[str, Any]) -> People:
        people = make_people(**drawn, categories=self.categories)
        assume(self.suits(people))
        return people

    def tables(self, people: People) -> Tables:
        targets = {
            None: None,
            "number": people.number,
            "site": people.one_hot,
            "labels": people.labels(self.n_classes),
            "classes": np.eye(self.n_classes)[people.labels(self.n_classes)],
        }
        target = targets[self.target]
        return [
            SiteTable(
                people.features[rows],
                people.covariates[rows],
                None if target is None else target[rows],
                people.second[rows],
                site=f"site {number}",
                participant=people.participant[rows] if self.repeats else None,
                seed=number,
            )
            for number, rows in enumerate(people.rows)
        ]


# --- answers in other units ------------------------------------------------------------------------------------------


def unchanged(answer: Answer, factor: float, shift: float) -> Answer:
    return answer


def in_units(**powers: float | str) -> Callable[[Answer, float, float], Answer]:
    """Rule of an answer whose fields have powers of the features' unit; "place" moves along, others stay."""

    def moved(answer: Answer, factor: float, shift: float) -> Answer:
        return {
            name: factor * values + shift if powers.get(name) == "place" else factor ** powers.get(name, 0) * values
            for name, values in answer.items()
        }

    return moved


def only(*names: str) -> Callable[[Answer, float, float], Answer]:
    """Rule of an answer of which some fields stay, and others follow no rule."""
    return lambda answer, factor, shift: {name: answer[name] for name in names}


def of_unpenalised(answer: Answer, factor: float, shift: float) -> Answer:
    coef = answer["coef"] / factor
    return {"coef": coef, "intercept": answer["intercept"] - shift * coef.sum()}


of_combat = in_units(coefficients=1, grand_mean="place", pooled_variance=2)
of_longitudinal = in_units(coefficients=1, grand_mean="place", within=2, between=2)
of_covbat = in_units(coefficients=1, grand_mean="place", pooled_variance=2, residual_mean=1, residual_sd=1)
of_projection = in_units(mean="place", explained_variance=2, total_variance=2)

# --- people that analyses accept -------------------------------------------------------------------------------------


def has_many(people: People) -> bool:
    """Enough rows to tell features apart."""
    return len(people.site) > 2 * people.features.shape[1] + 10


def has_curve(people: People) -> bool:
    """A covariate, and enough rows for its splines."""
    q = people.covariates.shape[1]
    return q > 0 and len(people.site) > 5 * (q + 4)


def has_large_sites(people: People) -> bool:
    """Enough rows to hold some out at each site, and to tell the effects of covariates from the others."""
    return min(map(len, people.rows)) >= max(10, 4 * people.covariates.shape[1])


def sites_of(people: People) -> tuple[str, ...]:
    return tuple(f"site {number}" for number in range(len(people.rows)))


TARGETS = {"number": "number", "category": "classes", "": None}
CASES = [
    Case(lambda people: CCA(2), pooled.canonical_correlations, in_units(x_weights=-1, x_mean="place"), suits=has_many),
    Case(lambda people: CCA(2, shrinkage=0.1), pooled.canonical_correlations, in_units(x_weights=-1, x_mean="place")),
    Case(lambda people: ComBat(), pooled.combat_model, of_combat, pooled.combat_rows),
    Case(lambda people: ComBat(prior="none"), pooled.combat_model, of_combat, pooled.combat_rows),
    Case(lambda people: ComBat(prior="nonparametric"), pooled.combat_model, of_combat),
    Case(lambda people: ComBat(mean_only=True), pooled.combat_model, of_combat),
    Case(lambda people: ComBat(reference="site 1"), pooled.combat_of_reference, of_combat),
    Case(
        lambda people: ComBatGAM(smooth=((0, -3.0, 3.0),), n_splines=5, penalties=(3.0,)),
        pooled.penalized_splines,
        of_combat,
        suits=has_curve,
        categories=False,
    ),
    Case(
        lambda people: ComBatGAM(smooth=((0, -3.0, 3.0),), n_splines=5),
        None,
        of_combat,
        suits=has_curve,
        categories=False,
    ),
    Case(
        lambda people: LongitudinalComBat(),
        pooled.random_intercepts,
        of_longitudinal,
        repeats=True,
        suits=lambda people: len(people.site) > people.participant[-1] + 1 + people.covariates.shape[1],
    ),
    Case(lambda people: ContentStyle(rounds=2, local_steps=2), moved=only("typical", "weights", "loss")),
    Case(lambda people: CovBat(), pooled.combat_model, of_covbat, pooled.covbat_rows),
    Case(lambda people: CovBat(variance=0.5, prior="none"), pooled.combat_model, of_covbat, pooled.covbat_rows),
    Case(lambda people: CovarianceDistance(), pooled.covariance_distance, unchanged),
    Case(lambda people: CovarianceDistance(correlation=True), pooled.covariance_distance, unchanged),
    Case(
        lambda people: CrossValidatedCCA(2, n_folds=2, permutations=3, shrinkage=0.2),
        pooled.held_out_correlations,
        unchanged,
        suits=has_large_sites,
        categories=False,
    ),
    Case(
        lambda people: CrossValidatedLogistic(n_folds=3, Cs=(0.1,)),
        pooled.cross_validated_classes,
        only("log_loss", "accuracy", "balanced_accuracy", "auroc"),
        target="classes",
        suits=lambda people: people.every_class_is_shared(2) and people.features.shape[1] < 80,
        solver=1e-7,
    ),
    Case(
        lambda people: CrossValidatedLogistic(n_folds=3, Cs=(0.1,)),
        pooled.cross_validated_classes,
        only("log_loss", "accuracy", "balanced_accuracy", "auroc"),
        target="classes",
        n_classes=3,
        suits=lambda people: people.every_class_is_shared(3) and people.features.shape[1] < 20,
        solver=1e-7,
    ),
    Case(
        lambda people: CrossValidatedRidge(n_folds=3, alphas=(3.0,)),
        pooled.cross_validated_ridge,
        unchanged,
        target="number",
    ),
    Case(
        lambda people: CrossValidatedRidge(sites=sites_of(people), alphas=(3.0,)),
        pooled.cross_validated_ridge,
        unchanged,
        target="number",
    ),
    Case(
        lambda people: CrossValidatedPermanova(n_folds=3, permutations=3, sizes=(2, 1, 1)),
        pooled.permanova_in_folds,
        unchanged,
        suits=lambda people: len(people.site) > 3 * len(people.rows) + 2 * people.covariates.shape[1] + 3,
    ),
    Case(lambda people: LateFusion(n_folds=3, alphas=(3.0,)), pooled.fusion, unchanged, target="number"),
    Case(lambda people: LinearRegression(), pooled.linear, of_unpenalised, target="number", suits=has_many),
    Case(lambda people: LogisticRegression(0.1), pooled.classes, None, target="labels", solver=1e-7),
    Case(lambda people: Permanova(5, (2, 1, 1)), pooled.permanova, unchanged),
    Case(
        lambda people: Projection(min(people.features.shape[1], len(people.site) // 2)),
        pooled.principal_components,
        of_projection,
    ),
    Case(lambda people: Residualization(), pooled.residualization, in_units(coefficients=1, mean="place")),
    Case(lambda people: Residualization(site=False), pooled.residualization, in_units(coefficients=1, mean="place")),
    Case(lambda people: RidgeRegression(2.0), pooled.ridge, target="number"),
    Case(
        lambda people: SiteAdversarial(rounds=2, sites=sites_of(people)),
        suits=lambda people: has_many(people) and people.features.shape[1] > 2 * (people.site.max() + 1),
    ),
    Case(
        lambda people: SiteClassification(n_folds=3, permutations=3),
        pooled.discriminants,
        unchanged,
        target="site",
        categories=False,
        suits=lambda people: people.covariates.shape[1] <= len(people.site) / 6,
    ),
    Case(
        lambda people: SiteNetwork(n_folds=2, permutations=1, rounds=2),
        target="site",
        categories=False,
        suits=lambda people: people.covariates.shape[1] <= len(people.site) / 8,
    ),
    Case(lambda people: SiteSpread(), pooled.spread, unchanged),
    Case(lambda people: SiteSpread("mean"), pooled.spread, unchanged),
    Case(lambda people: SiteVariance(), pooled.eta_squared, unchanged),
    Case(
        lambda people: SoftmaxRegression(0.1, 3),
        pooled.classes,
        target="labels",
        n_classes=3,
        suits=lambda people: people.features.shape[1] < 100,
        solver=1e-7,
    ),
    Case(
        lambda people: TwoTower(rounds=2, local_steps=2, width=2, permutations=3),
        moved=only("loss", "scores", "null"),
        suits=has_large_sites,
    ),
    Case(lambda people: Unharmonized(), None, unchanged, lambda people, analysis, tables: people.features),
    *(
        Case(lambda people, kind=kind: kind(), target=TARGETS[getattr(kind, "predicts", "")], suits=has_large_sites)
        for kind in ANALYSES.values()
        if not is_ours(kind.name) and kind.rows == "participants"
    ),
]
"""Every analysis over participants, with the options that change its sums; and those of other packages."""

SOMEBODY = make_people([5, 9, 4], 3, 2, 0, 0.0, True)


def name_of(case: Case) -> str:
    return case.make(SOMEBODY).name


def over_the_wire(analysis: Analysis, tables: Tables) -> State:
    """Final state, when parameters and states travel as between coordinator and sites."""
    at_sites = make_analysis(analysis.name, json.loads(json.dumps(analysis.parameters())))
    state = None
    while state is None or not state.done:
        solved = analysis.solve(add_sums([at_sites.summarize(table, state) for table in tables]), state)
        state = at_sites.read_state(solved.kind, solved.to_arrays())
    return state


def people_of(most_at_a_site: int, most_features: int) -> st.SearchStrategy[dict[str, Any]]:
    """What `make_people` draws from; most sites are small, and most people have few features."""
    small, large = st.integers(3, 20), st.integers(3, most_at_a_site)
    few, many = st.integers(2, 20), st.integers(2, most_features)
    return st.fixed_dictionaries(
        {
            "sizes": st.lists(small | large, min_size=2, max_size=8),
            "p": few | many,
            "q": st.integers(0, 6),
            "seed": st.integers(0, 2**31),
            "offset": st.sampled_from([0.0, 1e6]) | st.floats(-1e6, 1e6),
        }
    )


anybody = people_of(400, 40) | people_of(40, 500)


def test_every_analysis_over_participants_is_tried_here():
    missing = {name for name, kind in ANALYSES.items() if kind.rows == "participants"} - set(map(name_of, CASES))
    assert not missing, f"{', '.join(sorted(missing))}: add a Case to CASES in tests/harmonization/test_pooled.py"


@dataclass(frozen=True)
class Trial:
    """An analysis of people who were drawn, and how exact its answers can be."""

    case: Case
    people: People

    @property
    def analysis(self) -> Any:
        return self.case.make(self.people)

    def in_units(self, factor: float, shift: float) -> "Trial":
        return Trial(self.case, replace(self.people, features=factor * self.people.features + shift))

    def answer(self, *data: np.ndarray, order: Callable[[Tables], Tables] = list) -> Answer:
        """Final state over the wire; of the people's own features, covariates and second view if none are given."""
        tables = order(self.case.tables(self._with(*data)))
        return over_the_wire(self.analysis, tables).to_arrays()

    def rows(self, *data: np.ndarray, order: Callable[[Tables], Tables] = list) -> np.ndarray:
        """Harmonized rows [n, p]."""
        tables = self.case.tables(self._with(*data))
        model = over_the_wire(self.analysis, order(tables))
        return np.concatenate([self.analysis.harmonize(model, table) for table in tables])

    def tolerance(self, answer: Callable[..., Any], least: float = 0.0) -> Any:
        people = self.people
        return tolerance(answer, people.features, people.covariates, people.second, least=least)

    def _with(self, *data: np.ndarray) -> People:
        return replace(self.people, **dict(zip(("features", "covariates", "second"), data, strict=False)))


@pytest.mark.parametrize("case", [case for case in CASES if case.expected], ids=name_of)
@settings(max_examples=5)
@given(drawn=anybody)
def test_sites_give_the_answer_of_pooled_rows(case, drawn):
    trial = Trial(case, case.people(drawn))

    expected = case.expected(trial.people, trial.analysis, case.tables(trial.people))

    assert_as_exact_as_data(trial.answer(), expected, trial.tolerance(trial.answer), case.solver)


@pytest.mark.parametrize("case", [case for case in CASES if case.rows], ids=name_of)
@settings(max_examples=3)
@given(drawn=anybody)
def test_sites_harmonize_as_pooled_rows_are(case, drawn):
    trial = Trial(case, case.people(drawn))

    expected = case.rows(trial.people, trial.analysis, case.tables(trial.people))

    np.testing.assert_allclose(trial.rows(), expected, rtol=0, atol=trial.tolerance(trial.rows))


FAR_FROM_ZERO = {"sizes": [29, 31, 39], "p": 5, "q": 5, "seed": 24174, "offset": 1e6}
"""People in whom a mean that is rounded to its last digit once told on the networks."""


@pytest.mark.parametrize("case", CASES, ids=name_of)
@settings(max_examples=3)
@given(drawn=anybody, factor=st.sampled_from([1.0, 0.1, 16.0]), shift=st.floats(-1e3, 1e3), order=st.randoms())
@example(drawn=FAR_FROM_ZERO, factor=1.0, shift=-918.052952, order=Random(0))
def test_neither_order_of_sites_nor_units_matter(case, drawn, factor, shift, order):
    trial = Trial(case, case.people(drawn))
    answer = trial.answer()

    def shuffled(tables: Tables) -> Tables:
        return order.sample(tables, len(tables))

    assert_as_exact_as_data(trial.answer(order=shuffled), answer, trial.tolerance(trial.answer))
    if case.moved:
        elsewhere = trial.in_units(factor, shift)
        bounds = elsewhere.tolerance(elsewhere.answer, factor * np.abs(trial.people.features).max())
        moved = case.moved(answer, factor, shift)
        assert_as_exact_as_data(elsewhere.answer(order=shuffled), moved, bounds)


@pytest.mark.parametrize("case", [case for case in CASES if isinstance(case.make(SOMEBODY), Harmonizer)], ids=name_of)
@settings(max_examples=3)
@given(drawn=anybody, factor=st.sampled_from([0.1, 16.0]), shift=st.floats(-1e3, 1e3), order=st.randoms())
@example(drawn=FAR_FROM_ZERO, factor=0.1, shift=-918.052952, order=Random(0))
def test_harmonized_rows_are_the_same_in_any_order_and_unit(case, drawn, factor, shift, order):
    trial = Trial(case, case.people(drawn))
    elsewhere = trial.in_units(factor, shift)

    found = elsewhere.rows(order=lambda tables: order.sample(tables, len(tables)))

    bound = elsewhere.tolerance(elsewhere.rows, factor * np.abs(trial.people.features).max())
    np.testing.assert_allclose(found, factor * trial.rows() + shift, rtol=0, atol=bound)
