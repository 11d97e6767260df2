"""Federated averaging of the pretraining, on Flower's strategies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from brainlm.architectures import AnyModel
from brainlm.checkpoints import load_checkpoint, load_weights, save_checkpoint
from brainlm.evaluation import ReconstructionSums
from brainlm.pretraining import initial_model
from cohorts.seeding import derive_seed
from exchange.messages import Arrays, EmbedReply, TrainReply, TrainRequest, join
from server.errors import ServerError
from server.journal import Journal
from server.measuring import Measures
from server.outer import WEIGHT, OuterOptimizer, to_record
from server.reconstruction import add_by_atlas
from server.roster import Roster
from server.study import Study


def pretrain(study: Study, roster: Roster, journal: Journal, measures: Measures) -> Arrays:
    """Run all rounds and return the final weights.

    Each round a quorum of sites trains the model; Flower's strategies average their weights by the number of windows
    that they hold, in the order of names, so that the sums are the same whoever answers first, and take the outer step.
    The model is saved after every round, with the scaling in its header, so that recordings can be scaled as the model
    saw them; so is what the outer optimizer remembers.
    """
    model, origin = starting_model(study)
    weights = {name: values.numpy().copy() for name, values in model.state_dict().items()}
    save_round(study, journal, 0, weights, measures, origin)
    outer = OuterOptimizer(study.averaging)
    rounds = study.averaging.rounds
    linear = measures.moments_parts() if study.starts_from_linear_prediction else {}
    for number in range(1, rounds + 1):
        request = TrainRequest(
            arrays=join(weights=weights, **measures.scaling_parts(), **linear),
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
        save_round(study, journal, number, weights, measures, origin)
    return weights


def starting_model(study: Study) -> tuple[AnyModel, dict[str, Any]]:
    """Make the model of round 0, and say where its weights come from.

    Without a checkpoint to start from it is the one that sites embed with as the untrained encoder.
    """
    model = initial_model(study.model, derive_seed(study.seed, "untrained"))
    if study.start is None:
        return model, {}
    started, about = load_checkpoint(study.start)
    load_weights(model, started.state_dict(), study.start)
    # A licence holds for what was trained further, too: it is handed on where a reader looks first.
    licence = {"licence": about["licence"]} if "licence" in about else {}
    return model, {"start": {"file": Path(study.start).name, **about}, **licence}


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
    """Write how the model after `round_number` did on held-out participants: the scores, per site and over all.

    Returns
    -------
    dict
        Atlas → sums by parcel over the sites that have it.
    """
    by_site = {site: ReconstructionSums(**reply.part("evaluation")) for site, reply in replies.items()}
    by_atlas = add_by_atlas((replies[site].atlas, sums) for site, sums in by_site.items())
    # Sites with other atlases have other parcels: their sums add only over all parcels.
    everything = [sums.over_parcels() for sums in by_site.values()]
    by_site["all"] = sum(everything[1:], everything[0])
    journal.measure(round_number, {site: sums.overall for site, sums in by_site.items()})
    return by_atlas


def _measure_training(journal: Journal, round_number: int, replies: Mapping[str, TrainReply]) -> None:
    """Write the losses of a round, and their mean over all windows."""
    total = sum(reply.n_windows for reply in replies.values())
    loss = sum(reply.loss * reply.n_windows for reply in replies.values()) / total
    metrics = {site: {"loss": reply.loss, "n_windows": reply.n_windows} for site, reply in replies.items()}
    journal.measure(round_number, {**metrics, "all": {"loss": loss, "n_windows": total}})


def save_round(
    study: Study, journal: Journal, round_number: int, weights: Arrays, measures: Measures, origin: dict[str, Any]
) -> None:
    """Write the checkpoint of a round; `origin` says where round 0 came from."""
    about = {
        "study": study.study,
        "seed": study.seed,
        "round": round_number,
        "rounds": study.averaging.rounds,
        "holdout": study.training.holdout,
        "scaling": {
            atlas: {name: values.tolist() for name, values in scale.to_arrays().items()}
            for atlas, scale in measures.scaling.items()
        },
        **origin,
    }
    tensors = {name: torch.from_numpy(np.asarray(values, order="C")) for name, values in weights.items()}
    save_checkpoint(journal.checkpoint(round_number), tensors, study.model, about)
