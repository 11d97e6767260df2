import contextlib
import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from neuroCombat import neuroCombat

from harmonization import (
    ComBat,
    ComBatHarmonizer,
    DesignError,
    HarmonizationError,
    SiteTable,
    TableError,
    add_sums,
    make_analysis,
    run_pooled,
)
from harmonization.core.errors import SmallGroupError
from harmonization.methods import combat
from harmonization.methods.combat import Prior
from tests.support.sites import Sites, make_sites

MODES = {"parametric": {}, "nonparametric": {"parametric": False}, "none": {"eb": False}}
"""Our priors, and neuroCombat's options for them."""
FROZEN = np.load(Path(__file__).parent / "frozen" / "combat.npz")
"""What neuroCombat and neuroHarmonize made with an old numpy; frozen/make_oracles.py says how."""


def neurocombat(sites: Sites, categories: tuple[int, ...] = (1,), **options: object) -> np.ndarray:
    """Harmonize pooled rows with neuroCombat 0.2.12; these columns of the covariates are categories."""
    names = [f"c{column}" for column in range(sites.covariates.shape[1])]
    table = pd.DataFrame(sites.covariates, columns=names).assign(site=sites.site)
    categorical = [names[column] for column in categories if column < len(names)]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = neuroCombat(
            sites.features.T,
            table,
            "site",
            categorical_cols=categorical,
            continuous_cols=[name for name in names if name not in categorical],
            **options,
        )
    return answer["data"].T


def named(tables: list[SiteTable]) -> list[SiteTable]:
    """Give the tables of sites their numbers as names."""
    return [replace(table, site=str(number)) for number, table in enumerate(tables)]


def federated(sites: Sites, **options: object) -> np.ndarray:
    """Harmonize site by site from the total of the sites' sums."""
    analysis, tables = ComBat(**options), named(sites.tables)
    model = run_pooled(analysis, tables)
    harmonized = np.empty_like(sites.features)
    for number, table in enumerate(tables):
        harmonized[sites.site == number] = analysis.harmonize(model, table)
    return harmonized


