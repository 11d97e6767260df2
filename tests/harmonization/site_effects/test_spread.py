from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import false_discovery_control, levene

from harmonization import CovarianceDistance, HarmonizationError, SiteSpread, SiteTable, TableError, run_pooled
from tests.support.sites import Sites, make_sites


def by_site(sites: Sites) -> list[np.ndarray]:
    return [table.features for table in sites.tables]


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("centre", ["median", "mean"])
def test_spread_equals_levene_of_scipy(centre, offset):
    sites = make_sites((31, 24, 47, 12, 6), p=30, offset=offset, site_effect=0.7)
    expected = levene(*by_site(sites), center=centre, axis=0)

    result = run_pooled(SiteSpread(centre), sites.tables)

    np.testing.assert_allclose(result.f, expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(result.p_values, expected.pvalue, rtol=1e-8)
    share = (false_discovery_control(expected.pvalue) < 0.05).mean()
    assert 0 < share < 1
    assert result.share_significant == share


def test_geometric_sd_of_variances_is_the_known_one():
    """Sites whose variances are 1, 4 and 16 times another: log variances log(4) apart."""
    standard = np.random.default_rng(0).normal(size=(50, 3))
    tables = [SiteTable(1e6 + standard * scale) for scale in (1.0, 2.0, 4.0)]

    result = run_pooled(SiteSpread(), tables)

    np.testing.assert_allclose(result.geometric_sd, 4.0, rtol=1e-8)
    assert result.mean_geometric_sd == pytest.approx(4.0)
    equal = run_pooled(SiteSpread(), [SiteTable(1e6 + standard), SiteTable(standard - 3)])
    np.testing.assert_allclose(equal.geometric_sd, 1.0, rtol=1e-8)


def test_spread_by_chance_is_what_equal_sites_show():
    rng = np.random.default_rng(0)

    result = run_pooled(SiteSpread(), [SiteTable(rng.normal(size=(n, 400))) for n in (8, 15, 30, 60) * 2])

    assert np.exp(np.sqrt((np.log(result.geometric_sd) ** 2).mean())) == pytest.approx(
        result.geometric_sd_by_chance, rel=0.03
    )
    assert result.share_significant == 0


def test_constant_features_have_no_spread():
    rng = np.random.default_rng(0)
    columns = [
        np.column_stack([np.full(n, 0.1 + 1e6), rng.normal(size=n) * (n > 10), np.tile([0.1 + 1e6, 1e6], n // 2)])
        for n in (10, 20, 30)
    ]

    result = run_pooled(SiteSpread(), [SiteTable(values) for values in columns])

    np.testing.assert_array_equal(result.f[[0, 2]], 0)  # no deviation at all; the same deviation everywhere
    np.testing.assert_array_equal(result.p_values[[0, 2]], 1)
    assert result.f[1] > 1
    assert np.isfinite(result.geometric_sd).all()
    assert result.geometric_sd[0] == 1


def expected_distance(values: list[np.ndarray], correlation: bool) -> float:
    matrices = [(np.corrcoef if correlation else np.cov)(rows.T) for rows in values]
    pooled = np.average(matrices, axis=0, weights=[len(rows) - 1 for rows in values])
    squares = [np.linalg.norm(matrix - pooled) ** 2 for matrix in matrices]
    return np.sqrt(np.mean(squares)) / np.linalg.norm(pooled)


@pytest.mark.parametrize("correlation", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_covariance_distance_is_that_of_numpy_s_matrices(correlation, offset):
    sites = make_sites((31, 24, 47, 12, 60), p=20, offset=offset)
    loadings = np.random.default_rng(0).normal(size=(20, 4))

    plain = run_pooled(CovarianceDistance(correlation), sites.tables)
    through = run_pooled(CovarianceDistance(correlation), [replace(t, loadings=loadings) for t in sites.tables])

    assert plain.distance == pytest.approx(expected_distance(by_site(sites), correlation), rel=1e-9)
    projected = [features @ loadings for features in by_site(sites)]
    assert through.distance == pytest.approx(expected_distance(projected, correlation), rel=1e-8)


@pytest.mark.parametrize("p", [3, 30])
@pytest.mark.parametrize(
    ("correlation", "draw", "sizes"),
    [
        (False, "normal", (12, 25, 40, 60)),
        (False, "normal", (3, 3, 4, 6)),
        (False, "exponential", (12, 25, 40, 60)),
        (True, "normal", (12, 25, 40, 60)),
    ],
)
def test_distance_by_chance_is_what_equal_sites_show(correlation, draw, sizes, p):
    """Covariances of a few dozen people are far from their common one; of what is expected, nothing is left."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(p, p)) / np.sqrt(p) + np.eye(p)
    analysis = CovarianceDistance(correlation)
    results = [
        run_pooled(analysis, [SiteTable(getattr(rng, draw)(size=(n, p)) @ mixing) for n in sizes]) for _ in range(300)
    ]

    measured = np.mean([result.distance**2 for result in results])
    assert np.mean([result.distance_by_chance**2 for result in results]) == pytest.approx(measured, rel=0.05)
    assert np.median([result.corrected for result in results]) < np.sqrt(measured) / 3


def test_corrected_distance_is_the_true_one_where_sites_differ():
    """One site's covariance is 1 + d times, the other's 1 - d times the common one: a relative distance of d."""
    rng = np.random.default_rng(0)
    corrected, raw = [], []
    for _ in range(30):
        tables = [SiteTable(np.sqrt(factor) * rng.normal(size=(50, 40))) for factor in (1.5, 0.5)]
        result = run_pooled(CovarianceDistance(), tables)
        corrected.append(result.corrected)
        raw.append(result.distance)

    assert np.mean(corrected) == pytest.approx(0.5, rel=0.1)
    assert np.mean(raw) > 0.6


def test_refuses_what_has_no_spread_to_compare(five_sites):
    table = five_sites.tables[0]

    for analysis in (SiteSpread(), CovarianceDistance()):
        with pytest.raises(HarmonizationError, match="one site only"):
            run_pooled(analysis, [table])
    with pytest.raises(HarmonizationError, match="one participant"):
        run_pooled(SiteSpread(), [table, table.take(np.arange(1))])
    with pytest.raises(HarmonizationError, match="2 participants; comparing covariances needs three"):
        run_pooled(CovarianceDistance(), [table, table.take(np.arange(2))])
    with pytest.raises(HarmonizationError, match="no feature varies"):
        run_pooled(CovarianceDistance(), [SiteTable(np.full((4, 3), 1e6 + 0.1))] * 2)
    with pytest.raises(TableError, match=r"1025 columns.*principal components"):
        run_pooled(CovarianceDistance(), [SiteTable(np.zeros((3, 1025)))] * 2)
    with pytest.raises(HarmonizationError, match="expected 'median' or 'mean'"):
        SiteSpread("mode")
