"""Federated training of small networks: sites take steps on their own rows, the coordinator averages."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from harmonization.core.declared import Declared, Widths, everybody, network
from harmonization.core.errors import HarmonizationError, SmallGroupError, TableError
from harmonization.core.protocol import Analysis, Array, SiteTable, State, Sums
from harmonization.methods.projection import Centre
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
        standardized: Array = (joined - self.mean - self.left) / self.scale
        return standardized

    def restored(self, standardized: Array) -> Array:
        """Undo it for the columns [n, p] of the first input."""
        first = slice(self.width())
        left = np.broadcast_to(self.left, self.mean.shape)[first]
        restored: Array = self.mean[first] + (left + self.scale[first] * standardized)
        return restored

    def width(self, position: int = 0) -> int:
        """Columns of the input at that position of `FederatedTraining.inputs`."""
        return int(self.widths[position])


@dataclass(frozen=True)
class InputCentre(Centre):
    """After the first round: means [d] of all inputs, and the number of columns of each."""

    widths: Array


@dataclass(frozen=True)
class Training(Standard):
    """After each round of the training.

    Attributes
    ----------
    weights : numpy.ndarray
        [w].
    gradient_mean, gradient_square : numpy.ndarray
        [w], Adam's memory at the coordinator; [0] where the sites take several steps a round.
    loss : numpy.ndarray
        Mean loss of each round so far, before its step.
    """

    weights: Array
    gradient_mean: Array
    gradient_square: Array
    loss: Array

    @property
    def round(self) -> int:
        """Rounds of training so far."""
        return len(self.loss)


AnyTraining = TypeVar("AnyTraining", bound=Training)


@dataclass(frozen=True)
class Trained(Standard):
    """The model after the last round.

    Attributes
    ----------
    weights : numpy.ndarray
        [w].
    loss : numpy.ndarray
        [rounds], mean loss of each round, before its step.
    """

    weights: Array
    loss: Array

    done: ClassVar[bool] = True


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
    states: ClassVar[tuple[type[State], ...]] = (InputCentre, Standard, Training, Trained)

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
        return draw_weights(self.layout(standard), self.seed)

    def finish(self, training: Any) -> State:
        """Make the final state of the training after the last round."""
        trained: Trained = training.become(Trained)
        return trained

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        if table.n < table.min_group:
            raise SmallGroupError(
                f"a site has {table.n} participants; expected at least {table.min_group}. Leave it out."
            )
        if np.isnan(table.features).any():
            raise TableError(f"features hold NaN, from which '{self.name}' cannot learn. Leave those participants out.")
        if isinstance(state, Training):
            return self._summarize_training(table, state)
        return self.summarize_inputs(table, state)

    def sends(self, widths: Widths, state: State | None) -> Declared:
        if isinstance(state, Training):
            change = network(self.layout(state))
            return {"n": everybody(), "loss": everybody(), "gradient" if self.local_steps == 1 else "weights": change}
        return self.sends_inputs(widths, state)

    def sends_inputs(self, widths: Widths, state: State | None) -> Declared:
        """Declare what `summarize_inputs` returns."""
        inputs = [getattr(widths, name) for name in self.inputs]
        if isinstance(state, InputCentre):
            return {"left_sum": everybody(sum(inputs)), "squares": everybody(sum(inputs))}
        return {"n": everybody(), "input_sum": everybody(sum(inputs)), "n_widths": everybody(len(inputs))}

    def solve(self, total: Sums, state: State | None) -> State:
        if isinstance(state, Training):
            return self._solve_training(total, state)
        return self.solve_inputs(total, state)

    def summarize_inputs(self, table: SiteTable, state: State | None) -> Sums:
        """At a site: sums of the rounds before the training."""
        parts = self._input_parts(table)
        joined = np.concatenate(parts, axis=1)
        if isinstance(state, InputCentre):
            about = joined - state.mean
            return {"left_sum": about.sum(axis=0), "squares": (about**2).sum(axis=0)}
        return {
            "n": np.array(float(table.n)),
            "input_sum": joined.sum(axis=0),
            "n_widths": table.n * np.array([part.shape[1] for part in parts], dtype=np.float64),
        }

    def solve_inputs(self, total: Sums, state: State | None) -> State:
        """At the coordinator: the next state of the rounds before the training."""
        if isinstance(state, InputCentre):
            left = total["left_sum"] / state.n
            mean = state.mean + left
            deviation = np.sqrt(np.maximum(total["squares"] / state.n - left**2, 0.0))
            # An input that is constant leaves only the rounding error of its centring.
            scale = np.where(deviation <= 1e-14 * np.abs(mean), 1.0, deviation)
            return self.begin(Standard(mean, scale, state.widths, state.n, left=state.mean - mean + left))
        n = float(total["n"])
        return InputCentre(total["input_sum"] / n, n, np.rint(total["n_widths"] / n))

    def begin(self, standard: Standard) -> State:
        """Make the state that follows once the inputs' means and deviations are known."""
        return self.first(Training, standard)

    def first(self, kind: type[AnyTraining], known: Standard, **values: Any) -> AnyTraining:
        """Make the state of the training before its first round: what is `known`, `values`, and initial weights."""
        layout = self.layout(known)
        memory = np.zeros(size_of(layout) if self.local_steps == 1 else 0)
        weights = pack(self.initial_weights(known), layout)
        own = {"weights": weights, "gradient_mean": memory, "gradient_square": memory, "loss": np.empty(0)}
        return known.become(kind, **own, **values)

    def standardize(self, table: SiteTable, standard: Any) -> SiteTable:
        """Table with standardised inputs.

        Raises
        ------
        TableError
            If it does not have the columns that the training saw.
        """
        parts = self._input_parts(table)
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

    def _input_parts(self, table: SiteTable) -> list[Array]:
        parts = []
        for name in self.inputs:
            values = table.design if name == "covariates" else getattr(table, name)
            if values is None:
                raise TableError(f"the table has no {name}. Name what '{self.name}' is to learn from.")
            parts.append(values.reshape(table.n, -1))
        return parts

    def _summarize_training(self, table: SiteTable, training: Training) -> Sums:
        rows, layout = self.standardize(table, training), self.layout(training)
        with np.errstate(all="ignore"):
            if self.local_steps == 1:
                loss, gradients = self.gradient(unpack(training.weights, layout), rows, training)
                change = {"gradient": table.n * pack(gradients, layout)}
            else:
                loss, weights = self._train(rows, training)
                change = {"weights": table.n * weights}
        sums = {"n": np.array(float(table.n)), "loss": np.array(table.n * loss), **change}
        self._check_finite(sums.values(), training)
        return sums

    def _check_finite(self, values: Iterable[Array], training: Training) -> None:
        if not all(np.isfinite(value).all() for value in values):
            raise HarmonizationError(
                f"the training of '{self.name}' is not finite in round {training.round + 1}. Lower learning_rate."
            )

    def _train(self, rows: SiteTable, training: Training) -> tuple[float, Array]:
        """Take a site's own steps; return their mean loss and the weights [w] after them."""
        layout = self.layout(training)
        rng = np.random.default_rng([rows.seed, _BATCHES, training.round])
        weights, memory, losses = training.weights, (np.zeros(1), np.zeros(1)), []
        for step in range(1, self.local_steps + 1):
            size = min(rows.n, max(self.batch_size, rows.min_group))
            batch = rows.take(rng.choice(rows.n, size=size, replace=False))
            loss, gradients = self.gradient(unpack(weights, layout), batch, training)
            rate = self.rate(training.round)
            weights, memory = adam_step(weights, pack(gradients, layout), memory, step, rate, self.weight_decay)
            losses.append(loss)
        return float(np.mean(losses)), weights

    def _solve_training(self, total: Sums, training: Training) -> State:
        n, number = float(total["n"]), training.round
        memory = (training.gradient_mean, training.gradient_square)
        if "gradient" in total:
            gradient = total["gradient"] / n
            with np.errstate(all="ignore"):
                weights, memory = adam_step(
                    training.weights, gradient, memory, number + 1, self.rate(number), self.weight_decay
                )
        else:
            weights = total["weights"] / n
        self._check_finite((weights, total["loss"]), training)
        following = replace(
            training,
            weights=weights,
            gradient_mean=memory[0],
            gradient_square=memory[1],
            loss=np.append(training.loss, float(total["loss"]) / n),
        )
        return self.finish(following) if following.round == self.rounds else following
