import numpy as np
import pytest
from sklearn.decomposition import PCA

from harmonization import HarmonizationError, Projection, SiteTable, add_sums, run_pooled
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


@pytest.mark.parametrize("seed", range(8))
def test_offsets_that_differ_by_site_do_not_hide_what_varies_within(seed):
    """Variances between sites are 1e12 times those within: as far as the reference itself is good for."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(10, 80, size=rng.integers(2, 6))
    p = int(rng.integers(6, 12))
    tables = [SiteTable(rng.uniform(-1e6, 1e6, p) + rng.normal(size=(n, p))) for n in sizes]
    features = np.concatenate([table.features for table in tables])
    centred = features - features.mean(axis=0)
    _, deviations, components = np.linalg.svd(centred, full_matrices=False)

    model = run_pooled(Projection(p), tables)

    assert model.explained_variance[0] > 1e11 * model.explained_variance[-1]
    np.testing.assert_allclose(model.explained_variance, deviations**2 / (len(features) - 1), rtol=1e-8)
    np.testing.assert_allclose(np.abs(model.components), np.abs(components), atol=1e-7)


def test_a_sketch_is_refined_until_it_holds_what_was_asked_for():
    """700 people of a spectrum that falls slowly, in a sketch 512 wide."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(700, 1100)) * np.arange(1, 1101) ** -0.5
    reference = PCA(20, svd_solver="full").fit(features)

    model = run_pooled(Projection(20), [SiteTable(features[:300]), SiteTable(features[300:])])

    np.testing.assert_allclose(model.explained_variance, reference.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(model.components, reference.components_, atol=1e-7)


@pytest.mark.parametrize("p", [40, 1100])
def test_directions_without_variance_are_no_components(p):
    """Constant features, and features that are sums of others."""
    rng = np.random.default_rng(0)
    features = 1e6 + rng.normal(size=(90, 4)) @ rng.normal(size=(4, p))
    features[:, 5] = 1e6 + 0.1
    reference = PCA(4, svd_solver="full").fit(features)

    model = run_pooled(Projection(30), [SiteTable(features[:20]), SiteTable(features[20:])])

    assert model.components.shape == (4, p)
    np.testing.assert_allclose(model.components, reference.components_, atol=1e-7)
    np.testing.assert_allclose(model.components[:, 5], 0, atol=1e-9)
    assert model.explained_variance.sum() == pytest.approx(model.total_variance, rel=1e-8)


def test_rounding_does_not_decide_the_sign_of_a_component():
    """Two features of equal variance load a component equally: the first of them is taken."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.normal(size=30), rng.normal(size=30)
        features = np.column_stack([np.append(one, other), np.append(other, one)])
        model = run_pooled(Projection(2), [SiteTable(features[:7]), SiteTable(features[7:])])

        assert (model.components[:, 0] > 0).all()
        np.testing.assert_allclose(np.abs(model.components), np.sqrt(0.5), atol=1e-12)


@pytest.mark.parametrize("p", [3, 1100])
def test_refuses_features_that_are_the_same_for_everybody(p):
    with pytest.raises(HarmonizationError, match="the same for everybody"):
        run_pooled(Projection(2), [SiteTable(np.full((8, p), 1e6 + 0.1))] * 3)


def test_refuses_sums_that_have_no_components():
    """As one site's can make everybody's, whatever the others sent: the analyses after it would be of no columns."""
    tables = make_sites((40, 25), 6).tables
    projection, state = Projection(2), None
    for _ in range(2):
        state = projection.solve(add_sums(projection.summarize(table, state) for table in tables), state)
    total = {**add_sums(projection.summarize(table, state) for table in tables), "moment": -np.eye(6)}

    with pytest.raises(HarmonizationError, match="have no components"):
        projection.solve(total, state)


@pytest.mark.parametrize("components", [0, 13, 120])
def test_refuses_more_components_than_there_can_be(components):
    sites = make_sites((40, 25), 12)

    with pytest.raises(HarmonizationError, match="expected 1 to 12 for 65 participants"):
        run_pooled(Projection(components), sites.tables)
