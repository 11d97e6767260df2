"""Robust averaging: a round's centre that sites which answer wrongly cannot move far, on Flower's strategies.

It takes the place of the sites' average. Whoever tells an outlier must see each site's weights, so secure sums exclude
it.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum

from exchange.messages import Arrays
from server.errors import QuorumError
from study.sections import RoundsConfig

WEIGHT = "num-examples"
"""Key of the weight of a site's reply."""


def robust_centre(config: RoundsConfig, round_number: int, replies: Mapping[str, Arrays]) -> Arrays:
    """Return what the replies of a round agree on, by the rule ``config.robust``.

    Every site counts alike: one that answers wrongly could state any number of windows, too.

    Parameters
    ----------
    config : RoundsConfig
        The rule, and how many sites may answer wrongly (f of n).

        - ``median``: of each weight (Yin et al., ICML 2018).
        - ``trimmed_mean``: of each weight, without the f lowest and the f highest (Yin et al. 2018).
        - ``krum``: the one reply whose n - f - 2 nearest are nearest (Blanchard et al., NeurIPS 2017).
        - ``multi_krum``: the mean of the n - f - 2 best by Krum's score.
        - ``bulyan``: of the n - 2f best by Krum's score, the mean of the n - 4f values of each weight that lie nearest
          to their median (El Mhamdi et al., ICML 2018; there, scores are computed anew after each choice).
    round_number : int
        For messages.
    replies : mapping
        Site → weights by name, finite and of the same shapes.

    Returns
    -------
    dict
        Weights of the replies' shapes and types; the same whoever answered first.

    Raises
    ------
    QuorumError
        If there are too few replies to outvote f.
    """
    if len(replies) < config.robust_needs:
        raise QuorumError(
            f"round {round_number}: {config.robust} with averaging.byzantine {config.byzantine} needs the weights of "
            f"{config.robust_needs} sites and has those of {len(replies)} ({', '.join(sorted(replies))}). Raise "
            "averaging.quorum, or choose another averaging.robust."
        )
    # In double precision: Flower takes distances from squared norms, and of a model's weights, which differ little from
    # site to site, float32 leaves nothing but rounding. Means of equal weights are those weights, too.
    wide = ({name: w.astype(np.float64) for name, w in weights.items()} for _, weights in sorted(replies.items()))
    messages = [as_reply(weights, 1) for weights in wide]
    arrays, _ = _make_strategy(config, len(messages)).aggregate_train(round_number, messages)
    assert arrays is not None, "the replies were counted above"
    kinds = {name: values.dtype for name, values in next(iter(replies.values())).items()}
    return {name: array.numpy().astype(kinds[name]) for name, array in arrays.items()}


def as_reply(weights: Mapping[str, np.ndarray], weight: float) -> Message:
    """Return weights as Flower takes them from a site, in order of names."""
    arrays = ArrayRecord({name: Array(np.asarray(weights[name])) for name in sorted(weights)})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({WEIGHT: weight})})
    return Message(content, dst_node_id=0, message_type="train")


def _make_strategy(config: RoundsConfig, n_replies: int) -> FedAvg:
    f = config.byzantine
    rules: dict[str, Callable[..., FedAvg]] = {
        "median": FedMedian,
        # Flower rounds the fraction's number of sites down, and 1/49 of 49 is 0.99…: a quarter more is f for certain.
        "trimmed_mean": partial(FedTrimmedAvg, beta=(f + 0.25) / n_replies),
        "krum": partial(Krum, num_malicious_nodes=f),
        "multi_krum": partial(MultiKrum, num_malicious_nodes=f, num_nodes_to_select=n_replies - f - 2),
        "bulyan": partial(Bulyan, num_malicious_nodes=f),
    }
    if config.robust in rules:
        return rules[config.robust](weighted_by_key=WEIGHT)
    raise ValueError("averaging.robust is none: there is no rule to average by.")
