"""Federated training of small networks: sites take steps on their own rows, the coordinator averages."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from harmonization.core.declared import Declared, Widths, everybody, network
from harmonization.core.errors import HarmonizationError, SmallGroupError, TableError
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.networks.neural import (
    Layout,
    Leaves,
    Losses,
    Weights,
    adam_step,
    differentiate,
    draw_weights,
    pack,
    size_of,
    unpack,
)

_BATCHES = 7
"""Sets the draws of minibatches apart from others that use a site's seed."""


@dataclass(frozen=True)
class Standard(State):
    """What standardises the inputs.

    Attributes
    ----------
    mean, scale : numpy.ndarray
        [d], mean and standard deviation over all sites of the columns of all inputs, one behind the other; the scale
        is 1 where an input is constant.
    widths : numpy.ndarray
        Number of columns of each input.
    n : float
        Participants.
    left : numpy.ndarray
        [d], mean of what `mean` leaves: one number can say no mean that is far from zero to the last digit of what
        varies about it, and a network sees a shift that is common to all.
    """

    mean: Array
    scale: Array
    widths: Array
    n: float
    left: Array = field(kw_only=True, default_factory=lambda: np.zeros(()))

    def standardized(self, joined: Array) -> Array:
        """Inputs [n, d], one behind the other, of mean 0 and deviation 1."""
        return (joined - self.mean - self.left) / self.scale

    def restored(self, standardized: Array) -> Array:
        """Undo it for the columns [n, p] of the first input."""
        first = slice(self.width())
        left = np.broadcast_to(self.left, self.mean.shape)[first]
        return self.mean[first] + (left + self.scale[first] * standardized)

    def width(self, position: int = 0) -> int:
        """Columns of the input at that position of `FederatedTraining.inputs`."""
        return int(self.widths[position])


class InputSums(Stage):
    """First round: sums of all inputs, and their numbers of columns."""

    def part(self, analysis: "FederatedTraining", table: SiteTable) -> Sums:
        parts = analysis.input_parts(analysis.training_rows(table))
        n = len(parts[0])
        return {
            "n": np.array(float(n)),
            "input_sum": np.concatenate(parts, axis=1).sum(axis=0),
            "n_widths": n * np.array([part.shape[1] for part in parts], dtype=np.float64),
        }

    def sends(self, analysis: "FederatedTraining", widths: Widths) -> Declared:
        inputs = analysis.input_widths(widths)
        return {"n": everybody(), "input_sum": everybody(sum(inputs)), "n_widths": everybody(len(inputs))}

    def advance(self, analysis: "FederatedTraining", total: Sums) -> State:
        n = float(total["n"])
        return InputCentre(total["input_sum"] / n, n, np.rint(total["n_widths"] / n))


@dataclass(frozen=True)
class InputCentre(Stage):
    """Means [d] of all inputs, participants, and the number of columns of each; what is left of the means, squares."""

    mean: Array
    n: float
    widths: Array

    def part(self, analysis: "FederatedTraining", table: SiteTable) -> Sums:
        about = np.concatenate(analysis.input_parts(analysis.training_rows(table)), axis=1) - self.mean
        return {"left_sum": about.sum(axis=0), "squares": (about**2).sum(axis=0)}

    def sends(self, analysis: "FederatedTraining", widths: Widths) -> Declared:
        return dict.fromkeys(("left_sum", "squares"), everybody(sum(analysis.input_widths(widths))))

    def advance(self, analysis: "FederatedTraining", total: Sums) -> State:
        left = total["left_sum"] / self.n
        mean = self.mean + left
        deviation = np.sqrt(np.maximum(total["squares"] / self.n - left**2, 0.0))
        # An input that is constant leaves only the rounding error of its centring.
        scale = np.where(deviation <= 1e-14 * np.abs(mean), 1.0, deviation)
        return analysis.begin(Standard(mean, scale, self.widths, self.n, left=self.mean - mean + left))


