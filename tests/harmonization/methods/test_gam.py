import json
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import BSpline

from harmonization import (
    ComBat,
    ComBatGAM,
    CrossValidatedRidge,
    DesignError,
    HarmonizationError,
    SiteTable,
    TableError,
    add_sums,
    run_pooled,
)
from harmonization.core.errors import SmallGroupError
from tests.support.sites import Sites, make_sites

AGE = ((0, -1.6, 2.0),)


def pooled(sites: Sites, harmonizer) -> np.ndarray:
    """Harmonize all rows, each site's by what it learned from them."""
    model, harmonized = run_pooled(harmonizer, sites.tables), np.empty_like(sites.features)
    for number, table in enumerate(sites.tables):
        harmonized[sites.site == number] = harmonizer.harmonize(model, table)
    return harmonized


def fitted(model, sites: Sites) -> np.ndarray:
    """Fitted values [n, p], each site's mean with them."""
    around = sites.features - model.grand_mean - model.design.expand(sites.covariates) @ model.coefficients
    means = np.stack([around[sites.site == number].mean(axis=0) for number in np.unique(sites.site)])
    return sites.features - around + means[sites.site]


def bent(sites: Sites) -> Sites:
    """Add to the features curves of age, from straight to wavy."""
    wiggles = np.linspace(0, 4, sites.features.shape[1])
    return Sites(
        sites.features + wiggles * np.sin(1.5 * sites.covariates[:, :1]), sites.covariates, sites.target, sites.site
    )


