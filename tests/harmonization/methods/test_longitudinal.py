from dataclasses import replace

import numpy as np
import pytest

from harmonization import (
    ComBatHarmonizer,
    DesignError,
    HarmonizationError,
    LongitudinalComBat,
    PooledHarmonizer,
    SiteTable,
    TableError,
    run_pooled,
)
from harmonization.core.errors import SmallGroupError


def make_visits(
    sizes: tuple[int, ...],
    p: int,
    seed: int = 0,
    *,
    most: int = 4,
    offset: float = 0.0,
    sigma: float = 1.0,
    tau: float = 1.0,
    shift: float = 1.0,
    scale: float = 0.3,
) -> tuple[list[SiteTable], np.ndarray, np.ndarray]:
    """Tables of sites with so many participants, and the true shifts and variances of each [S, p]."""
    rng = np.random.default_rng(seed)
    gamma, delta = shift * rng.normal(size=(len(sizes), p)), np.exp(2 * scale * rng.normal(size=(len(sizes), p)))
    beta = rng.normal(size=(3, p))
    tables = []
    for number, size in enumerate(sizes):
        visits = rng.integers(1, most + 1, size)
        visits[:2] = 2
        whose = rng.permutation(np.repeat(np.arange(size), visits))
        n = len(whose)
        design = np.column_stack([rng.normal(size=size)[whose] + 0.3 * rng.normal(size=n), rng.normal(size=n)])
        design = np.column_stack([design, (np.arange(size) % 2)[whose]])  # the last, as sex, is a participant's own
        intercepts = tau * rng.normal(size=(size, p))[whose]
        noise = sigma * np.sqrt(delta[number]) * rng.normal(size=(n, p))
        features = offset + design @ beta + intercepts + sigma * gamma[number] + noise
        tables.append(SiteTable(features, design, site=f"site {number}", participant=whose))
    return tables, gamma, delta


def whose(tables: list[SiteTable]) -> np.ndarray:
    return np.concatenate([table.participant for table in tables])


def test_recovers_known_variances_shifts_and_scales():
    tables, gamma, delta = make_visits((400, 300, 500), 8, sigma=0.5, tau=1.5)
    analysis = LongitudinalComBat(prior="none")

    model = run_pooled(analysis, tables)

    pooled = np.average(delta, axis=0, weights=[table.n for table in tables])  # sigma^2 is their mean
    np.testing.assert_allclose(model.between, 1.5**2, rtol=0.15)
    np.testing.assert_allclose(model.within, 0.25 * pooled, rtol=0.15)
    effects = [analysis.estimate(model, table) for table in tables]
    for effect, scale in zip(effects, delta, strict=True):
        np.testing.assert_allclose(effect.delta, scale / pooled, rtol=0.25)
    difference = np.sqrt(model.within) * (effects[0].gamma - effects[1].gamma)
    np.testing.assert_allclose(difference, 0.5 * (gamma[0] - gamma[1]), atol=0.4)  # with tau of 1.5, 3.5 errors


def test_takes_site_out_and_leaves_people():
    tables, _, _ = make_visits((200, 200), 6, shift=3.0, scale=0.5)
    analysis = LongitudinalComBat()
    model = run_pooled(analysis, tables)
    harmonized = [analysis.harmonize(model, table) for table in tables]

    left = [h - t.design @ model.coefficients for h, t in zip(harmonized, tables, strict=True)]
    assert np.abs(left[0].mean(axis=0) - left[1].mean(axis=0)).max() < 0.2
    within = [
        np.array([rows[t.participant == j].var(axis=0, ddof=1) for j in range(200) if (t.participant == j).sum() > 2])
        for rows, t in zip(left, tables, strict=True)
    ]
    np.testing.assert_allclose(within[0].mean(axis=0), within[1].mean(axis=0), rtol=0.25)
    # An intercept keeps its size: it is not divided by the scale of the site's noise.
    again = run_pooled(analysis, [replace(t, features=h) for t, h in zip(tables, harmonized, strict=True)])
    np.testing.assert_allclose(again.between, model.between, rtol=0.15)


