from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from harmonization import CrossValidatedRidge, HarmonizationError, SiteTable, TableError, run_pooled
from harmonization.probes.scoring import bootstrap_weights, permuted_rows
from tests.support.conditioning import tolerance
from tests.support.plain_loops import Left, leave_out, parts_of, tables_of
from tests.support.sites import Sites, make_sites

ALPHAS = (1e-3, 1e-1, 1.0, 10.0)
NAMES = ("0", "1", "2", "3", "4")


def fit_ridge(features: np.ndarray, target: np.ndarray, alpha: float) -> Pipeline:
    return make_pipeline(StandardScaler(), Ridge(alpha * len(features))).fit(features, target)


def nested_choice(left: Left, target: np.ndarray) -> float:
    errors = [
        sum(
            ((target - fit_ridge(left.features[rows], target[rows], alpha).predict(left.features))[held_out] ** 2).sum()
            for rows, held_out in left.inner
        )
        for alpha in ALPHAS
    ]
    return ALPHAS[int(np.argmin(errors))]


def gcv_choice(left: Left, target: np.ndarray) -> float:
    x, y = left.features[left.training], target[left.training]
    x, y = StandardScaler().fit_transform(x), y - y.mean()
    errors = []
    for alpha in ALPHAS:
        hat = x @ np.linalg.solve(x.T @ x + alpha * len(x) * np.eye(x.shape[1]), x.T)
        errors.append(len(y) * ((y - hat @ y) ** 2).sum() / (len(y) - 1 - np.trace(hat)) ** 2)
    return ALPHAS[int(np.argmin(errors))]


def plain_loop(sites: Sites, target: np.ndarray, parts: np.ndarray, method: str, choose, alphas=None):
    """Held-out predictions and chosen penalties; or those of penalties that were chosen before."""
    predicted, chosen = np.empty(len(target)), []
    for left in leave_out(sites, parts, method):
        chosen.append(choose(left, target) if alphas is None else alphas[left.part])
        model = fit_ridge(left.features[left.training], target[left.training], chosen[-1])
        predicted[~left.training] = model.predict(left.features[~left.training])
    return predicted, chosen


@pytest.mark.parametrize("penalty", ["nested", "gcv"])
@pytest.mark.parametrize("names", [(), NAMES], ids=["folds", "sites"])
@pytest.mark.parametrize("method", ["none", "combat"])
def test_equals_a_loop_over_pooled_rows(five_sites, method, names, penalty):
    target = five_sites.features[:, 0] + five_sites.target + 50
    tables = tables_of(five_sites, target)
    analysis = CrossValidatedRidge(4, names, method, alphas=ALPHAS, penalty=penalty)
    choose = nested_choice if penalty == "nested" else gcv_choice
    predicted, chosen = plain_loop(five_sites, target, parts_of(analysis, tables), method, choose)

    scores = run_pooled(analysis, tables)

    assert scores.alpha.tolist() == chosen
    assert scores.r2 == pytest.approx(r2_score(target, predicted), abs=1e-9)
    assert scores.mean_absolute_error == pytest.approx(mean_absolute_error(target, predicted), abs=1e-9)
    assert scores.root_mean_squared_error == pytest.approx(root_mean_squared_error(target, predicted), abs=1e-9)
    assert scores.correlation == pytest.approx(np.corrcoef(target, predicted)[0, 1], abs=1e-9)
    assert scores.n == len(target)


