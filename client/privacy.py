"""Differentially private training at a site: DP-SGD, with the participant as the unit.

In every step each training participant is drawn with the same probability, independently of all others. Of those drawn,
one window each makes a gradient, which is shortened to a length of at most ``clip``; the gradients are added, and noise
in proportion to ``clip`` to the sum (Abadi et al., CCS 2016). A step that draws nobody is a step all the same, of noise
alone.

The guarantee is about one participant more or fewer, with all of their recordings. How many participants and windows a
site has is taken to be known: it tells every study.
"""

import math
import os
import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from base.seeding import derive_seed
from base.settings import check_settings
from brainlm.architectures import AnyModel
from brainlm.config import MaskConfig, ModelConfig, PrivacyConfig, SummaryNoise, TrainingConfig, WindowConfig
from brainlm.errors import DivergenceError
from brainlm.masking import choose_mask
from brainlm.model import BrainLM
from brainlm.optimization import make_optimizer
from brainlm.pretraining import TrainingOutcome, autocast, learning_rate
from brainlm.windows import Batch, Place, WindowSet
from client.door.noise import RandomBytes, draw_normal
from client.door.spending import PrivacyLedger, Spend
from exchange.messages import DescribeRequest
from exchange.refusals import Refusal, RefusalCode

_SUMS = "rests on sums over all participants that left without noise, so that epsilon would not hold"


def check_privacy(
    privacy: PrivacyConfig, window: WindowConfig, *, n_participants: int, devices: int = 1, residual: str = "none"
) -> None:
    """Refuse a study whose training could not be as private as it says; the `Refusal` names the setting.

    Parameters
    ----------
    n_participants : int
        Training participants of the site.
    devices : int
        Processes that share the site's training.
    residual : str
        The model's, where it is known.
    """
    if residual == "gaussian":
        raise Refusal(RefusalCode.NOT_PRIVATE, f"the model's residual 'gaussian' {_SUMS}. Use residual 'none'.")
    if window.scaling == "robust":
        raise Refusal(RefusalCode.NOT_PRIVATE, f"the window's scaling 'robust' {_SUMS}. Use scaling 'zscore'.")
    if devices > 1:
        raise Refusal(
            RefusalCode.NOT_PRIVATE,
            f"devices is {devices}; private training runs on one. Set devices in site.yaml to 1.",
        )
    if privacy.delta * n_participants >= 1:
        raise Refusal(
            RefusalCode.PARTICIPANTS,
            f"privacy.delta is {privacy.delta:g}, and the site trains on {n_participants} participants. Set it below "
            f"{1 / n_participants:.2g}.",
        )


def spends_to_come(request: DescribeRequest, n_participants: int, ledger: PrivacyLedger) -> list[Spend]:
    """What the rest of a study will cost of the site's budget: its rounds of private training, and noisy sums.

    `n_participants` are trained on. A study whose ε no noise gives is refused.
    """
    spends = []
    if request.privacy is not None and request.steps_per_round:
        privacy = check_settings(request.privacy, PrivacyConfig, "the study's privacy")
        rate, steps = sample_rate(request.batch_size, n_participants), request.steps_per_round
        noise_multiplier = ledger.noise_multiplier(privacy, rate, request.all_rounds * steps)
        spends.append(Spend(noise_multiplier, rate, request.rounds * steps))
    if request.frame_noise is not None:
        noise = check_settings(request.frame_noise, SummaryNoise, "the study's noise on frames")
        spends.append(Spend(noise.noise_multiplier, 1.0, request.noisy_sums))
    return [spend for spend in spends if spend.steps]


def sample_rate(batch_size: int, n_participants: int) -> float:
    """Probability with which each training participant is in a step."""
    return min(1.0, batch_size / n_participants)


