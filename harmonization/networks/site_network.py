"""Whether a small network recognises the site where a linear classifier does not."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harmonization.core.declared import Declared, Widths, everybody, network, of_groups
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Array, SiteTable, State, Sums
from harmonization.core.registry import register
from harmonization.networks.neural import (
    Leaves,
    Losses,
    Network,
    adam_step,
    differentiate,
    draw_weights,
    evaluate,
    pack,
    tensor,
    unpack,
)
from harmonization.probes.crossvalidation import Centres, Fold
from harmonization.site_effects.site_classification import (
    AdjustedCentres,
    SiteClassificationResult,
    SiteRecognition,
    adjust,
    adjusted_centres_of,
    solve_adjusted_centres,
    summarize_adjusted_centres,
)

if TYPE_CHECKING:
    from torch import Tensor

_FARTHEST = 5.0
"""Standardised features are cut off here, so that powers of an outlier do not lead the training."""


@dataclass(frozen=True)
class NetworkTraining(AdjustedCentres):
    """After each further round: networks for each of K parts left out, of the true labels and of B permuted ones.

    Attributes
    ----------
    scale, left : numpy.ndarray
        [K, k], standard deviations of the features, 1 where one is constant; and the mean of what the centres leave
        (`harmonization.networks.training.Standard`).
    weights, gradient_mean, gradient_square : numpy.ndarray
        [K, 1 + B, w], the weights, and Adam's memory.
    steps : int
        Steps that were taken.
    """

    scale: Array
    left: Array
    weights: Array
    gradient_mean: Array
    gradient_square: Array
    steps: int


@register
@dataclass(frozen=True)
class SiteNetwork(SiteRecognition):
    """A network of one hidden layer that recognises the site of people left out, beside the same for permuted labels.

    Beside each standardised feature x it sees its Hermite polynomials (x^2 - 1) / sqrt 2 and (x^3 - 3 x) / sqrt 6, so
    that it notices a site's scale and skew as readily as its shift, in as few rounds.

    Every round sums the gradients of all sites, and the coordinator takes a step of Adam: federated averaging with one
    local step a round (McMahan et al., AISTATS 2017). With more steps each site, which has one label only, would teach
    its copy to say nothing else. So the network is the one that pooled rows would train. Classes weigh alike, however
    many people they have.

    Parameters
    ----------
    hidden : int
        Units of the hidden layer.
    rounds : int
        Steps; each is an exchange.
    learning_rate, weight_decay : float
        Of Adam.
    """

    permutations: int = 20
    hidden: int = 16
    rounds: int = 40
    learning_rate: float = 0.03
    weight_decay: float = 0.03

    name: ClassVar[str] = "site_network"
    states: ClassVar[tuple[type[State], ...]] = (AdjustedCentres, NetworkTraining, SiteClassificationResult)

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = 0 < self.learning_rate < np.inf and 0 <= self.weight_decay < np.inf
        if min(self.hidden, self.rounds) < 1 or not rates:
            raise HarmonizationError(
                "expected hidden and rounds of at least 1, a learning_rate above 0 and weight_decay of at least 0."
            )

    def summarize_folds(self, table: SiteTable, folds: list[Fold], own: State | None) -> Sums:
        if isinstance(own, NetworkTraining):
            if own.steps == self.rounds:
                return self.count_recognised(
                    self.labelings(table, own), folds, lambda part: self._scores(table, folds[part], own, part)
                )
            return self._summarize_gradients(table, folds, own)
        if isinstance(own, AdjustedCentres):
            about = [adjust(fold.features, table, own, part)[fold.training] for part, fold in enumerate(folds)]
            return {
                "left_sum": np.stack([x.sum(axis=0) for x in about]),
                "squares": np.stack([(x**2).sum(axis=0) for x in about]),
            }
        return summarize_adjusted_centres(table, folds)

    def sends_folds(self, widths: Widths, own: State | None) -> Declared:
        if isinstance(own, NetworkTraining):
            if own.steps == self.rounds:
                return self.counts_of_recognised(widths.classes)
            gradients = network(self._network(own).layout, 1 + self.permutations)
            return {"gradients": self.stacked(of_groups(gradients))}
        if isinstance(own, AdjustedCentres):
            return {name: self.stacked(everybody(widths.seen)) for name in ("left_sum", "squares")}
        return adjusted_centres_of(self, widths)

    def solve_folds(self, total: Sums, own: State | None) -> State:
        if isinstance(own, NetworkTraining):
            return self.score(total) if own.steps == self.rounds else self._step(total, own)
        if isinstance(own, AdjustedCentres):
            return self._begin(total, own)
        return solve_adjusted_centres(total)

    def _network(self, centres: Centres) -> Network:
        return Network("site", (3 * centres.mean.shape[1], self.hidden, centres.target_mean.shape[1]))

    def _begin(self, total: Sums, centres: AdjustedCentres) -> NetworkTraining:
        """Draw the same public weights for every part and labeling."""
        left = total["left_sum"] / centres.n[:, None]
        deviation = np.sqrt(np.maximum(total["squares"] / centres.n[:, None] - left**2, 0.0))
        layout = self._network(centres).layout
        weights = pack(draw_weights(layout, 0), layout)
        every = np.tile(weights, (len(centres.n), 1 + self.permutations, 1))
        return centres.become(
            NetworkTraining,
            scale=np.where(deviation > 1e-12 * np.abs(centres.mean), deviation, 1.0),
            left=left,
            weights=every,
            gradient_mean=np.zeros_like(every),
            gradient_square=np.zeros_like(every),
            steps=0,
        )

    def _summarize_gradients(self, table: SiteTable, folds: list[Fold], own: NetworkTraining) -> Sums:
        labelings, network = self.labelings(table, own), self._network(own)
        weight_of_class = 1 / np.maximum(own.target_mean, 1e-12) / own.target_mean.shape[1]
        gradients = np.zeros_like(own.weights)
        for part, fold in enumerate(folds):
            inputs, labels = tensor(_inputs(table, fold, own, part)[fold.training]), labelings[:, fold.training]
            weighted = tensor(labels * (labels @ weight_of_class[part])[..., None])
            loss = partial(_cross_entropy, network, inputs, weighted)
            gradients[part] = pack(differentiate(loss, unpack(own.weights[part], network.layout))[1], network.layout)
        return {"gradients": gradients}

    def _step(self, total: Sums, own: NetworkTraining) -> NetworkTraining:
        gradients = total["gradients"] / own.n[:, None, None]
        memory = own.gradient_mean, own.gradient_square
        rate = self.learning_rate * 0.5 * (1 + float(np.cos(np.pi * own.steps / self.rounds)))
        with np.errstate(all="ignore"):
            weights, memory = adam_step(own.weights, gradients, memory, own.steps + 1, rate, self.weight_decay)
        if not np.isfinite(weights).all():
            raise HarmonizationError(
                f"the training of '{self.name}' is not finite after round {own.steps + 1}. Lower learning_rate."
            )
        return own.become(
            NetworkTraining,
            weights=weights,
            gradient_mean=memory[0],
            gradient_square=memory[1],
            steps=own.steps + 1,
        )

    def _scores(self, table: SiteTable, fold: Fold, own: NetworkTraining, part: int) -> Array:
        network = self._network(own)
        return evaluate(network, unpack(own.weights[part], network.layout), _inputs(table, fold, own, part))


def _cross_entropy(network: Network, inputs: "Tensor", labels: "Tensor", weights: Leaves) -> Losses:
    """Sum over rows and labelings of the loss, for one-hot labels [1 + B, n, S], each times the weight of its class."""
    return (-(labels * network(weights, inputs).log_softmax(-1)).sum(),)


def _inputs(table: SiteTable, fold: Fold, own: NetworkTraining, part: int) -> Array:
    """Polynomials [n, 3 k] of standardised features, covariates taken out."""
    x = (adjust(fold.features, table, own, part) - own.left[part]) / own.scale[part]
    x = np.clip(x, -_FARTHEST, _FARTHEST)
    return np.concatenate([x, (x**2 - 1) / np.sqrt(2), (x**3 - 3 * x) / np.sqrt(6)], axis=1)
