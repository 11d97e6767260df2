import numpy as np
import pytest
from sklearn.decomposition import PCA

from harmonization import HarmonizationError, Projection, SiteTable, run_pooled
from tests.support.sites import make_sites


@pytest.mark.parametrize(("p", "offset"), [(12, 0.0), (300, 1e6), (2000, 50.0)])
def test_equals_pooled_pca(p, offset):
    sites = make_sites((40, 25, 55), p, offset=offset)
    reference = PCA(10, svd_solver="full").fit(sites.features)

    model = run_pooled(Projection(10), sites.tables)

    np.testing.assert_allclose(model.mean, reference.mean_, rtol=1e-12)
    np.testing.assert_allclose(model.explained_variance, reference.explained_variance_, rtol=1e-8)
    np.testing.assert_allclose(model.components, reference.components_, atol=1e-7)
    ratio = model.explained_variance / model.total_variance
    np.testing.assert_allclose(ratio, reference.explained_variance_ratio_, rtol=1e-8)
    np.testing.assert_allclose(model.project(sites.features), reference.transform(sites.features), atol=1e-5)


def test_refined_sketch_finds_components_of_more_people_than_its_width():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(700, 6)) * [40, 30, 20, 15, 10, 8] @ rng.normal(size=(6, 1100)) / 10
    features += rng.normal(size=features.shape)
    reference = PCA(6, svd_solver="full").fit(features)

    model = run_pooled(Projection(6), [SiteTable(features[:300]), SiteTable(features[300:])])

    np.testing.assert_allclose(model.explained_variance, reference.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(model.components, reference.components_, atol=1e-7)


@pytest.mark.parametrize("components", [0, 13, 120])
def test_refuses_more_components_than_there_can_be(components):
    sites = make_sites((40, 25), 12)

    with pytest.raises(HarmonizationError, match="expected 1 to 12 for 65 participants"):
        run_pooled(Projection(components), sites.tables)
