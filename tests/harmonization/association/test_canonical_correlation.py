import numpy as np
import pytest
from sklearn import cross_decomposition

from harmonization import CCA, HarmonizationError, SiteTable, TableError, run_pooled


def two_views(n: int, p: int, r: int, seed: int = 0, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Views that share three latent numbers, in columns of unequal scale."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 3)) * [2, 1, 0.5]
    x = latent @ rng.normal(size=(3, p)) + rng.normal(size=(n, p))
    y = latent @ rng.normal(size=(3, r)) + rng.normal(size=(n, r))
    return offset + x * np.exp(rng.normal(size=p)), y * np.exp(rng.normal(size=r)) - offset


def split(x: np.ndarray, y: np.ndarray, n_sites: int) -> list[SiteTable]:
    rows = np.array_split(np.arange(len(x)), n_sites)
    return [SiteTable(x[index], second=y[index]) for index in rows]


@pytest.mark.parametrize("seed", range(8))
def test_offsets_that_differ_by_site_are_no_collinearity(seed):
    """Variances between sites are 1e12 times those within, and count all the same."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 80, size=rng.integers(2, 6))
    p = int(rng.integers(4, 12))
    x, y = two_views(int(sizes.sum()), p, 3, seed)
    site = np.repeat(np.arange(len(sizes)), sizes)
    x += rng.uniform(-1e6, 1e6, (len(sizes), p))[site]
    y += rng.uniform(-1e6, 1e6, (len(sizes), 3))[site]
    of_x, of_y = (np.linalg.qr(view - view.mean(axis=0)).Q for view in (x, y))
    tables = [SiteTable(x[site == i], second=y[site == i]) for i in range(len(sizes))]

    model = run_pooled(CCA(3), tables)

    expected = np.linalg.svd(of_x.T @ of_y, compute_uv=False)
    np.testing.assert_allclose(model.correlations, expected, rtol=1e-8)
    np.testing.assert_allclose([np.cov(scores.T) for scores in model.transform(x, y)], [np.eye(3)] * 2, atol=1e-7)


def test_scores_are_standardised_uncorrelated_and_of_fixed_sign():
    x, y = two_views(150, 6, 5, offset=1e6)

    model = run_pooled(CCA(4), split(x, y, 3))
    of_x, of_y = model.transform(x, y)

    np.testing.assert_allclose(np.cov(of_x.T), np.eye(4), atol=1e-8)
    np.testing.assert_allclose(np.cov(of_y.T), np.eye(4), atol=1e-8)
    np.testing.assert_allclose(of_x.T @ of_y / 149, np.diag(model.correlations), atol=1e-8)
    assert (model.x_weights[np.abs(model.x_weights).argmax(axis=0), np.arange(4)] > 0).all()
    assert (np.diff(model.correlations) < 0).all()


def test_full_shrinkage_is_partial_least_squares():
    x, y = two_views(40, 60, 30)
    of_x, of_y = cross_decomposition.PLSSVD(2, scale=False).fit(x, y).transform(x, y)

    model = run_pooled(CCA(2, shrinkage=1.0), split(x, y, 4))

    for scores, expected in zip(model.transform(x, y), (of_x, of_y), strict=True):
        np.testing.assert_allclose(np.abs(scores), np.abs(expected / expected.std(axis=0, ddof=1)), atol=1e-8)


def test_shrinkage_leaves_training_correlations_between_those_of_both_extremes():
    x, y = two_views(60, 25, 25)

    first = [run_pooled(CCA(1, shrinkage), split(x, y, 2)).correlations[0] for shrinkage in (0.0, 0.1, 1.0)]

    assert first[0] > first[1] > first[2] > 0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"p": 30, "r": 30}, {}, "Reduce each view to at most 19 principal components, or set shrinkage"),
        ({"collinear": True}, {}, "the 5 columns of the second view are collinear. Reduce them to at most 4"),
        ({"constant": 1e6 + 0.1}, {}, "column 3 of the features does not vary"),
        ({"constant": 0.0}, {"shrinkage": 0.5}, "column 3 of the features does not vary"),
        ({}, {"n_components": 6}, "n_components is 6; expected 1 to 5 for 6 and 5 columns"),
        ({"p": 50, "r": 60}, {"n_components": 45, "shrinkage": 0.5}, "expected 1 to 39"),
        ({"collinear": True}, {"n_components": 5, "shrinkage": 0.5}, "only 4 components that vary"),
    ],
)
def test_refuses_views_that_do_not_allow_it(change, options, message):
    x, y = two_views(40, change.get("p", 6), change.get("r", 5), offset=1e6)
    if "collinear" in change:
        y[:, 4] = y[:, 0] - 2 * y[:, 1]
    if "constant" in change:
        x[:, 2] = change["constant"]

    with pytest.raises(HarmonizationError, match=message):
        run_pooled(CCA(**{"n_components": 2, **options}), split(x, y, 3))


def test_refuses_what_is_not_there():
    with pytest.raises(TableError, match="no second view"):
        run_pooled(CCA(1), [SiteTable(np.eye(4))])
    with pytest.raises(HarmonizationError, match="n_components and shrinkage are 0 and"):
        CCA(0)
    with pytest.raises(HarmonizationError, match="expected at least 1, and 0 to 1"):
        CCA(1, shrinkage=float("nan"))
