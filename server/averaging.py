"""Federated averaging of the pretraining, on Flower's strategies."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from base.seeding import derive_seed
from brainlm.architectures import AnyModel
from brainlm.checkpoints import load_checkpoint, load_weights, save_checkpoint
from brainlm.evaluation import MODEL, ReconstructionSums
from brainlm.pretraining import initial_model, largest_change
from exchange.messages import Arrays, EmbedReply, Group, TrainReply, TrainRequest, join, part_of
from server.answers import Answers
from server.errors import ServerError
from server.expecting import of_training
from server.journal import Journal
from server.measuring import Measures
from server.outer import WEIGHT, OuterOptimizer, to_record
from server.reconstruction import OTHERS
from server.robust import robust_centre
from server.roster import Roster
from study.settings import RoundsConfig, Study

STAGE = "pretraining"
_ORIGIN = ("start", "licence")
"""What the header of a checkpoint says of where round 0 came from."""
_SOFTWARE = ("fedbrainlm", "torch")


def pretrain(
    study: Study, roster: Roster, journal: Journal, measures: Measures, after_round: Callable[[], None] = lambda: None
) -> Arrays:
    """Run all rounds, calling `after_round` after each, and return the final weights.

    Each round a quorum of sites trains the model; their weights are averaged by the number of windows that they hold,
    in the order of names, so that the sums are the same whoever answers first, and Flower's strategies take the outer
    step. The model is saved after every round, with the scaling in its header, so that recordings can be scaled as the
    model saw them; so is what the outer optimizer remembers. A run that is resumed goes on after the last round of
    which both are whole.
    """
    outer = OuterOptimizer(study.averaging)
    done = find_last_round(study, journal, outer)
    if done is None:
        done, (model, origin) = 0, starting_model(study)
    else:
        model, about = load_checkpoint(journal.checkpoint(done))
        origin = {name: about[name] for name in _ORIGIN if name in about}
        if done:
            outer.load(journal.outer_state(done))
    weights = {name: values.numpy().copy() for name, values in model.state_dict().items()}
    about = {**describe_training(study, roster, measures), **origin}
    if not done:
        save_round(study, journal, 0, weights, about)
    for number in range(done + 1, study.averaging.rounds + 1):
        request = _train_request(study, roster, measures, weights, number)
        expected = of_training(request, roster.atlases)
        answers = roster.ask(request, TrainReply, expected, STAGE, number, bound=_bound(study, weights, number))
        outer.begin(weights)
        weights = average(study.averaging, outer.strategy, request, answers)
        _measure_training(journal, number, answers)
        measure_reconstruction(journal, number - 1, answers)
        outer.save(journal.outer_state(number))  # before the model: whoever finds a round's model can go on from it
        if outer.remembers:
            journal.seal(journal.outer_state(number))
        save_round(study, journal, number, weights, about)
        # The answers behind the last two checkpoints stay: should those be damaged, the rounds are averaged again.
        journal.answers(STAGE, number - 2).unlink(missing_ok=True)
        after_round()
    return weights


def find_last_round(study: Study, journal: Journal, outer: OuterOptimizer) -> int | None:
    """Find the last round whose checkpoint is whole; None before round 0 is. The journal notes damaged ones."""
    for number in range(study.averaging.rounds, -1, -1):
        files = [journal.checkpoint(number), *([journal.outer_state(number)] if outer.remembers and number else [])]
        if all(map(journal.is_whole, files)):
            return number
        if journal.checkpoint(number).exists():
            journal.say(f"the checkpoint of round {number} is not whole: going on from the one before it")
    return None


def evaluation_groups(roster: Roster) -> list[Group]:
    """Group the sites by atlas, for what is summed by parcel; those who share theirs with too few sum over parcels."""
    by_atlas = roster.by_atlas()
    groups = [
        Group(parts=[f"{part}/{atlas}" for part in ("evaluation", "baselines", "lacking")], sites=sites)
        for atlas, sites in by_atlas.items()
    ]
    others = set(roster.sites) - {site for sites in by_atlas.values() for site in sites}
    return [*groups, Group(parts=["overall"], sites=roster.together(others))]


def _train_request(study: Study, roster: Roster, measures: Measures, weights: Arrays, number: int) -> TrainRequest:
    linear = measures.moments_parts() if study.starts_from_linear_prediction else {}
    return TrainRequest(
        arrays=join(weights=weights, **measures.scaling_parts(), **linear),
        study=study.study,
        groups=evaluation_groups(roster),
        model=study.model.model_dump(mode="json"),
        training=study.training.model_dump(mode="json"),
        round_number=number,
        rounds=study.averaging.rounds,
        seed=study.seed,
        max_windows=max(about.n_windows for about in roster.about.values()),
        max_norm=study.privacy.max_norm,
    )


def _bound(study: Study, weights: Arrays, number: int) -> float:
    """Size of a weight's change that has room in the round's secure sum; known to all, and no site's own."""
    largest = max(float(np.abs(values).max(initial=0.0)) for values in weights.values())
    bound = largest_change(study.training, number, study.averaging.rounds, largest)
    return min(bound, study.privacy.max_norm or bound)


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


