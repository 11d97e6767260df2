from dataclasses import replace

import numpy as np
import pytest

from harmonization import HarmonizationError, SiteVariance, run_pooled


def test_eta_squared_equals_one_way_anova(five_sites):
    grand = five_sites.features.mean(axis=0)
    means = np.stack([t.features.mean(axis=0) for t in five_sites.tables])
    sizes = np.bincount(five_sites.site)
    expected = (sizes[:, None] * (means - grand) ** 2).sum(axis=0) / ((five_sites.features - grand) ** 2).sum(axis=0)

    result = run_pooled(SiteVariance(), five_sites.tables)

    np.testing.assert_allclose(result.eta_squared, expected, rtol=1e-12)
    assert result.mean == pytest.approx(expected.mean())


@pytest.mark.parametrize("constant", [0.1, 333333.3333333333])
def test_the_site_explains_nothing_of_a_feature_that_is_the_same_for_everybody(five_sites, constant):
    tables = [replace(t, features=np.column_stack([t.features, np.full(t.n, constant)])) for t in five_sites.tables]

    assert run_pooled(SiteVariance(), tables).eta_squared[-1] == 0


def test_one_site_is_refused(five_sites):
    with pytest.raises(HarmonizationError, match="one site only"):
        run_pooled(SiteVariance(), five_sites.tables[:1])
