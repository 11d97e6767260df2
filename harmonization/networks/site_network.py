"""Whether a small network recognises the site where a linear classifier does not."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harmonization.core.declared import Declared, Widths, everybody, network, of_groups
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Array, Stage, State, Sums
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
from harmonization.probes.crossvalidation import Folded, TrainingCentres
from harmonization.site_effects.site_classification import (
    AdjustedSums,
    SiteClassificationResult,
    SiteRecognition,
    WithinCentres,
)

if TYPE_CHECKING:
    from torch import Tensor

_FARTHEST = 5.0
"""Standardised features are cut off here, so that powers of an outlier do not lead the training."""


@dataclass(frozen=True)
class AdjustedCentres(WithinCentres):
    """After the first round. What the training rows' features leave of their mean, and their squares."""

    def part(self, analysis: "SiteNetwork", table: Folded) -> Sums:
        about = [self.adjusted(table, part)[fold.training] for part, fold in enumerate(table.folds)]
        return {
            "left_sum": np.stack([x.sum(axis=0) for x in about]),
            "squares": np.stack([(x**2).sum(axis=0) for x in about]),
        }

    def sends(self, analysis: "SiteNetwork", widths: Widths) -> Declared:
        return {name: analysis.stacked(everybody(widths.seen)) for name in ("left_sum", "squares")}

    def advance(self, analysis: "SiteNetwork", total: Sums) -> State:
        """Draw the same public weights for every part and labeling."""
        left = total["left_sum"] / self.n[:, None]
        deviation = np.sqrt(np.maximum(total["squares"] / self.n[:, None] - left**2, 0.0))
        layout = analysis.network(self).layout
        weights = pack(draw_weights(layout, 0), layout)
        every = np.tile(weights, (len(self.n), 1 + analysis.permutations, 1))
        return self.become(
            NetworkTraining,
            scale=np.where(deviation > 1e-12 * np.abs(self.mean), deviation, 1.0),
            left=left,
            weights=every,
            gradient_mean=np.zeros_like(every),
            gradient_square=np.zeros_like(every),
            steps=0,
        )


@dataclass(frozen=True)
class NetworkTraining(AdjustedCentres):
    """After each further round: networks for each of K parts left out, of the true labels and of B permuted ones.

    `scale` [K, k] are standard deviations of the features, 1 where one is constant, and `left` [K, k] the mean of what
    the centres leave (`harmonization.networks.training.Standard`); `weights`, `gradient_mean` and `gradient_square` [K,
    1 + B, w] the weights and Adam's memory; `steps` were taken.
    """

    scale: Array
    left: Array
    weights: Array
    gradient_mean: Array
    gradient_square: Array
    steps: int

    def part(self, analysis: "SiteNetwork", table: Folded) -> Sums:
        if self.steps < analysis.rounds:
            return self._gradients(analysis, table)
        network = analysis.network(self)

        def scores(part: int) -> Array:
            return evaluate(network, unpack(self.weights[part], network.layout), self.inputs(table, part))

        return analysis.count_recognised(table, self, scores)

    def sends(self, analysis: "SiteNetwork", widths: Widths) -> Declared:
        if self.steps == analysis.rounds:
            return analysis.counts_of_recognised(widths.classes)
        gradients = network(analysis.network(self).layout, 1 + analysis.permutations)
        return {"gradients": analysis.stacked(of_groups(gradients))}

    def advance(self, analysis: "SiteNetwork", total: Sums) -> State:
        return analysis.score(total) if self.steps == analysis.rounds else self._step(analysis, total)

    def _gradients(self, analysis: "SiteNetwork", table: Folded) -> Sums:
        labelings, network = analysis.labelings(table, self), analysis.network(self)
        weight_of_class = 1 / np.maximum(self.target_mean, 1e-12) / self.target_mean.shape[1]
        gradients = np.zeros_like(self.weights)
        for part, fold in enumerate(table.folds):
            inputs, labels = tensor(self.inputs(table, part)[fold.training]), labelings[:, fold.training]
            weighted = tensor(labels * (labels @ weight_of_class[part])[..., None])
            loss = partial(_cross_entropy, network, inputs, weighted)
            gradients[part] = pack(differentiate(loss, unpack(self.weights[part], network.layout))[1], network.layout)
        return {"gradients": gradients}

    def _step(self, analysis: "SiteNetwork", total: Sums) -> "NetworkTraining":
        gradients = total["gradients"] / self.n[:, None, None]
        memory = self.gradient_mean, self.gradient_square
        rate = analysis.learning_rate * 0.5 * (1 + float(np.cos(np.pi * self.steps / analysis.rounds)))
        with np.errstate(all="ignore"):
            weights, memory = adam_step(self.weights, gradients, memory, self.steps + 1, rate, analysis.weight_decay)
        if not np.isfinite(weights).all():
            raise HarmonizationError(
                f"the training of '{analysis.name}' is not finite after round {self.steps + 1}. Lower learning_rate."
            )
        return self.become(
            NetworkTraining,
            weights=weights,
            gradient_mean=memory[0],
            gradient_square=memory[1],
            steps=self.steps + 1,
        )

    def inputs(self, table: Folded, part: int) -> Array:
        """Polynomials [n, 3 k] of standardised features, covariates taken out."""
        x = (self.adjusted(table, part) - self.left[part]) / self.scale[part]
        x = np.clip(x, -_FARTHEST, _FARTHEST)
        return np.concatenate([x, (x**2 - 1) / np.sqrt(2), (x**3 - 3 * x) / np.sqrt(6)], axis=1)


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
    shows_one_site: ClassVar[bool] = True
    first: ClassVar[Stage] = AdjustedSums(AdjustedCentres)
    states: ClassVar[tuple[type[State], ...]] = (AdjustedCentres, NetworkTraining, SiteClassificationResult)

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = 0 < self.learning_rate < np.inf and 0 <= self.weight_decay < np.inf
        if min(self.hidden, self.rounds) < 1 or not rates:
            raise HarmonizationError(
                "expected hidden and rounds of at least 1, a learning_rate above 0 and weight_decay of at least 0."
            )

    def network(self, centres: TrainingCentres) -> Network:
        """The network for so many features and classes."""
        return Network("site", (3 * centres.mean.shape[1], self.hidden, centres.target_mean.shape[1]))


def _cross_entropy(network: Network, inputs: "Tensor", labels: "Tensor", weights: Leaves) -> Losses:
    """Sum over rows and labelings of the loss, for one-hot labels [1 + B, n, S], each times the weight of its class."""
    return (-(labels * network(weights, inputs).log_softmax(-1)).sum(),)
