import json
from pathlib import Path

import numpy as np
import pytest

from harmonization import (
    ComBat,
    ComBatHarmonizer,
    CovBat,
    CrossValidatedRidge,
    HarmonizationError,
    SiteTable,
    TableError,
    add_sums,
    run_pooled,
)
from tests.support.sites import Sites, make_sites

FROZEN = json.loads((Path(__file__).parent / "frozen" / "covbat.json").read_text())
RUNS = {
    "parametric": CovBat(),
    "none": CovBat(prior="none"),
    "nonparametric": CovBat(prior="nonparametric"),
    "mean_only": CovBat(mean_only=True),
    "half_of_the_variance": CovBat(variance=0.5),
}


def federated(sites: Sites, harmonizer) -> np.ndarray:
    """Harmonize site by site, each by what it learned from its rows."""
    model, harmonized = run_pooled(harmonizer, sites.tables), np.empty_like(sites.features)
    for number, table in enumerate(sites.tables):
        harmonized[sites.site == number] = harmonizer.harmonize(model, table)
    return harmonized


def dense(sites: Sites, share: float) -> np.ndarray:
    """CovBat of pooled rows, by a singular value decomposition of all standardized residuals."""
    first = ComBatHarmonizer().fit(sites.features, sites.covariates, sites.site)
    cleaned = first.transform(sites.features, sites.covariates, sites.site)
    residual = cleaned - first.model_.grand_mean - sites.covariates @ first.model_.coefficients
    mean, sd = residual.mean(axis=0), residual.std(axis=0, ddof=1)
    left, values, components = np.linalg.svd((residual - mean) / sd, full_matrices=False)
    kept = int((np.cumsum(values**2) / (values**2).sum() > share).argmax()) + 1
    scores = left[:, :kept] * values[:kept]
    alike = ComBatHarmonizer(prior="none").fit_transform(scores, None, sites.site)
    return cleaned + sd * ((alike - scores) @ components[:kept])


def correlated(p: int = 12, seed: int = 0, *, offset: float = 0.0) -> Sites:
    """Five sites where four common factors have other variances, and features other means and scales."""
    sites = make_sites((60, 45, 80, 50, 70), p, seed, offset=offset)
    rng = np.random.default_rng(seed + 1)
    loadings = rng.normal(size=(4, p))
    for number in range(5):
        rows = sites.site == number
        factors = rng.normal(size=(rows.sum(), 4)) * np.exp(0.8 * rng.normal(size=4))
        sites.features[rows] += factors @ loadings
    return sites


@pytest.mark.parametrize("run", RUNS)
def test_equals_the_package_of_its_authors(run):
    rows = np.array(FROZEN["site_age_sex"])
    sites = Sites(np.array(FROZEN["features"]), rows[:, 1:], rows[:, 1], rows[:, 0].astype(int))

    np.testing.assert_allclose(federated(sites, RUNS[run]), FROZEN[run], rtol=0, atol=1e-10)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_sketch_of_many_features_gives_the_answer_of_pooled_rows(share):
    sites = correlated(1100, offset=-1e4)

    np.testing.assert_allclose(federated(sites, CovBat(variance=share)), dense(sites, share), rtol=0, atol=1e-8)


def test_wide_sketch_survives_the_wire():
    tables, covbat = correlated(1100).tables, CovBat()
    direct, state = run_pooled(covbat, tables), None
    kinds = []
    while state is None or not state.done:
        solved = covbat.solve(add_sums([covbat.summarize(table, state) for table in tables]), state)
        state = covbat.read_state(solved.kind, solved.to_arrays())
        kinds.append(solved.kind)

    assert kinds == ["CommonEffects", "ResidualScale", "ResidualBasis", "ResidualComponents", "CovBatModel"]
    np.testing.assert_allclose(state.components, direct.components, atol=1e-12)


