"""The local training loop: what one site does in one round."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from brainlm.architectures import AnyConfig, AnyModel, build_model
from brainlm.config import TrainingConfig
from brainlm.errors import DivergenceError
from brainlm.windows import WindowSet
from cohorts.seeding import derive_seed


@dataclass(frozen=True)
class TrainingOutcome:
    """What a round of local training did.

    Attributes
    ----------
    loss : float
        Mean over the round's windows, each measured before its step.
    n_windows : int
        Windows that do not overlap in the training participants' recordings: the weight of the site's update.
    n_steps : int
        Steps done.
    """

    loss: float
    n_windows: int
    n_steps: int


def initial_model(config: AnyConfig, seed: int) -> AnyModel:
    """Make a model with fresh weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config)


def train_round(
    model: AnyModel,
    windows: WindowSet,
    config: TrainingConfig,
    *,
    round_number: int,
    rounds: int,
    seed: int,
    device: torch.device | str = "cpu",
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

    Raises
    ------
    DivergenceError
        If a loss is NaN or infinite; the model is then of no use.
    """
    device = torch.device(device)
    model.to(device).train()
    optimizer = _optimizer(model, config)
    rng = np.random.default_rng(derive_seed(seed, round_number, "windows"))
    generator = torch.Generator().manual_seed(derive_seed(seed, round_number, "masks"))
    torch.manual_seed(derive_seed(seed, round_number, "dropout"))
    first_step = (round_number - 1) * config.steps_per_round
    total_loss, total_windows = 0.0, 0
    for step in range(config.steps_per_round):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, first_step + step, rounds * config.steps_per_round)
        batch = windows.sample(config.batch_size, rng).to(device)
        progress = (first_step + step) / (rounds * config.steps_per_round)
        with autocast(config.precision, device):
            losses = model.reconstruct(batch.signal, batch.coordinates, batch.valid, generator, progress).loss
        if not bool(losses.isfinite().all()):
            raise DivergenceError(
                f"round {round_number}, step {step + 1}: the loss is not finite. Lower training.learning_rate, set "
                "training.clip_norm, or look for broken recordings with 'fedbrainlm cohort show'."
            )
        optimizer.zero_grad()
        losses.mean().backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        model.after_step()
        total_loss += float(losses.detach().sum())
        total_windows += len(batch)
    if not all(bool(values.isfinite().all()) for values in model.state_dict().values()):
        raise DivergenceError(
            f"round {round_number}: the last step left weights that are not finite. Lower training.learning_rate."
        )
    return TrainingOutcome(total_loss / total_windows, windows.n_windows, config.steps_per_round)


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Linear warm-up, then a cosine to `final_fraction` of the peak, over global steps counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


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


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # Biases, norms, weights of distances and the tokens that are learnt are not decayed, as is usual for transformers.
    decayed = [parameter for name, parameter in trained if _is_matrix(name, parameter)]
    others = [parameter for name, parameter in trained if not _is_matrix(name, parameter)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not {"mask_token", "cls_token", "distance"} & set(name.split("."))