def average(config: RoundsConfig, strategy: FedAvg, request: TrainRequest, answers: Answers[TrainReply]) -> Arrays:
    """Average the sites' weights, and take the outer step with a Flower strategy.

    Raises
    ------
    ServerError
        If the average is not finite.
    """
    number = request.round_number
    if answers.masked:
        candidates = [(_securely_averaged(request, answers), 1.0)]
    else:
        of_sites = {site: reply.part("weights") for site, reply in sorted(answers.replies.items())}
        candidates = [(w, float(answers.replies[site].arrays["tally/n_windows"])) for site, w in of_sites.items()]
        if config.robust != "none":
            candidates = [(robust_centre(config, number, of_sites), 1.0)]
    messages = [
        Message(
            RecordDict({"arrays": to_record(weights), "metrics": MetricRecord({WEIGHT: weight})}),
            dst_node_id=0,
            message_type="train",
        )
        for weights, weight in candidates
    ]
    arrays, _ = strategy.aggregate_train(number, messages)
    if arrays is None:
        raise ServerError(f"round {number}: there was nothing to average.")
    weights = {name: array.numpy() for name, array in arrays.items()}
    if not all(np.isfinite(values).all() for values in weights.values()):
        raise ServerError(f"round {number}: the averaged model is not finite. Lower training.learning_rate.")
    return weights


def _securely_averaged(request: TrainRequest, answers: Answers[TrainReply]) -> Arrays:
    """Weights of the incoming model, and the mean of updates that were weighted before they were summed."""
    total_weight = float(answers.total["tally/n_windows"]) / request.max_windows
    return {
        name: (values + answers.total[f"update/{name}"] / total_weight).astype(values.dtype)
        for name, values in request.part("weights").items()
    }


def measure_reconstruction(
    journal: Journal, round_number: int, answers: Answers[TrainReply] | Answers[EmbedReply]
) -> dict[str, ReconstructionSums]:
    """Write how the model after `round_number` did on held-out participants: the scores over all, and of each site.

    Of single sites only where they show it: in the clear, or by their policy.

    Returns
    -------
    dict
        Atlas → sums by parcel over the sites that have it and are enough to be summed; `OTHERS` → over all others.
    """
    by_atlas = _by_atlas(part_of(answers.total, "evaluation"))
    if others := part_of(answers.total, f"overall/{MODEL}"):
        by_atlas[OTHERS] = ReconstructionSums(**others)
    metrics = {site: own.overall for site, reply in answers.replies.items() if (own := _own_sums(reply)) is not None}
    if by_atlas:
        # Sites with other atlases have other parcels: their sums add only over all parcels.
        everything = [sums.over_parcels() for sums in by_atlas.values()]
        metrics["all"] = sum(everything[1:], everything[0]).overall
    journal.measure(round_number, metrics)
    return by_atlas


def _own_sums(reply: TrainReply | EmbedReply) -> ReconstructionSums | None:
    """One site's sums, as far as they can be read."""
    if "shown/evaluation" in reply.arrays:
        parcels = reply.arrays["shown/evaluation"]
        return ReconstructionSums(parcels, np.zeros((len(parcels), 1)))
    return next(iter(_by_atlas(reply.part("evaluation")).values()), None)


def _by_atlas(arrays: Arrays) -> dict[str, ReconstructionSums]:
    atlases = sorted({name.rpartition("/")[0] for name in arrays})
    return {atlas: ReconstructionSums(**part_of(arrays, atlas)) for atlas in atlases}


def _measure_training(journal: Journal, round_number: int, answers: Answers[TrainReply]) -> None:
    """Write the mean loss over all windows, and those of the sites that show it."""
    metrics: dict[str, dict[str, float]] = {}
    for site, reply in answers.replies.items():
        if "shown/loss" in reply.arrays:
            metrics[site] = {"loss": float(reply.arrays["shown/loss"])}
        elif not reply.sealed:
            metrics[site] = _losses(reply.arrays)
    journal.measure(round_number, {**metrics, "all": _losses(answers.total)})


def _losses(arrays: Mapping[str, Any]) -> dict[str, float]:
    """Mean loss of the windows behind a sum, if it has one, and how many windows the update is weighted by."""
    n_losses, n_windows = (float(arrays[f"tally/{name}"]) for name in ("n_losses", "n_windows"))
    loss = {"loss": float(arrays["tally/loss"]) / n_losses} if n_losses else {}
    return {**loss, "n_windows": n_windows}


def describe_training(study: Study, roster: Roster, measures: Measures) -> dict[str, Any]:
    """What the header of every checkpoint says of the training (`brainlm.provenance.Training`), and its scaling.

    Of the sites, only the counts with which they joined: no participant is named, nor any hash of one.
    """
    having = {about.atlas for about in roster.about.values()}
    sites = {
        site: {
            "participants": about.n_participants,
            "recordings": about.n_recordings,
            "atlas": about.atlas,
            "preprocessing": about.preprocessing,
        }
        for site, about in roster.about.items()
    }
    return {
        "study": study.study,
        "seed": study.seed,
        "rounds": study.averaging.rounds,
        "holdout": study.training.holdout,
        "sites": sites,
        "atlases": {name: known for name, known in study.contract().atlases.items() if name in having},
        "t_r": [study.cohort.min_t_r, study.cohort.max_t_r],
        "software": {name: version(name) for name in _SOFTWARE},
        "scaling": {
            atlas: {name: values.tolist() for name, values in scale.to_arrays().items()}
            for atlas, scale in measures.scaling.items()
        },
    }


def save_round(study: Study, journal: Journal, round_number: int, weights: Arrays, about: dict[str, Any]) -> None:
    """Write the checkpoint of a round; `about` is what its header says beside the round."""
    tensors = {name: torch.from_numpy(np.asarray(values, order="C")) for name, values in weights.items()}
    save_checkpoint(journal.checkpoint(round_number), tensors, study.model, {**about, "round": round_number})
    journal.seal(journal.checkpoint(round_number))
