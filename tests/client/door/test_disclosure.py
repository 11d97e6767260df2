"""Attacks that work on raw sums, and what the site says when it is asked for those."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.door.disclosure import permit_declared, permit_sums, read_design
from client.door.ledger import Release, question_of_job
from client.door.policy import Policy
from client.features import FeatureSet, FeatureStore, find_table
from client.site import Site, find_site
from cohorts import Cohort, Recording
from exchange.messages import Job, TableSpec
from exchange.refusals import Refusal, RefusalCode
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
    Design,
    HarmonizationError,
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
    TwoTower,
    add_sums,
)
from harmonization.core.declared import Sent, Widths, by_part, everybody, network, of_groups, triangle
from harmonization.core.design import KNOWN, Categorical
from harmonization.core.protocol import State, Sums
from harmonization.core.symmetric import unpack
from tests.support.local_grid import write_site

N = 24
PEOPLE = [f"sub-{number:02d}" for number in range(N)]
CHECKED = {"min_participants": 10, "min_group": 5, "columns": ["age", "sex", "centre"], "min_change": 10}
"""Rules of the site: those of the default policy, beside a column of its own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cohort in which one person is of a centre of his own, and another's handedness is unknown."""
    folder = tmp_path_factory.mktemp("disclosure")
    people = pd.DataFrame({"participant_id": PEOPLE, "age": np.linspace(20.0, 80.0, N), "sex": ["F", "M"] * (N // 2)})
    people["centre"] = ["rare", *["usual"] * (N - 1)]
    people["handedness"] = [None, *["right"] * (N - 1)]
    cohort = Cohort.create(folder / "cohort", atlas="schaefer100", participants=people)
    for person in PEOPLE:
        signal = np.random.default_rng(0).normal(size=(30, 100)).astype(np.float32)
        cohort.add(Recording(person, signal, t_r=2.0))
    cohort.save()
    return folder


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, 4))


def open_site(folder, features: np.ndarray, name: str, **policy: object) -> Site:
    path = write_site(folder / name, "here", folder / "cohort", **{**CHECKED, "max_covariate_ratio": 0.33, **policy})
    site = find_site(Context(1, 1, {"site-config": str(path)}, RecordDict(), {}))
    FeatureStore(site.folder_of("s")).write("x", FeatureSet(PEOPLE, features))
    return site


@pytest.fixture
def site(folder, features, request) -> Site:
    return open_site(folder, features, request.node.name.partition("[")[0])


def refused(call: Callable[[], object]) -> RefusalCode:
    with pytest.raises(Refusal) as refusal:
        call()
    return refusal.value.code


def combat_of(site: Site, *covariates: object) -> dict[str, np.ndarray]:
    table = find_table(site, "s", TableSpec(features="x", covariates=Design(covariates).to_json()))
    return ComBat().summarize(table.rows, None)


# --- a category of one ------------------------------------------------------------------------------------------------


def test_a_category_of_one_gives_that_person_s_row(folder, features, site):
    centre = Categorical("centre", ("usual", "rare"))
    careless = open_site(folder, features, "careless", min_group=1)

    sums = combat_of(careless, centre)

    np.testing.assert_allclose(sums["V"][0] + sums["feature_sum"] / N, features[0])  # X'Y in the row of the rare centre
    assert refused(lambda: combat_of(site, centre)) is RefusalCode.GROUP


# --- columns that a caller defines ------------------------------------------------------------------------------------


def test_a_column_for_each_person_gives_all_rows(folder, features, site):
    """With as many covariates as people, X'Y is solved for Y by whoever knows or chose X."""
    ages = [str(age) for age in site.covariates["age"]]
    one_each = Categorical("age", tuple(ages))
    careless = open_site(folder, features, "careless", min_group=1, max_covariate_ratio=1.0)

    sums = combat_of(careless, one_each)

    np.testing.assert_allclose(sums["V"] + sums["feature_sum"] / N, features[1:])  # the first level has no column
    assert refused(lambda: combat_of(site, one_each)) is RefusalCode.GROUP
    assert refused(lambda: combat_of(site, *[KNOWN["age"]] * 8)) is RefusalCode.RATIO


@pytest.mark.parametrize("name", ["participant_id", "recording_id", "iq", "handedness"])
def test_columns_are_the_cohort_s_and_named(folder, features, name):
    star = open_site(folder, features, "star", columns=["*"])
    named = open_site(folder, features, "named")
    levels = Categorical(name, ("right", "left"))

    assert refused(lambda: combat_of(named, levels)) is RefusalCode.COLUMN
    if name == "handedness":
        combat_of(star, levels)
    else:
        assert refused(lambda: combat_of(star, levels)) is RefusalCode.COLUMN


@pytest.mark.parametrize("field", ["covariates", "complete"])
def test_columns_that_only_choose_people_are_named_too(site, field):
    spec = TableSpec(features="x", **{field: [{"name": "handedness", "levels": ["right"]}]})

    assert refused(lambda: find_table(site, "s", spec)) is RefusalCode.COLUMN
    assert refused(lambda: find_table(site, "s", TableSpec(features="x", target="handedness"))) is RefusalCode.COLUMN


@pytest.mark.parametrize(
    "content",
    [
        [{"center": 0.0, "scale": 1.0}],
        [{"name": "age"}],
        [{"name": "age", "center": 50.0, "scale": 0.0}],
        [{"name": "age", "center": float("nan"), "scale": 1.0}],
        [{"name": "age", "center": 0, "scale": 10**400}],
        [{"name": "sex", "levels": []}],
        ["age"],
        7,
    ],
)
def test_what_is_no_design_is_no_reason_for_an_internal_error(content):
    assert refused(lambda: read_design(content)) is RefusalCode.PROTOCOL


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([1e-320, 1e300, float("inf"), float("nan"), 50.0, "20.0", "F", "age", "x" * 9]),
    st.lists(st.sampled_from(["F", "M", "usual", "rare", "20.0", 3, None]), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
_NAMES = st.sampled_from(["age", "sex", "centre", "participant_id", "handedness", "__class__", 7, None])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(
        st.fixed_dictionaries(
            {}, optional={"name": _NAMES, "center": _VALUES, "scale": _VALUES, "levels": _VALUES, "extra": _VALUES}
        ),
        min_size=1,
        max_size=3,
    )
)
def test_whatever_a_design_holds_it_only_rescales_or_parts_a_column(folder, features, site, content):
    try:
        table = find_table(site, "s", TableSpec(features="x", covariates=content))
    except (Refusal, HarmonizationError):
        return
    assert len(table.participants) == N
    for column in table.rows.design.T:
        is_age = abs(abs(np.corrcoef(column, np.linspace(20, 80, N))[0, 1]) - 1) < 1e-9 if np.ptp(column) else False
        of_a_level = set(column) <= {0.0, 1.0} and min(column.sum(), N - column.sum()) in (0, *range(5, N))
        assert is_age or of_a_level or np.ptp(column) == 0


# --- the same sums before and after a change --------------------------------------------------------------------------


def release_of(site: Site, spec: TableSpec) -> tuple[Release, np.ndarray]:
    """What would leave of a projection's first round, and its sum of the features."""
    table = find_table(site, "s", spec)
    question = question_of_job(Job(analysis="projection", parameters={}, table=spec), table.data)
    return Release(question, table.participants), Projection(2).summarize(table.rows, None)["feature_sum"]


@pytest.mark.parametrize("by", ["withdrawal", "complete", "covariates", "another name"])
def test_whoever_withdrew_or_is_left_out_by_a_question_is_told_by_it(folder, features, by):
    """A covariate that one person lacks does what a withdrawal does, whatever the features are called."""
    asked = open_site(folder, features, f"left-out-{by}", columns=["*"])
    first, before = release_of(asked, TableSpec(features="x"))
    right = [{"name": "handedness", "levels": ["right"]}]
    lacking = {"withdrawal": {}, "covariates": {"covariates": right}}.get(by, {"complete": right})
    if by == "withdrawal":
        FeatureStore(asked.folder_of("s")).write("x", FeatureSet(PEOPLE[1:], features[1:]))
    elif by == "another name":
        FeatureStore(asked.folder_of("s")).write("y", FeatureSet(PEOPLE, features, {"features": "x"}))
    second, after = release_of(asked, TableSpec(features="y" if by == "another name" else "x", **lacking))

    np.testing.assert_allclose(before - after, features[0])
    assert (
        refused(lambda: asked.ledger.enter(study="s", run="1", releases=[first, second], policy=asked.policy))
        is RefusalCode.REPEAT
    )


# --- a matrix of as many columns as people ----------------------------------------------------------------------------


def tables(n: int, p: int, target: str | None = None) -> list[SiteTable]:
    """Three sites of n people, with two views of p columns."""
    made = []
    for number in range(3):
        rng = np.random.default_rng(number)
        targets = {"number": rng.normal(size=n), "labels": np.arange(n) % 2.0, "classes": np.eye(2)[np.arange(n) % 2]}
        targets["site"] = np.tile(np.eye(3)[number], (n, 1))
        made.append(
            SiteTable(
                rng.normal(size=(n, p)),
                np.column_stack([rng.uniform(-1, 1, n)]),
                targets[target] if target else None,
                rng.normal(size=(n, p)),
                site=f"site {number}",
                seed=number,
                min_group=2,
            )
        )
    return made


def rounds_of(analysis: Analysis, everyone: list[SiteTable], most: int = 6) -> Iterator[tuple[Sums, State | None]]:
    """Sums of the first site, round after round, with the states that they answer."""
    state = None
    for _ in range(most):
        parts = [analysis.summarize(table, state) for table in everyone]
        yield parts[0], state
        state = analysis.solve(add_sums(parts), state)
        if state.done:
            return


def permit(analysis: Analysis, table: SiteTable, state: State | None, sums: Sums, policy: Policy | None = None) -> None:
    """Do to sums what a site does before they leave in the clear."""
    policy, declared = policy or Policy(min_group=table.min_group), analysis.sends(table.widths, state)
    permit_declared(policy, analysis, declared, table.n)
    permit_sums(policy, analysis, declared, sums, table.n, clear=True)


def complete_row(spanning: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Complete a row of which the first entries are known, from vectors [m, p] that span a space it lies in."""
    _, values, vectors = np.linalg.svd(spanning, full_matrices=False)
    space = vectors[values > 1e-9 * values[0]]
    return np.linalg.lstsq(space[:, : len(known)].T, known, rcond=None)[0] @ space


@pytest.mark.parametrize(
    ("analysis", "target", "p", "which", "spanning"),
    [
        (Projection(2), None, 60, 1, lambda sums: sums["moment"]),
        (Projection(2), None, 1100, 1, lambda sums: sums["sketch"].T),
        (CCA(2, shrinkage=0.5), None, 60, 1, lambda sums: sums["XX"]),
        (RidgeRegression(1.0), "number", 60, 1, lambda sums: unpack(sums["XX"])),
        (Permanova(40, (1, 1, 1)), None, 60, 1, lambda sums: sums["label_sum"].reshape(-1, 60)),
    ],
    ids=["second moment", "sketch", "canonical correlation", "packed second moment", "permuted sums"],
)
def test_a_matrix_as_large_as_the_people_completes_a_row_of_which_half_is_known(analysis, target, p, which, spanning):
    everyone = tables(12, p, target)
    sums, state = list(rounds_of(analysis, everyone, which + 1))[which]
    mean = np.concatenate([table.features for table in everyone]).mean(axis=0)  # every site is told it
    row = everyone[0].features[3] - mean

    np.testing.assert_allclose(complete_row(spanning(sums), row[: p // 2]), row, atol=1e-6)
    assert refused(lambda: permit(analysis, everyone[0], state, sums)) is RefusalCode.GRAM
    permit(analysis, everyone[0], state, sums, Policy(plain_grams=True))


SITES = ("site 0", "site 1", "site 2")
TRIED: dict[str, tuple[Analysis, str | None]] = {
    analysis.name: (analysis, target)
    for analysis, target in (
        (CCA(2, shrinkage=0.5), None),
        (ComBat(), None),
        (ComBatGAM(smooth=((0, -3.0, 3.0),), n_splines=4, penalties=(3.0,)), None),
        (ContentStyle(rounds=1, local_steps=1), None),
        (CovarianceDistance(), None),
        (CovBat(), None),
        (CrossValidatedCCA(2, n_folds=2, permutations=40, shrinkage=0.5), None),
        (CrossValidatedPermanova(n_folds=2, permutations=4, sizes=(1, 1, 1)), None),
        (CrossValidatedLogistic(n_folds=3, Cs=(0.1,), permutations=2), "classes"),
        (CrossValidatedRidge(n_folds=3, permutations=2), "number"),
        (LateFusion(n_folds=3), "number"),
        (LinearRegression(), "number"),
        (LogisticRegression(), "labels"),
        (Permanova(40, (1, 1, 1)), None),
        (Projection(2), None),
        (Residualization(), None),
        (RidgeRegression(1.0), "number"),
        (SiteAdversarial(rounds=1, sites=SITES), "site"),
        (SiteClassification(n_folds=3, permutations=2), "site"),
        (SiteNetwork(n_folds=2, permutations=1, rounds=1), "site"),
        (SiteSpread(), None),
        (SiteVariance(), None),
        (SoftmaxRegression(n_classes=2), "classes"),
        (TwoTower(rounds=1), None),
    )
}
NARROW = {"combat", "combat_gam", "content_style", "residualization", "site_spread", "site_variance"}
"""Analyses whose matrices have one short side: as many as covariates, or hidden units."""
UNTRIED = {"quantiles", "second_moments", LongitudinalComBat.name, "none"}
"""Of frames; like ComBat, of people with several rows; without sums."""


def leaves(analysis: Analysis, n: int, p: int, target: str | None) -> bool:
    everyone = tables(n, p, target)
    try:
        for sums, state in rounds_of(analysis, everyone):
            permit(analysis, everyone[0], state, sums)
    except Refusal as refusal:
        return refusal.code is not RefusalCode.GRAM
    return True


def test_every_analysis_is_tried():
    assert TRIED.keys() | UNTRIED == ANALYSES.keys()


@pytest.mark.parametrize("name", TRIED)
def test_sums_over_many_people_leave_and_large_matrices_over_few_do_not(name):
    analysis, target = TRIED[name]

    assert leaves(analysis, 80, 3, target)
    assert leaves(analysis, 12, 30, target) == (name in NARROW)


@pytest.mark.parametrize("method", ["none", "covbat"])
def test_a_part_of_the_people_is_few_even_where_all_are_many(method):
    """Second moments of a fold are over that fold's people; a method's, over all but a fold's, tell of those too."""
    analysis = CrossValidatedRidge(n_folds=5, method=method, permutations=0)

    assert leaves(analysis, 100, 18, "number")
    assert not leaves(analysis, 100, 20, "number")
    assert leaves(CovBat(), 100, 20, None)


def leave(declared: Sent, values: np.ndarray, n: int, **policy: object) -> None:
    """Let one array of such a declaration leave in the clear, whoever made it and whatever it is called."""
    analysis = SiteVariance()
    permit_declared(Policy(**policy), analysis, {"it": declared}, n)
    permit_sums(Policy(**policy), analysis, {"it": declared}, {"it": values}, n, clear=True)


def test_sums_of_many_parts_are_no_matrix_of_the_same_people():
    """Five folds of five people: their five sums are over other people each."""
    for shape in ((5, 50), (5, 5, 50), (5, 5)):
        leave(by_part(everybody(shape[-1]), 5, *shape[:-1]), np.ones(shape), 25)
    assert refused(lambda: leave(everybody(5, 50), np.ones((5, 50)), 5, min_group=1)) is RefusalCode.GRAM


def test_places_for_other_sites_are_no_columns():
    sums = np.zeros((40, 50))
    sums[7] = 1.0

    leave(everybody(40, 50), sums, 20)
    assert refused(lambda: leave(everybody(40, 50), sums + 1, 20)) is RefusalCode.GRAM


@pytest.mark.parametrize(
    ("declared", "n"),
    [
        (triangle(20), 20),
        (triangle(20, 3), 20),
        (network({"w": (20, 40), "b": (40,)}), 20),
        (network({"w": (20, 5)}, 4), 20),
        (everybody(20, 20), 20),
        (everybody(20, 4, 5), 20),
        (by_part(triangle(20), 5, 5), 100),
    ],
)
def test_a_matrix_is_one_whatever_it_is_called_and_however_it_is_packed(declared, n):
    values = np.ones(declared.shape)

    assert refused(lambda: leave(declared, values, n)) is RefusalCode.GRAM
    leave(declared, values, n + declared.parts)


def test_what_is_not_declared_does_not_leave_even_under_masks():
    analysis, declared = SiteVariance(), {"it": everybody(3)}
    for sums in ({"it": np.ones(4)}, {"it": np.ones((1, 3))}, {"it": np.ones(3), "more": np.ones(3)}):
        with pytest.raises(Refusal, match="not declared"):
            permit_sums(Policy(), analysis, declared, sums, 100, clear=False)
    permit_sums(Policy(), analysis, declared, {"it": np.ones(3)}, 100, clear=False)


def test_what_tells_of_few_leaves_only_under_masks():
    counts, analysis = cross_validated_counts(), SiteVariance()

    assert refused(lambda: leave(counts, np.ones(counts.shape), 100)) is RefusalCode.GRAM
    permit_sums(Policy(), analysis, {"it": counts}, {"it": np.ones(counts.shape)}, 100, clear=False)


def cross_validated_counts() -> Sent:
    """How many of a class got which probability: a bin may hold one of them."""
    analysis = CrossValidatedLogistic(n_folds=3, Cs=(0.1,), permutations=2)
    everyone = tables(60, 3, "classes")
    *_, (sums, state) = rounds_of(analysis, everyone, 40)
    assert "drawn/histogram" in sums
    return analysis.sends(everyone[0].widths, state)["drawn/histogram"]


def test_a_part_that_is_too_small_is_refused_before_anything_is_summed():
    """A part of everybody, and not groups that the analysis keeps."""
    part, policy = by_part(everybody(3), 5, 5), Policy(min_group=5)

    permit_declared(policy, SiteVariance(), {"it": part}, 25)
    permit_declared(policy, SiteVariance(), {"it": of_groups(part)}, 24)
    assert refused(lambda: permit_declared(policy, SiteVariance(), {"it": part}, 24)) is RefusalCode.GROUP


def test_sums_that_do_not_fit_the_memory_are_refused_before_they_are_made():
    declared = {"it": everybody(100_000, 100_000)}

    assert refused(lambda: permit_declared(Policy(), SiteVariance(), declared, 100)) is RefusalCode.LIMIT


def test_frames_are_more_than_parcels_and_not_looked_at():
    moments = ANALYSES["second_moments"](n_lags=2)
    declared = moments.sends(Widths.of_frames(100), None)
    pairs = {"pairs": np.ones((100, 100))}

    permit_sums(Policy(), moments, declared, pairs, 12, clear=True)
    assert refused(lambda: leave(declared["pairs"], pairs["pairs"], 12)) is RefusalCode.GRAM
