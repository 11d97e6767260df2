from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression as Reference

from harmonization import (
    HarmonizationError,
    LogisticRegression,
    SiteTable,
    SmallGroupError,
    SoftmaxRegression,
    TableError,
    run_pooled,
)
from tests.support.sites import make_sites


def labelled(sizes, p, n_classes, seed=0, offset=0.0, shares=None):
    """Tables with labels that depend on the first features, and the pooled rows."""
    sites = make_sites(tuple(sizes), p, seed, offset=offset)
    rng = np.random.default_rng(seed)
    odds = np.log(shares or [1 / n_classes] * n_classes) + (sites.features[:, :1] - offset) * np.arange(n_classes) / 2
    labels = (odds + rng.gumbel(size=odds.shape)).argmax(axis=1)
    labels[:n_classes] = np.arange(n_classes)
    return sites.features, labels, [replace(t, target=labels[sites.site == i]) for i, t in enumerate(sites.tables)]


@pytest.mark.parametrize("C", [1.0, 1e4, 1e8, 1e10])
@pytest.mark.parametrize("p", [3, 80])
def test_separable_classes_end_at_the_optimum(C, p):
    """Here the gradient tells the truth: scikit-learn itself stops early."""
    rng = np.random.default_rng(0)
    features = 10 * rng.normal(size=(60, p))
    labels = (features[:, 0] > 0).astype(float)

    model = run_pooled(LogisticRegression(C), [SiteTable(features[i::2], target=labels[i::2]) for i in range(2)])

    sign = 2 * labels - 1
    log_odds = features @ model.coef[0] + model.intercept
    pull = C * sign * expit(-sign * log_odds)
    assert (sign * log_odds > 0).all()
    np.testing.assert_allclose(pull @ features, model.coef[0], atol=1e-8 * np.abs(model.coef).max())
    assert abs(pull.sum()) < 1e-8 * np.abs(pull).sum()


def test_converges_where_plain_newton_diverges():
    rng = np.random.default_rng(1077)
    n = rng.integers(10, 60)
    features = rng.standard_t(1.0, size=(n, 1))  # heavy tails: a step that suits the many sends the few far off
    labels = (features[:, 0] + rng.standard_t(1, size=n) > 5).astype(float)
    rows = np.column_stack([features - features.mean(), np.ones(n)])
    plain = np.array([0, np.log(labels.mean() / (1 - labels.mean()))])
    with np.errstate(all="ignore"):
        for _ in range(30):
            chance = expit(rows @ plain)
            hessian = np.diag([1e-4, 0]) + (rows * (chance * (1 - chance))[:, None]).T @ rows
            plain = plain - np.linalg.lstsq(hessian, [1e-4, 0] * plain + rows.T @ (chance - labels))[0]

    model = run_pooled(LogisticRegression(1e4), [SiteTable(features, target=labels)])

    assert not abs(plain[0] - model.coef[0, 0]) < 1
    np.testing.assert_allclose(model.coef, Reference(C=1e4, tol=1e-10).fit(features, labels).coef_, rtol=1e-6)


def test_softmax_of_two_classes_is_logistic_regression_of_twice_the_penalty():
    _, _, tables = labelled((40, 50), 5, 2)

    softmax_model = run_pooled(SoftmaxRegression(1.0, 2), tables)
    logistic_model = run_pooled(LogisticRegression(2.0), tables)

    np.testing.assert_allclose(softmax_model.coef[1:] - softmax_model.coef[:1], logistic_model.coef, rtol=1e-10)
    np.testing.assert_allclose(softmax_model.coef.sum(axis=0), 0, atol=1e-14)
    assert softmax_model.intercept.sum() == pytest.approx(0, abs=1e-12)


def test_labels_and_one_hot_classes_are_the_same():
    features, _, tables = labelled((40, 50), 5, 3)
    model = run_pooled(SoftmaxRegression(1.0, 3), tables)

    one_hot = run_pooled(
        SoftmaxRegression(1.0, 3), [replace(t, target=np.eye(3)[t.target.astype(int)]) for t in tables]
    )

    np.testing.assert_array_equal(one_hot.coef, model.coef)
    expected = softmax(features @ model.coef.T + model.intercept, axis=1)
    np.testing.assert_allclose(model.predict_proba(features), expected, atol=1e-14)
    np.testing.assert_array_equal(model.predict(features), expected.argmax(axis=1))


def test_a_site_may_have_one_class_but_not_all_sites_the_same():
    _, labels, tables = labelled((40, 30), 5, 2)
    alone = SiteTable(tables[0].features + 1, target=np.ones(40))

    pooled = SiteTable(
        np.concatenate([t.features for t in (*tables, alone)]), target=np.concatenate([labels, alone.target])
    )
    np.testing.assert_allclose(
        run_pooled(LogisticRegression(), [*tables, alone]).coef,
        run_pooled(LogisticRegression(), [pooled]).coef,
        atol=1e-10,
    )
    with pytest.raises(HarmonizationError, match=r"nobody is of class 0.*Add a site that has it, or leave the class"):
        run_pooled(LogisticRegression(), [alone])


@pytest.mark.parametrize("few", [1, 4])
def test_a_class_of_few_at_a_site_is_refused(few):
    features = np.random.default_rng(0).normal(size=(30, 2))
    small = SiteTable(features, target=(np.arange(30) < few) * 1.0, min_group=5)
    enough = replace(small, target=(np.arange(30) < 5) * 1.0)
    in_pairs = replace(enough, participant=np.arange(30) // 2)  # five rows, but of three people

    for table in (small, in_pairs):
        with pytest.raises(SmallGroupError, match="class 1 has fewer than 5 participants"):
            run_pooled(LogisticRegression(), [table])
    assert run_pooled(LogisticRegression(), [enough]).done


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.array([0, 1, 2.0]), "not made of labels 0 to 1"),
        (np.array([0, 0.5, 1]), "not made of labels 0 to 1"),
        (np.eye(3), "expected one column for each of 2 classes"),
        (np.array([[0, 1], [1, 1.0], [1, 0]]), "not one-hot"),
        (None, "has no target"),
    ],
)
def test_refuses_targets_that_are_no_classes(target, message):
    with pytest.raises(TableError, match=message):
        run_pooled(LogisticRegression(), [SiteTable(np.arange(6.0).reshape(3, 2), target=target)])


@pytest.mark.parametrize("C", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_penalties_that_are_none(C):
    with pytest.raises(HarmonizationError, match="expected a positive, finite number"):
        LogisticRegression(C)
    with pytest.raises(HarmonizationError, match="expected a positive, finite number"):
        SoftmaxRegression(C)


def test_a_penalty_too_weak_for_the_numbers_is_refused():
    rng = np.random.default_rng(0)
    table = SiteTable(rng.normal(size=(20, 60)), target=(np.arange(20) < 10) * 1.0)

    with pytest.raises(HarmonizationError, match="Use a smaller C"):
        run_pooled(LogisticRegression(1e18), [table])
