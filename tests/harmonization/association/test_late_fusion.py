from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from harmonization import CrossValidatedRidge, HarmonizationError, LateFusion, SiteTable, TableError, run_pooled
from harmonization.core.errors import SmallGroupError

SIZES = (31, 12, 44)


def study(
    sizes: tuple[int, ...] = SIZES, *, first: float = 1.0, second: float = 1.0, offset: float = 0.0, seed: int = 0
) -> list[SiteTable]:
    """A target that is a sum of two numbers: one is seen in the features, the other in the second view."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(2, 8))
    tables = []
    for number, n in enumerate(sizes):
        latent = rng.normal(size=(n, 2))
        x = first * latent[:, :1] * loadings[:1] + rng.normal(size=(n, 8))
        y = second * latent[:, 1:] * loadings[1:, :5] + rng.normal(size=(n, 5))
        target = latent.sum(axis=1) + 0.3 * rng.normal(size=n)
        tables.append(
            SiteTable(offset + x, target=offset + target, second=1000 * y - offset, seed=number, site=str(number))
        )
    return tables


def plain(tables: list[SiteTable], analysis: LateFusion, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Held-out predictions [n, 4] and stacking weights [K, 2] by refitting scikit-learn's ridge, people left out."""
    x, y = np.concatenate([t.features for t in tables]), np.concatenate([t.second for t in tables])
    target = np.concatenate([t.target for t in tables])
    parts = np.concatenate([analysis.deal(t) for t in tables])
    predicted, all_weights = np.empty((len(x), 4)), []
    for part in range(analysis.n_parts):
        train = parts != part

        u, v = (StandardScaler().fit(view[train]).transform(view) for view in (x, y))
        both = np.concatenate([u, v], axis=1)
        models = [Ridge(alpha * train.sum(), solver="svd") for alpha in alphas[part]]
        inner = np.empty((train.sum(), 2))
        for column, (model, view) in enumerate(zip(models[:2], (u, v), strict=True)):
            for person in range(train.sum()):
                others = np.flatnonzero(train) != np.flatnonzero(train)[person]
                model.fit(view[train][others], target[train][others])
                inner[person, column] = model.predict(view[train][[person]])[0]
        for column, (model, view) in enumerate(zip(models, (u, v, both), strict=True)):
            predicted[~train, column] = model.fit(view[train], target[train]).predict(view[~train])
        mean = target[train].mean()
        weights = nnls(inner - mean, target[train] - mean)[0]
        predicted[~train, 3] = mean + (predicted[~train, :2] - mean) @ weights
        all_weights.append(weights)
    return predicted, np.array(all_weights)


@pytest.mark.parametrize(
    ("options", "offset"), [({"n_folds": 4}, 0.0), ({"n_folds": 4}, 1e6), ({"sites": ("0", "1", "2")}, 0.0)]
)
def test_equals_refitting_with_people_left_out(options, offset):
    analysis, tables = LateFusion(**options), study(offset=offset)

    scores = run_pooled(analysis, tables)
    predicted, weights = plain(tables, analysis, scores.alpha)

    target = np.concatenate([table.target for table in tables])
    squared = (target[:, None] - predicted) ** 2
    spread = ((target - target.mean()) ** 2).sum()
    np.testing.assert_allclose(scores.weights, weights, atol=1e-9)
    np.testing.assert_allclose(scores.r2, 1 - squared.sum(axis=0) / spread, atol=1e-9)
    np.testing.assert_allclose(scores.root_mean_squared_error, np.sqrt(squared.mean(axis=0)), atol=1e-9)
    np.testing.assert_allclose(scores.mean_absolute_error, np.abs(target[:, None] - predicted).mean(axis=0), atol=1e-9)
    differences = squared[:, :1] - squared[:, 2:]
    np.testing.assert_allclose(scores.gain, scores.r2[2:] - scores.r2[0], atol=1e-9)
    np.testing.assert_allclose(scores.gain_error, differences.std(axis=0) * np.sqrt(87) / spread, atol=1e-9)


