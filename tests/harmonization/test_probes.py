import numpy as np
import pytest
from sklearn.linear_model import Ridge

from harmonization import CrossValidatedRidge, HarmonizationError, RidgeRegression, SiteTable, run_pooled
from harmonization.combat import ComBatHarmonizer
from tests.support.sites import make_sites


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e4])
def test_ridge_equals_scikit_learn(alpha, offset):
    sites = make_sites((40, 25, 55), 20, offset=offset)
    reference = Ridge(alpha).fit(sites.features, sites.target)

    model = run_pooled(RidgeRegression(alpha), sites.tables)

    np.testing.assert_allclose(model.coef, reference.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(model.predict(sites.features), reference.predict(sites.features), atol=1e-6)


def test_ridge_of_two_targets_equals_two_ridges(five_sites):
    targets = np.column_stack([five_sites.target, five_sites.features[:, 0] ** 2])
    tables = [
        SiteTable(five_sites.features[rows], target=targets[rows])
        for number in range(5)
        for rows in [five_sites.site == number]
    ]
    reference = Ridge(2.0).fit(five_sites.features, targets)

    model = run_pooled(RidgeRegression(2.0), tables)

    np.testing.assert_allclose(model.coef, reference.coef_, atol=1e-10)
    np.testing.assert_allclose(model.intercept, reference.intercept_, atol=1e-10)


@pytest.mark.parametrize("combat", [False, True])
def test_cross_validated_ridge_equals_a_loop_over_pooled_rows(five_sites, combat):
    analysis = CrossValidatedRidge(n_folds=4, method="combat" if combat else "none", alphas=(3.0,))
    folds = np.concatenate([analysis.deal(table) for table in five_sites.tables])
    predicted = np.empty(len(folds))
    for fold in range(4):
        train = folds != fold
        features = five_sites.features
        if combat:
            harmonizer = ComBatHarmonizer().fit(features[train], five_sites.covariates[train], five_sites.site[train])
            features = harmonizer.transform(features, five_sites.covariates, five_sites.site)
        penalty = 3.0 * features[train].var(axis=0).mean() * train.sum()  # in units of the mean diagonal of X'X
        model = Ridge(penalty).fit(features[train], five_sites.target[train])
        predicted[~train] = model.predict(features[~train])
    error = five_sites.target - predicted

    scores = run_pooled(analysis, five_sites.tables)

    assert scores.r2 == pytest.approx(1 - (error @ error) / (len(error) * five_sites.target.var()), abs=1e-9)
    assert scores.mean_absolute_error == pytest.approx(np.abs(error).mean(), abs=1e-9)
    assert scores.root_mean_squared_error == pytest.approx(np.sqrt((error**2).mean()), abs=1e-9)


def test_loadings_are_read_after_harmonization(five_sites):
    loadings = np.random.default_rng(0).normal(size=(40, 6))
    through = [SiteTable(t.features, t.covariates, t.target, loadings=loadings, seed=t.seed) for t in five_sites.tables]
    beforehand = [SiteTable(t.features @ loadings, t.covariates, t.target, seed=t.seed) for t in five_sites.tables]

    raw = [run_pooled(CrossValidatedRidge(), tables).r2 for tables in (through, beforehand)]
    plain = [
        run_pooled(CrossValidatedRidge(method="combat", options={"prior": "none"}), t).r2 for t in (through, beforehand)
    ]
    shrunk = [run_pooled(CrossValidatedRidge(method="combat"), tables).r2 for tables in (through, beforehand)]

    assert raw[0] == pytest.approx(raw[1], abs=1e-12)
    # Scales differ between the 40 features and their 6 mixtures: after ComBat the two orders are two analyses.
    assert plain[0] != pytest.approx(plain[1], abs=1e-6)
    assert shrunk[0] != pytest.approx(shrunk[1], abs=1e-6)


def test_the_penalty_suits_the_data():
    rng = np.random.default_rng(0)
    features, noise = rng.normal(size=(200, 50)), rng.normal(size=200)
    clean = SiteTable(features, target=features[:, 0])
    random = SiteTable(features, target=noise)

    # What generalized cross-validation takes: next to none for an exact linear target, nearly all for noise.
    assert run_pooled(CrossValidatedRidge(), [clean]).alpha.max() < 0.01
    assert run_pooled(CrossValidatedRidge(), [clean]).r2 > 0.999
    assert run_pooled(CrossValidatedRidge(), [random]).alpha.min() > 1
    assert -0.1 < run_pooled(CrossValidatedRidge(), [random]).r2 < 0.05


def test_refuses_a_target_that_is_the_same_for_everybody(five_sites):
    tables = [SiteTable(t.features, target=np.full(t.n, 3.0)) for t in five_sites.tables]

    with pytest.raises(HarmonizationError, match="the same for everybody"):
        run_pooled(CrossValidatedRidge(), tables)
