from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from harmonization import (
    ComBat,
    CrossValidatedPermanova,
    DesignError,
    HarmonizationError,
    Permanova,
    SiteTable,
    add_sums,
    run_pooled,
)
from harmonization.core.errors import SmallGroupError
from tests.support.sites import Sites, make_sites


def guarded(sites: Sites, min_group: int = 1) -> list[SiteTable]:
    return [replace(table, min_group=min_group) for table in sites.tables]


def permuted(tables: list[SiteTable], permutations: int, **options: object) -> Permanova:
    return Permanova(permutations, tuple(table.n for table in tables), **options)


def from_distances(features: np.ndarray, site: np.ndarray) -> tuple[float, float]:
    """R2 and pseudo-F by the formulas of Anderson (2001), from all squared distances."""
    squared = squareform(pdist(features)) ** 2
    total = squared.sum() / 2 / len(site)
    groups = [site == number for number in np.unique(site)]
    within = sum(squared[np.ix_(group, group)].sum() / 2 / group.sum() for group in groups)
    mean_squares = (total - within) / (len(groups) - 1), within / (len(site) - len(groups))
    return 1 - within / total, mean_squares[0] / mean_squares[1]


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_equals_permanova_from_a_distance_matrix(offset):
    sites = make_sites((31, 24, 47, 12, 6), p=15, offset=offset, site_effect=0.2)

    plain = run_pooled(Permanova(partial=False), sites.tables)

    np.testing.assert_allclose((plain.r2, plain.pseudo_f), from_distances(sites.features, sites.site), rtol=1e-9)


def test_sees_features_through_loadings():
    sites, loadings = make_sites((20, 30), p=10), np.random.default_rng(0).normal(size=(10, 3))
    tables = [replace(table, loadings=loadings) for table in sites.tables]

    result = run_pooled(Permanova(partial=False), tables)

    expected = from_distances(sites.features @ loadings, sites.site)
    np.testing.assert_allclose((result.r2, result.pseudo_f), expected, rtol=1e-9)


@pytest.mark.parametrize("min_group", [1, 6])
def test_the_null_is_that_of_shuffling_everybody_s_site(min_group):
    """Blocks of rows share a label; with no difference between sites that changes nothing."""
    sites = make_sites((40, 60, 90), p=4, site_effect=0.0)
    sites.features[:] = np.random.default_rng(5).normal(size=sites.features.shape)
    rng = np.random.default_rng(0)
    shuffled = [from_distances(sites.features, rng.permutation(sites.site))[1] for _ in range(400)]

    tables = guarded(sites, min_group)
    null = run_pooled(permuted(tables, 2000, partial=False), tables).null

    assert null.mean() == pytest.approx(1, abs=0.05)
    assert np.quantile(null, 0.95) == pytest.approx(np.quantile(shuffled, 0.95), rel=0.1)