@pytest.mark.parametrize("method", ["none", "combat"])
def test_either_view_alone_is_the_cross_validated_ridge(method):
    tables = study(SIZES)

    scores = run_pooled(LateFusion(method=method), tables)
    first = run_pooled(CrossValidatedRidge(method=method, penalty="gcv"), tables)
    second = run_pooled(CrossValidatedRidge(penalty="gcv"), [replace(table, features=table.second) for table in tables])

    np.testing.assert_allclose(scores.r2[:2], [first.r2, second.r2], rtol=1e-12)
    np.testing.assert_array_equal(scores.alpha[:, 0], first.alpha)


def test_both_views_together_predict_what_either_knows_half_of():
    scores = run_pooled(LateFusion(), study((80, 60, 90), first=2.0, second=2.0))

    assert (scores.r2[:2] < 0.6).all()
    assert (scores.r2[2:] > 0.75).all()
    assert (scores.gain > 5 * scores.gain_error).all()
    assert (scores.weights > 0.5).all()


def test_a_view_that_knows_nothing_adds_nothing():
    scores = run_pooled(LateFusion(), study((80, 60, 90), first=2.0, second=0.0))

    assert (np.abs(scores.gain) < 2 * scores.gain_error + 0.02).all()
    assert (scores.weights >= 0).all()
    np.testing.assert_allclose(scores.weights[:, 0], 1, atol=0.25)


def test_units_do_not_matter():
    tables, units = study(), 10.0 ** np.linspace(-5, 5, 8)
    rescaled = [replace(t, features=t.features * units, second=t.second * units[:5]) for t in tables]

    first, other = run_pooled(LateFusion(), tables), run_pooled(LateFusion(), rescaled)

    np.testing.assert_allclose(first.r2, other.r2, rtol=1e-9)


def test_through_loadings_either_view_keeps_its_relative_scale():
    tables = [replace(table, loadings=np.eye(8), second=table.second * [1, 1, 1, 0.1, 0.1]) for table in study()]
    rescaled = [replace(table, second=table.second * 1e-5) for table in tables]
    second = [replace(table, features=table.second, loadings=np.eye(5)) for table in tables]

    scores, other = run_pooled(LateFusion(), tables), run_pooled(LateFusion(), rescaled)

    expected = [run_pooled(CrossValidatedRidge(penalty="gcv"), t).r2 for t in (tables, second)]
    np.testing.assert_allclose(scores.r2[:2], expected, rtol=1e-12)
    np.testing.assert_allclose(scores.r2, other.r2, rtol=1e-9)


def test_more_columns_than_people_and_constant_ones_do_no_harm():
    rng = np.random.default_rng(0)
    tables = [
        replace(
            table, features=np.hstack([table.features, rng.normal(size=(table.n, 150))]), second=np.ones((table.n, 3))
        )
        for table in study(first=2.0)
    ]

    scores = run_pooled(LateFusion(), tables)

    assert scores.r2[0] > 0.1
    assert scores.r2[1] == pytest.approx(0, abs=0.1)
    np.testing.assert_allclose(scores.r2[2], scores.r2[0], atol=0.02)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"second": None}, TableError, "no second view"),
        ({"target": None}, TableError, "no target"),
        ({"target": np.ones(31)}, HarmonizationError, "the same for everybody"),
        ({"min_group": 7}, SmallGroupError, "fewer than 7 in each"),
    ],
)
def test_refuses_tables_that_do_not_allow_it(change, error, message):
    with pytest.raises(error, match=message):
        run_pooled(LateFusion(), [replace(study()[0], **change)])


def test_refuses_penalties_that_leave_nothing_to_leave_out():
    with pytest.raises(HarmonizationError, match="expected penalties above 0"):
        LateFusion(alphas=(0.0, 1.0))
