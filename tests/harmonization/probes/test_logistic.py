import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harmonization import (
    CrossValidatedLogistic,
    HarmonizationError,
    SiteTable,
    SmallGroupError,
    TableError,
    add_sums,
    run_pooled,
)
from harmonization.probes.scoring import bootstrap_weights, permuted_rows
from tests.support.conditioning import tolerance
from tests.support.plain_loops import Left, leave_out, parts_of, tables_of
from tests.support.sites import Sites, make_sites

CS = (1e-3, 1e-1, 1.0)
STOPS = 1e-6
"""How far from its least scikit-learn's solver leaves a log loss, relative to it."""


def draw_labels(sites: Sites, n_classes: int, seed: int = 0, strength: float = 1.0) -> np.ndarray:
    odds = strength * (sites.features[:, :1] - sites.features[:, 0].mean()) * np.arange(n_classes)
    return (odds + np.random.default_rng([seed, 1]).gumbel(size=odds.shape)).argmax(axis=1)


def fit_logistic(features: np.ndarray, labels: np.ndarray, C: float):
    """Fit scikit-learn's regression to standardised features; return a function of rows to probabilities."""
    model = Reference(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its line search complains where it can get no closer
        return make_pipeline(StandardScaler(), model).fit(features, labels).predict_proba


def nested_choice(left: Left, labels: np.ndarray) -> float:
    losses = np.zeros(len(CS))
    for rows, held_out in left.inner:
        for index, C in enumerate(CS):
            probability = fit_logistic(left.features[rows], labels[rows], C)(left.features[held_out])
            losses[index] -= np.log(probability[np.arange(held_out.sum()), labels[held_out]]).sum()
    return CS[int(np.argmin(losses))]


def plain_loop(sites: Sites, labels: np.ndarray, parts: np.ndarray, method: str, chosen=None):
    """Held-out probabilities and chosen penalties; or those of penalties that were chosen before."""
    probability, used = np.empty((len(labels), labels.max() + 1)), []
    for left in leave_out(sites, parts, method):
        used.append(nested_choice(left, labels) if chosen is None else chosen[left.part])
        predict = fit_logistic(left.features[left.training], labels[left.training], used[-1])
        probability[~left.training] = predict(left.features[~left.training])
    return probability, used


def area(labels: np.ndarray, probability: np.ndarray) -> float:
    return roc_auc_score(labels, probability[:, 1] if probability.shape[1] == 2 else probability, multi_class="ovr")


@pytest.mark.parametrize("names", [(), ("0", "1", "2", "3")], ids=["folds", "sites"])
@pytest.mark.parametrize("method", ["none", "combat"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_equals_a_loop_over_pooled_rows(n_classes, method, names):
    sites = make_sites((31, 24, 47, 60), 12, offset=20)
    labels = draw_labels(sites, n_classes)
    tables = tables_of(sites, np.eye(n_classes)[labels])
    analysis = CrossValidatedLogistic(4, names, method, Cs=CS)
    probability, chosen = plain_loop(sites, labels, parts_of(analysis, tables), method)

    scores = run_pooled(analysis, tables)

    np.testing.assert_allclose(scores.C, chosen, rtol=1e-10)
    assert scores.log_loss == pytest.approx(log_loss(labels, probability), rel=1e-7)
    assert scores.accuracy == accuracy_score(labels, probability.argmax(axis=1))
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, probability.argmax(axis=1)))
    assert abs(scores.auroc - area(labels, probability)) <= scores.auroc_error + 1e-12
    assert scores.auroc_error < 0.01
    assert scores.n == len(labels)


@given(
    sizes=st.lists(st.integers(9, 50), min_size=2, max_size=5),
    p=st.integers(2, 40),
    n_classes=st.integers(2, 3),
    offset=st.sampled_from([0.0, 1e6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=4)
def test_folds_equal_the_loop_on_any_data(sizes, p, n_classes, offset, seed):
    """Also with one site that has a single class."""
    sites = make_sites(tuple(sizes), p, seed, offset=offset)
    labels = draw_labels(sites, n_classes, seed)
    labels[: 4 * n_classes] = np.tile(np.arange(n_classes), 4)
    labels[sites.site == len(sizes) - 1] = 1
    tables = tables_of(sites, np.eye(n_classes)[labels])
    analysis = CrossValidatedLogistic(n_folds=3, Cs=CS)
    probability, chosen = plain_loop(sites, labels, parts_of(analysis, tables), "none")

    def found(features: np.ndarray) -> float:
        return run_pooled(analysis, tables_of(replace(sites, features=features), np.eye(n_classes)[labels])).log_loss

    scores = run_pooled(analysis, tables)

    np.testing.assert_array_equal(scores.C, chosen)
    bound = tolerance(found, sites.features) + STOPS * scores.log_loss
    assert scores.log_loss == pytest.approx(log_loss(labels, probability), rel=0, abs=bound)
    assert abs(scores.auroc - area(labels, probability)) <= scores.auroc_error + 1e-12


@pytest.mark.parametrize("method", ["none", "combat"])
def test_the_units_of_features_are_of_no_matter(method):
    sites = make_sites((31, 24, 47, 60), 12, offset=20)
    labels = draw_labels(sites, 3)
    units = 10.0 ** np.random.default_rng(0).uniform(-6, 6, 12)
    mixed = Sites(sites.features * units, sites.covariates, sites.target, sites.site)
    analysis = CrossValidatedLogistic(4, method=method, options={"prior": "none"} if method == "combat" else {}, Cs=CS)

    scores, other = (run_pooled(analysis, tables_of(each, np.eye(3)[labels])) for each in (sites, mixed))

    assert other.log_loss == pytest.approx(scores.log_loss, rel=1e-9)
    np.testing.assert_array_equal(other.C, scores.C)


def test_scores_through_loadings_keep_their_relative_scale():
    sites = make_sites((31, 24, 47, 60), 12)
    labels = draw_labels(sites, 2)
    loadings = np.random.default_rng(0).normal(size=(12, 4)) * [1, 1, 0.1, 0.1]
    analysis = CrossValidatedLogistic(4, Cs=(0.1,))
    tables = [replace(table, loadings=loadings) for table in tables_of(sites, np.eye(2)[labels])]
    parts, probability, seen = parts_of(analysis, tables), np.empty((len(labels), 2)), sites.features @ loadings
    for part in range(4):
        x = seen[parts != part]
        centre, unit = x.mean(axis=0), np.sqrt(x.var(axis=0).mean())
        model = Reference(C=0.1, solver="newton-cholesky", tol=1e-12).fit((x - centre) / unit, labels[parts != part])
        probability[parts == part] = model.predict_proba((seen[parts == part] - centre) / unit)

    assert run_pooled(analysis, tables).log_loss == pytest.approx(log_loss(labels, probability), rel=1e-7)


def test_intervals_are_those_of_resampled_participants():
    sites = make_sites((60, 50), 8)
    labels = draw_labels(sites, 2)
    tables = tables_of(sites, np.eye(2)[labels])
    analysis = CrossValidatedLogistic(3, Cs=CS, bootstrap=100, bins=5000)
    probability, _ = plain_loop(sites, labels, parts_of(analysis, tables), "none")
    draws = np.concatenate([bootstrap_weights(table, 100) for table in tables], axis=1)[1:].astype(int)
    resampled = [(np.repeat(labels, draw), np.repeat(probability, draw, axis=0)) for draw in draws]

    scores = run_pooled(analysis, tables)

    recalls = [balanced_accuracy_score(y, z.argmax(axis=1)) for y, z in resampled]
    expected = np.quantile(recalls, (0.025, 0.975))
    assert (scores.balanced_accuracy_low, scores.balanced_accuracy_high) == pytest.approx(expected, abs=1e-12)
    expected = np.quantile([area(y, z) for y, z in resampled], (0.025, 0.975))
    assert (scores.auroc_low, scores.auroc_high) == pytest.approx(expected, abs=2e-3)
    assert np.isnan(run_pooled(replace(analysis, bootstrap=0), tables).auroc_low)


@pytest.mark.parametrize("method", ["none", "combat"])
def test_null_is_that_of_permuted_classes(method):
    sites = make_sites((40, 50, 30), 8)
    labels = draw_labels(sites, 2)
    tables = tables_of(sites, np.eye(2)[labels])
    analysis = CrossValidatedLogistic(3, method=method, Cs=CS, permutations=4)
    scores = run_pooled(analysis, tables)
    permuted = [table.target[permuted_rows(table, analysis.deal(table), 4)].argmax(axis=2) for table in tables]

    loops = []
    for given_labels in np.concatenate(permuted, axis=1)[1:]:
        probability, _ = plain_loop(sites, given_labels, parts_of(analysis, tables), method, scores.C)
        loops.append((given_labels, probability))

    expected = [balanced_accuracy_score(y, z.argmax(axis=1)) for y, z in loops]
    np.testing.assert_allclose(scores.balanced_accuracy_null, expected, atol=1e-12)
    np.testing.assert_allclose(scores.auroc_null, [area(y, z) for y, z in loops], atol=2e-3)
    assert scores.auroc_null_mean == pytest.approx(scores.auroc_null.mean())
    assert scores.balanced_accuracy_null_95 == pytest.approx(np.quantile(expected, 0.95))


def test_what_is_there_is_told_from_chance():
    sites = make_sites((60, 50, 70), 10, site_effect=0.0)
    analysis = CrossValidatedLogistic(3, Cs=CS, bootstrap=200, permutations=39)

    chance, found = (
        run_pooled(analysis, tables_of(sites, np.eye(2)[draw_labels(sites, 2, 3, strength)])) for strength in (0, 3)
    )

    assert chance.auroc_p_value > 0.05
    assert chance.balanced_accuracy_p_value > 0.05
    assert chance.auroc_low < 0.5 < chance.auroc_high
    assert found.auroc_p_value == found.balanced_accuracy_p_value == pytest.approx(1 / 40)
    assert found.auroc_null_95 < found.auroc_low < found.auroc < found.auroc_high


def test_classes_that_can_be_told_apart_without_error_end():
    sites = make_sites((40, 40, 40), 60)
    labels = (sites.features[:, 0] > 0).astype(int)

    scores = run_pooled(CrossValidatedLogistic(3, Cs=(1.0, 1e6)), tables_of(sites, np.eye(2)[labels]))

    assert scores.auroc > 0.8


def test_one_penalty_needs_no_nested_folds_and_serves_two_parts():
    sites = make_sites((40, 50), 8)
    labels = draw_labels(sites, 2)
    tables = tables_of(sites, np.eye(2)[labels])
    analysis = CrossValidatedLogistic(sites=("0", "1"), Cs=(0.1,))
    probability, _ = plain_loop(sites, labels, sites.site, "none", [0.1, 0.1])

    assert run_pooled(analysis, tables).log_loss == pytest.approx(log_loss(labels, probability), rel=1e-8)


def test_folds_hold_equal_shares_of_each_class():
    one_hot = np.eye(3)[np.repeat([0, 1, 2], [20, 7, 11])]
    analysis = CrossValidatedLogistic(5)

    folds = analysis.deal(SiteTable(np.zeros((38, 2)), target=one_hot, seed=3))

    counts = np.array([one_hot[folds == fold].sum(axis=0) for fold in range(5)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1


def test_a_site_with_few_of_a_class_deals_into_fewer_folds():
    """Each cell of fold and class has nobody, or enough; and a site in one fold alone is harmonized as a new one."""
    sites = make_sites((60, 50, 40), 4)
    labels = draw_labels(sites, 2)
    for number, few in enumerate((24, 11, 5)):
        labels[sites.site == number] = np.arange((sites.site == number).sum()) < few
    tables = tables_of(sites, np.eye(2)[labels], min_group=5)
    analysis = CrossValidatedLogistic(4, method="combat", Cs=CS)

    parts = [analysis.deal(table) for table in tables]

    for part, table, n_folds in zip(parts, tables, (4, 2, 1), strict=True):
        counts = np.array([table.target[part == fold].sum(axis=0) for fold in range(4)])
        assert ((counts == 0) | (counts >= 5)).all()
        assert (counts > 0).all(axis=1).sum() == n_folds
    probability, chosen = plain_loop(sites, labels, np.concatenate(parts), "combat")
    scores = run_pooled(analysis, tables)
    np.testing.assert_allclose(scores.C, chosen, rtol=1e-10)
    assert scores.log_loss == pytest.approx(log_loss(labels, probability), rel=1e-7)


@pytest.mark.parametrize("names", [(), ("0", "1", "2")], ids=["folds", "sites"])
def test_a_class_of_fewer_than_a_group_is_refused(names):
    sites = make_sites((60, 50, 40), 4)
    labels = np.concatenate([np.arange(size) < 5 for size in (60, 50, 40)]).astype(int)
    analysis = CrossValidatedLogistic(3, names, Cs=(1.0,))

    with pytest.raises(SmallGroupError, match="class 1 has fewer than 6 participants in one part of a site"):
        run_pooled(analysis, tables_of(sites, np.eye(2)[labels], min_group=6))
    if names:
        assert run_pooled(analysis, tables_of(sites, np.eye(2)[labels], min_group=5)).n == 150


def test_no_permutation_makes_smaller_cells():
    sites = make_sites((60, 50), 4)
    tables = tables_of(sites, np.eye(2)[draw_labels(sites, 2)])
    analysis = CrossValidatedLogistic(3, Cs=(1.0,), permutations=20)

    for table in tables:
        parts = analysis.deal(table)
        permuted = table.target[permuted_rows(table, parts, 20)]
        for part in range(3):
            counts = permuted[:, parts == part].sum(axis=1)
            assert (counts == counts[0]).all()


def test_a_class_that_nobody_else_has_is_refused():
    sites = make_sites((30, 30, 30), 4)
    labels = draw_labels(sites, 2)
    labels[sites.site == 1] = 2
    tables = tables_of(sites, np.eye(3)[labels])

    with pytest.raises(HarmonizationError, match=r"without 1 there is nobody of class 2.*Leave the class out, or"):
        run_pooled(CrossValidatedLogistic(sites=("0", "1", "2")), tables)
    with pytest.raises(HarmonizationError, match="without fold 0 there is nobody of class 1"):
        run_pooled(CrossValidatedLogistic(), tables_of(sites, np.eye(2)[np.zeros(90, dtype=int)]))
    assert run_pooled(CrossValidatedLogistic(n_folds=3), tables).n == 90


def test_inner_fits_without_a_class_do_not_choose():
    """Class 1 is at sites 0 and 1 alone: with both left out there is no fit, but the other pairs choose."""
    sites = make_sites((30, 30, 30), 4)
    labels = draw_labels(sites, 2)
    labels[sites.site == 2] = 0
    tables = tables_of(sites, np.eye(2)[labels])

    for method in ("none", "combat"):
        assert run_pooled(CrossValidatedLogistic(sites=("0", "1", "2"), method=method), tables).n == 90

    labels[sites.site == 0] = np.arange(30) % 2  # without site 0, the others have one class each
    labels[sites.site == 1] = 1
    labels[sites.site == 2] = 0
    tables = tables_of(sites, np.eye(2)[labels])
    with pytest.raises(HarmonizationError, match=r"a class is missing whenever two parts are left out.*Give one C"):
        run_pooled(CrossValidatedLogistic(sites=("0", "1", "2")), tables)


def test_only_fits_that_have_not_converged_send_sums():
    sites = make_sites((40, 50), 8)
    tables = tables_of(sites, np.eye(2)[draw_labels(sites, 2)])
    analysis, state, sizes = CrossValidatedLogistic(3, Cs=CS), None, []
    while state is None or not state.done:
        total = add_sums([analysis.summarize(table, state) for table in tables])
        if "hessian" in total:
            sizes.append(len(total["hessian"]))
            assert sizes[-1] == state.own.active.sum()
        state = analysis.solve(total, state)

    assert sizes[0] == 3 * len(CS)
    assert min(sizes) < len(CS)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "has no target"),
        (np.arange(30.0) % 2, "expected one column for each of two or more classes"),
        (np.full((30, 2), 0.5), "not one-hot"),
    ],
)
def test_refuses_targets_that_are_no_classes(target, message):
    with pytest.raises(TableError, match=message):
        run_pooled(CrossValidatedLogistic(), [SiteTable(np.zeros((30, 2)), target=target)])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"Cs": ()}, "Cs is empty"),
        ({"Cs": (1.0, -1.0)}, "C is -1.0; expected a positive"),
        ({"n_folds": 2}, "Use more folds, or one C"),
        ({"bins": 1}, "at least 2 bins"),
        ({"permutations": -1}, "neither bootstrap nor permutations below 0"),
    ],
)
def test_refuses_parameters_that_make_no_sense(parameters, message):
    with pytest.raises(HarmonizationError, match=message):
        CrossValidatedLogistic(**parameters)


def test_rounds_too_large_to_send_are_refused_before_they_are_made():
    rng = np.random.default_rng(0)
    tables = [SiteTable(rng.normal(size=(30, 100)), target=np.eye(2)[np.arange(30) % 2])]

    with pytest.raises(HarmonizationError, match="MiB in one round; at most 256 are allowed"):
        run_pooled(CrossValidatedLogistic(permutations=2000), tables)
