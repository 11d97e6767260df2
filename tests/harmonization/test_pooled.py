"""Every analysis over participants gives at the sites what it gives on pooled rows, whatever the data.

Another analysis is tried by another `Case` in CASES.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
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
from tests.support import pooled
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
    tolerance : float
        Largest error, in units of the answer's spread.
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
    tolerance: float = 1e-8

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
        tolerance=1e-7,
    ),
    Case(
        lambda people: CrossValidatedLogistic(n_folds=3, Cs=(0.1,)),
        pooled.cross_validated_classes,
        only("log_loss", "accuracy", "balanced_accuracy", "auroc"),
        target="classes",
        n_classes=3,
        suits=lambda people: people.every_class_is_shared(3) and people.features.shape[1] < 20,
        tolerance=1e-7,
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
    Case(lambda people: LogisticRegression(0.1), pooled.classes, None, target="labels", tolerance=1e-7),
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
        tolerance=1e-7,
    ),
    Case(
        lambda people: TwoTower(rounds=2, local_steps=2, width=2, permutations=3),
        moved=only("loss", "scores", "null"),
        suits=has_large_sites,
    ),
    Case(lambda people: Unharmonized(), None, unchanged, lambda people, analysis, tables: people.features),
]
"""Every analysis over participants, with the options that change its sums."""

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


def assert_equal(found: Answer, expected: Answer, tolerance: float = 1e-8) -> None:
    """Compare the expected fields in units of their spread, so that an offset allows for nothing but its rounding.

    Where the truth is 0, to a hundredth of the tolerance.
    """
    for name, values in expected.items():
        location = np.median(values) if np.size(values) > 1 else 0.0
        scale = max(np.abs(values - location).max(initial=0), 1e-6 * np.abs(values).max(initial=0)) or 1.0
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance * scale + 0.01 * tolerance, err_msg=name)


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


@pytest.mark.parametrize("case", [case for case in CASES if case.expected], ids=name_of)
@settings(max_examples=8, deadline=None)
@given(drawn=anybody)
def test_sites_give_the_answer_of_pooled_rows(case, drawn):
    people = case.people(drawn)
    analysis, tables = case.make(people), case.tables(people)

    found = over_the_wire(analysis, tables).to_arrays()

    assert_equal(found, case.expected(people, analysis, tables), case.tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if case.rows], ids=name_of)
@settings(max_examples=5, deadline=None)
@given(drawn=anybody)
def test_sites_harmonize_as_pooled_rows_are(case, drawn):
    people = case.people(drawn)
    analysis, tables = case.make(people), case.tables(people)

    model = over_the_wire(analysis, tables)
    found = np.concatenate([analysis.harmonize(model, table) for table in tables])

    assert_equal({"rows": found}, {"rows": case.rows(people, analysis, tables)}, case.tolerance)


@pytest.mark.parametrize("case", CASES, ids=name_of)
@settings(max_examples=5, deadline=None)
@given(drawn=anybody, factor=st.sampled_from([1.0, 0.1, 16.0]), shift=st.floats(-1e3, 1e3), order=st.randoms())
def test_neither_order_of_sites_nor_units_matter(case, drawn, factor, shift, order):
    people = case.people(drawn)
    analysis, tables = case.make(people), case.tables(people)
    answer = over_the_wire(analysis, tables).to_arrays()
    order.shuffle(tables)

    assert_equal(over_the_wire(analysis, tables).to_arrays(), answer, case.tolerance)
    if case.moved:
        elsewhere = [replace(table, features=factor * table.features + shift) for table in tables]
        found = over_the_wire(analysis, elsewhere).to_arrays()
        # Other units round the features otherwise, and a site of three can magnify that.
        assert_equal(found, case.moved(answer, factor, shift), 10 * case.tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if isinstance(case.make(SOMEBODY), Harmonizer)], ids=name_of)
@settings(max_examples=5, deadline=None)
@given(drawn=anybody, factor=st.sampled_from([0.1, 16.0]), shift=st.floats(-1e3, 1e3), order=st.randoms())
def test_harmonized_rows_are_the_same_in_any_order_and_unit(case, drawn, factor, shift, order):
    people = case.people(drawn)
    analysis, tables = case.make(people), case.tables(people)
    model = over_the_wire(analysis, tables)
    harmonized = [analysis.harmonize(model, table) for table in tables]
    elsewhere = [replace(table, features=factor * table.features + shift) for table in tables]
    shuffled = order.sample(elsewhere, len(elsewhere))

    model = over_the_wire(analysis, shuffled)

    for table, expected in zip(elsewhere, harmonized, strict=True):
        assert_equal({"rows": analysis.harmonize(model, table)}, {"rows": factor * expected + shift}, 1e-7)
