import numpy as np
import pytest

from harmonization import SiteVariance, run_pooled


def test_eta_squared_equals_one_way_anova(five_sites):
    grand = five_sites.features.mean(axis=0)
    means = np.stack([t.features.mean(axis=0) for t in five_sites.tables])
    sizes = np.bincount(five_sites.site)
    expected = (sizes[:, None] * (means - grand) ** 2).sum(axis=0) / ((five_sites.features - grand) ** 2).sum(axis=0)

    result = run_pooled(SiteVariance(), five_sites.tables)

    np.testing.assert_allclose(result.eta_squared, expected, rtol=1e-12)
    assert result.mean == pytest.approx(expected.mean())