@dataclass(frozen=True)
class Training(Standard, Stage):
    """After each round of the training: weights [w], and the mean loss of each round so far, before its step.

    Adam's memory at the coordinator, `gradient_mean` and `gradient_square`, is [w]; [0] where the sites take several
    steps a round.
    """

    weights: Array
    gradient_mean: Array
    gradient_square: Array
    loss: Array

    @property
    def round(self) -> int:
        """Rounds of training so far."""
        return len(self.loss)

    def part(self, analysis: "FederatedTraining", table: SiteTable) -> Sums:
        table, layout = analysis.training_rows(table), analysis.layout(self)
        rows = analysis.standardize(table, self)
        with np.errstate(all="ignore"):
            if analysis.local_steps == 1:
                loss, gradients = analysis.gradient(unpack(self.weights, layout), rows, self)
                change = {"gradient": table.n * pack(gradients, layout)}
            else:
                loss, weights = self._train(analysis, rows)
                change = {"weights": table.n * weights}
        sums = {"n": np.array(float(table.n)), "loss": np.array(table.n * loss), **change}
        self._check_finite(analysis, sums.values())
        return sums

    def sends(self, analysis: "FederatedTraining", widths: Widths) -> Declared:
        change = "gradient" if analysis.local_steps == 1 else "weights"
        return {"n": everybody(), "loss": everybody(), change: network(analysis.layout(self))}

    def advance(self, analysis: "FederatedTraining", total: Sums) -> State:
        n, number = float(total["n"]), self.round
        memory = (self.gradient_mean, self.gradient_square)
        if "gradient" in total:
            gradient = total["gradient"] / n
            with np.errstate(all="ignore"):
                weights, memory = adam_step(
                    self.weights, gradient, memory, number + 1, analysis.rate(number), analysis.weight_decay
                )
        else:
            weights = total["weights"] / n
        self._check_finite(analysis, (weights, total["loss"]))
        following = replace(
            self,
            weights=weights,
            gradient_mean=memory[0],
            gradient_square=memory[1],
            loss=np.append(self.loss, float(total["loss"]) / n),
        )
        return following.become(analysis.trained) if following.round == analysis.rounds else following

    def _train(self, analysis: "FederatedTraining", rows: SiteTable) -> tuple[float, Array]:
        """Take a site's own steps; return their mean loss and the weights [w] after them."""
        layout = analysis.layout(self)
        rng = np.random.default_rng([rows.seed, _BATCHES, self.round])
        weights, memory, losses = self.weights, (np.zeros(1), np.zeros(1)), []
        for step in range(1, analysis.local_steps + 1):
            size = min(rows.n, max(analysis.batch_size, rows.min_group))
            batch = rows.take(rng.choice(rows.n, size=size, replace=False))
            loss, gradients = analysis.gradient(unpack(weights, layout), batch, self)
            rate = analysis.rate(self.round)
            weights, memory = adam_step(weights, pack(gradients, layout), memory, step, rate, analysis.weight_decay)
            losses.append(loss)
        return float(np.mean(losses)), weights

    def _check_finite(self, analysis: "FederatedTraining", values: Iterable[Array]) -> None:
        if not all(np.isfinite(value).all() for value in values):
            raise HarmonizationError(
                f"the training of '{analysis.name}' is not finite in round {self.round + 1}. Lower learning_rate."
            )


AnyTraining = TypeVar("AnyTraining", bound=Training)


@dataclass(frozen=True)
class Trained(Answer, Standard):
    """The model after the last round: weights [w], and the mean loss [rounds] of each round, before its step."""

    weights: Array
    loss: Array


