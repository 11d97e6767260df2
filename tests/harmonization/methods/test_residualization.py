import numpy as np
import pytest

from harmonization import ComBat, Projection, Residualization, TableError, run_pooled
from harmonization.methods.residualization import ResidualizationModel
from tests.support.sites import Sites


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("by_site", [True, False])
def test_equals_pooled_least_squares(five_sites, by_site, offset):
    one_hot = np.eye(5)[five_sites.site] if by_site else np.ones((len(five_sites.site), 1))
    design = np.column_stack([one_hot, five_sites.covariates])
    expected = five_sites.features - design @ np.linalg.lstsq(design, five_sites.features, rcond=None)[0]
    five_sites.features[:] += offset

    model = run_pooled(Residualization(site=by_site), five_sites.tables)
    residuals = np.concatenate([model.residualize(t.features, t.design) for t in five_sites.tables])

    np.testing.assert_allclose(residuals, expected, atol=1e-11 + 1e-15 * offset)
    projection = run_pooled(Projection(7), five_sites.tables)
    projected = model.projected(projection.mean, projection.components)
    residuals = [projected.residualize(projection.project(t.features), t.design) for t in five_sites.tables]
    np.testing.assert_allclose(
        np.concatenate(residuals), expected @ projection.components.T, atol=1e-11 + 1e-14 * offset
    )


def test_covariates_far_from_zero_do_not_cost_precision(five_sites):
    """Without a site effect, too: the year of birth as it stands in the table."""
    expected = run_pooled(Residualization(site=False), five_sites.tables).coefficients
    far = Sites(five_sites.features + 1e6, five_sites.covariates + 1e6, five_sites.target, five_sites.site)

    found = run_pooled(Residualization(site=False), far.tables).coefficients

    np.testing.assert_allclose(found, expected, atol=1e-8)


def two_orders(sites: Sites, by_site: bool, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of harmonized features; and with the coefficients of the ComBat that harmonized them."""
    combat = run_pooled(ComBat(), sites.tables)
    one_model = ResidualizationModel.from_combat(combat)
    harmonized = np.empty_like(sites.features)
    for number, table in enumerate(sites.tables):
        harmonized[sites.site == number] = combat.harmonize(table.features, table.design, **options)
    tables = Sites(harmonized, sites.covariates, sites.target, sites.site).tables
    afterwards = run_pooled(Residualization(by_site), tables)
    return tuple(
        np.concatenate([model.residualize(t.features, t.design) for t in tables]) for model in (afterwards, one_model)
    )


def test_one_model_leaves_residuals_standardized_by_site(five_sites):
    design = np.column_stack([np.eye(5)[five_sites.site], five_sites.covariates])
    residual = five_sites.features - design @ np.linalg.lstsq(design, five_sites.features, rcond=None)[0]
    pooled_sd = np.sqrt((residual**2).mean(axis=0))
    expected = residual.copy()
    for number in range(5):
        expected[five_sites.site == number] /= residual[five_sites.site == number].std(axis=0, ddof=1)

    _, one_model = two_orders(five_sites, by_site=True, prior="none")

    np.testing.assert_allclose(one_model, expected * pooled_sd, atol=1e-11)


@pytest.mark.parametrize("by_site", [True, False])
def test_orders_agree_where_combat_shifts_sites_by_their_own_means(five_sites, by_site):
    afterwards, one_model = two_orders(five_sites, by_site, prior="none", mean_only=True)

    np.testing.assert_allclose(afterwards, one_model, atol=1e-11)


@pytest.mark.parametrize("options", [{"prior": "none"}, {"mean_only": True}, {}])
def test_orders_differ_where_combat_scales_or_shrinks(five_sites, options):
    """Only residuals that are taken last are free of the covariates and sites to the last digit."""
    afterwards, one_model = two_orders(five_sites, by_site=True, **options)

    design = np.column_stack([np.eye(5)[five_sites.site], five_sites.covariates])
    assert np.abs(afterwards - one_model).max() > 0.01
    assert np.abs(design.T @ afterwards).max() < 1e-9
    assert np.abs(design.T @ one_model).max() > 0.01


def test_refuses_other_columns_than_were_fitted(five_sites):
    model, table = run_pooled(Residualization(), five_sites.tables), five_sites.tables[0]

    with pytest.raises(TableError, match="in the same order"):
        model.residualize(table.features[:, :5], table.design)
    with pytest.raises(TableError, match="in the same order"):
        model.residualize(table.features, table.design[:, :1])
