import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from harmonization import SiteTable, TableError
from harmonization.probes.scoring import (
    auroc,
    beside_null,
    bootstrap_weights,
    classification_scores,
    classification_sums,
    interval,
    permuted_rows,
    regression_scores,
    regression_sums,
)


def draw_classes(n: int, n_classes: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    odds = np.exp(rng.normal(size=(n, n_classes)) + np.eye(n_classes)[labels])
    return labels, odds / odds.sum(axis=1, keepdims=True)


@given(n=st.integers(4, 200), n_classes=st.integers(2, 4), bins=st.sampled_from([2, 20, 1000]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_auroc_of_histograms_is_within_its_bound(n, n_classes, bins, seed):
    labels, probability = draw_classes(n, n_classes, seed)
    loss = -np.log(probability[np.arange(n), labels])
    expected = roc_auc_score(
        labels, probability[:, 1] if n_classes == 2 else probability, multi_class="ovr", average="macro"
    )

    scores = classification_scores(
        classification_sums(np.eye(n_classes)[labels], probability, loss, np.ones((1, n)), bins)
    )

    assert abs(scores["auroc"][0] - expected) <= scores["auroc_error"][0] + 1e-12
    assert scores["accuracy"][0] == pytest.approx(accuracy_score(labels, probability.argmax(axis=1)))
    assert scores["balanced_accuracy"][0] == pytest.approx(balanced_accuracy_score(labels, probability.argmax(axis=1)))
    assert scores["log_loss"][0] == pytest.approx(log_loss(labels, probability))


def test_auroc_is_exact_where_bins_hold_one_score_each():
    score = np.repeat(np.arange(20), 5)  # ties between classes inside a score count half, as in scikit-learn
    labels = np.random.default_rng(0).permutation(100) % 2
    positive, negative = (np.bincount(score[labels == label], minlength=20).astype(float) for label in (1, 0))

    area, _ = auroc(positive, negative)
    apart, error = auroc(np.array([0.0, 1, 0, 3]), np.array([2.0, 0, 4, 0]))

    assert area == pytest.approx(roc_auc_score(labels, score), abs=1e-12)
    assert apart == pytest.approx((1 * 2 + 3 * 6) / (4 * 6))
    assert error == 0


def test_a_class_that_no_draw_has_leaves_its_auroc_unknown():
    labels, probability = draw_classes(30, 2)
    weights = np.stack([np.ones(30), (labels == 0).astype(float)])

    scores = classification_scores(
        classification_sums(np.eye(2)[labels], probability, -np.log(probability[:, 0]), weights, 10)
    )

    assert np.isnan(scores["auroc"]).tolist() == [False, True]
    assert scores["balanced_accuracy"][1] == pytest.approx((probability[labels == 0].argmax(axis=1) == 0).mean())


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_regression_scores_of_weighted_rows_are_those_of_repeated_rows(offset):
    rng = np.random.default_rng(0)
    target = offset + rng.normal(size=50)
    predicted, weights = target + rng.normal(size=50), rng.integers(0, 4, size=(3, 50)).astype(float)

    scores = regression_scores(regression_sums(target - offset, predicted - offset, weights))

    for draw, counts in enumerate(weights.astype(int)):
        y, z = np.repeat(target, counts), np.repeat(predicted, counts)
        assert scores["r2"][draw] == pytest.approx(r2_score(y, z), abs=1e-9)
        assert scores["mean_absolute_error"][draw] == pytest.approx(mean_absolute_error(y, z), abs=1e-9)
        assert scores["root_mean_squared_error"][draw] == pytest.approx(root_mean_squared_error(y, z), abs=1e-9)
        assert scores["correlation"][draw] == pytest.approx(np.corrcoef(y, z)[0, 1], abs=1e-9)


def test_a_target_or_prediction_without_spread_has_no_correlation():
    scores = regression_scores(regression_sums(np.zeros(5), np.arange(5.0), np.ones((1, 5))))

    assert np.isnan(scores["r2"][0])
    assert np.isnan(scores["correlation"][0])


def test_participants_are_drawn_with_all_their_rows():
    table = SiteTable(np.zeros((7, 1)), participant=np.array([4, 4, 9, 1, 9, 9, 2]), seed=5)

    weights = bootstrap_weights(table, 500)

    assert (weights[0] == 1).all()
    assert (weights[:, [0, 2, 2]] == weights[:, [1, 4, 5]]).all()
    assert (weights[:, [0, 2, 3, 6]].sum(axis=1) == 4).all()  # as many participants as there are
    assert weights[1:].mean() == pytest.approx(1, abs=0.1)
    assert not np.array_equal(weights, bootstrap_weights(SiteTable(np.zeros((7, 1)), seed=6), 500))


def test_permutations_stay_inside_their_group():
    group = np.array([0, 1, 0, 0, 1, 1, 0, 1])
    rows = permuted_rows(SiteTable(np.zeros((8, 1)), seed=1), group, 200)

    assert (rows[0] == np.arange(8)).all()
    assert (group[rows] == group).all()
    assert (np.sort(rows, axis=1) == np.arange(8)).all()
    # Each of a group's rows is as often in each of its places.
    assert np.bincount(rows[1:, 0], minlength=8)[group == 0] == pytest.approx(50, abs=20)


def test_repeated_participants_are_not_permuted():
    table = SiteTable(np.zeros((3, 1)), participant=np.array([0, 0, 1]))

    with pytest.raises(TableError, match=r"several rows, which permutations would part\. Give their mean"):
        permuted_rows(table, np.zeros(3, dtype=int), 1)
    assert permuted_rows(table, np.zeros(3, dtype=int), 0).tolist() == [[0, 1, 2]]


def test_intervals_and_nulls():
    assert interval(np.append(np.linspace(0, 1, 1001), np.nan)) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.empty(0))).all()
    _, *compared = beside_null(0.5, np.linspace(0, 1, 5)).values()
    assert compared == pytest.approx([0.5, 0.95, 4 / 6])
    assert np.isnan([*beside_null(0.5, np.empty(0)).values()][1:]).all()
