from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from harmonization import (
    ComBatHarmonizer,
    CrossValidatedRidge,
    HarmonizationError,
    SiteTable,
    SmallGroupError,
    State,
    TableError,
    add_sums,
    run_pooled,
)
from harmonization.core.declared import Declared, Widths, everybody
from harmonization.core.protocol import Stage, Sums
from harmonization.probes.crossvalidation import CrossValidation, Folded, people_of
from tests.support.sites import make_sites

NAMES = ("0", "1", "2", "3", "4")


@dataclass(frozen=True)
class Seen(State):
    """Sums over the rows of each site, as each part's training rows harmonize them, and how many trained."""

    features: np.ndarray
    training: np.ndarray

    done: ClassVar[bool] = True


class Looking(Stage):
    """Shows what an analysis is given: all rows, [K, n, p], of the one table with a target of its own number."""

    def part(self, analysis: "Look", table: Folded) -> Sums:
        shown = np.zeros((len(table.folds), 5, table.features.shape[1]))
        shown[:, int(table.site)] = np.stack([fold.features[0] for fold in table.folds])
        training = np.zeros((len(table.folds), 5))
        training[:, int(table.site)] = [fold.training.sum() for fold in table.folds]
        return {"features": shown, "training": training}

    def sends(self, analysis: "Look", widths: Widths) -> Declared:
        shape = (analysis.n_parts, 5)
        return {"features": everybody(*shape, widths.features), "training": everybody(*shape)}

    def advance(self, analysis: "Look", total: Sums) -> Seen:
        return Seen(**total)


@dataclass(frozen=True)
class Look(CrossValidation):
    name: ClassVar[str] = "look"
    first: ClassVar[Stage] = Looking()
    states: ClassVar[tuple[type[State], ...]] = (Seen,)


def named(sites, **fields):
    return [replace(table, site=str(number), **fields) for number, table in enumerate(sites.tables)]


def test_a_site_that_is_left_out_is_harmonized_as_a_new_one(five_sites):
    """From the frozen model of the others and its own rows; with its own part left out it trains nothing."""
    seen = run_pooled(Look(sites=NAMES, method="combat"), named(five_sites))

    first = [np.flatnonzero(five_sites.site == number)[0] for number in range(5)]
    for part in range(5):
        others = five_sites.site != part
        harmonizer = ComBatHarmonizer().fit(
            five_sites.features[others], five_sites.covariates[others], five_sites.site[others]
        )
        expected = harmonizer.transform(five_sites.features, five_sites.covariates, five_sites.site)
        np.testing.assert_allclose(seen.features[part], expected[first], atol=1e-10)
    sizes = np.bincount(five_sites.site)
    np.testing.assert_array_equal(seen.training, sizes * (1 - np.eye(5)))


def test_the_target_of_a_site_that_is_left_out_is_not_used(five_sites):
    def coefficients(tables):
        analysis, state = CrossValidatedRidge(sites=NAMES, method="combat", alphas=(0.1, 1.0)), None
        while not hasattr(getattr(state, "own", None), "coef"):
            state = analysis.solve(add_sums([analysis.summarize(table, state) for table in tables]), state)
        return state.own.coef, state.own.alpha

    tables = named(five_sites)
    changed = [replace(tables[0], target=tables[0].target[::-1] ** 2), *tables[1:]]

    (before, alpha), (after, other_alpha) = coefficients(tables), coefficients(changed)

    # Targets are centred on a mean over all, which is of no matter but for rounding.
    np.testing.assert_allclose(after[0], before[0], rtol=1e-9, atol=1e-12)
    assert alpha[0] == other_alpha[0]
    assert not np.allclose(after[1:], before[1:], rtol=1e-3)


def test_folds_are_balanced_private_and_keep_participants_whole():
    rng = np.random.default_rng(0)
    participant = rng.integers(100, 130, 77)
    table = SiteTable(rng.normal(size=(77, 2)), participant=participant, seed=4)
    row, whose = people_of(table)

    folds = CrossValidatedRidge(4).deal(table)

    assert all(len(set(folds[participant == person])) == 1 for person in participant)
    assert np.ptp(np.bincount(folds[row], minlength=4)) <= 1
    np.testing.assert_array_equal(participant[row][whose], participant)
    assert not np.array_equal(folds, CrossValidatedRidge(4).deal(replace(table, seed=5)))


def test_folds_count_participants_and_not_rows():
    rng = np.random.default_rng(0)
    table = SiteTable(rng.normal(size=(40, 2)), target=np.arange(40.0), participant=np.arange(40) // 4, min_group=4)

    with pytest.raises(SmallGroupError, match="10 participants in 3 folds are fewer than 4 in each"):
        run_pooled(CrossValidatedRidge(3), [table])
    with pytest.raises(TableError, match=r"a site has 10 participants for 11 folds\. Use fewer folds"):
        run_pooled(CrossValidatedRidge(11), [table])


def test_a_part_without_anybody_else_is_refused():
    tables = named(make_sites((20, 30), 3))

    with pytest.raises(TableError, match="nobody is left to learn from when one part is left out"):
        run_pooled(CrossValidatedRidge(sites=("0", "1"), alphas=(1.0,)), tables[:1])
    with pytest.raises(TableError, match=r"not among those that are left out in turn\. Name all sites"):
        run_pooled(CrossValidatedRidge(sites=("0", "2"), alphas=(1.0,)), tables)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_folds": 1}, "n_folds is 1; expected at least 2"),
        ({"sites": ["a", "b", "a"]}, "sites are a, b, a; expected two or more different ones"),
        ({"sites": ("a",)}, "expected two or more different ones"),
        ({"method": "magic"}, "method 'magic' is not known"),
        ({"method": "combat", "options": {"magic": 1}}, "'combat' does not take"),
    ],
)
def test_refuses_parameters_that_make_no_sense(parameters, message):
    with pytest.raises(HarmonizationError, match=message):
        Look(**parameters)