@given(
    sizes=st.lists(st.integers(4, 60), min_size=2, max_size=6),
    p=st.integers(2, 90),
    offset=st.sampled_from([0.0, 1e6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=10)
def test_folds_equal_the_loop_on_any_data(sizes, p, offset, seed):
    sites = make_sites(tuple(sizes), p, seed, offset=offset)
    target = sites.target + offset
    tables = tables_of(sites, target)
    analysis = CrossValidatedRidge(n_folds=3, alphas=ALPHAS)
    predicted, chosen = plain_loop(sites, target, parts_of(analysis, tables), "none", nested_choice)

    def r2(features: np.ndarray, target: np.ndarray) -> float:
        return run_pooled(analysis, tables_of(replace(sites, features=features), target)).r2

    assert run_pooled(analysis, tables).alpha.tolist() == chosen
    bound = tolerance(r2, sites.features, target)
    assert r2(sites.features, target) == pytest.approx(r2_score(target, predicted), rel=0, abs=bound)


def test_intervals_are_those_of_resampled_participants(five_sites):
    tables = tables_of(five_sites, five_sites.target)
    analysis = CrossValidatedRidge(alphas=ALPHAS, bootstrap=100)
    predicted, _ = plain_loop(five_sites, five_sites.target, parts_of(analysis, tables), "none", nested_choice)
    draws = np.concatenate([bootstrap_weights(table, 100) for table in tables], axis=1)[1:].astype(int)
    resampled = [(np.repeat(five_sites.target, draw), np.repeat(predicted, draw)) for draw in draws]

    scores = run_pooled(analysis, tables)

    r2 = np.quantile([r2_score(*rows) for rows in resampled], (0.025, 0.975))
    errors = np.quantile([mean_absolute_error(*rows) for rows in resampled], (0.025, 0.975))
    assert (scores.r2_low, scores.r2_high) == pytest.approx(r2, abs=1e-9)
    assert (scores.mean_absolute_error_low, scores.mean_absolute_error_high) == pytest.approx(errors, abs=1e-9)
    assert np.isnan(run_pooled(replace(analysis, bootstrap=0), tables).r2_low)


@pytest.mark.parametrize("method", ["none", "combat"])
def test_null_is_that_of_permuted_targets(five_sites, method):
    tables = tables_of(five_sites, five_sites.target)
    analysis = CrossValidatedRidge(3, method=method, alphas=ALPHAS, permutations=5)
    scores = run_pooled(analysis, tables)
    parts = parts_of(analysis, tables)
    permuted = np.concatenate([table.target[permuted_rows(table, analysis.deal(table), 5)] for table in tables], axis=1)

    expected = []
    for target in permuted[1:]:
        predicted, _ = plain_loop(five_sites, target, parts, method, None, scores.alpha)
        expected.append(r2_score(target, predicted))

    np.testing.assert_allclose(scores.null, expected, atol=1e-9)
    assert scores.null_mean == pytest.approx(np.mean(expected))
    assert scores.null_95 == pytest.approx(np.quantile(expected, 0.95))


def test_what_is_there_is_told_from_chance():
    rng = np.random.default_rng(1)
    sites = make_sites((60, 50, 70), 20, site_effect=0.0)
    noise, signal = rng.normal(size=180), sites.features[:, 0] + 0.5 * rng.normal(size=180)
    analysis = CrossValidatedRidge(bootstrap=200, permutations=39)

    chance, found = (run_pooled(analysis, tables_of(sites, target)) for target in (noise, signal))

    assert chance.p_value > 0.05
    assert chance.r2_low < 0.02
    assert found.p_value == pytest.approx(1 / 40)
    assert found.r2_low < found.r2 < found.r2_high
    assert found.r2_low > found.null_95


def test_intervals_cover_the_truth():
    """The held-out R2 of a known signal, in new samples, lies in 95 % of the intervals; folds and fits vary, too."""
    r2, intervals = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(150, 3))
        table = SiteTable(features, target=features[:, 0] + rng.normal(size=150), seed=seed)
        scores = run_pooled(CrossValidatedRidge(3, alphas=(1e-3,), bootstrap=200), [table])
        r2.append(scores.r2)
        intervals.append((scores.r2_low, scores.r2_high))

    low, high = np.transpose(intervals)

    assert 0.85 <= ((low < np.mean(r2)) & (np.mean(r2) < high)).mean() <= 1


@pytest.mark.parametrize("method", ["none", "combat"])
@pytest.mark.parametrize("penalty", ["nested", "gcv"])
def test_the_units_of_features_are_of_no_matter(five_sites, penalty, method):
    """Thickness in metres beside volumes in cubic millimetres."""
    target = five_sites.features[:, 0] + five_sites.target + 50
    analysis = CrossValidatedRidge(4, method=method, options={"prior": "none"} if method == "combat" else {})
    analysis = replace(analysis, alphas=ALPHAS, penalty=penalty, permutations=3)
    units = 10.0 ** np.random.default_rng(0).uniform(-6, 6, 40)
    mixed = Sites(five_sites.features * units, five_sites.covariates, five_sites.target, five_sites.site)

    scores, other = (run_pooled(analysis, tables_of(sites, target)) for sites in (five_sites, mixed))

    assert other.r2 == pytest.approx(scores.r2, abs=1e-9)
    np.testing.assert_array_equal(other.alpha, scores.alpha)
    np.testing.assert_allclose(other.null, scores.null, atol=1e-9)


def test_a_constant_feature_is_of_no_matter(five_sites):
    """Its rounding, far from zero, is not to be taken for a feature of deviation 1."""
    rows = five_sites.features.copy()
    rows[:, 3], rows[:, 7] = 1e6 + 0.1, 0.0
    with_constants = Sites(rows, five_sites.covariates, five_sites.target, five_sites.site)
    without = Sites(
        np.delete(rows, [3, 7], axis=1), *(getattr(five_sites, n) for n in ("covariates", "target", "site"))
    )

    found, expected = (
        run_pooled(CrossValidatedRidge(), tables_of(sites, sites.target)) for sites in (with_constants, without)
    )

    assert found.r2 == pytest.approx(expected.r2, abs=1e-9)


def test_loadings_are_read_after_harmonization_and_their_scores_keep_their_relative_scale(five_sites):
    loadings = np.random.default_rng(0).normal(size=(40, 6)) * [1, 1, 1, 0.1, 0.1, 0.1]
    through = [replace(table, loadings=loadings) for table in tables_of(five_sites, five_sites.target)]
    analysis = CrossValidatedRidge(4, alphas=(0.3,))
    scores = five_sites.features @ loadings
    parts, predicted = parts_of(analysis, through), np.empty(len(scores))
    for part in range(4):
        x, y = scores[parts != part], five_sites.target[parts != part]
        model = Ridge(0.3 * len(x) * x.var(axis=0).mean()).fit(x, y)
        predicted[parts == part] = model.predict(scores[parts == part])

    assert run_pooled(analysis, through).r2 == pytest.approx(r2_score(five_sites.target, predicted), abs=1e-9)

    beforehand = [replace(table, features=table.features @ loadings, loadings=np.eye(6)) for table in through]
    for options in ({"prior": "none"}, {}):
        # Scales differ between the 40 features and their 6 mixtures: after ComBat the two orders are two analyses.
        combat = replace(analysis, method="combat", options=options)
        assert run_pooled(combat, through).r2 != pytest.approx(run_pooled(combat, beforehand).r2, abs=1e-6)
    assert run_pooled(analysis, beforehand).r2 == pytest.approx(run_pooled(analysis, through).r2, abs=1e-12)


@pytest.mark.parametrize("penalty", ["nested", "gcv"])
def test_the_penalty_suits_the_data(penalty):
    rng = np.random.default_rng(0)
    features, noise = rng.normal(size=(200, 50)), rng.normal(size=200)
    clean = SiteTable(features, target=features[:, 0])
    random = SiteTable(features, target=noise)
    analysis = CrossValidatedRidge(penalty=penalty)

    # Next to none for an exact linear target, nearly all for noise.
    assert run_pooled(analysis, [clean]).alpha.max() < 0.01
    assert run_pooled(analysis, [clean]).r2 > 0.999
    assert run_pooled(analysis, [random]).alpha.min() > 1
    assert -0.1 < run_pooled(analysis, [random]).r2 < 0.05


@pytest.mark.parametrize("value", [0.0, 3.1, 1e6 / 3])
def test_refuses_a_target_that_is_the_same_for_everybody(five_sites, value):
    tables = [SiteTable(t.features, target=np.full(t.n, value)) for t in five_sites.tables]

    with pytest.raises(HarmonizationError, match="the same for everybody"):
        run_pooled(CrossValidatedRidge(), tables)


def test_refuses_several_targets(five_sites):
    tables = tables_of(five_sites, np.column_stack([five_sites.target] * 2))

    with pytest.raises(TableError, match="2 columns; expected one number a participant"):
        run_pooled(CrossValidatedRidge(), tables)


def test_refuses_to_permute_repeated_participants(five_sites):
    tables = [replace(t, participant=np.arange(t.n) // 2) for t in five_sites.tables]

    with pytest.raises(TableError, match="Give their mean"):
        run_pooled(CrossValidatedRidge(2, penalty="gcv", permutations=1), tables)
    assert run_pooled(CrossValidatedRidge(2, penalty="gcv", bootstrap=9), tables).r2_low < 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alphas": ()}, "expected positive, finite penalties"),
        ({"alphas": (1.0, float("nan"))}, "expected positive, finite penalties"),
        ({"alphas": (0.0,)}, "expected positive, finite penalties"),
        ({"penalty": "aic"}, "penalty is 'aic'; expected 'nested' or 'gcv'"),
        ({"n_folds": 2}, "Use more folds, or penalty 'gcv'"),
        ({"sites": ("a", "b")}, "Use more folds, or penalty 'gcv'"),
        ({"bootstrap": -1}, "neither bootstrap nor permutations below 0"),
    ],
)
def test_refuses_parameters_that_make_no_sense(parameters, message):
    with pytest.raises(HarmonizationError, match=message):
        CrossValidatedRidge(**parameters)


def test_a_round_too_large_to_send_is_refused_before_it_is_made():
    tables = [SiteTable(np.random.default_rng(0).normal(size=(30, 400)), target=np.arange(30.0))]

    with pytest.raises(HarmonizationError, match="308 MiB in one round; at most 256 are allowed"):
        run_pooled(CrossValidatedRidge(permutations=20000), tables)
