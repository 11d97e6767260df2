"""Federated averaging of the pretraining, on Flower's strategies."""

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from brainlm.checkpoints import save_checkpoint
from brainlm.evaluation import ReconstructionSums
from brainlm.pretraining import initial_model
from cohorts.seeding import derive_seed
from exchange.messages import Arrays, EmbedReply, TrainReply, TrainRequest, join
from server.errors import ServerError
from server.journal import Journal
from server.measuring import Measures
from server.outer import WEIGHT, OuterOptimizer, to_record
from server.roster import Roster
from server.study import Study


def pretrain(study: Study, roster: Roster, journal: Journal, measures: Measures) -> Arrays:
    """Run all rounds and return the final weights.

    Each round a quorum of sites trains the model; Flower's strategies average their weights by the number of windows
    that they hold, in the order of names, so that the sums are the same whoever answers first, and take the outer step.
    The model is saved after every round, with the scaling in its header, so that recordings can be scaled as the model
    saw them; so is what the outer optimizer remembers.
    """
    # The initial model is the one that sites embed with as the untrained encoder.
    model = initial_model(study.model, derive_seed(study.seed, "untrained"))
    weights = {name: values.numpy().copy() for name, values in model.state_dict().items()}
    save_round(study, journal, 0, weights, measures)
    outer = OuterOptimizer(study.averaging)
    rounds = study.averaging.rounds
    for number in range(1, rounds + 1):
        request = TrainRequest(
            arrays=join(weights=weights, **measures.scaling_parts()),
            study=study.study,
            model=study.model.model_dump(mode="json"),
            training=study.training.model_dump(mode="json"),
            round_number=number,
            rounds=rounds,
            seed=study.seed,
        )
        replies = roster.ask(request, TrainReply, "pretraining", number)
        outer.begin(weights)
        weights = average(outer.strategy, number, replies)
        _measure_training(journal, number, replies)
        measure_reconstruction(journal, number - 1, replies)
        outer.save(journal.outer_state(number))  # before the model: whoever finds a round's model can go on from it
        save_round(study, journal, number, weights, measures)
    return weights


def average(strategy: FedAvg, round_number: int, replies: Mapping[str, TrainReply]) -> Arrays:
    """Average the weights of the replies with a Flower strategy.

    Raises
    ------
    ServerError
        If the average is not finite.
    """
    messages = [
        Message(
            RecordDict(
                {
                    "arrays": to_record(reply.part("weights")),
                    "metrics": MetricRecord({WEIGHT: reply.n_windows}),
                }
            ),
            dst_node_id=0,
            message_type="train",
        )
        for _, reply in sorted(replies.items())
    ]
    arrays, _ = strategy.aggregate_train(round_number, messages)
    if arrays is None:
        raise ServerError(f"round {round_number}: there was nothing to average.")
    weights = {name: array.numpy() for name, array in arrays.items()}
    if not all(np.isfinite(values).all() for values in weights.values()):
        raise ServerError(f"round {round_number}: the averaged model is not finite. Lower training.learning_rate.")
    return weights


def measure_reconstruction(
    journal: Journal, round_number: int, replies: Mapping[str, TrainReply | EmbedReply]
) -> dict[str, ReconstructionSums]:
    """Write how the model after `round_number` did on held-out participants: masked R², per site and over all.

    Returns
    -------
    dict
        Atlas → sums by parcel over the sites that have it.
    """
    by_site = {site: ReconstructionSums(**reply.part("evaluation")) for site, reply in replies.items()}
    by_atlas: dict[str, ReconstructionSums] = {}
    for site, sums in by_site.items():
        atlas = replies[site].atlas
        by_atlas[atlas] = by_atlas[atlas] + sums if atlas in by_atlas else sums
    # Sites with other atlases have other parcels: their sums add only over all parcels.
    everything = [_over_parcels(sums) for sums in by_site.values()]
    by_site["all"] = sum(everything[1:], everything[0])
    journal.measure(
        round_number,
        {site: {"masked_r2": sums.masked_r2, "mse": sums.mean_squared_error} for site, sums in by_site.items()},
    )
    return by_atlas


def _measure_training(journal: Journal, round_number: int, replies: Mapping[str, TrainReply]) -> None:
    """Write the losses of a round, and their mean over all windows."""
    total = sum(reply.n_windows for reply in replies.values())
    loss = sum(reply.loss * reply.n_windows for reply in replies.values()) / total
    metrics = {site: {"loss": reply.loss, "n_windows": reply.n_windows} for site, reply in replies.items()}
    journal.measure(round_number, {**metrics, "all": {"loss": loss, "n_windows": total}})


def save_round(study: Study, journal: Journal, round_number: int, weights: Arrays, measures: Measures) -> None:
    """Write the checkpoint of a round."""
    about = {
        "study": study.study,
        "seed": study.seed,
        "round": round_number,
        "rounds": study.averaging.rounds,
        "scaling": {
            atlas: {name: values.tolist() for name, values in scale.to_arrays().items()}
            for atlas, scale in measures.scaling.items()
        },
    }
    tensors = {name: torch.from_numpy(np.asarray(values, order="C")) for name, values in weights.items()}
    save_checkpoint(journal.checkpoint(round_number), tensors, study.model, about)


def _over_parcels(sums: ReconstructionSums) -> ReconstructionSums:
    parts = (sums.count, sums.total, sums.squares, sums.errors)
    return ReconstructionSums(*(part.sum(keepdims=True) for part in parts))
