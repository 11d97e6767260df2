import numpy as np
import pytest
import torch

from harmonization import HarmonizationError, SiteClassification, SiteNetwork, SiteTable, add_sums, run_pooled
from tests.support.bent_sites import make_bent_sites
from tests.support.sites import make_sites


def spread_apart(seed: int, strength: float) -> list[SiteTable]:
    """Sites of one mean whose features have other spreads: nothing that a linear classifier could see."""
    rng = np.random.default_rng(seed)
    return [
        SiteTable((1 + strength * site) * rng.normal(size=(70, 6)), None, np.tile(np.eye(3)[site], (70, 1)), seed=site)
        for site in range(3)
    ]


def test_a_network_sees_what_a_linear_classifier_does_not():
    tables = spread_apart(0, 1.0)

    linear = run_pooled(SiteClassification(permutations=20), tables)
    network = run_pooled(SiteNetwork(), tables)

    assert linear.balanced_accuracy < linear.null_95 + 0.05
    assert network.balanced_accuracy > 0.55
    assert network.p_value == pytest.approx(1 / 21)


def test_a_network_sees_what_combat_leaves_of_sites_that_bend():
    tables = make_bent_sites((100, 100, 100, 100), 40, bend=0.8).tables

    result = run_pooled(SiteNetwork(method="combat", permutations=20), tables)

    assert result.balanced_accuracy > result.null_95 + 0.1


def test_sites_that_are_alike_are_recognised_by_chance():
    results = [run_pooled(SiteNetwork(permutations=10), spread_apart(seed, 0.0)) for seed in range(4)]

    assert np.mean([result.balanced_accuracy for result in results]) == pytest.approx(1 / 3, abs=0.06)
    assert np.mean([result.null_mean for result in results]) == pytest.approx(1 / 3, abs=0.04)
    assert min(result.p_value for result in results) > 1 / 11


def test_the_sum_of_gradients_is_that_of_pooled_rows():
    """Gradients of torch, of cross-entropy with alike classes, over the training rows of all sites."""
    sites = make_sites((30, 20, 25), 5)
    tables = [
        SiteTable(t.features, t.covariates, np.tile(np.eye(3)[number], (t.n, 1)), seed=number)
        for number, t in enumerate(sites.tables)
    ]
    analysis = SiteNetwork(n_folds=3, permutations=0, hidden=4)
    state = None
    for _ in range(5):  # some steps away from the beginning
        total = add_sums([analysis.summarize(table, state) for table in tables])
        before, state = state, analysis.solve(total, state)
    own = before.own
    folds = np.concatenate([analysis.deal(table) for table in tables])
    train, part = folds != 1, 1
    x = np.concatenate([t.features for t in tables]) - sites.covariates @ own.coefficients[part] - own.mean[part]
    z = (x[train] / own.scale[part]).clip(-5, 5)
    inputs = torch.tensor(np.hstack([z, (z**2 - 1) / np.sqrt(2), (z**3 - 3 * z) / np.sqrt(6)]))
    shapes = [(15, 4), (4,), (4, 3), (3,)]
    sizes = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    pieces = np.split(own.weights[part, 0], sizes)
    leaves = [
        torch.tensor(piece.reshape(shape), requires_grad=True) for piece, shape in zip(pieces, shapes, strict=True)
    ]
    scores = torch.tanh(inputs @ leaves[0] + leaves[1]) @ leaves[2] + leaves[3]
    counts = np.bincount(sites.site[train])
    weight = torch.tensor(train.sum() / counts / 3)
    loss = torch.nn.functional.cross_entropy(scores, torch.tensor(sites.site[train]), weight=weight, reduction="sum")
    loss.backward()

    expected = np.concatenate([leaf.grad.numpy().ravel() for leaf in leaves])
    np.testing.assert_allclose(total["gradients"][part, 0], expected, rtol=1e-9, atol=1e-10)


def test_refuses_networks_without_units():
    with pytest.raises(HarmonizationError, match="hidden and rounds of at least 1"):
        SiteNetwork(hidden=0)


def test_refuses_a_training_that_diverges():
    with pytest.raises(HarmonizationError, match=r"not finite after round .\. Lower learning_rate"):
        run_pooled(SiteNetwork(permutations=0, learning_rate=1e200, weight_decay=1e200), spread_apart(0, 1.0))
