from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import qr, svd

from harmonization import CrossValidatedCCA, HarmonizationError, SiteTable, TableError, run_pooled
from harmonization.core.errors import DesignError, SmallGroupError

SIZES = (31, 12, 44)


def study(
    sizes: tuple[int, ...] = SIZES,
    p: int = 6,
    r: int = 5,
    seed: int = 0,
    *,
    shared: float = 0.0,
    site_shift: float = 0.0,
    age_effect: float = 0.0,
    offset: float = 0.0,
) -> list[SiteTable]:
    """Sites whose views share a latent number, a shift of the site, or the effect of age."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(3, p + r))
    tables = []
    for number, n in enumerate(sizes):
        age = rng.normal(number, 1, n)
        views = rng.normal(size=(n, p + r)) + shared * rng.normal(size=(n, 1)) * directions[0]
        views += offset + site_shift * rng.normal() * directions[1] + age_effect * age[:, None] * directions[2]
        tables.append(SiteTable(views[:, :p], age[:, None], second=views[:, p:], seed=100 * seed + number))
    return tables


def plain(tables: list[SiteTable], analysis: CrossValidatedCCA, permutation: int | None) -> np.ndarray:
    """Held-out correlations [k] of pooled rows, by QR of centred matrices and one loop over the folds."""
    site = np.repeat(np.arange(len(tables)), [table.n for table in tables])
    folds = np.concatenate([analysis.deal(table) for table in tables])
    starts = np.cumsum([0, *[table.n for table in tables]])
    order = np.concatenate(
        [
            start + (np.arange(table.n) if permutation is None else analysis.permuted_rows(table, permutation))
            for table, start in zip(tables, starts, strict=False)
        ]
    )
    covariates = np.concatenate([table.design for table in tables])
    views = [
        np.concatenate([t.features if t.loadings is None else t.features @ t.loadings for t in tables]),
        np.concatenate([table.second for table in tables]),
    ]
    held_out = []
    for fold in range(analysis.n_folds):
        train = folds != fold

        def centred(rows, groups, train=train):
            return rows - np.stack([rows[train & (groups == group)].mean(axis=0) for group in groups])

        slopes = [
            np.linalg.lstsq(centred(covariates, site)[train], centred(v, site)[train], rcond=None)[0] for v in views
        ]
        groups = site if analysis.within_sites else np.zeros_like(site)
        x, y = (centred(v - covariates @ slope, groups) for v, slope in zip(views, slopes, strict=True))
        y = y[order]
        (q_x, r_x), (q_y, r_y) = (qr(v[train], mode="economic") for v in (x, y))
        left, _, right = svd(q_x.T @ q_y)
        of_x = x[~train] @ np.linalg.solve(r_x, left)
        of_y = y[~train] @ np.linalg.solve(r_y, right.T)
        held_out.append([np.corrcoef(of_x[:, k], of_y[:, k])[0, 1] for k in range(analysis.n_components)])
    return np.mean(held_out, axis=0)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("covariates", [True, False])
@pytest.mark.parametrize("within_sites", [True, False])
def test_equals_a_plain_loop_over_pooled_rows(within_sites, covariates, offset):
    tables = study(shared=0.7, site_shift=1.0, age_effect=0.5, offset=offset)
    if not covariates:
        tables = [replace(table, covariates=None) for table in tables]
    analysis = CrossValidatedCCA(n_folds=4, permutations=6, within_sites=within_sites)

    result = run_pooled(analysis, tables)

    np.testing.assert_allclose(result.correlations, plain(tables, analysis, None), atol=1e-9)
    for number, null in enumerate(result.null):
        np.testing.assert_allclose(null, plain(tables, analysis, number), atol=1e-9)
    assert result.p_value == (1 + (result.null[:, 0] >= result.correlations[0]).sum()) / 7
    np.testing.assert_allclose(result.null_95, np.quantile(result.null, 0.95, axis=0))
    assert result.n == 87


def test_how_permutations_are_sent_does_not_matter():
    tables = study(shared=0.7)
    one_by_one = CrossValidatedCCA(n_folds=3, permutations=7, message_floats=3 * 7 * 6)
    at_once = replace(one_by_one, message_floats=4_000_000)

    few, many = run_pooled(one_by_one, tables), run_pooled(at_once, tables)

    np.testing.assert_allclose(few.null, many.null, atol=1e-14)
    state = at_once.solve(at_once.summarize(tables[0], None), None)
    state = at_once.solve(at_once.summarize(tables[0], state), state)
    assert at_once.summarize(tables[0], state)["change"].shape == (7, 3, 7, 6)
    assert one_by_one.summarize(tables[0], state)["change"].shape == (1, 3, 7, 6)


def test_permutations_stay_within_site_and_fold():
    analysis, table = CrossValidatedCCA(), study()[0]
    folds = analysis.deal(table)

    rows = analysis.permuted_rows(table, 3)

    np.testing.assert_array_equal(np.sort(rows), np.arange(table.n))
    np.testing.assert_array_equal(folds[rows], folds)
    assert not np.array_equal(rows, analysis.permuted_rows(table, 4))
    assert not np.array_equal(rows, analysis.permuted_rows(replace(table, seed=9), 3))


def test_features_are_seen_through_loadings():
    tables = study(p=20, shared=0.7, offset=1e6)
    loadings = np.random.default_rng(1).normal(size=(20, 4))
    seen = [replace(table, features=(table.features - 1e6) @ loadings) for table in tables]
    analysis = CrossValidatedCCA(permutations=3, within_sites=False)

    through = run_pooled(analysis, [replace(table, loadings=loadings) for table in tables])

    np.testing.assert_allclose(through.null, run_pooled(analysis, seen).null, atol=1e-8)


def test_finds_what_both_views_share():
    result = run_pooled(CrossValidatedCCA(permutations=99), study((60, 40, 90), shared=1.0))

    assert result.correlations[0] > 0.5
    assert result.correlations[0] > result.null_95[0] + 0.2
    assert result.p_value == 1 / 100
    assert (np.abs(result.null_mean) < 0.1).all()
    assert result.training_correlations[1] > 0.2 > result.correlations[1]


def test_p_values_of_independent_views_are_uniform():
    analysis = CrossValidatedCCA(n_components=1, n_folds=2, permutations=19)

    p_values = np.array([run_pooled(analysis, study((16, 9), 3, 3, seed)).p_value for seed in range(120)])

    assert np.mean(p_values) == pytest.approx(0.525, abs=0.08)
    assert np.mean(p_values <= 0.2) == pytest.approx(0.2, abs=0.11)


@pytest.mark.parametrize("within_sites", [True, False])
@pytest.mark.parametrize("effect", [{"site_shift": 4.0}, {"age_effect": 3.0}], ids=["site", "age"])
def test_what_site_or_age_does_to_both_views_is_no_association(effect, within_sites):
    analysis = CrossValidatedCCA(permutations=49, within_sites=within_sites)

    result = run_pooled(analysis, study((40, 30, 50, 20), seed=2, **effect))

    assert result.p_value > 0.1
    if within_sites or "age_effect" in effect:
        assert abs(result.correlations[0]) < 0.25
    else:  # the shift correlates the views, but those of permuted pairs as much
        assert result.correlations[0] > 0.7
        assert result.null_mean[0] > 0.7


def test_age_that_is_left_in_is_an_association():
    tables = [replace(table, covariates=None) for table in study((40, 30, 50), age_effect=1.0)]

    assert run_pooled(CrossValidatedCCA(permutations=49), tables).p_value == 1 / 50


def test_works_without_permutations_and_with_more_columns_than_people():
    tables = study(p=60, r=70, shared=0.5)

    result = run_pooled(CrossValidatedCCA(permutations=0, shrinkage=0.3), tables)

    assert result.p_value == 1
    assert np.isnan(result.null_mean).all()
    assert 0.4 < result.correlations[0] < result.training_correlations[0]


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"second": None}, {}, TableError, "no second view"),
        ({"min_group": 3}, {}, SmallGroupError, "12 participants in 5 folds are fewer than 3 in each"),
        ({}, {"n_folds": 7}, SmallGroupError, "12 participants in 7 folds are fewer than 2 in each"),
        ({"participant": "twice"}, {}, TableError, "a participant has several rows"),
        ({}, {"n_components": 6}, HarmonizationError, "expected 1 to 5 for 6 and 5 columns"),
        ({"wide": True}, {}, HarmonizationError, "Reduce each view to at most 32 principal components"),
        ({"wide": True}, {"message_floats": 8000}, HarmonizationError, "takes more than 8000 numbers"),
        ({"covariates": "site"}, {}, DesignError, "constant inside every site"),
        ({"covariates": "feature"}, {}, HarmonizationError, "column 2 of the features does not vary"),
        ({"constant": True}, {}, HarmonizationError, "column 1 of the second view does not vary"),
    ],
)
def test_refuses_tables_that_do_not_allow_it(change, options, error, message):
    tables = study(p=40, r=40) if "wide" in change else study(offset=1e6)
    if change.get("participant"):
        tables = [replace(table, participant=np.arange(table.n) // 2) for table in tables]
    elif change.get("covariates") == "site":
        tables = [replace(table, covariates=np.full((table.n, 1), float(i))) for i, table in enumerate(tables)]
    elif change.get("covariates") == "feature":
        tables = [replace(table, covariates=table.features[:, 1:2] / 7) for table in tables]
    elif "constant" in change:
        for number, table in enumerate(tables):
            table.second[:, 0] = 0.1 * number + 1e6
    elif "wide" not in change:
        tables = [replace(table, **change) for table in tables]

    with pytest.raises(error, match=message):
        run_pooled(CrossValidatedCCA(permutations=2, **options), tables)


@pytest.mark.parametrize("options", [{"n_folds": 1}, {"permutations": -1}, {"n_components": 0}, {"shrinkage": 1.5}])
def test_refuses_parameters_that_mean_nothing(options):
    with pytest.raises(HarmonizationError, match="expected"):
        CrossValidatedCCA(**options)
