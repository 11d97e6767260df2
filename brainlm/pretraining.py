"""The local training loop: what one site does in one round."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from base.seeding import derive_seed
from brainlm.architectures import AnyConfig, AnyModel, build_model
from brainlm.config import MaskConfig, TrainingConfig
from brainlm.errors import DivergenceError
from brainlm.linear_path import LinearPath
from brainlm.masking import choose_mask
from brainlm.model import BrainLM
from brainlm.optimization import make_optimizer
from brainlm.parallel import Worker, run_together
from brainlm.windows import Batch, WindowSet


@dataclass(frozen=True)
class TrainingOutcome:
    """What a round of local training did."""

    loss: float
    """Mean over the round's windows, each measured before its step."""
    n_windows: int
    """Windows that do not overlap in the training participants' recordings: the weight of the site's update."""


def initial_model(config: AnyConfig, seed: int) -> AnyModel:
    """Make a model with fresh weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config)


@dataclass(frozen=True)
class Round:
    """Which round it is, counted from 1, of how many, and the seed of its windows and masks."""

    number: int
    rounds: int
    seed: int


def train_round(
    model: AnyModel,
    windows: WindowSet,
    config: TrainingConfig,
    *,
    round_number: int,
    rounds: int,
    seed: int,
    device: torch.device | str = "cpu",
    devices: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
) -> TrainingOutcome:
    """Train `model` in place for one round.

    Parameters
    ----------
    windows : WindowSet
        The training participants' windows.
    round_number, rounds : int
        This round, counted from 1, and how many there are: they place it in the global schedule.
    seed : int
        Decides windows and masks, together with `round_number`.
    devices : int
        GPUs, or processes on a CPU, that share the windows of each step. Their number changes the weights in the last
        digits only.
    optimizer : torch.optim.Optimizer, optional
        Goes on with its moments; a fresh one if not given.

    Raises
    ------
    DivergenceError
        If a loss is NaN or infinite; the model is then of no use.
    """
    device = torch.device(device)
    model.to(device).train()
    optimizer = optimizer or make_optimizer(model, config)
    this_round = Round(round_number, rounds, seed)
    devices = min(devices, config.batch_size, windows.n_windows)
    if devices == 1:
        outcome = _train(Worker(0, 1, device), model, optimizer, windows, config, this_round)
    else:
        model.cpu()
        state = optimizer.state_dict()
        outcome, weights, state = run_together(_train_share, devices, device, model, state, windows, config, this_round)
        model.load_state_dict(weights)
        model.to(device)
        optimizer.load_state_dict(state)
    if not all(bool(values.isfinite().all()) for values in model.state_dict().values()):
        raise DivergenceError(
            f"round {round_number}: the last step left weights that are not finite. Lower training.learning_rate."
        )
    return outcome


def _train_share(
    worker: Worker,
    model: AnyModel,
    state: dict[str, Any],
    windows: WindowSet,
    config: TrainingConfig,
    this_round: Round,
) -> tuple[TrainingOutcome, dict[str, Tensor], dict[str, Any]]:
    """Train as one of several processes; return the outcome, the weights and the optimizer's state."""
    model.to(worker.device)
    optimizer = make_optimizer(model, config)
    optimizer.load_state_dict(state)
    outcome = _train(worker, model, optimizer, windows, config, this_round)
    return outcome, model.cpu().state_dict(), optimizer.state_dict()


def _train(
    worker: Worker,
    model: AnyModel,
    optimizer: torch.optim.Optimizer,
    windows: WindowSet,
    config: TrainingConfig,
    this_round: Round,
) -> TrainingOutcome:
    """Do a round's steps on this process's share of each batch."""
    rng = np.random.default_rng(derive_seed(this_round.seed, this_round.number, "windows"))
    generator = torch.Generator().manual_seed(derive_seed(this_round.seed, this_round.number, "masks"))
    torch.manual_seed(derive_seed(this_round.seed, this_round.number, "dropout"))
    n = min(config.batch_size, windows.n_windows)
    places = (windows.draw(config.batch_size, rng)[worker.share(n)] for _ in range(config.steps_per_round))
    first_step, steps = (this_round.number - 1) * config.steps_per_round, this_round.rounds * config.steps_per_round
    # DDP adds the processes' gradients up while they are still being computed. Not every mask uses every weight.
    shared = DistributedDataParallel(model, find_unused_parameters=True) if worker.n > 1 else model
    prior_of, total_loss = _prior_of(model, windows), 0.0
    with _checkpointed(model) if config.checkpointing else nullcontext():
        for step, batch in enumerate(_load(windows, places, config.workers, worker.device)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, first_step + step, steps)
            mask = choose_mask(model.config.mask, (first_step + step) / steps, generator)
            noise = model.draw_noise(mask, n, batch.signal.shape[1], generator)[worker.share(n)]
            optimizer.zero_grad()
            loss = worker.add(_backward(shared, batch, noise, mask, prior_of, config, worker, n))
            if not bool(loss.isfinite()):
                raise DivergenceError(
                    f"round {this_round.number}, step {step + 1}: the loss is not finite. Lower "
                    "training.learning_rate, set training.clip_norm, or look for broken recordings with "
                    "'fedbrainlm cohort show'."
                )
            if config.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            model.after_step()
            total_loss += float(loss)
    return TrainingOutcome(total_loss / (n * config.steps_per_round), windows.n_windows)