@pytest.mark.parametrize("mean_only", [False, True])
@pytest.mark.parametrize("prior", MODES)
def test_five_sites_equal_pooled_neurocombat(five_sites, prior, mean_only):
    expected = neurocombat(five_sites, mean_only=mean_only, **MODES[prior])

    np.testing.assert_allclose(federated(five_sites, prior=prior, mean_only=mean_only), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("reference", [None, "0", "1"])
@pytest.mark.parametrize("mean_only", [False, True])
@pytest.mark.parametrize("prior", MODES)
def test_every_mode_equals_frozen_neurocombat(prior, mean_only, reference):
    """Its reference batch needs an old numpy."""
    covariates = np.column_stack([FROZEN["age"], FROZEN["group"] == 1, FROZEN["group"] == 2]).astype(np.float64)
    sites = Sites(FROZEN["features"], covariates, FROZEN["age"], FROZEN["site"])

    harmonized = federated(sites, prior=prior, mean_only=mean_only, reference=reference)

    expected = FROZEN[f"neurocombat/{prior}/{mean_only}/{reference}"]
    np.testing.assert_allclose(harmonized, expected, rtol=0, atol=1e-10)
    if reference is not None:
        rows = sites.site == int(reference)
        np.testing.assert_array_equal(harmonized[rows], sites.features[rows])


def test_fit_and_application_to_held_out_rows_equal_frozen_neuroharmonize():
    covariates = np.column_stack([FROZEN["age"], FROZEN["group"] == 1, FROZEN["group"] == 2]).astype(np.float64)
    features, site, rows = FROZEN["features"], FROZEN["site"], FROZEN["training"]

    harmonizer = ComBatHarmonizer().fit(features[rows], covariates[rows], site[rows])

    learned = harmonizer.transform(features[rows], covariates[rows], site[rows])
    np.testing.assert_allclose(learned, FROZEN["neuroharmonize/learned"], rtol=0, atol=1e-10)
    applied = harmonizer.transform(features, covariates, site)
    np.testing.assert_allclose(applied, FROZEN["neuroharmonize/applied"], rtol=0, atol=1e-10)


def test_means_and_scales_of_sites_agree_afterwards_without_shrinkage(five_sites):
    model = run_pooled(ComBat(), five_sites.tables)
    residuals = [
        (model.harmonize(t.features, t.design, prior="none") - model.grand_mean - t.design @ model.coefficients)
        for t in five_sites.tables
    ]

    for residual in residuals:
        np.testing.assert_allclose(residual.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(residual.var(axis=0, ddof=1), model.pooled_variance, rtol=1e-10)


def test_effect_of_covariates_is_kept(five_sites):
    before = run_pooled(ComBat(), five_sites.tables).coefficients
    harmonized = federated(five_sites, prior="none", mean_only=True)
    design = np.column_stack([np.ones(len(harmonized)), five_sites.covariates])
    after = np.linalg.lstsq(design, harmonized, rcond=None)[0][1:]

    np.testing.assert_allclose(after, before, atol=1e-10)


# Constant features


def test_constant_feature_comes_back_unchanged(five_sites):
    five_sites.features[:, 3] = 7e5
    harmonized = federated(five_sites)

    np.testing.assert_array_equal(harmonized[:, 3], 7e5)
    others = np.delete(np.arange(40), 3)
    sites = Sites(five_sites.features[:, others], five_sites.covariates, five_sites.target, five_sites.site)
    np.testing.assert_allclose(harmonized[:, others], neurocombat(sites), atol=1e-9)


def test_a_feature_that_is_constant_inside_every_site_comes_back_unchanged(five_sites):
    five_sites.features[:, 3] = np.array([0.1, 0.3, -0.7, 0.2, 0.6])[five_sites.site]

    np.testing.assert_array_equal(federated(five_sites)[:, 3], five_sites.features[:, 3])


# Missing values


def with_holes(sites: Sites) -> list[SiteTable]:
    """Tables of the sites where a tenth of the values is missing; every site has complete rows."""
    rng = np.random.default_rng(1)
    tables = []
    for table in named(sites.tables):
        holes = rng.random(table.features.shape) < 0.1
        holes[: table.n // 2] = False
        tables.append(replace(table, features=np.where(holes, np.nan, table.features), incomplete=True))
    return tables


def test_complete_rows_estimate_and_all_rows_are_harmonized(five_sites):
    tables = with_holes(five_sites)
    complete = [table.take(~np.isnan(table.features).any(axis=1)) for table in tables]
    analysis, expected = ComBat(missing="complete"), run_pooled(ComBat(), complete)

    model = run_pooled(analysis, tables)

    for table, part in zip(tables, complete, strict=True):
        harmonized = analysis.harmonize(model, table)
        effect = expected.site_effect(part.features, part.design)
        filled = np.where(np.isnan(table.features), 0.0, table.features)
        known = ~np.isnan(table.features)
        np.testing.assert_array_equal(np.isnan(harmonized), ~known)
        np.testing.assert_allclose(
            harmonized[known], expected.remove(filled, table.design, effect)[known], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("mean_only", [False, True])
def test_each_feature_is_harmonized_as_if_alone(five_sites, mean_only):
    tables = with_holes(five_sites)
    tables[2].features[:, 7] = np.nan  # one site lacks a feature
    analysis = ComBat(prior="none", mean_only=mean_only, missing="per_feature")

    model = run_pooled(analysis, tables)
    harmonized = np.concatenate([analysis.harmonize(model, table) for table in tables])

    features = np.concatenate([table.features for table in tables])
    for feature in range(40):
        rows = ~np.isnan(features[:, feature])
        alone = Sites(
            features[rows][:, [feature]], five_sites.covariates[rows], five_sites.target[rows], five_sites.site[rows]
        )
        expected = neurocombat(alone, eb=False, mean_only=mean_only)
        np.testing.assert_allclose(harmonized[rows, feature], expected[:, 0], rtol=0, atol=1e-9)
        assert np.isnan(harmonized[~rows, feature]).all()


@pytest.mark.parametrize("prior", MODES)
def test_sums_per_feature_are_the_common_ones_where_nothing_is_missing(five_sites, prior):
    common = federated(five_sites, prior=prior)

    np.testing.assert_allclose(federated(five_sites, prior=prior, missing="per_feature"), common, atol=1e-12)


def test_shrinkage_knows_how_many_values_each_feature_has(five_sites):
    """The iteration of Johnson et al., written out feature by feature, for a site whose features differ in n."""
    tables = with_holes(five_sites)
    analysis = ComBat(missing="per_feature")
    model = run_pooled(analysis, tables)
    table = tables[0]
    z = (table.features - model.grand_mean - table.design @ model.coefficients) / np.sqrt(model.pooled_variance)
    n, shift, scale = (~np.isnan(z)).sum(axis=0), np.nanmean(z, axis=0), np.nanvar(z, axis=0, ddof=1)
    bar, t2, m, s2 = shift.mean(), shift.var(ddof=1), scale.mean(), scale.var(ddof=1)
    gamma, delta = shift, scale
    for _ in range(500):
        gamma = (n * t2 * shift + delta * bar) / (n * t2 + delta)
        squares = np.nansum((z - gamma) ** 2, axis=0)
        delta = (squares / 2 + (m * s2 + m**3) / s2) / (n / 2 + (2 * s2 + m**2) / s2 - 1)

    effect = analysis.estimate(model, table)

    np.testing.assert_allclose(effect.gamma, gamma, atol=1e-4)
    np.testing.assert_allclose(effect.delta, delta, rtol=1e-4)
    assert len(np.unique(n)) > 3


def test_refuses_missing_values_that_it_may_not_or_cannot_use(five_sites):
    tables = with_holes(five_sites)
    with pytest.raises(TableError, match="missing='complete' or 'per_feature'"):
        run_pooled(ComBat(), tables)

    per_feature = ComBat(missing="per_feature")
    nowhere = [replace(t, features=np.where(np.arange(40) == 5, np.nan, t.features)) for t in tables]
    with pytest.raises(TableError, match="feature 6 has no value at any site"):
        run_pooled(per_feature, nowhere)
    with pytest.raises(SmallGroupError, match="0 participants of a site have all features"):
        run_pooled(ComBat(missing="complete"), nowhere)

    once = replace(tables[0], features=tables[0].features.copy())
    once.features[1:, 5] = np.nan
    model = run_pooled(per_feature, [once, *tables[1:]])
    with pytest.raises(HarmonizationError, match="feature 6 has one value at a site"):
        per_feature.estimate(model, once)

    never = replace(tables[0], features=np.where(np.arange(40) == 5, np.nan, tables[0].features))
    effect = per_feature.estimate(model, never)
    assert np.isnan(per_feature.apply(model, never, effect)[:, 5]).all()
    with pytest.raises(HarmonizationError, match="feature 6 had no value at this site"):
        per_feature.apply(model, tables[0], effect)


def test_sums_per_feature_single_nobody_out(five_sites):
    table = replace(named(five_sites.tables)[0], incomplete=True, min_group=5)
    analysis = ComBat(missing="per_feature")
    for missing, refused in ((0, False), (4, True), (5, False), (table.n - 4, True), (table.n, False)):
        features = table.features.copy()
        features[:missing, 3] = np.nan
        holed = replace(table, features=features)
        if refused:
            with pytest.raises(SmallGroupError, match="would single out 4 participants"):
                analysis.summarize(holed, None)
        else:
            assert analysis.summarize(holed, None)["counts"][3] == table.n - missing


# Reference site


def test_only_the_reference_site_enters_the_second_round(five_sites):
    analysis, tables = ComBat(reference="2"), named(five_sites.tables)
    first = analysis.solve(add_sums([analysis.summarize(table, None) for table in tables]), None)
    assert not first.done

    sent = [analysis.summarize(table, first) for table in tables]

    for number in (0, 1, 3, 4):
        assert all(not values.any() for values in sent[number].values())
    model = analysis.solve(add_sums(sent), first)
    left = tables[2].features - tables[2].design @ first.coefficients
    np.testing.assert_allclose(model.grand_mean, left.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(model.pooled_variance, left.var(axis=0), atol=1e-12)


def test_refuses_references_that_are_not_one_site(five_sites):
    tables = named(five_sites.tables)
    with pytest.raises(HarmonizationError, match="no site is called 'north'"):
        run_pooled(ComBat(reference="north"), tables)
    with pytest.raises(HarmonizationError, match="2 sites are called '3'"):
        run_pooled(ComBat(reference="3"), [*tables, tables[3]])
    with pytest.raises(SmallGroupError, match="the reference site has 12 participants"):
        run_pooled(ComBat(reference="3"), [replace(table, min_group=13) for table in tables])


@pytest.mark.parametrize(
    "analysis",
    [ComBat(reference="2"), ComBat(missing="per_feature"), ComBat("none", True, "1", "per_feature")],
    ids=str,
)
def test_the_wire_changes_nothing(five_sites, analysis):
    tables = named(five_sites.tables)
    over_the_wire = make_analysis("combat", analysis.parameters())
    state = None
    while state is None or not state.done:
        solved = analysis.solve(add_sums([over_the_wire.summarize(table, state) for table in tables]), state)
        state = over_the_wire.read_state(solved.kind, solved.to_arrays())

    expected = run_pooled(analysis, tables)
    np.testing.assert_array_equal(over_the_wire.harmonize(state, tables[0]), analysis.harmonize(expected, tables[0]))


# Refusals


def test_refuses_a_covariate_that_is_constant_inside_every_site(five_sites):
    constants = np.array([0.1, 0.3, 0.7, 0.2, 0.6])[five_sites.site]  # of which rounding is not to make a variable
    covariates = np.column_stack([five_sites.covariates[:, 0], constants])

    with pytest.raises(DesignError, match="column 2 is constant inside every site"):
        ComBatHarmonizer().fit(five_sites.features, covariates, five_sites.site)


def test_refuses_collinear_covariates(five_sites):
    for noise in (0.0, 1e-9):
        last = five_sites.covariates.sum(axis=1) + noise * five_sites.features[:, 0]
        covariates = np.column_stack([five_sites.covariates, last])
        with pytest.raises(DesignError, match="collinear"):
            ComBatHarmonizer().fit(five_sites.features, covariates, five_sites.site)


def test_ill_conditioned_covariates_are_as_good_as_their_span(five_sites):
    """Nearly collinear covariates, far from zero, of other units: the fit is that of what they span."""
    age, sex = five_sites.covariates.T
    near = np.column_stack([1e6 + 1e3 * age, 1e-3 * (age + 1e-3 * sex)])
    sites = Sites(five_sites.features, near, five_sites.target, five_sites.site)

    np.testing.assert_allclose(federated(sites), federated(five_sites), rtol=0, atol=1e-8)


def test_refuses_more_covariates_than_a_third_of_the_rows():
    sites = make_sites((6, 6), 5)
    covariates = np.random.default_rng(0).normal(size=(12, 4))

    with pytest.raises(DesignError, match="4 covariate columns are too many for 12 rows"):
        ComBatHarmonizer().fit(sites.features, covariates, sites.site)
    assert ComBatHarmonizer().fit(sites.features, covariates[:, :3], sites.site)


def test_refuses_a_feature_that_is_a_covariate(five_sites):
    five_sites.features[:, 4] = 3 * five_sites.covariates[:, 0] + five_sites.site

    with pytest.raises(DesignError, match="feature 5 has no variance left"):
        run_pooled(ComBat(), five_sites.tables)


def test_refuses_one_participant_and_one_feature(five_sites):
    model = run_pooled(ComBat(), five_sites.tables)
    table = five_sites.tables[0]

    with pytest.raises(HarmonizationError, match="two participants"):
        model.harmonize(table.features[:1], table.design[:1])
    assert np.isfinite(model.harmonize(table.features[:1], table.design[:1], mean_only=True)).all()
    narrow = combat.solve(combat.summarize(table.features[:, :1], table.design))
    with pytest.raises(HarmonizationError, match="two varying features"):
        narrow.harmonize(table.features[:, :1], table.design)
    assert np.isfinite(narrow.harmonize(table.features[:, :1], table.design, prior="none")).all()
    with pytest.raises(TableError, match="in the same order"):
        model.harmonize(table.features[:, :5], table.design)


@pytest.mark.parametrize("options", [{"prior": "flat"}, {"missing": "impute"}])
def test_refuses_unknown_options(options):
    with pytest.raises(HarmonizationError, match="expected one of"):
        ComBat(**options)
    assert set(MODES) == set(Prior.__args__)