@dataclass(frozen=True)
class FederatedTraining(Analysis):
    """Federated averaging (McMahan et al., AISTATS 2017) of a loss over rows.

    Two rounds standardise the inputs. Then, in each round, every site takes `local_steps` steps of Adam from the common
    weights, on minibatches that it draws with its private seed, and the coordinator averages their weights by the
    number of participants.

    With one local step, sites send the gradient over all their rows instead, and the coordinator takes the Adam step.
    This is federated SGD: if a row's loss does not depend on other rows, it equals the descent on pooled rows exactly.
    It is the right choice where a site's rows say too little alone, as when each site knows its own label only: its
    own steps would teach a classifier to answer that label, whatever the features.

    Subclasses say what the weights and the loss are.

    Parameters
    ----------
    rounds : int
        Rounds of training. Each is an exchange with all sites.
    local_steps : int
        Steps of Adam that a site takes in a round; with 1, the coordinator takes it.
    batch_size : int
        Rows of a minibatch, or all rows of sites that have fewer; of no matter with 1 local step.
    learning_rate : float
        Of the first round; it falls to 0 along half a cosine.
    weight_decay : float
        Share of the weights, in units of the rate, that each step takes away.
    seed : int
        Public seed of the initial weights.
    """

    rounds: int = 20
    local_steps: int = 10
    batch_size: int = 32
    learning_rate: float = 0.003
    weight_decay: float = 0.0
    seed: int = 0

    inputs: ClassVar[tuple[str, ...]] = ("features",)
    """Fields of the table that are standardised: features, covariates, second."""
    zero_at_first: ClassVar[tuple[str, ...]] = ()
    """Weights that begin at 0, and are not drawn."""
    trained: ClassVar[type[State]] = Trained
    """What follows the last round."""
    first: ClassVar[Stage] = InputSums()
    states: ClassVar[tuple[type[State], ...]] = (InputCentre, Training, Trained)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("rounds", 1), ("local_steps", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise HarmonizationError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        if not self.learning_rate > 0 or self.weight_decay < 0:
            raise HarmonizationError(
                f"learning_rate is {self.learning_rate} and weight_decay {self.weight_decay}; expected a rate above 0 "
                "and a decay of at least 0."
            )

    @abstractmethod
    def layout(self, standard: Any) -> Layout:
        """Names and shapes of the weights, for inputs of the widths that `standard` tells."""

    @abstractmethod
    def losses(self, weights: Leaves, rows: SiteTable, training: Any) -> Losses:
        """Mean losses over rows whose inputs are standardised: their sum is minimised, the first is reported."""

    def gradient(self, weights: Weights, rows: SiteTable, training: Any) -> tuple[float, Weights]:
        """Mean loss over rows whose inputs are standardised, and the gradient with respect to all weights."""
        return differentiate(lambda leaves: self.losses(leaves, rows, training), weights)

    def initial_weights(self, standard: Any) -> Weights:
        """Weights before the first round, the same for everyone."""
        weights = draw_weights(self.layout(standard), self.seed)
        return weights | {name: np.zeros_like(weights[name]) for name in self.zero_at_first}

    def training_rows(self, table: SiteTable) -> SiteTable:
        """Return the rows that are learned from, after refusing those that cannot be, in every round."""
        if table.n < table.min_group:
            raise SmallGroupError(
                f"a site has {table.n} participants; expected at least {table.min_group}. Leave it out."
            )
        if np.isnan(table.features).any():
            raise TableError(f"features hold NaN, from which '{self.name}' cannot learn. Leave those participants out.")
        return table

    def begin(self, standard: Standard) -> State:
        """Make the state that follows once the inputs' means and deviations are known."""
        return self.start(Training, standard)

    def start(self, kind: type[AnyTraining], known: Standard, **values: Any) -> AnyTraining:
        """Make the state of the training before its first round: what is `known`, `values`, and initial weights."""
        layout = self.layout(known)
        memory = np.zeros(size_of(layout) if self.local_steps == 1 else 0)
        weights = pack(self.initial_weights(known), layout)
        own = {"weights": weights, "gradient_mean": memory, "gradient_square": memory, "loss": np.empty(0)}
        return known.become(kind, **own, **values)

    def standardize(self, table: SiteTable, standard: Any) -> SiteTable:
        """Table with standardised inputs, of the columns that the training saw."""
        parts = self.input_parts(table)
        if [part.shape[1] for part in parts] != [int(width) for width in standard.widths]:
            raise TableError(
                f"{' and '.join(self.inputs)} have {' and '.join(str(part.shape[1]) for part in parts)} columns; the "
                f"network was trained on {' and '.join(str(int(width)) for width in standard.widths)}. Use the same "
                "ones, in the same order."
            )
        joined = standard.standardized(np.concatenate(parts, axis=1))
        ends = np.cumsum(standard.widths.astype(int))[:-1]
        named: dict[str, Any] = dict(zip(self.inputs, np.split(joined, ends, axis=1), strict=True))
        return replace(table, **named)

    def rate(self, number: int) -> float:
        """Learning rate of a round, counted from 0."""
        return self.learning_rate * 0.5 * (1 + float(np.cos(np.pi * number / self.rounds)))

    def input_widths(self, widths: Widths) -> list[int]:
        """Columns of each input."""
        return [getattr(widths, name) for name in self.inputs]

    def input_parts(self, table: SiteTable) -> list[Array]:
        """Each input of the table, [n, columns]."""
        parts = []
        for name in self.inputs:
            values = table.design if name == "covariates" else getattr(table, name)
            if values is None:
                raise TableError(f"the table has no {name}. Name what '{self.name}' is to learn from.")
            parts.append(values.reshape(table.n, -1))
        return parts
