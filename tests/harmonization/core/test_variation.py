"""Features that hardly vary at one site: nothing of anybody's covariates may be written into them."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harmonization import (
    ComBat,
    CrossValidatedRidge,
    PooledHarmonizer,
    Residualization,
    SiteTable,
    harmonizers,
    make_harmonizer,
    run_pooled,
)
from harmonization.core.variation import all_but_equal, hardly_varies, vary_less

SITES = tuple(f"site {number}" for number in range(4))
STILL = {
    "constant": lambda values: 0 * values + 0.3,
    "residue": lambda values: 1e-13 * values,
    "all but constant": lambda values: 0.02 * values + 7,
    "one spike": lambda values: np.where(np.arange(len(values))[:, None] == 3, values, 0.0),
}
"""What a site makes of the features that it lacks."""
MODES = [
    ("combat", {"prior": prior, "mean_only": mean_only})
    for prior in ("parametric", "nonparametric", "none")
    for mean_only in (False, True)
] + [
    ("combat", {"missing": "per_feature"}),
    ("combat_gam", {"smooth": [[0, -1.5, 1.5]]}),
    ("covbat", {}),
    ("covbat", {"prior": "none", "mean_only": True}),
    ("content_style", {"rounds": 2}),
    ("combat_longitudinal", {}),
    ("combat_longitudinal", {"prior": "none", "mean_only": True}),
]
"""Methods that adjust each site apart, and the options that change how."""


def lacking(site: int) -> np.ndarray:
    """Features [45], pairs of ten parcels, that a site lacks: those of one parcel, another one at each site."""
    one, other = np.triu_indices(10, 1)
    return (one == 2 * site) | (other == 2 * site)


def noise(kind: str, n: int = 120) -> list[SiteTable]:
    """Tables of sites whose features know nothing of anybody, whose target is age, and which lack a parcel each."""
    rng = np.random.default_rng(0)
    tables = []
    for number, site in enumerate(SITES):
        features = rng.normal(size=(n, 45)) * np.exp(0.2 * rng.normal(size=45)) + 0.3 * rng.normal(size=45)
        features[:, lacking(number)] = STILL[kind](features[:, lacking(number)])
        age, sex = rng.uniform(-1.5, 1.5, n), rng.random(n) < 0.5
        tables.append(
            SiteTable(
                features,
                np.column_stack([age, sex]),
                age,
                site=site,
                seed=number,
                participant=np.arange(n) // 2,
            )
        )
    return tables


def predicted_within(features: np.ndarray, age: np.ndarray) -> float:
    """R² of age in every other row of a site, read from features by a regression of the rows between."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-4, 4, 9))).fit(features[::2], age[::2])
    return model.score(features[1::2], age[1::2])


def every_method() -> list[tuple[str, dict[str, object]]]:
    further = [("combat", {"reference": SITES[1]}), ("site_adversarial", {"sites": SITES, "rounds": 5})]
    return MODES + further


def test_every_method_is_tried_here():
    assert {name for name, _ in every_method()} == set(harmonizers()) - {"none"}


@pytest.mark.parametrize(("name", "options"), every_method(), ids=str)
@pytest.mark.parametrize("kind", STILL)
def test_noise_does_not_predict_age(kind, name, options):
    tables, method = noise(kind), make_harmonizer(name, options)
    model = run_pooled(method, tables)

    scores = [predicted_within(method.harmonize(model, table), table.target) for table in tables]

    assert max(scores) < 0.1


SMALL = {
    "a tenth": lambda values, rng: 0.1 * values,
    "three tenths": lambda values, rng: 0.3 * values,
    "one in twenty": lambda values, rng: np.where(rng.random(values.shape) < 1 / 20, values, 0.0),
}
"""What a site makes of features that follow age at the others: noise of less spread than that of age's effects."""


@pytest.mark.parametrize(("name", "options"), every_method(), ids=str)
@pytest.mark.parametrize("kind", SMALL)
def test_small_noise_does_not_predict_age_where_others_features_follow_it(kind, name, options):
    """It is more than a constant, and yet has no room for the effects that the others have."""
    rng = np.random.default_rng(0)
    tables, method = noise("constant"), make_harmonizer(name, options)
    for number, table in enumerate(tables):
        values = rng.normal(size=table.features.shape)
        table.features[:] = values + (0 if number == 2 else 1.2 * table.target[:, None])
        if number == 2:
            table.features[:] = SMALL[kind](values, rng)
    model = run_pooled(method, tables)

    harmonized = method.harmonize(model, tables[2])

    assert predicted_within(tables[2].features, tables[2].target) < 0.1
    assert predicted_within(harmonized, tables[2].target) < 0.1


@pytest.mark.parametrize("kind", STILL)
def test_noise_does_not_predict_age_in_people_left_out_of_the_harmonization(kind):
    tables = [replace(table, participant=None) for table in noise(kind)]

    for options in ({}, {"prior": "none"}, {"prior": "nonparametric"}, {"reference": SITES[0]}):
        assert run_pooled(CrossValidatedRidge(method="combat", options=options), tables).r2 < 0.05
    assert run_pooled(CrossValidatedRidge(method="covbat", sites=SITES), tables).r2 < 0.05