def dense_fits(sites: Sites, penalties, n_splines: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits [L, n, p], degrees of freedom [L] and scores [L, p] of penalized least squares with a column a site."""
    age, h = sites.covariates[:, 0], 3.6 / (n_splines - 3)
    splines = BSpline(-1.6 + h * np.arange(-3, n_splines + 1), np.eye(n_splines), 3)
    inside = np.clip(age, -1.6, 2.0)
    basis = splines(inside) + (age - inside)[:, None] * splines.derivative()(inside)
    # All splines, and all sites: one constant too many, which the pseudoinverse copes with.
    X = np.column_stack([np.eye(sites.site.max() + 1)[sites.site], sites.covariates[:, 1:], basis])
    differences = np.column_stack(
        [np.zeros((n_splines - 2, X.shape[1] - n_splines)), np.diff(np.eye(n_splines), 2, axis=0)]
    )
    origin = sites.features[0]
    fits, edf, scores = [], [], []
    for penalty in penalties:
        hat = X @ np.linalg.pinv(np.vstack([X, np.sqrt(penalty) * differences]))[:, : len(X)]
        fits.append(origin + hat @ (sites.features - origin))
        edf.append(np.trace(hat))
        scores.append(len(X) * ((sites.features - fits[-1]) ** 2).sum(axis=0) / (len(X) - edf[-1]) ** 2)
    return np.array(fits), np.array(edf), np.array(scores)


def test_fits_scores_and_choice_equal_mgcv():
    frozen = json.loads((Path(__file__).parent / "frozen" / "mgcv.json").read_text())
    rows, best = np.array(frozen["site_age_sex"]), np.array(frozen["best"])
    sites = Sites(np.array(frozen["features"]), rows[:, 1:], rows[:, 1], rows[:, 0].astype(int))

    model = run_pooled(ComBatGAM(AGE), sites.tables)

    own, n = np.arange(4), len(rows)
    np.testing.assert_allclose(model.penalty, np.array(frozen["penalties"])[best], rtol=1e-12)
    np.testing.assert_allclose(model.edf, np.array(frozen["edf"])[own, best], rtol=1e-10)
    np.testing.assert_allclose(fitted(model, sites), frozen["fitted"], atol=1e-10)
    score = n**2 * model.pooled_variance / (n - model.edf) ** 2
    np.testing.assert_allclose(score, np.array(frozen["scores"])[own, best], rtol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_large_penalty_gives_combat(offset):
    sites = make_sites((31, 24, 47, 12, 60), 40, offset=offset)  # ages lie beyond the bounds, too

    harmonized = pooled(sites, ComBatGAM(AGE, penalties=(1e12,)))

    np.testing.assert_allclose(harmonized, pooled(sites, ComBat()), rtol=0, atol=1e-6)


def test_straight_effects_are_fitted_with_few_degrees_of_freedom():
    sites = make_sites((70, 60, 90), 200, seed=3)

    model = run_pooled(ComBatGAM(AGE), sites.tables)

    assert np.median(model.edf) < 3 + 2 + 1.5  # three sites, age and sex, and little for bends
    np.testing.assert_allclose(pooled(sites, ComBatGAM(AGE)), pooled(sites, ComBat()), atol=1.5)


def u_shaped(seed: int = 0) -> tuple[Sites, np.ndarray]:
    """Young, middle-aged and old sites, a U-shaped effect of age, and the rows [n, p] without effects of site."""
    rng = np.random.default_rng(seed)
    site = np.repeat(np.arange(3), 80)
    age = rng.normal(0, 0.45, 240) + np.array([-1.0, 0.0, 1.0])[site]
    truth = np.outer(age**2, rng.uniform(1, 2, 20))
    features = truth + rng.normal(size=(3, 20))[site] + 0.5 * rng.normal(size=truth.shape)
    return Sites(features, age[:, None], age, site), truth


def test_keeps_a_u_shaped_effect_that_combat_takes_for_one_of_site():
    sites, truth = u_shaped()

    def distortion(harmonized: np.ndarray) -> float:
        error = np.stack([(harmonized - truth)[sites.site == number].mean(axis=0) for number in range(3)])
        return float((error - error.mean(axis=0)).std())  # between sites, where a common constant does not matter

    assert distortion(pooled(sites, ComBat())) > 0.5
    assert distortion(pooled(sites, ComBatGAM(((0, -2.2, 2.2),)))) < 0.12


def test_curve_is_the_expected_feature_with_all_else_at_zero():
    rng = np.random.default_rng(1)
    n = 600
    age, motion, sex = rng.uniform(-2, 2, n), rng.uniform(0, 5, n), rng.random(n) < 0.5
    features = np.column_stack([3 + np.cos(2 * age) + 0.2 * motion**2 + sex, 7 - age]) + 0.1 * rng.normal(size=(n, 2))
    covariates = np.column_stack([motion, sex, age])
    gam = ComBatGAM(((2, -2.0, 2.0), (0, 0.0, 5.0)))
    model = run_pooled(gam, [SiteTable(features[::2], covariates[::2]), SiteTable(features[1::2], covariates[1::2])])
    ages, motions = np.linspace(-2, 2, 30), np.linspace(0, 5, 30)

    np.testing.assert_allclose(model.curve(ages)[:, 0], 3 + np.cos(2 * ages), atol=0.12)
    np.testing.assert_allclose(model.curve(ages)[:, 1], 7 - ages, atol=0.1)
    np.testing.assert_allclose(model.curve(motions, column=0)[:, 0], 4 + 0.2 * motions**2, atol=0.12)
    with pytest.raises(DesignError, match=r"column 1 is not smooth. Name one of \[2, 0\]"):
        model.curve(ages, column=1)


def test_ages_that_nobody_has_do_not_matter(five_sites):
    near = np.abs(five_sites.covariates[:, 0]) < 0.6
    sites = Sites(
        five_sites.features[near], five_sites.covariates[near], five_sites.target[near], five_sites.site[near]
    )
    wide, fits = ComBatGAM(((0, -1.6, 2.0),), penalties=(1.0,)), dense_fits(sites, [1.0], 10)[0]

    model = run_pooled(wide, sites.tables)

    np.testing.assert_allclose(fitted(model, sites), fits[0], atol=1e-9)
    assert np.isfinite(pooled(sites, wide)).all()


def test_rows_that_taught_nothing_are_harmonized_as_the_others(five_sites):
    gam = ComBatGAM(AGE)
    training = [table.take(np.arange(table.n) % 4 > 0) for table in five_sites.tables]
    model, table = run_pooled(gam, training), five_sites.tables[2]
    effect = gam.estimate(model, training[2])

    together = gam.apply(model, table, effect)

    alone = np.concatenate([gam.apply(model, table.take(np.array([row])), effect) for row in range(5)])
    np.testing.assert_allclose(alone, together[:5], atol=1e-12)
    np.testing.assert_allclose(together[np.arange(table.n) % 4 > 0], gam.harmonize(model, training[2]), atol=1e-12)


def test_a_new_site_gets_the_curves_mean_and_scale(five_sites):
    gam = ComBatGAM(AGE, prior="none")
    model, table = run_pooled(gam, five_sites.tables[:2] + five_sites.tables[3:]), five_sites.tables[2]

    harmonized = gam.harmonize(model, table)

    around = harmonized - model.grand_mean - model.design.expand(table.design) @ model.coefficients
    np.testing.assert_allclose(around.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(around.var(axis=0, ddof=1), model.pooled_variance, rtol=1e-10)


def test_cross_validation_fits_each_part_on_its_training_rows(five_sites):
    options = {"smooth": [[0, -1.6, 2.0]]}
    analysis, tables = CrossValidatedRidge(n_folds=3, method="combat_gam", options=options), five_sites.tables

    progress = analysis.solve(add_sums([analysis.summarize(table, None) for table in tables]), None)

    for fold, model in enumerate(progress.models):
        alone = run_pooled(ComBatGAM(AGE), [table.take(analysis.deal(table) != fold) for table in tables])
        np.testing.assert_array_equal(model.coefficients, alone.coefficients)
    assert run_pooled(analysis, tables).r2 > 0.3


def test_the_only_old_participant_leaves_no_trace_in_the_sums(five_sites):
    gam, (first, *others) = ComBatGAM(AGE), five_sites.tables
    design = np.vstack([first.design, [1.9, 1.0]])
    tables = [SiteTable(np.vstack([first.features, np.full(40, value)]), design, min_group=5) for value in (5.0, 9.0)]

    sums = [gam.summarize(table, None) for table in tables]

    for name, values in sums[0].items():
        np.testing.assert_array_equal(values, sums[1][name])
    assert gam.harmonize(run_pooled(gam, [tables[0], *others]), tables[0]).shape == (32, 40)


def test_constant_feature_comes_back_unchanged(five_sites):
    five_sites.features[:, 3] = 7e5

    harmonized = pooled(five_sites, ComBatGAM(AGE))

    np.testing.assert_array_equal(harmonized[:, 3], 7e5)
    assert np.isfinite(harmonized).all()


def test_refuses_what_it_cannot_fit(five_sites):
    tables = five_sites.tables
    constant = [SiteTable(t.features, np.column_stack([np.full(t.n, 0.3), t.design])) for t in tables]
    twice = [SiteTable(t.features, np.column_stack([t.design, 2 * t.design[:, 0]])) for t in tables]
    few = [table.take(np.arange(10)) for table in tables[:2]]
    wary = [SiteTable(t.features, t.design, min_group=40) for t in tables]

    with pytest.raises(DesignError, match="smooth names column 2, counted from 0; there are 2 columns"):
        run_pooled(ComBatGAM(((2, -1.6, 2.0),)), tables)
    with pytest.raises(DesignError, match="10 columns of covariates and splines are too many for 20 participants"):
        run_pooled(ComBatGAM(AGE), few)
    with pytest.raises(DesignError, match="column 1 is constant inside every site"):
        run_pooled(ComBatGAM(AGE), constant)
    with pytest.raises(DesignError, match="collinear"):
        run_pooled(ComBatGAM(AGE), twice)
    with pytest.raises(SmallGroupError, match="fewer than 40 participants of a site lie under every spline"):
        run_pooled(ComBatGAM(AGE), wary)
    with pytest.raises(DesignError, match="bounds of column 0"):
        ComBatGAM(((0, 2.0, -1.6),))
    for penalties in ((), (1.0, 0.0), (np.inf,)):
        with pytest.raises(HarmonizationError, match="penalties must be positive"):
            ComBatGAM(AGE, penalties=penalties)


def test_refuses_other_columns_than_those_of_the_fit(five_sites):
    gam, table = ComBatGAM(AGE), five_sites.tables[0]
    model = run_pooled(gam, five_sites.tables)

    with pytest.raises(TableError, match="covariates have 1 columns; this model was fitted on 2"):
        gam.estimate(model, SiteTable(table.features, table.design[:, :1]))
    with pytest.raises(TableError, match="in the same order"):
        gam.estimate(model, SiteTable(table.features[:, :7], table.design))
