"""Outer optimizers: what becomes of the sites' average.

The step from a round's weights to the sites' average is taken as the way downhill (Reddi et al., Adaptive Federated
Optimization, ICLR 2021; momentum after Hsu et al. 2019).
"""

from collections.abc import Mapping

import numpy as np

from exchange.messages import Arrays, join, part_of
from study.sections import RoundsConfig


def remembers(config: RoundsConfig) -> bool:
    """Whether an optimizer has moments to keep from round to round."""
    return config.optimizer in ("fedadam", "fedyogi") or (config.optimizer == "fedavgm" and config.momentum > 0)


def outer_step(
    config: RoundsConfig, round_number: int, weights: Arrays, average: Arrays, memory: Mapping[str, np.ndarray]
) -> tuple[Arrays, Arrays]:
    """Take the outer step of a round.

    Parameters
    ----------
    config : RoundsConfig
        Which optimizer, and its settings.
    round_number : int
        Counted from 1.
    weights, average : dict
        Weights with which the round began, and the sites' average of what they made of them.
    memory : mapping
        ``<moment>/<weight>`` as the step of the round before returned it; empty before the first.

    Returns
    -------
    tuple of dict
        The new weights, of the old ones' types, and what the optimizer remembers.
    """
    if config.optimizer == "fedavg":
        return average, {}
    step = _momentum if config.optimizer == "fedavgm" else _adaptive
    return step(config, round_number, weights, average, memory)


def _momentum(
    config: RoundsConfig, round_number: int, weights: Arrays, average: Arrays, memory: Mapping[str, np.ndarray]
) -> tuple[Arrays, Arrays]:
    """Stochastic gradient descent with momentum m, as `torch.optim.SGD`: b' = m b + g, and along b' or g + m b'."""
    rate, m, before = config.outer_learning_rate, config.momentum, part_of(memory, "momentum")
    if (rate, m) == (1, 0):
        return average, {}
    gradients = {name: old - average[name] for name, old in weights.items()}
    momentum = {name: m * before[name] + g if before else g for name, g in gradients.items()}
    stepped = {name: old - rate * momentum[name] for name, old in weights.items()}
    if config.nesterov and m > 0:
        # g + m b' = b' + m (b' - b): the step along b' is done, the rest is missing.
        ahead = {name: b - before[name] if before else b for name, b in momentum.items()}
        stepped = {name: values - rate * m * ahead[name] for name, values in stepped.items()}
    return _like(weights, stepped), join(momentum=momentum) if m > 0 else {}


def _adaptive(
    config: RoundsConfig, round_number: int, weights: Arrays, average: Arrays, memory: Mapping[str, np.ndarray]
) -> tuple[Arrays, Arrays]:
    """Adam (Kingma & Ba, ICLR 2015), with its bias correction in the rate; or Yogi (Zaheer et al., NeurIPS 2018)."""
    rate, (beta_1, beta_2) = config.outer_learning_rate, config.betas
    nothing = {name: np.zeros_like(old) for name, old in weights.items()}
    first, second = (part_of(memory, moment) or nothing for moment in ("first", "second"))
    change = {name: average[name] - old for name, old in weights.items()}
    first = {name: beta_1 * m + (1 - beta_1) * change[name] for name, m in first.items()}
    if config.optimizer == "fedadam":
        rate = rate * np.sqrt(1 - np.power(beta_2, float(round_number))) / (1 - np.power(beta_1, float(round_number)))
        second = {name: beta_2 * v + (1 - beta_2) * change[name] ** 2 for name, v in second.items()}
    else:
        second = {
            name: v - (1 - beta_2) * change[name] ** 2 * np.sign(v - change[name] ** 2) for name, v in second.items()
        }
    stepped = {name: old + rate * first[name] / (np.sqrt(second[name]) + config.tau) for name, old in weights.items()}
    return _like(weights, stepped), join(first=first, second=second)


def _like(weights: Arrays, stepped: Mapping[str, np.ndarray]) -> Arrays:
    return {name: np.asarray(stepped[name], dtype=old.dtype) for name, old in weights.items()}
