from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from harmonization import HarmonizationError, SiteTable, TableError, add_sums, run_pooled
from harmonization.core.errors import SmallGroupError
from harmonization.networks.neural import (
    Layout,
    Leaves,
    Losses,
    Network,
    Weights,
    adam_step,
    differentiate,
    draw_weights,
    evaluate,
    pack,
    tensor,
    unpack,
)
from harmonization.networks.training import FederatedTraining, Standard, Training


@dataclass(frozen=True)
class Classifier(FederatedTraining):
    """Predicts the one-hot target from the features."""

    name: ClassVar[str] = "classifier"

    def network(self, standard: Standard) -> Network:
        return Network("net", (standard.width(), 6, 3))

    def layout(self, standard: Standard) -> Layout:
        return self.network(standard).layout

    def losses(self, weights: Leaves, rows: SiteTable, training: Training) -> Losses:
        scores = self.network(training)(weights, tensor(rows.features))
        return (torch.nn.functional.cross_entropy(scores, tensor(rows.target)),)


@dataclass(frozen=True)
class Decoder(Classifier):
    """The same, from features and covariates."""

    inputs: ClassVar[tuple[str, ...]] = ("features", "covariates")

    def network(self, standard: Standard) -> Network:
        return Network("net", (standard.width(0) + standard.width(1), 3))

    def losses(self, weights: Leaves, rows: SiteTable, training: Training) -> Losses:
        return super().losses(weights, replace(rows, features=np.hstack([rows.features, rows.covariates])), training)