def train_privately(
    model: AnyModel,
    windows: WindowSet,
    config: TrainingConfig,
    *,
    round_number: int,
    rounds: int,
    ledger: PrivacyLedger,
    device: torch.device | str = "cpu",
    devices: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
    random_bytes: RandomBytes = os.urandom,
) -> tuple[TrainingOutcome, Spend]:
    """Train `model` in place for one round, as `brainlm.pretraining.train_round` does, but privately.

    Draws, masks and noise are new in every call and come from the operating system, not from the study's seed, which
    others know. ``config.workers`` is not used.

    Parameters
    ----------
    windows : WindowSet
        The training participants' windows.
    round_number, rounds : int
        This round, counted from 1, and how many there are: for the schedule, and for the noise that a target ε takes.
    ledger : PrivacyLedger
        Of the study.
    devices : int
        Processes that share the site's training: one.
    optimizer : torch.optim.Optimizer, optional
        Goes on with its moments; a fresh one if not given.
    random_bytes : callable
        Source of all that is random.

    Returns
    -------
    outcome : TrainingOutcome
        Its loss is NaN: the mean loss is a number about the participants, and no noise hides them in it.
    spend : Spend
        What the weights cost, to be written down before they leave.

    Raises
    ------
    Refusal
        Before training, if `check_privacy` or the ledger's budget says no.
    DivergenceError
        If the weights are not finite. That tells something of the noisy gradients, and so the steps are counted.
    """
    privacy, n_participants = config.privacy, len(windows.participants)
    assert privacy is not None
    residual = model.config.residual if isinstance(model.config, ModelConfig) else "none"
    check_privacy(privacy, model.config.window, n_participants=n_participants, devices=devices, residual=residual)
    steps, rate = rounds * config.steps_per_round, sample_rate(config.batch_size, n_participants)
    spend = Spend(ledger.noise_multiplier(privacy, rate, steps), rate, config.steps_per_round)
    ledger.permit(spend)

    model.to(device).train()
    optimizer = optimizer or make_optimizer(model, config)
    secret, first = random_bytes(32).hex(), (round_number - 1) * config.steps_per_round
    with ClippedSum(model, windows, config) as clipped:
        for step in range(first, first + config.steps_per_round):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, steps)
            clipped.set_noisy_gradients(Draws(secret, step, steps), spend, random_bytes)
            optimizer.step()
            model.after_step()
    if not all(bool(values.isfinite().all()) for values in model.state_dict().values()):
        ledger.commit([spend])
        raise DivergenceError(
            f"round {round_number}: the weights are no longer finite. Lower training.learning_rate, or ask for less "
            "privacy."
        )
    return TrainingOutcome(math.nan, windows.n_windows), spend


@dataclass(frozen=True)
class Draws:
    """What is random in a step, but for the noise.

    Each draw comes from a secret and the participant alone, by SHA-256. So one participant more changes nothing about
    the others, and adds one gradient to the sum.
    """

    secret: str
    """Of the round."""
    step: int
    """Which of the whole study, from 0."""
    steps: int
    """Of the whole study."""

    def participants(self, everybody: list[str], rate: float) -> list[str]:
        """Draw each of them with probability `rate` (Poisson sampling)."""
        return [participant for participant in everybody if self._seed(participant, "drawn") < rate * 2**63]

    def place(self, windows: WindowSet, participant: str) -> Place:
        """Draw one window of a participant."""
        return windows.draw_one(participant, np.random.default_rng(self._seed(participant, "window")))

    def mask(self, mask: MaskConfig) -> MaskConfig:
        """Choose what the step hides: the same of everybody."""
        return choose_mask(mask, self.step / self.steps, self._generator("mask"))

    def noise(self, model: AnyModel, mask: MaskConfig, batch: Batch) -> Tensor:
        """Draw the noise [B, N] that hides tokens."""
        n_parcels = batch.signal.shape[1]
        return torch.cat([model.draw_noise(mask, 1, n_parcels, self._generator(p, "mask")) for p in batch.participants])

    def seed_dropout(self, participant: str) -> None:
        """Seed what torch draws inside of a model."""
        torch.manual_seed(self._seed(participant, "dropout"))

    def _generator(self, *what: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(*what))

    def _seed(self, *what: str) -> int:
        return derive_seed(self.secret, self.step, *what)