def _backward(
    model: AnyModel | DistributedDataParallel,
    batch: Batch,
    noise: Tensor,
    mask: MaskConfig,
    prior_of: Callable[[Batch], dict[str, Any]],
    config: TrainingConfig,
    worker: Worker,
    n: int,
) -> Tensor:
    """Add the gradients of the mean loss over all `n` windows of a step; return the sum of this process's losses."""
    total = torch.zeros((), device=worker.device)
    parts = batch.split(config.accumulation)
    for number, part in enumerate(parts):
        part, hidden = part.to(worker.device), noise[: len(part)].to(worker.device)
        noise = noise[len(part) :]
        last = number == len(parts) - 1
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with autocast(config.precision, worker.device):
                losses = model(part.signal, part.coordinates, hidden, part.valid, mask=mask, **prior_of(part)).loss
            # DDP divides by the number of processes.
            (losses.sum() * (worker.n / n)).backward()
        total += losses.detach().sum()
    return total


def _prior_of(model: AnyModel, windows: WindowSet) -> Callable[[Batch], dict[str, Any]]:
    """Make what gives a batch the linear prediction of each participant without themselves, if there is one."""
    prior = model.prior if isinstance(model, BrainLM) else None
    if not isinstance(prior, LinearPath):
        return lambda batch: {}
    return lambda batch: {"prior": prior.without(map(windows.frames_of, batch.participants))}


def _load(windows: WindowSet, places: Iterator[Any], workers: int, device: torch.device) -> DataLoader[Batch]:
    """Iterate over the windows at `places`, read ahead by `workers` processes; 0 reads them here."""
    context = None
    if workers:
        # A server of forks, since this process may have threads and a GPU, which forks do not survive.
        context = torch.multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "pandas", "scipy.signal"])
    return DataLoader(
        windows,
        batch_size=None,
        sampler=places,
        num_workers=workers,
        multiprocessing_context=context,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # of its own, or it would draw from the caller's
    )


@contextmanager
def _checkpointed(model: AnyModel) -> Iterator[None]:
    """Let the blocks keep their inputs alone and compute the rest again for the gradients (Chen et al. 2016)."""
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in model.blocks:
            del block.forward


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Linear warm-up, then a cosine to `final_fraction` of the peak, over global steps counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def largest_change(config: TrainingConfig, round_number: int, rounds: int, largest_weight: float) -> float:
    """Bound how far a round of local training moves a weight, from public settings alone.

    AdamW moves a weight by about the learning rate a step at most (Kingma & Ba, ICLR 2015, section 2.1), here taken
    twice, and decays it; clipped gradient descent by the learning rate times the clipped norm.

    Parameters
    ----------
    round_number, rounds : int
        The round, counted from 1, and all.
    largest_weight : float
        Of the incoming model.

    Returns
    -------
    float
        Infinite for gradient descent that is not clipped.
    """
    first, steps = (round_number - 1) * config.steps_per_round, rounds * config.steps_per_round
    way = sum(learning_rate(config, first + step, steps) for step in range(config.steps_per_round))
    if config.optimizer == "adamw":
        return 2 * way * (1 + config.weight_decay * largest_weight)
    return math.inf if config.clip_norm is None else way * config.clip_norm


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Run the block in bfloat16 if `precision` asks for it, or is ``auto`` and the processor has it."""
    wanted = precision == "bfloat16" or (precision == "auto" and _has_bfloat16(device))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted):
        yield


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware; emulated, they take many times longer than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
