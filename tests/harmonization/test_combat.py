import contextlib
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neuroCombat import neuroCombat

from harmonization import ComBat, ComBatHarmonizer, DesignError, HarmonizationError, TableError, combat, run_pooled
from tests.support.sites import Sites, make_sites


def neurocombat(sites: Sites, **options: object) -> np.ndarray:
    """Harmonize pooled rows with neuroCombat 0.2.12."""
    table = pd.DataFrame({"site": sites.site, "age": sites.covariates[:, 0], "sex": sites.covariates[:, 1]})
    with contextlib.redirect_stdout(io.StringIO()):
        answer = neuroCombat(
            sites.features.T, table, "site", categorical_cols=["sex"], continuous_cols=["age"], **options
        )
    return answer["data"].T


def federated(sites: Sites, **options: object) -> np.ndarray:
    """Harmonize site by site from the total of the sites' sums."""
    model = run_pooled(ComBat(), sites.tables)
    harmonized = np.empty_like(sites.features)
    for number, table in enumerate(sites.tables):
        harmonized[sites.site == number] = model.harmonize(table.features, table.design, **options)
    return harmonized


MODES = {
    "parametric": {},
    "none": {"eb": False},
    "nonparametric": {"parametric": False},
}


@pytest.mark.parametrize("mean_only", [False, True])
@pytest.mark.parametrize("prior", MODES)
def test_five_sites_equal_pooled_neurocombat(five_sites, prior, mean_only):
    if prior == "nonparametric" and mean_only:
        expected = neurocombat(five_sites, mean_only=True)  # neuroCombat uses the parametric shift there, as we do
    else:
        expected = neurocombat(five_sites, mean_only=mean_only, **MODES[prior])

    np.testing.assert_allclose(federated(five_sites, prior=prior, mean_only=mean_only), expected, rtol=0, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(4, 60), min_size=2, max_size=8).map(tuple),
    p=st.integers(2, 60),
    seed=st.integers(0, 2**31),
    offset=st.floats(-1e6, 1e6),
)
def test_any_sites_equal_pooled_neurocombat(sizes, p, seed, offset):
    sites = make_sites(sizes, p, seed, offset=offset)
    for table in sites.tables:
        table.design[0, 1], table.design[1, 1] = 0.0, 1.0  # both sexes at every site

    scale = max(1.0, abs(offset)) * 1e-9
    np.testing.assert_allclose(federated(sites), neurocombat(sites), rtol=0, atol=scale)


def test_harmonizer_equals_the_federation(five_sites):
    harmonized = ComBatHarmonizer().fit_transform(five_sites.features, five_sites.covariates, five_sites.site)

    np.testing.assert_allclose(harmonized, federated(five_sites), rtol=0, atol=1e-12)


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
    harmonized = ComBatHarmonizer(prior="none", mean_only=True).fit_transform(
        five_sites.features, five_sites.covariates, five_sites.site
    )
    design = np.column_stack([np.ones(len(harmonized)), five_sites.covariates])
    after = np.linalg.lstsq(design, harmonized, rcond=None)[0][1:]

    np.testing.assert_allclose(after, before, atol=1e-10)


def test_new_rows_take_the_effect_that_training_rows_estimated(five_sites):
    rows = np.arange(len(five_sites.site)) % 4 > 0
    fit = [five_sites.features[rows], five_sites.covariates[rows], five_sites.site[rows]]
    harmonizer = ComBatHarmonizer().fit(*fit)
    one = np.flatnonzero(~rows)[:1]

    alone = harmonizer.transform(five_sites.features[one], five_sites.covariates[one], five_sites.site[one])
    together = harmonizer.transform(five_sites.features, five_sites.covariates, five_sites.site)

    np.testing.assert_allclose(alone, together[one], atol=1e-12)


def test_constant_feature_comes_back_unchanged(five_sites):
    five_sites.features[:, 3] = 7e5
    harmonized = federated(five_sites)

    np.testing.assert_array_equal(harmonized[:, 3], 7e5)
    others = np.delete(np.arange(40), 3)
    sites = Sites(five_sites.features[:, others], five_sites.covariates, five_sites.target, five_sites.site)
    np.testing.assert_allclose(harmonized[:, others], neurocombat(sites), atol=1e-9)


def test_nonparametric_prior_survives_large_sites():
    sites = make_sites((800, 700), p=30)

    assert np.isfinite(federated(sites, prior="nonparametric")).all()


def test_refuses_a_covariate_that_is_constant_inside_every_site(five_sites):
    covariates = np.column_stack([five_sites.covariates[:, 0], five_sites.site])

    with pytest.raises(DesignError, match="column 2 is constant inside every site"):
        ComBatHarmonizer().fit(five_sites.features, covariates, five_sites.site)


def test_rounding_does_not_make_a_covariate_vary(five_sites):
    constants = np.array([0.1, 0.3, 0.7, 0.2, 0.6])[five_sites.site][:, None]

    with pytest.raises(DesignError, match="constant inside every site"):
        ComBatHarmonizer().fit(five_sites.features, constants, five_sites.site)


@pytest.mark.parametrize("prior", ["parametric", "nonparametric", "none"])
def test_a_feature_that_is_constant_at_one_site_leaves_the_others_alone(five_sites, prior):
    features = five_sites.features.copy()
    features[five_sites.site == 1, 2] = 0.5

    harmonized = ComBatHarmonizer(prior=prior).fit_transform(features, None, five_sites.site)

    assert np.isfinite(harmonized).all()
    assert np.abs(harmonized - features).max() < 20


def test_refuses_collinear_covariates(five_sites):
    covariates = np.column_stack([five_sites.covariates, five_sites.covariates.sum(axis=1)])

    with pytest.raises(DesignError, match="collinear"):
        ComBatHarmonizer().fit(five_sites.features, covariates, five_sites.site)


def test_refuses_one_participant_and_one_feature(five_sites):
    model = run_pooled(ComBat(), five_sites.tables)
    table = five_sites.tables[0]

    with pytest.raises(HarmonizationError, match="two participants"):
        model.harmonize(table.features[:1], table.design[:1])
    with pytest.raises(HarmonizationError, match="two varying features"):
        combat.solve(combat.summarize(table.features[:, :1], table.design)).harmonize(
            table.features[:, :1], table.design
        )
    with pytest.raises(TableError, match="in the same order"):
        model.harmonize(table.features[:, :5], table.design)