def test_covariances_of_sites_move_together():
    sites = correlated()

    def spread(features: np.ndarray) -> float:
        around = features - sites.covariates @ run_pooled(ComBat(), sites.tables).coefficients
        covariances = np.stack([np.cov(around[sites.site == number].T) for number in range(5)])
        return float(((covariances - covariances.mean(axis=0)) ** 2).sum())

    raw, combat, covbat = sites.features, federated(sites, ComBat()), federated(sites, CovBat())

    assert spread(combat) < spread(raw)
    assert spread(covbat) < 0.4 * spread(combat)


def test_scores_of_all_sites_have_the_same_mean_and_variance_afterwards():
    sites, covbat = correlated(), CovBat(prior="none")
    model = run_pooled(covbat, sites.tables)

    for table in sites.tables:
        scores = model.scores(table, covbat.harmonize(model, table))
        np.testing.assert_allclose(scores.mean(axis=0), model.score_mean, atol=1e-10)
        np.testing.assert_allclose(scores.var(axis=0, ddof=1), model.score_variance, rtol=1e-9)


def test_rows_that_taught_nothing_are_harmonized_as_the_others():
    sites, covbat = correlated(seed=4), CovBat()
    training = [table.take(np.arange(table.n) % 4 > 0) for table in sites.tables]
    model, table = run_pooled(covbat, training), sites.tables[2]
    effect = covbat.estimate(model, training[2])

    together = covbat.apply(model, table, effect)

    alone = np.concatenate([covbat.apply(model, table.take(np.array([row])), effect) for row in range(5)])
    np.testing.assert_allclose(alone, together[:5], atol=1e-12)
    np.testing.assert_allclose(together[np.arange(table.n) % 4 > 0], covbat.harmonize(model, training[2]), atol=1e-12)


def test_a_new_site_gets_the_scores_mean_and_variance():
    sites, covbat = correlated(), CovBat(prior="none")
    model = run_pooled(covbat, sites.tables[:2] + sites.tables[3:])
    table = sites.tables[2]

    scores = model.scores(table, covbat.harmonize(model, table))

    np.testing.assert_allclose(scores.mean(axis=0), model.score_mean, atol=1e-10)
    np.testing.assert_allclose(scores.var(axis=0, ddof=1), model.score_variance, rtol=1e-9)


def test_cross_validation_fits_each_part_on_its_training_rows(five_sites):
    analysis, tables, progress = CrossValidatedRidge(n_folds=3, method="covbat"), five_sites.tables, None

    while progress is None or not progress.finished:
        progress = analysis.solve(add_sums([analysis.summarize(table, progress) for table in tables]), progress)

    for fold, model in enumerate(progress.models):
        alone = run_pooled(CovBat(), [table.take(analysis.deal(table) != fold) for table in tables])
        np.testing.assert_array_equal(model.components, alone.components)
        np.testing.assert_array_equal(model.score_variance, alone.score_variance)
    assert run_pooled(analysis, tables).r2 > 0.3


def test_constant_feature_comes_back_unchanged(five_sites):
    others = Sites(five_sites.features.copy(), five_sites.covariates, five_sites.target, five_sites.site)
    five_sites.features[:, 3] = 7e5

    harmonized = federated(five_sites, CovBat())

    np.testing.assert_array_equal(harmonized[:, 3], 7e5)
    kept = np.delete(np.arange(40), 3)
    expected = federated(Sites(others.features[:, kept], others.covariates, others.target, others.site), CovBat())
    np.testing.assert_allclose(harmonized[:, kept], expected, atol=1e-9)


def test_refuses_what_it_cannot_fit(five_sites):
    model, table = run_pooled(CovBat(), five_sites.tables), five_sites.tables[0]

    for share in (0.0, 1.0, 95):
        with pytest.raises(HarmonizationError, match="expected a share between 0 and 1"):
            CovBat(variance=share)
    with pytest.raises(HarmonizationError, match="two participants at a site"):
        CovBat(mean_only=True).estimate(model, table.take(np.array([0])))
    with pytest.raises(HarmonizationError, match="features that vary"):
        run_pooled(CovBat(prior="none"), [SiteTable(np.full((5, 3), 2.0)), SiteTable(np.full((4, 3), 1.0))])
    with pytest.raises(TableError, match="in the same order"):
        CovBat().estimate(model, SiteTable(table.features[:, :5], table.design))