def test_equals_combat_where_people_do_not_differ():
    """Without variance between participants it is ComBat, but for the estimate of variances."""
    tables, _, _ = make_visits((20, 30), 5, tau=0.0)
    # Participants' means about the site and covariates are made alike, so that the estimate of tau is negative.
    for table in tables:
        everybody = np.column_stack([np.eye(table.participant.max() + 1)[table.participant], table.design])
        table.features[:] -= everybody @ np.linalg.lstsq(everybody, table.features, rcond=None)[0]
    model = run_pooled(LongitudinalComBat(), tables)

    np.testing.assert_array_equal(model.between, 0)
    whole = [np.concatenate([getattr(t, name) for t in tables]) for name in ("features", "covariates")]
    labels = np.repeat([t.site for t in tables], [t.n for t in tables])
    combat = ComBatHarmonizer(prior="none", mean_only=True).fit(*whole, labels)
    np.testing.assert_allclose(model.coefficients, combat.model_.coefficients, atol=1e-10)
    analysis = LongitudinalComBat(prior="none", mean_only=True)
    for table in tables:
        expected = combat.transform(table.features, table.covariates, [table.site] * table.n)
        np.testing.assert_allclose(analysis.harmonize(model, table), expected, atol=1e-10)


def test_pooled_face_and_constant_features():
    tables, _, _ = make_visits((12, 15), 5)
    features = np.concatenate([table.features for table in tables])
    features[:, 2] = 7e5
    labels = np.repeat([t.site for t in tables], [t.n for t in tables])
    people = [f"{label}-{j}" for label, j in zip(labels, whose(tables), strict=True)]
    covariates = np.concatenate([table.design for table in tables])

    harmonizer = PooledHarmonizer(LongitudinalComBat()).fit(features, covariates, labels, participant=people)
    harmonized = harmonizer.transform(features, covariates, labels, participant=people)

    np.testing.assert_array_equal(harmonized[:, 2], 7e5)
    rows = labels == "site 1"
    table = replace(tables[1], features=features[rows])
    expected = harmonizer.method.harmonize(harmonizer.model_, table)
    np.testing.assert_allclose(harmonized[rows], expected, atol=1e-12)
    travelling = ["somebody", *people[1:-1], "somebody"]
    with pytest.raises(TableError, match=r"'somebody' has rows at two sites.*[Tt]ravel"):
        harmonizer.fit(features, covariates, labels, participant=travelling)


def test_refuses_what_it_does_not_support():
    tables, _, _ = make_visits((12, 15), 5)
    single = [replace(table, participant=None) for table in tables]
    with pytest.raises(HarmonizationError, match="no participant has two rows"):
        run_pooled(LongitudinalComBat(), single)

    model = run_pooled(LongitudinalComBat(), tables)
    with pytest.raises(HarmonizationError, match="no participant of a site has two rows"):
        LongitudinalComBat().estimate(model, single[0])
    with pytest.raises(TableError, match="in the same order"):
        LongitudinalComBat().estimate(model, replace(tables[0], features=tables[0].features[:, :4]))
    with pytest.raises(HarmonizationError, match="expected one of parametric"):
        LongitudinalComBat(prior="flat")

    holes = tables[0].features.copy()
    holes[0, 0] = np.nan
    with pytest.raises(TableError, match="NaN"):
        run_pooled(LongitudinalComBat(), [replace(tables[0], features=holes, incomplete=True)])

    still = [table.features.copy() for table in tables]
    for features, table in zip(still, tables, strict=True):
        features[:, 1] = np.array([0.1, 0.2, 0.7])[table.participant % 3]
    with pytest.raises(DesignError, match="feature 2 does not vary within participants"):
        run_pooled(LongitudinalComBat(), [replace(t, features=f) for t, f in zip(tables, still, strict=True)])


def test_refuses_to_single_out_those_with_most_visits():
    tables, _, _ = make_visits((30, 30), 3, most=2)
    guarded = [replace(table, min_group=3) for table in tables]
    assert run_pooled(LongitudinalComBat(), guarded).done

    once_more = guarded[0].take(np.r_[np.arange(guarded[0].n), 0, 0])
    with pytest.raises(SmallGroupError, match="for each number of visits"):
        run_pooled(LongitudinalComBat(), [once_more, guarded[1]])
