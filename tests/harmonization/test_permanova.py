from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from harmonization import DesignError, HarmonizationError, Permanova, SiteTable, TableError, add_sums, run_pooled
from harmonization.errors import SmallGroupError
from tests.support.sites import Sites, make_sites


def labelled(sites: Sites, min_group: int = 1) -> list[SiteTable]:
    """Tables whose target is the one-hot site."""
    one_hot = np.eye(sites.site.max() + 1)[sites.site]
    return [
        replace(table, target=one_hot[sites.site == number], min_group=min_group)
        for number, table in enumerate(sites.tables)
    ]


def from_distances(features: np.ndarray, site: np.ndarray) -> tuple[float, float]:
    """R2 and pseudo-F by the formulas of Anderson (2001), from all squared distances."""
    squared = squareform(pdist(features)) ** 2
    total = squared.sum() / 2 / len(site)
    groups = [site == number for number in np.unique(site)]
    within = sum(squared[np.ix_(group, group)].sum() / 2 / group.sum() for group in groups)
    mean_squares = (total - within) / (len(groups) - 1), within / (len(site) - len(groups))
    return 1 - within / total, mean_squares[0] / mean_squares[1]


def from_projections(features: np.ndarray, covariates: np.ndarray, site: np.ndarray) -> tuple[float, float]:
    """Partial R2 and pseudo-F by McArdle & Anderson (2001), from Gower's matrix and two hat matrices."""
    squared = squareform(pdist(features)) ** 2
    centring = np.eye(len(site)) - 1 / len(site)
    gower = -0.5 * centring @ squared @ centring
    reduced = np.column_stack([np.ones(len(site)), covariates])
    full = np.column_stack([np.eye(site.max() + 1)[site], covariates])
    hats = [design @ np.linalg.pinv(design) for design in (reduced, full)]
    between = np.trace((hats[1] - hats[0]) @ gower)
    within = np.trace((np.eye(len(site)) - hats[1]) @ gower)
    freedom = site.max(), len(site) - full.shape[1]
    return between / (between + within), between / freedom[0] / (within / freedom[1])


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_equals_permanova_from_a_distance_matrix(offset):
    sites = make_sites((31, 24, 47, 12, 6), p=15, offset=offset, site_effect=0.2)

    plain = run_pooled(Permanova(permutations=0, partial=False), labelled(sites))
    partial = run_pooled(Permanova(permutations=0), labelled(sites))

    np.testing.assert_allclose((plain.r2, plain.pseudo_f), from_distances(sites.features, sites.site), rtol=1e-9)
    expected = from_projections(sites.features, sites.covariates, sites.site)
    np.testing.assert_allclose((partial.r2, partial.pseudo_f), expected, rtol=1e-9)


def test_sees_features_through_loadings():
    sites, loadings = make_sites((20, 30), p=10), np.random.default_rng(0).normal(size=(10, 3))
    tables = [replace(table, loadings=loadings) for table in labelled(sites)]

    result = run_pooled(Permanova(permutations=0, partial=False), tables)

    expected = from_distances(sites.features @ loadings, sites.site)
    np.testing.assert_allclose((result.r2, result.pseudo_f), expected, rtol=1e-9)


@pytest.mark.parametrize("min_group", [1, 6])
def test_the_null_is_that_of_shuffling_everybody_s_site(min_group):
    """Blocks of rows share a label; with no difference between sites that changes nothing."""
    sites = make_sites((40, 60, 90), p=4, site_effect=0.0)
    sites.features[:] = np.random.default_rng(5).normal(size=sites.features.shape)
    rng = np.random.default_rng(0)
    shuffled = [from_distances(sites.features, rng.permutation(sites.site))[1] for _ in range(400)]

    null = run_pooled(Permanova(permutations=2000, partial=False), labelled(sites, min_group)).null

    assert null.mean() == pytest.approx(1, abs=0.05)
    assert np.quantile(null, 0.95) == pytest.approx(np.quantile(shuffled, 0.95), rel=0.1)


def test_people_of_another_age_are_not_another_site():
    drawn = [labelled(make_sites((25, 40, 60), p=6, seed=seed, site_effect=0.0)) for seed in range(60)]
    partial = [run_pooled(Permanova(permutations=60), tables) for tables in drawn]
    plain = [run_pooled(Permanova(permutations=60, partial=False), tables) for tables in drawn]

    # Where nothing differs, p-values are uniform.
    assert np.mean([result.p_value for result in partial]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([result.r2 for result in partial]) == pytest.approx(partial[0].r2_by_chance, rel=0.15)
    assert np.mean([result.p_value for result in plain]) < 0.03
    with_scanners = labelled(make_sites((25, 40, 60), p=6))
    assert run_pooled(Permanova(permutations=60), with_scanners).p_value == pytest.approx(1 / 61)


def test_no_class_of_a_permuted_labeling_stands_for_few():
    tables = labelled(make_sites((56, 34, 20, 9), 5), min_group=4)
    analysis = Permanova(permutations=50)
    centre = analysis.solve(add_sums([analysis.summarize(table, None) for table in tables]), None)

    for table in tables:
        counts = analysis.summarize(table, centre)["class_n"]
        assert not ((counts > 0) & (counts < 4)).any()
        assert (counts.sum(axis=1) == table.n).all()
    with pytest.raises(SmallGroupError, match="a site has 9 participants; its sums must stand for 10"):
        run_pooled(analysis, [replace(table, min_group=10) for table in tables])


def test_refuses_what_cannot_be_compared():
    sites = make_sites((12, 9, 14), p=3)
    tables = labelled(sites)

    with pytest.raises(HarmonizationError, match="one site only"):
        run_pooled(Permanova(), tables[:1])
    with pytest.raises(TableError, match="no one-hot site"):
        run_pooled(Permanova(), sites.tables)
    with pytest.raises(HarmonizationError, match="the same for everybody"):
        run_pooled(Permanova(), [replace(table, features=np.full((table.n, 2), 1e6 + 0.1)) for table in tables])
    field_strength = [np.full((table.n, 1), strength) for table, strength in zip(tables, (1.5, 3.0, 3.0), strict=True)]
    with pytest.raises(DesignError, match="cannot be told from the site"):
        run_pooled(Permanova(), [replace(t, covariates=c) for t, c in zip(tables, field_strength, strict=True)])
    with pytest.raises(HarmonizationError, match="too few participants"):
        run_pooled(Permanova(), [replace(table.take(np.arange(1)), covariates=None) for table in tables])