class ClippedSum:
    """Sums of participants' gradients, each shortened to ``privacy.clip``. Inside a ``with`` it may be asked for them.

    Our own model's gradients are told apart by Opacus' hooks, some windows at a time; the released models', whose
    tokens are bare parameters and whose loss couples the windows of a batch, by giving them one window at a time.
    Opacus' own optimizer does not fit: one participant's NaN would pass it, and its noise is of torch's generators.

    Parameters
    ----------
    model : torch.nn.Module
        On its device, in training mode.
    windows : WindowSet
        The training participants' windows.
    config : TrainingConfig
        With ``privacy``.

    Attributes
    ----------
    parameters : list of torch.nn.Parameter
        What training changes.
    """

    def __init__(self, model: AnyModel, windows: WindowSet, config: TrainingConfig) -> None:
        assert config.privacy is not None
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._model, self._windows, self._config, self._clip = model, windows, config, config.privacy.clip
        self._hooked = isinstance(model, BrainLM)
        self._at_once = math.ceil(config.batch_size / config.accumulation) if self._hooked else 1
        # What takes torch through all layers, and so Opacus' hooks. Sums of matrices' gradients, a third of the work of
        # a step, nobody asks for: each matrix has a bias that leads to its layer.
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        matrices = {id(module.weight) for module in linear if module.bias is not None}
        self._asked = [parameter for parameter in self.parameters if id(parameter) not in matrices]

    def __enter__(self) -> Self:
        if self._hooked:
            from opacus.grad_sample import GradSampleHooks  # which takes a second

            self._hooks = GradSampleHooks(self._model, loss_reduction="sum")
        return self

    def __exit__(self, *error: object) -> None:
        if self._hooked:
            self._hooks.cleanup()

    def set_noisy_gradients(self, draws: Draws, spend: Spend, random_bytes: RandomBytes) -> None:
        """Give each parameter the gradient of a step: the clipped sum over those drawn, with noise, over the expected.

        Noise is normal, with a standard deviation of the multiplier times the clip.
        """
        everybody = self._windows.participants
        total = self.of(draws.participants(everybody, spend.sample_rate), draws)
        for parameter, values in zip(self.parameters, total, strict=True):
            noise = draw_normal(values.numel(), random_bytes).view(values.shape).to(values)
            noisy = values + spend.noise_multiplier * self._clip * noise
            parameter.grad = noisy / (spend.sample_rate * len(everybody))

    def of(self, participants: list[str], draws: Draws) -> list[Tensor]:
        """Sum the clipped gradients of some participants, by parameter; zeros for none."""
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        places = [draws.place(self._windows, participant) for participant in participants]
        for part in self._windows.in_parts(places, self._at_once):
            self._add(total, self.by_window(self._windows[part], draws))
        return total

    def by_window(self, batch: Batch, draws: Draws) -> list[Tensor | None]:
        """Compute the gradients [B, ...] of each window's loss, by parameter; None if the loss does not depend on it.

        Of a released model B must be 1.
        """
        device = self.parameters[0].device
        mask = draws.mask(self._model.config.mask)
        noise = draws.noise(self._model, mask, batch).to(device)
        batch = batch.to(device)
        if not self._hooked:
            draws.seed_dropout(batch.participants[0])
        with autocast(self._config.precision, device):
            losses = self._model(batch.signal, batch.coordinates, noise, batch.valid, mask=mask).loss
        if not self._hooked:
            alone = torch.autograd.grad(losses.sum(), self.parameters, allow_unused=True)
            return [None if gradient is None else gradient[None] for gradient in alone]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook")  # the first layers' inputs need no gradients
            together = torch.autograd.grad(losses.sum(), self._asked, allow_unused=True)
        taken: list[Tensor | None] = [vars(parameter)["grad_sample"] for parameter in self.parameters]
        for parameter, gradient in zip(self._asked, together, strict=True):
            assert (vars(parameter)["grad_sample"] is None) == (gradient is None), "a layer escaped the hooks"
        self._hooks.set_grad_sample_to_none()
        return taken

    def _add(self, total: list[Tensor], gradients: list[Tensor | None]) -> None:
        """Add the gradients of some windows to `total`, each shortened to the clip over all parameters together."""
        there = [(values, g.flatten(1).float()) for values, g in zip(total, gradients, strict=True) if g is not None]
        lengths = torch.stack([torch.linalg.vector_norm(g, dim=1) for _, g in there]).norm(dim=0)  # [B]
        finite = lengths.isfinite()  # a window whose gradient is not adds nothing: NaN has no bound
        factors = (self._clip / lengths[finite]).clamp(max=1.0)
        for values, gradient in there:
            values += (factors @ gradient[finite]).view_as(values)
