import numpy as np
import pytest

from harmonization import Projection, Residualization, run_pooled


@pytest.mark.parametrize("by_site", [True, False])
def test_equals_pooled_least_squares(five_sites, by_site):
    one_hot = np.eye(5)[five_sites.site] if by_site else np.ones((len(five_sites.site), 1))
    design = np.column_stack([one_hot, five_sites.covariates])
    expected = five_sites.features - design @ np.linalg.lstsq(design, five_sites.features, rcond=None)[0]

    model = run_pooled(Residualization(site=by_site), five_sites.tables)
    residuals = np.concatenate([model.residualize(t.features, t.design) for t in five_sites.tables])

    np.testing.assert_allclose(residuals, expected, atol=1e-11)
    projection = run_pooled(Projection(7), five_sites.tables)
    projected = model.projected(projection.mean, projection.components)
    residuals = [projected.residualize(projection.project(t.features), t.design) for t in five_sites.tables]
    np.testing.assert_allclose(np.concatenate(residuals), expected @ projection.components.T, atol=1e-11)