@pytest.mark.parametrize(("name", "options"), MODES, ids=str)
@pytest.mark.parametrize("kind", STILL)
def test_they_come_back_as_they_were_and_are_counted(kind, name, options):
    tables, method = noise(kind), make_harmonizer(name, options)
    model = run_pooled(method, tables)

    for number, table in enumerate(tables):
        effect = method.estimate(model, table)
        harmonized = method.apply(model, table, effect)

        still = lacking(number)
        np.testing.assert_array_equal(harmonized[:, still], table.features[:, still])
        assert (np.abs(harmonized - table.features)[:, ~still].max(axis=0) > 1e-6).all()
        assert effect.n_unadjusted == still.sum() == 9


@pytest.mark.parametrize(("name", "options"), [mode for mode in MODES if mode[0].startswith("combat")], ids=str)
@pytest.mark.parametrize("kind", STILL)
def test_they_say_nothing_about_the_site_s_other_features(kind, name, options):
    """Priors of the site are those of its features without them."""
    tables, method = noise(kind), make_harmonizer(name, options)
    others = ~lacking(2)
    model = run_pooled(method, tables)
    without = [replace(table, features=table.features[:, others]) for table in tables]
    model_without = run_pooled(method, without)

    harmonized = method.harmonize(model, tables[2])

    expected = method.harmonize(model_without, without[2])
    np.testing.assert_allclose(harmonized[:, others], expected, rtol=0, atol=1e-9)


def test_what_hardly_varies_at_the_reference_comes_back_everywhere():
    tables, method = noise("all but constant"), ComBat(reference=SITES[1])
    model = run_pooled(method, tables)

    for number, table in enumerate(tables):
        effect = method.estimate(model, table)
        harmonized = method.apply(model, table, effect)

        np.testing.assert_array_equal(harmonized[:, lacking(1)], table.features[:, lacking(1)])
        assert effect.n_unadjusted == (0 if number == 1 else (lacking(1) | lacking(number)).sum())


def test_a_site_that_was_not_fitted_leaves_its_own_as_they_are():
    tables = noise("constant")
    X, covariates, site = (
        np.concatenate(parts)
        for parts in zip(*((t.features, t.design, np.full(t.n, t.site)) for t in tables), strict=True)
    )
    known = site != SITES[3]
    harmonizer = PooledHarmonizer(ComBat()).fit(X[known], covariates[known], site[known])

    harmonized = harmonizer.transform(X, covariates, site)[~known]

    np.testing.assert_array_equal(harmonized[:, lacking(3)], X[~known][:, lacking(3)])
    assert predicted_within(harmonized, tables[3].target) < 0.1
    assert {name: effect.n_unadjusted for name, effect in harmonizer.effects_.items()} == dict.fromkeys(SITES[:3], 9)


def test_a_site_where_nothing_varies_comes_back_as_it_was(five_sites):
    five_sites.features[five_sites.site == 2] = 0.0
    model = run_pooled(ComBat(), five_sites.tables)
    table = five_sites.tables[2]

    np.testing.assert_array_equal(model.harmonize(table.features, table.design), 0.0)


def test_the_only_feature_that_varies_at_a_site_is_not_shrunk(five_sites):
    varying = five_sites.features[:, 7].copy()
    five_sites.features[five_sites.site == 2] = 0.0
    five_sites.features[:, 7] = varying
    model = run_pooled(ComBat(), five_sites.tables)
    table = five_sites.tables[2]

    harmonized, unshrunk = (model.harmonize(table.features, table.design, prior=p) for p in ("parametric", "none"))

    np.testing.assert_array_equal(harmonized, unshrunk)
    assert np.ptp(harmonized[:, 7]) > 1


@pytest.mark.parametrize("site", [True, False])
@pytest.mark.parametrize("kind", ["constant", "residue"])
def test_residuals_hold_nothing_of_the_covariates(kind, site):
    tables = noise(kind)
    model = run_pooled(Residualization(site), tables)

    for number, table in enumerate(tables):
        residuals = model.residualize(table.features, table.design)

        assert np.ptp(residuals[:, lacking(number)], axis=0).max() < 1e-11
        assert predicted_within(residuals, table.target) < 0.1


def test_few_rows_that_are_close_by_chance_vary():
    """Were the bound the same for few rows as for many, one feature in ten of two rows would not be adjusted."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 4, 6, 9, 20, 100):
        assert not all_but_equal(rng.normal(size=(n, 20_000)), np.ones(20_000)).any()
        assert all_but_equal(rng.normal(size=(n, 20)) * 1e-7 + 5, np.ones(20)).all()


def test_what_has_the_covariates_effects_varies():
    """Of few rows, chance can leave little of them; of many, half is too little."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 4, 6, 9, 20, 100):
        effects = rng.normal(size=(n, 20_000))
        for noise_sd in (0.0, 0.3, 1.0):
            assert not vary_less(effects + noise_sd * rng.normal(size=effects.shape), effects).any()
        assert vary_less(1e-7 * effects[:, :20] + 5, effects[:, :20]).all()
    assert vary_less(0.4 * rng.normal(size=(100, 20)), effects[:, :20]).all()
    assert not vary_less(effects[:, :20], np.zeros((100, 20))).any()


def test_missing_values_are_left_out_of_account():
    features = np.array([[1.0, np.nan, np.nan, 1.0], [1.0, 2.0, np.nan, 5.0], [np.nan, 2.0, np.nan, 9.0]])

    nothing = np.zeros_like(features)

    assert hardly_varies(features, np.ones(4), nothing).tolist() == [True, True, False, False]
    assert hardly_varies(features, np.zeros(4), nothing).all()
    assert not all_but_equal(features[:1], np.ones(4)).any()