def table_of(n: int, seed: int = 0, offset: float = 0.0) -> SiteTable:
    """Three classes of rows that a line does not part."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 5))
    label = (np.abs(features[:, 0]) > 0.7).astype(int) + (features[:, 1] > 1)
    return SiteTable(offset + 3 * features, rng.normal(size=(n, 2)), np.eye(3)[label], seed=seed)


def split(table: SiteTable, sizes: tuple[int, ...]) -> list[SiteTable]:
    return [table.take(rows) for rows in np.split(np.arange(table.n), np.cumsum(sizes)[:-1])]


def in_numpy(network: Network, weights: Weights, inputs: np.ndarray) -> np.ndarray:
    for layer in range(len(network.sizes) - 1):
        values = np.tanh(inputs) if layer else inputs
        inputs = values @ weights[f"net.{layer}.weight"] + weights[f"net.{layer}.bias"][..., None, :]
    return inputs


@pytest.mark.parametrize("leading", [(), (2, 3)], ids=["one network", "several side by side"])
def test_gradients_are_differences_of_the_loss(leading):
    network = Network("net", (4, 6, 5, 3))
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=leading + shape) for name, shape in network.layout.items()}
    inputs = rng.normal(size=(*leading, 7, 4))

    def losses(leaves: Leaves) -> Losses:
        return (network(leaves, tensor(inputs)).square().mean(), leaves["net.0.weight"].sum())

    def total(name: str, change: np.ndarray) -> float:
        changed = {name: tensor(value) for name, value in (weights | {name: weights[name] + change}).items()}
        return sum(loss.item() for loss in losses(changed))

    loss, gradients = differentiate(losses, weights)

    assert loss == pytest.approx(np.square(in_numpy(network, weights, inputs)).mean(), rel=1e-12)
    for name, gradient in gradients.items():
        direction = 1e-6 * rng.normal(size=gradient.shape)
        slope = (total(name, direction) - total(name, -direction)) / 2
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6)


def test_neither_gradients_nor_answers_depend_on_threads():
    network = Network("net", (300, 400, 3))
    rng = np.random.default_rng(0)
    weights, inputs = draw_weights(network.layout, seed=1), rng.normal(size=(500, 300))
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        _, gradients = differentiate(lambda leaves: (network(leaves, tensor(inputs)).square().mean(),), weights)
        found.append([evaluate(network, weights, inputs), *gradients.values()])
        assert torch.get_num_threads() == number
    torch.set_num_threads(threads)

    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_weights_that_no_loss_depends_on_stay():
    weights = {"used": np.ones(2), "unused": np.ones((3, 2))}

    _, gradients = differentiate(lambda leaves: (leaves["used"].sum(),), weights)

    np.testing.assert_array_equal(gradients["unused"], np.zeros((3, 2)))


def test_adam_equals_that_of_torch():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=9), rng.normal(size=(5, 9))
    weights, memory = start, (np.zeros(9), np.zeros(9))
    reference = torch.tensor(start.copy(), requires_grad=True)
    optimizer = torch.optim.AdamW([reference], lr=0.1, weight_decay=0.2)

    for number, gradient in enumerate(gradients, start=1):
        weights, memory = adam_step(weights, gradient, memory, number, 0.1, 0.2)
        reference.grad = torch.tensor(gradient)
        optimizer.step()

    np.testing.assert_allclose(weights, reference.detach(), rtol=1e-9)


def test_a_vector_holds_all_weights():
    layout = Network("net", (4, 6, 3)).layout
    weights = draw_weights(layout, seed=1)

    vector = pack(weights, layout)

    assert vector.shape == (4 * 6 + 6 + 6 * 3 + 3,)
    for name, value in unpack(vector, layout).items():
        np.testing.assert_array_equal(value, weights[name])
    np.testing.assert_array_equal(pack(unpack(np.stack([vector, 2 * vector]), layout), layout)[1], 2 * vector)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("kind", [Classifier, Decoder])
def test_one_step_a_round_equals_descent_on_pooled_rows(kind, offset):
    whole = table_of(90, offset=offset)
    training = kind(rounds=12, local_steps=1, learning_rate=0.05, weight_decay=0.1)

    pooled, federated = run_pooled(training, [whole]), run_pooled(training, split(whole, (40, 3, 47)))

    # Adam divides by the size of the gradient, and so makes of a rounding error as much as it was of the gradient.
    np.testing.assert_allclose(federated.weights, pooled.weights, atol=1e-9)
    np.testing.assert_allclose(federated.loss, pooled.loss, rtol=1e-9)
    assert pooled.loss.shape == (12,)
    assert pooled.loss[-1] < pooled.loss[0]


def test_one_step_a_round_descends_as_torch_does():
    table = table_of(60)
    training = Classifier(rounds=6, local_steps=1, learning_rate=0.05)
    network = Network("net", (5, 6, 3))
    leaves = {
        name: torch.tensor(value, requires_grad=True) for name, value in draw_weights(network.layout, seed=0).items()
    }
    x = torch.tensor((table.features - table.features.mean(axis=0)) / table.features.std(axis=0))
    optimizer = torch.optim.Adam(leaves.values(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    for _ in range(6):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(leaves, x), torch.tensor(table.target)).backward()
        optimizer.step()
        schedule.step()

    model = run_pooled(training, [table])

    for name, value in unpack(model.weights, network.layout).items():
        np.testing.assert_allclose(value, leaves[name].detach(), atol=1e-7)


def test_averaging_several_steps_learns_and_repeats_itself():
    tables = [table_of(60, seed=1), table_of(150, seed=2), table_of(90, seed=3)]
    training = Classifier(rounds=15, local_steps=20, learning_rate=0.02)

    model = run_pooled(training, tables)

    assert model.loss[-1] < 0.5 * model.loss[0]
    np.testing.assert_array_equal(run_pooled(training, tables).weights, model.weights)
    reseeded = [replace(table, seed=table.seed + 10) for table in tables]
    assert not np.array_equal(run_pooled(training, reseeded).weights, model.weights)


def test_weights_are_averaged_by_participants():
    training = Classifier(rounds=1, local_steps=4)
    tables = [table_of(30, seed=1), table_of(90, seed=2)]
    state = None
    for _ in range(2):
        state = training.solve(add_sums([training.summarize(table, state) for table in tables]), state)
    sums = [training.summarize(table, state) for table in tables]
    of_each = [part["weights"] / part["n"] for part in sums]

    model = training.solve(add_sums(sums), state)

    np.testing.assert_allclose(model.weights, 0.25 * of_each[0] + 0.75 * of_each[1], atol=1e-15)


def test_constant_inputs_do_no_harm():
    table = table_of(40, offset=1e6)
    table.features[:, 2] = 1e6 + 0.1

    model = run_pooled(Classifier(rounds=3), [table])

    assert model.scale[2] == 1
    assert np.isfinite(model.weights).all()


def test_refuses_what_cannot_be_trained():
    with pytest.raises(HarmonizationError, match="rounds is 0; expected at least 1"):
        Classifier(rounds=0)
    with pytest.raises(HarmonizationError, match="learning_rate is nan"):
        Classifier(learning_rate=float("nan"))
    with pytest.raises(SmallGroupError, match="4 participants; expected at least 10"):
        run_pooled(Classifier(), [replace(table_of(4), min_group=10)])
    for local_steps in (1, 5):
        diverging = Classifier(rounds=3, local_steps=local_steps, learning_rate=1e200, weight_decay=1e200)
        with pytest.raises(HarmonizationError, match=r"not finite in round .\. Lower learning_rate"):
            run_pooled(diverging, [table_of(40)])
    model = run_pooled(Decoder(rounds=1), [table_of(40)])
    with pytest.raises(TableError, match="have 5 and 0 columns; the network was trained on 5 and 2"):
        Decoder(rounds=1).standardize(replace(table_of(40), covariates=None), model)
