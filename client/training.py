"""A round of training at the site: what leaves of it is made here, and let out by `client.door.release`."""

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from base.seeding import derive_seed
from base.settings import check_settings
from brainlm.architectures import AnyModel
from brainlm.config import TrainingConfig
from brainlm.errors import CheckpointError
from brainlm.evaluation import MODEL
from brainlm.optimization import forget_optimizers, make_optimizer, restore_optimizer, save_optimizer
from brainlm.pretraining import TrainingOutcome, learning_rate, train_round
from brainlm.windows import WindowSet
from client.door.ledger import PRETRAINING, Release
from client.door.release import Answer
from client.door.spending import Spend
from client.frames import moments_of, scaling_of, split_site
from client.models import (
    evaluate_held_out,
    evaluation_parts,
    evaluation_releases,
    incoming_model,
    set_linear_path,
    shown_metrics,
)
from client.privacy import train_privately
from client.site import Site
from exchange.messages import Arrays, TrainReply, TrainRequest, hash_arrays, join
from exchange.refusals import Refusal, RefusalCode


def train(site: Site, request: TrainRequest) -> Answer:
    """Evaluate the incoming model on held-out participants, and train it on the others."""
    began = time.monotonic()
    site.policy.permit(request.study, ["pretraining"])
    training = check_settings(request.training, TrainingConfig, "the study's training")
    site.policy.permit_size("steps", training.steps_per_round, "steps in a round")
    site.policy.permit_privacy(training.privacy.delta if training.privacy else None)
    scale, moments = scaling_of(site, request), moments_of(site, request)
    incoming = request.part("weights")
    model = incoming_model(site, request.model, incoming, training.batch_size)
    seed = derive_seed(request.seed, site.name)
    people, held_out = split_site(site, model.config.window, training.holdout, request.seed)
    set_linear_path(site, model, moments, people)
    windows = WindowSet(site.cohort, model.config.window, scale=scale)
    evaluation = evaluate_held_out(site, model, windows, held_out, seed)[MODEL]
    evaluated = time.monotonic()
    outcome, spends = _train_round(site, model, training, request, windows.of(people))
    site.log.info(
        "round %d: model evaluated in %.2f s, trained in %.2f s",
        request.round_number,
        evaluated - began,
        time.monotonic() - evaluated,
    )
    weights = {name: values.detach().cpu().numpy() for name, values in model.state_dict().items()}
    reply = TrainReply(
        arrays=join(
            **_weights_or_update(site, request, weights, outcome.n_windows),
            tally=_tally(outcome),
            **evaluation_parts(site, {MODEL: evaluation}),
            shown=shown_metrics(site, evaluation, outcome.loss),
        )
    )
    n_behind = min(len(people), _windows_behind(training, request.round_number, request.rounds))
    # Among which sites a question is answered counts for each incoming model: another one is another question.
    asked = (hash_arrays(incoming),)
    parts = ("weights", "update", "tally")
    update = Release(replace(PRETRAINING, details=asked), people, parts, accounted=bool(spends))
    return Answer(reply, n_behind, (update, *evaluation_releases(site, held_out, asked)), spends, rounds=1)


def _windows_behind(training: TrainingConfig, round_number: int, rounds: int) -> int:
    """Count the windows that an update is about: by Kish's effective number of steps, weighted by learning rates.

    A schedule could otherwise give all steps but one, and so all windows but a few, a rate of nothing.
    """
    steps, first = training.steps_per_round, (round_number - 1) * training.steps_per_round
    rates = [learning_rate(training, first + step, rounds * steps) for step in range(steps)]
    squares = sum(rate**2 for rate in rates)
    return int(training.batch_size * sum(rates) ** 2 / squares) if squares else 0


def _train_round(
    site: Site, model: AnyModel, training: TrainingConfig, request: TrainRequest, windows: WindowSet
) -> tuple[TrainingOutcome, tuple[Spend, ...]]:
    """Train for one round, privately if the study says so; return what that costs of the site's privacy budget."""
    optimizer = _optimizer(site, model, training, request)
    place: dict[str, Any] = {"round_number": request.round_number, "rounds": request.rounds}
    place |= {"device": site.device, "devices": site.devices, "optimizer": optimizer}
    spends: tuple[Spend, ...] = ()
    if training.privacy is not None:
        outcome, spend = train_privately(model, windows, training, ledger=site.spending(request.study), **place)
        spends = (spend,)
    else:
        outcome = train_round(model, windows, training, seed=derive_seed(request.seed, site.name), **place)
    if training.keep_optimizer_state:
        kept = site.folder_of(request.study)
        save_optimizer(kept, optimizer, model, round_number=request.round_number, run=request.run)
    return outcome, spends


def _weights_or_update(site: Site, request: TrainRequest, weights: Arrays, n_windows: int) -> dict[str, Arrays]:
    """Return the trained weights; under masks, their change, weighted by windows. Neither is longer than allowed."""
    incoming = request.part("weights")
    change = {name: values.astype(np.float64) - incoming[name] for name, values in weights.items()}
    factor = _shortened(site, request, change)
    if request.secure is None:
        if factor == 1.0:
            return {"weights": weights}
        return {"weights": {n: (incoming[n] + factor * change[n]).astype(w.dtype) for n, w in weights.items()}}
    if n_windows > request.max_windows:
        raise Refusal(RefusalCode.WINDOWS, f"the site has {n_windows} windows; the request allows fewer.")
    # A hair less, so that rounding does not carry the largest change over the bound.
    factor *= (1 - 2**-20) * n_windows / request.max_windows
    return {"update": {name: (values * factor).astype(np.float32) for name, values in change.items()}}


def _shortened(site: Site, request: TrainRequest, change: Arrays) -> float:
    """Factor that makes an update as short as the study asks, and as small as has room in a secure sum."""
    longest = math.sqrt(sum(float((values**2).sum()) for values in change.values()))
    largest = max(float(np.abs(values).max(initial=0.0)) for values in change.values())
    bound = None if request.secure is None else request.secure.bound
    limits = [(request.max_norm, longest), (bound, largest)]
    factor = min([1.0, *(limit / size for limit, size in limits if limit is not None and size > limit)])
    if factor < 1.0:
        site.log.info("the update was scaled by %.3g: norm %.3g, largest change %.3g.", factor, longest, largest)
    return factor


def _tally(outcome: TrainingOutcome) -> Arrays:
    """Weight of the update, and the losses behind it: none where training was private, as they are not."""
    known = math.isfinite(outcome.loss)
    return {
        "n_windows": np.array(outcome.n_windows),
        "n_losses": np.array(outcome.n_windows if known else 0),
        "loss": np.array(outcome.loss * outcome.n_windows if known else 0.0),
    }


def _optimizer(site: Site, model: AnyModel, training: TrainingConfig, request: TrainRequest) -> torch.optim.Optimizer:
    """Make the round's optimizer, with the moments that the site kept of earlier rounds if the study wants them."""
    optimizer = make_optimizer(model.to(site.device), training)
    kept, round_number = site.folder_of(request.study), request.round_number
    if round_number == 1:
        forget_optimizers(kept)  # of an earlier run of the study
    elif training.keep_optimizer_state:
        try:
            restore_optimizer(kept, optimizer, model, round_number=round_number, run=request.run)
        except CheckpointError as error:
            site.log.warning("round %d begins with a fresh optimizer. %s", round_number, error)
    return optimizer
