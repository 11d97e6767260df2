"""Outer optimizers: what the coordinator makes of the sites' average, on Flower's strategies.

The step from a round's weights to the sites' average is taken as the way downhill (Reddi et al., Adaptive Federated
Optimization, ICLR 2021; momentum after Hsu et al. 2019). What an optimizer remembers lies beside every checkpoint.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi
from flwr.serverapp.strategy.fedopt import FedOpt

from base.files import read_arrays, save_arrays
from exchange.messages import Arrays
from server.errors import ServerError
from study.settings import RoundsConfig

WEIGHT = "num-examples"
"""Key of the weight of a site's reply."""


class OuterOptimizer:
    """The strategy of a study, and what it remembers from round to round.

    Parameters
    ----------
    config : RoundsConfig
        Which optimizer, and its settings.

    Attributes
    ----------
    strategy : flwr.serverapp.strategy.FedAvg
        Averages the replies of a round and takes the outer step; call `begin` before.
    """

    def __init__(self, config: RoundsConfig) -> None:
        self.name = config.optimizer
        self.strategy = _make_strategy(config)
        self._names: list[str] = []

    @property
    def remembers(self) -> bool:
        """Whether there are moments to keep."""
        strategy = self.strategy
        return isinstance(strategy, FedOpt) or (isinstance(strategy, FedAvgM) and strategy.server_momentum > 0)

    def begin(self, weights: Arrays) -> None:
        """Say with which weights a round begins."""
        # Flower's FedAvgM keeps moments by position, so the order of names is the same everywhere.
        self._names = sorted(weights)
        if isinstance(self.strategy, FedAvgM):
            self.strategy.current_arrays = to_record(weights)
        elif isinstance(self.strategy, FedOpt):
            self.strategy.current_arrays = dict(weights)

    def state_dict(self) -> Arrays:
        """Moments by ``<moment>/<weight>``, of the weights' shapes; nothing for an optimizer that remembers nothing."""
        strategy, moments = self.strategy, {}
        if isinstance(strategy, FedAvgM) and strategy.momentum_vector is not None:
            moments = {"momentum": dict(zip(self._names, strategy.momentum_vector, strict=True))}
        elif isinstance(strategy, FedOpt) and strategy.m_t and strategy.v_t:
            moments = {"first": strategy.m_t, "second": strategy.v_t}
        return {f"{moment}/{name}": values for moment, named in moments.items() for name, values in named.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on with moments that `state_dict` returned."""
        moments: dict[str, Arrays] = {}
        for key in sorted(state):
            moment, _, name = key.partition("/")
            moments.setdefault(moment, {})[name] = state[key]
        if isinstance(self.strategy, FedAvgM):
            self.strategy.momentum_vector = list(moments["momentum"].values()) if moments else None
        elif isinstance(self.strategy, FedOpt):
            self.strategy.m_t, self.strategy.v_t = moments.get("first"), moments.get("second")

    def save(self, path: Path) -> None:
        """Write the moments, whole or not at all; no file for an optimizer that remembers nothing."""
        if self.remembers:
            save_arrays(path, self.state_dict(), {"optimizer": self.name})

    def load(self, path: Path) -> None:
        """Go on with the moments that `save` wrote, if this optimizer has any.

        Raises
        ------
        ServerError
            If the file is absent, damaged, or of another optimizer.
        """
        if not self.remembers:
            return
        state, header = read_arrays(path, error=ServerError, remedy="Restore it, or begin the run again.")
        if not header or header["optimizer"] != self.name:
            raise ServerError(f"{path}: is not of {self.name}. Resume with the study that wrote it.")
        self.load_state_dict(state)


class NesterovFedAvgM(FedAvgM):
    """Flower's FedAvgM, looking ahead: the step is g + m b', where b' = m b + g, as in `torch.optim.SGD`."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        old = self.momentum_vector
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None or self.momentum_vector is None:
            return arrays, metrics
        # g + m b' = b' + m (b' - b): the step along b' is done, the rest is missing.
        new = self.momentum_vector
        ahead = new if old is None else [b - a for a, b in zip(old, new, strict=True)]
        factor = self.server_learning_rate * self.server_momentum
        stepped = zip(arrays.items(), ahead, strict=True)
        self.current_arrays = to_record({name: array.numpy() - factor * change for (name, array), change in stepped})
        return self.current_arrays, metrics


class CorrectedFedAdam(FedAdam):
    """Flower's FedAdam, which counts steps one too far in its bias correction and widens float32 to float64."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round - 1, replies)
        if arrays is None or self.current_arrays is None:
            return arrays, metrics
        kinds = {name: values.dtype for name, values in self.current_arrays.items()}
        return to_record({name: array.numpy().astype(kinds[name]) for name, array in arrays.items()}), metrics


def to_record(weights: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return weights as Flower takes them, in order of names."""
    return ArrayRecord({name: Array(np.asarray(weights[name])) for name in sorted(weights)})


def _make_strategy(config: RoundsConfig) -> FedAvg:
    if config.optimizer == "fedavg":
        return FedAvg(weighted_by_key=WEIGHT)
    rate = config.outer_learning_rate
    if config.optimizer == "fedavgm":
        kind = NesterovFedAvgM if config.nesterov else FedAvgM
        return kind(weighted_by_key=WEIGHT, server_learning_rate=rate, server_momentum=config.momentum)
    kind = CorrectedFedAdam if config.optimizer == "fedadam" else FedYogi
    return kind(weighted_by_key=WEIGHT, eta=rate, beta_1=config.betas[0], beta_2=config.betas[1], tau=config.tau)
