"""Rounds of training, on the coordinator's disk: the sites' average, their scores, and the checkpoints.

In the clear the sites' weights are averaged by Flower's FedAvg, or by a robust rule; under masks the average follows
from the sum (`study.pretraining`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp.strategy import FedAvg

from base.files import read_arrays, save_arrays
from base.seeding import derive_seed
from brainlm.architectures import AnyModel
from brainlm.checkpoints import load_checkpoint, load_settings, load_weights, save_checkpoint
from brainlm.evaluation import MODEL, ReconstructionSums
from brainlm.pretraining import initial_model
from exchange.messages import AnySumRequest, Arrays, EmbedReply, TrainReply, TrainRequest, join, part_of
from server.answers import Answers
from server.errors import ServerError
from server.journal import Journal
from server.reconstruction import sums_of
from server.robust import WEIGHT, as_reply, robust_centre
from study.outer import remembers
from study.pretraining import PRETRAINING
from study.sections import RoundsConfig
from study.settings import Study
from study.state import State

_SOFTWARE = ("fedbrainlm", "torch")


def averaged(config: RoundsConfig, request: AnySumRequest, answers: Answers) -> Arrays:
    """Return the sum of answers; of a round of training in the clear with the average of the weights, too.

    Weights are averaged by the number of windows behind them, in the order of names, so that the average is the same
    whoever answers first.
    """
    if answers.masked or not isinstance(request, TrainRequest):
        return answers.total
    of_sites = {site: reply.part("weights") for site, reply in sorted(answers.replies.items())}
    if config.robust != "none":
        return {**answers.total, **join(weights=robust_centre(config, request.round_number, of_sites))}
    n_windows = {site: float(reply.arrays["tally/n_windows"]) for site, reply in answers.replies.items()}
    messages = [as_reply(weights, n_windows[site]) for site, weights in of_sites.items()]
    average, _ = FedAvg(weighted_by_key=WEIGHT).aggregate_train(request.round_number, messages)
    assert average is not None, "with fewer sites than the quorum, the run had ended"
    return {**answers.total, **join(weights={name: array.numpy() for name, array in average.items()})}


def measure_reconstruction(
    journal: Journal, round_number: int, answers: Answers
) -> dict[str, dict[str, ReconstructionSums]]:
    """Write how the model after `round_number` did on held-out participants: the scores over all, and of each site.

    Of single sites only where they show it: in the clear, or by their policy.

    Returns
    -------
    dict
        Predictor → atlas → sums by parcel over the sites that have it and are enough to be summed; `OTHERS` → over all
        others.
    """
    found = sums_of(answers.total)
    metrics = {site: own.overall for site, reply in answers.replies.items() if (own := _own_sums(reply)) is not None}
    if MODEL in found:
        # Sites with other atlases have other parcels: their sums add only over all parcels.
        first, *others = (sums.over_parcels() for sums in found[MODEL].values())
        metrics["all"] = sum(others, first).overall
    journal.measure(round_number, metrics)
    return found


def _own_sums(reply: TrainReply | EmbedReply) -> ReconstructionSums | None:
    """One site's sums, as far as they can be read."""
    if "shown/evaluation" in reply.arrays:
        parcels = reply.arrays["shown/evaluation"]
        return ReconstructionSums(parcels, np.zeros((len(parcels), 1)))
    return next(iter(sums_of(reply.arrays).get(MODEL, {}).values()), None)


def measure_training(journal: Journal, round_number: int, answers: Answers) -> None:
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


@dataclass(frozen=True)
class Checkpoints:
    """The model after every round; beside it what the outer optimizer remembers, if it remembers anything."""

    study: Study
    journal: Journal

    def first(self) -> Arrays:
        """Weights of round 0: those that were kept, or those that the study begins with."""
        path = self.journal.checkpoint(0)
        return weights_of(load_checkpoint(path)[0] if self.journal.is_whole(path) else starting_model(self.study))

    def last(self, state: State) -> tuple[int, Arrays, Arrays]:
        """Find the last round that is whole on the disk; where none is, write round 0 of a study that comes so far.

        Returns
        -------
        tuple
            Number of the round, weights, and what the outer optimizer remembers.
        """
        journal, config = self.journal, self.study.averaging
        for number in range(config.rounds, -1, -1):
            path, outer = journal.checkpoint(number), journal.outer_state(number)
            remembered = number > 0 and remembers(config)
            if journal.is_whole(path) and (not remembered or journal.is_whole(outer)):
                return number, weights_of(load_checkpoint(path)[0]), self._remembered(outer) if remembered else {}
            if path.exists():
                journal.say(f"the checkpoint of round {number} is not whole: going on from the one before it")
        self.save(state)
        return 0, state.part("weights"), {}

    def _remembered(self, path: Path) -> Arrays:
        memory, header = read_arrays(path, error=ServerError, remedy="Restore it, or begin the run again.")
        if header != {"optimizer": (optimizer := self.study.averaging.optimizer)}:
            raise ServerError(f"{path}: is not of {optimizer}. Resume with the study that wrote it.")
        return memory

    def save(self, state: State) -> None:
        """Write the model of the round that was done last."""
        journal, number = self.journal, state.round_number
        if number and remembers(self.study.averaging):
            outer = journal.outer_state(number)  # before the model: whoever finds a round's model can go on from it
            save_arrays(outer, state.part("outer"), {"optimizer": self.study.averaging.optimizer})
            journal.seal(outer)
        tensors = {name: torch.from_numpy(values) for name, values in state.part("weights").items()}
        about = {**describe_training(self.study, state), "round": number}
        save_checkpoint(journal.checkpoint(number), tensors, self.study.model, about)
        journal.seal(journal.checkpoint(number))
        # The answers behind the last two checkpoints stay: should those be damaged, the rounds are averaged again.
        journal.answers(PRETRAINING, number - 2).unlink(missing_ok=True)


def weights_of(model: AnyModel) -> Arrays:
    """Copy a model's weights."""
    return {name: values.numpy().copy() for name, values in model.state_dict().items()}


def starting_model(study: Study) -> AnyModel:
    """Make the model of round 0.

    Without a checkpoint to start from it is the one that sites embed with as the untrained encoder.
    """
    model = initial_model(study.model, derive_seed(study.seed, "untrained"))
    if study.start is not None:
        load_weights(model, load_checkpoint(study.start)[0].state_dict(), study.start)
    return model


def describe_training(study: Study, state: State) -> dict[str, Any]:
    """What the header of every checkpoint says of the training (`brainlm.provenance.Training`), and its scaling.

    Of the sites, only the counts with which they joined: no participant is named, nor any hash of one.
    """
    having = {about.atlas for about in state.sites.values()}
    counted = ("n_participants", "n_recordings", "atlas", "preprocessing")
    sites = {
        site: {name.removeprefix("n_"): getattr(about, name) for name in counted} for site, about in state.sites.items()
    }
    scaling = state.part("scaling")
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
            atlas: {name: values.tolist() for name, values in part_of(scaling, atlas).items()}
            for atlas in dict.fromkeys(name.partition("/")[0] for name in scaling)
        },
        **_origin(study),
    }


def _origin(study: Study) -> dict[str, Any]:
    """Say where round 0 came from, if it is from a checkpoint."""
    if study.start is None:
        return {}
    about = load_settings(study.start)[1]
    # A licence holds for what was trained further, too: it is handed on where a reader looks first.
    licence = {"licence": about["licence"]} if "licence" in about else {}
    return {"start": {"file": Path(study.start).name, **about}, **licence}