def test_people_of_another_age_are_not_another_site():
    drawn = [make_sites((25, 40, 60), p=6, seed=seed, site_effect=0.0).tables for seed in range(60)]
    partial = [run_pooled(permuted(tables, 60), tables) for tables in drawn]
    plain = [run_pooled(permuted(tables, 60, partial=False), tables) for tables in drawn]

    # Where nothing differs, p-values are uniform.
    assert np.mean([result.p_value for result in partial]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([result.r2 for result in partial]) == pytest.approx(partial[0].r2_by_chance, rel=0.15)
    assert np.mean([result.p_value for result in plain]) < 0.03
    with_scanners = make_sites((25, 40, 60), p=6).tables
    assert run_pooled(permuted(with_scanners, 60), with_scanners).p_value == pytest.approx(1 / 61)


def test_no_label_of_a_permuted_labeling_stands_for_few():
    tables = guarded(make_sites((56, 34, 20, 9), 5), min_group=4)
    analysis = permuted(tables, 50)
    centre = analysis.solve(add_sums([analysis.summarize(table, None) for table in tables]), None)

    for table in tables:
        counts = analysis.summarize(table, centre)["label_n"]
        assert not ((counts > 0) & (counts < 4)).any()
        assert (counts.sum(axis=1) == table.n).all()
    with pytest.raises(SmallGroupError, match="a site has 9 participants; its sums must stand for 10"):
        run_pooled(analysis, [replace(table, min_group=10) for table in tables])


def test_no_sum_has_a_place_for_one_site():
    """Whatever a site's means are, its sums about its own mean and those over permuted labels add to the others'."""
    sites = make_sites((40, 30, 20), p=4)
    analysis = permuted(sites.tables, 30)
    centre = analysis.solve(add_sums([analysis.summarize(table, None) for table in sites.tables]), None)

    for sums in (analysis.summarize(table, state) for state in (None, centre) for table in sites.tables):
        filled = {name for name, values in sums.items() if values.any()}
        assert filled == sums.keys()
        if "label_n" in sums:
            assert (sums["label_n"].sum(axis=0) > 0).all()  # every label is dealt to people of every site


def out_of_fold(tables: list[SiteTable], analysis: CrossValidatedPermanova) -> tuple[np.ndarray, ...]:
    """Features as the other folds' ComBat makes them alike, with covariates, site and fold of each row."""
    parts = [analysis.deal(table) for table in tables]
    features = [np.empty_like(table.features) for table in tables]
    for fold in range(analysis.n_folds):
        training = [table.take(part != fold) for table, part in zip(tables, parts, strict=True)]
        model = run_pooled(ComBat(), training)
        for table, learned, part, made in zip(tables, training, parts, features, strict=True):
            effect = ComBat().estimate(model, learned)
            made[part == fold] = ComBat().apply(model, table, effect)[part == fold]
    site = np.repeat(np.arange(len(tables)), [table.n for table in tables])
    return np.concatenate(features), np.concatenate([table.design for table in tables]), site, np.concatenate(parts)


def test_held_out_people_are_compared_within_their_folds():
    sites = make_sites((31, 24, 47), p=5, site_effect=0.7, offset=1e3)
    tables = [replace(table, site=f"s{number}") for number, table in enumerate(sites.tables)]
    analysis = CrossValidatedPermanova(n_folds=3, method="combat")
    features, covariates, site, fold = out_of_fold(tables, analysis)
    folds = np.eye(3)[fold]
    reduced, full = (
        ((features - design @ np.linalg.lstsq(design, features, rcond=None)[0]) ** 2).sum()
        for design in (np.column_stack([folds, covariates]), np.column_stack([np.eye(9)[3 * site + fold], covariates]))
    )

    result = run_pooled(analysis, tables)

    freedom = 3 * 2, len(site) - 9 - 2
    assert result.r2 == pytest.approx(1 - full / reduced, rel=1e-9)
    assert result.pseudo_f == pytest.approx((reduced - full) / freedom[0] / (full / freedom[1]), rel=1e-9)


def test_harmonization_does_not_flatter_itself_on_held_out_people():
    """By its own fit no difference is left, less than chance allows; held out, there is a little more than chance."""
    drawn = [make_sites((30, 30, 40), p=8, seed=seed, site_effect=0.5).tables for seed in range(40)]
    tables = [[replace(table, site=f"s{number}") for number, table in enumerate(each)] for each in drawn]
    own = [run_pooled(Permanova(), harmonized(each)).pseudo_f for each in tables]
    held_out = [run_pooled(CrossValidatedPermanova(n_folds=4, method="combat"), each).pseudo_f for each in tables]
    raw = [run_pooled(CrossValidatedPermanova(n_folds=4), each).pseudo_f for each in tables]

    assert max(own) < 0.25
    assert np.mean(held_out) == pytest.approx(1 + 1 / 3, rel=0.12)  # what is learned from n (K - 1) / K people adds
    assert np.mean(raw) > 2


def harmonized(tables: list[SiteTable]) -> list[SiteTable]:
    model = run_pooled(ComBat(), tables)
    return [replace(table, features=ComBat().harmonize(model, table)) for table in tables]


def test_the_null_within_folds_is_uniform_where_sites_do_not_differ():
    drawn = [make_sites((24, 40, 60), p=6, seed=seed, site_effect=0.0).tables for seed in range(60)]
    results = [
        run_pooled(CrossValidatedPermanova(n_folds=4, permutations=60, sizes=(24, 40, 60)), tables) for tables in drawn
    ]

    assert np.mean([result.p_value for result in results]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([result.r2 for result in results]) == pytest.approx(results[0].r2_by_chance, rel=0.15)


def test_refuses_what_cannot_be_compared():
    sites = make_sites((12, 9, 14), p=3)
    tables = sites.tables

    with pytest.raises(HarmonizationError, match="one site only"):
        run_pooled(Permanova(), tables[:1])
    for sizes in ((), (3,), (3, 0)):
        with pytest.raises(HarmonizationError, match="in whose proportions labels are permuted"):
            Permanova(10, sizes)
    with pytest.raises(HarmonizationError, match="the same for everybody"):
        run_pooled(Permanova(), [replace(table, features=np.full((table.n, 2), 1e6 + 0.1)) for table in tables])
    field_strength = [np.full((table.n, 1), strength) for table, strength in zip(tables, (1.5, 3.0, 3.0), strict=True)]
    with pytest.raises(DesignError, match="cannot be told from the site"):
        run_pooled(Permanova(), [replace(t, covariates=c) for t, c in zip(tables, field_strength, strict=True)])
    with pytest.raises(HarmonizationError, match="too few participants"):
        run_pooled(Permanova(), [replace(table.take(np.arange(1)), covariates=None) for table in tables])
