from dataclasses import replace

import numpy as np
import pytest

from harmonization import CrossValidatedRidge, SiteClassification, SiteTable, add_sums, run_pooled
from harmonization.core.errors import SmallGroupError
from tests.support.sites import Sites, make_sites


def labelled(sites: Sites, covariates: bool = True) -> list[SiteTable]:
    """Tables whose target is the one-hot site."""
    one_hot = np.eye(sites.site.max() + 1)[sites.site]
    return [
        SiteTable(t.features, t.covariates if covariates else None, one_hot[sites.site == number], seed=t.seed)
        for number, t in enumerate(sites.tables)
    ]


def test_permuted_labels_are_recognised_by_chance_alone():
    sites = make_sites((60, 90, 150), 20)

    result = run_pooled(SiteClassification(permutations=60), labelled(sites))

    assert result.balanced_accuracy > 0.9
    assert result.p_value == pytest.approx(1 / 61)
    assert result.null_mean == pytest.approx(1 / 3, abs=0.03)


def test_combat_on_training_folds_takes_site_and_leaves_age():
    sites = make_sites((70, 60, 80, 50), 30, seed=4)

    def accuracy(covariates: bool = True, **options: str):
        return run_pooled(SiteClassification(**options), labelled(sites, covariates))

    def age_r2(covariates: bool = True, **options: str) -> float:
        tables = [SiteTable(t.features, t.covariates if covariates else None, t.target) for t in sites.tables]
        return run_pooled(CrossValidatedRidge(**options), tables).r2

    raw, harmonized = accuracy(), accuracy(method="combat")
    assert raw.balanced_accuracy > 0.9
    assert raw.p_value < 0.05
    # Age differs between sites and is kept, so a site is not recognised better than its people's age allows.
    without_age = accuracy(covariates=False, method="combat")
    assert without_age.balanced_accuracy < without_age.null_95
    assert harmonized.balanced_accuracy < raw.balanced_accuracy / 1.5
    assert age_r2(method="combat") > age_r2() - 0.02
    assert age_r2(covariates=False, method="combat") < age_r2(method="combat") / 2


def test_people_of_another_age_are_not_another_site():
    """Without a scanner effect age alone sets sites apart; its estimate leaves a trace where N is small."""
    sites = make_sites((70, 60, 80), 30, seed=3, site_effect=0.0)

    def above_chance(covariates: bool, method: str) -> float:
        analysis = SiteClassification(method=method, permutations=60)
        result = run_pooled(analysis, labelled(sites, covariates))
        return result.balanced_accuracy - result.null_mean

    with_age = above_chance(covariates=False, method="none")
    assert with_age > 0.25
    assert above_chance(covariates=True, method="none") < with_age / 2
    assert above_chance(covariates=True, method="combat") < with_age / 4


def test_no_class_of_a_permuted_labeling_stands_for_few():
    """Neither in the sums over the parts that train, nor in the part left out, which they give by subtraction."""
    sites = make_sites((56, 34, 25), 6)
    analysis = SiteClassification(permutations=100)
    tables = [replace(table, min_group=5) for table in labelled(sites)]
    centres = analysis.solve(add_sums([analysis.summarize(table, None) for table in tables]), None)

    for table in tables:
        counts = analysis.summarize(table, centres)["class_n"]  # [K, 1 + B, C]
        left_out = counts.sum(axis=0) / 4 - counts  # every row trains for four of the five parts
        for cells in (counts, left_out):
            assert not ((cells > 0) & (cells < 5)).any()


def test_permuted_labels_weigh_as_a_direct_solution_does(five_sites):
    """One eigendecomposition for all labelings gives what a system for each gives."""
    analysis = SiteClassification(n_folds=3, shrinkage=0.3, permutations=4)
    tables = labelled(five_sites, covariates=False)
    centres = analysis.solve(add_sums([analysis.summarize(table, None) for table in tables]), None)
    fitted = analysis.solve(add_sums([analysis.summarize(table, centres) for table in tables]), centres).own
    folds = np.concatenate([analysis.deal(table) for table in tables])
    labels = np.concatenate([analysis.labelings(table, centres.own) for table in tables], axis=1).argmax(axis=2)
    train = folds != 1
    x = five_sites.features[train] - fitted.mean[1]
    means = np.stack([x[five_sites.site[train] == site].mean(axis=0) for site in range(5)])
    scale = (x - means[five_sites.site[train]]).std(axis=0)
    x = x / scale

    for labeling in range(5):
        y = labels[labeling][train]
        means = np.stack([x[y == label].mean(axis=0) for label in range(5)])
        within = (x - means[y]).T @ (x - means[y]) / (len(x) - 5)
        shrunken = 0.7 * within + 0.3 * np.trace(within) / 40 * np.eye(40)
        weights = np.linalg.solve(shrunken, means.T).T / scale
        np.testing.assert_allclose(fitted.weights[1, labeling], weights, atol=1e-9)


def test_the_units_of_features_are_of_no_matter(five_sites):
    units = 10.0 ** np.random.default_rng(0).uniform(-6, 6, 40)
    mixed = Sites(five_sites.features * units, five_sites.covariates, five_sites.target, five_sites.site)
    analysis = SiteClassification(permutations=10)

    result, other = (run_pooled(analysis, labelled(sites)) for sites in (five_sites, mixed))

    assert other.balanced_accuracy == pytest.approx(result.balanced_accuracy)
    np.testing.assert_allclose(other.null, result.null)


def test_the_null_of_a_site_that_guards_groups_is_as_wide_as_any():
    """Noise, many small sites: the site is found by chance, and p-values say so as often as they should."""
    rng = np.random.default_rng(0)
    p_values, nulls = [], []
    for draw in range(12):
        tables = [
            SiteTable(
                rng.normal(size=(25, 5)), None, np.tile(np.eye(8)[site], (25, 1)), seed=1000 * draw + site, min_group=5
            )
            for site in range(8)
        ]
        result = run_pooled(SiteClassification(permutations=40), tables)
        p_values.append(result.p_value)
        nulls.append(result.null_mean)

    assert np.mean(nulls) == pytest.approx(1 / 8, abs=0.01)
    assert np.mean(np.array(p_values) <= 0.1) <= 0.34  # 1.2 of 12 are expected


def test_a_fold_stands_for_enough_people():
    tables = [replace(table, min_group=10) for table in labelled(make_sites((60, 49), 4))]

    with pytest.raises(SmallGroupError, match="49 participants in 5 folds are fewer than 10 in each"):
        run_pooled(SiteClassification(permutations=0), tables)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("combat_gam", {"smooth": [[0, -3, 3]]}),
        ("covbat", {}),
        ("site_adversarial", {"sites": ["0", "1", "2"], "rounds": 2}),
        ("content_style", {"rounds": 2}),
    ],
)
def test_every_method_harmonizes_features_that_are_then_seen_through_loadings(method, options):
    loadings = np.random.default_rng(0).normal(size=(20, 4))
    tables = [
        replace(table, loadings=loadings, site=str(number), seed=number)
        for number, table in enumerate(labelled(make_sites((30, 25, 28), 20)))
    ]

    raw = run_pooled(SiteClassification(n_folds=3, permutations=0), tables)
    harmonized = run_pooled(SiteClassification(n_folds=3, method=method, options=options, permutations=0), tables)

    assert harmonized.balanced_accuracy < raw.balanced_accuracy - 0.2
