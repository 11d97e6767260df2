"""Attack a site's model update as a curious coordinator would, and measure how far the protections stop it.

``python benchmarks/attacks.py`` prints two tables.

Membership inference: was this person's recording trained on? The attacker has the model that a site's update makes, and
candidates' recordings, half of them the training participants'. It guesses by the loss (Yeom et al., CSF 2018), or by
the loss against what models of its own have that were, or were not, trained on that person (shadow models: Shokri et
al., S&P 2017; likelihood ratio: Carlini et al., S&P 2022). All models in turn are the target, the others its shadows,
trained on random halves of the very same people with the very same settings, which is more than a coordinator has.

Gradient inversion: which window was it? The attacker has the update, knows the weights and the mask, and looks for the
window whose gradient is that update (Zhu et al., NeurIPS 2019; Geiping et al., NeurIPS 2020).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from brainlm.config import MaskConfig, ModelConfig, PrivacyConfig, TrainingConfig, WindowConfig
from brainlm.model import BrainLM
from brainlm.pretraining import initial_model, train_round
from brainlm.windows import Batch, WindowSet
from client.door.database import SiteDatabase
from client.door.spending import PrivacyLedger
from client.privacy import train_privately
from cohorts import Cohort
from cohorts.simulation import simulate_cohorts, simulated_hospitals

DELTA = 1e-5
WINDOW = WindowConfig(n_frames=32, patch_frames=8)
SIZES = {"width": 32, "depth": 1, "heads": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
MODEL = ModelConfig(window=WINDOW, mask=MaskConfig(ratio=0.75), **SIZES, decode_every=1)
Weights = dict[str, Tensor]


def main() -> None:
    from common import machine, markdown

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["membership", "inversion"])
    parser.add_argument("--people", type=int, default=40, help="candidates, half of whom are trained on")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--models", type=int, default=6, help="models trained on random halves")
    parser.add_argument("--windows", type=int, default=3, help="windows to reconstruct")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    print(f"Measured on {machine()}; one thread.\n")
    with tempfile.TemporaryDirectory() as folder:
        cohorts = simulate(Path(folder) / "cohorts", given.people)
        if "membership" in given.tables:
            rows = membership(cohorts, Path(folder), given.people, given.steps, given.models)
            header = ["the coordinator sees", "AUC by loss", "AUC by ratio", "found at 5 % false alarms"]
            print(markdown(header, rows) + "\n", flush=True)
        if "inversion" in given.tables:
            header = ["the coordinator sees", "correlation, visible values", "hidden values"]
            print(markdown(header, inversion(cohorts, given.windows)))
    print(f"\n{time.monotonic() - began:.0f} s.")


def simulate(folder: Path, n_people: int, n_sites: int = 4) -> list[Cohort]:
    """Simulate sites of at least so many people."""
    hospitals = simulated_hospitals(n_sites, 2 * n_people, minutes=2.2)  # the smallest has half of the mean
    return [Cohort.open(path) for path in simulate_cohorts(folder, hospitals, atlas="schaefer100", seed=0)]


# --- membership inference ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A site's model after a round, and the participants that it was trained on."""

    weights: Weights
    members: frozenset[str]


def membership(cohorts: list[Cohort], folder: Path, n_people: int, steps: int, n_models: int) -> list[tuple[str, ...]]:
    """Attack updates in the clear, sums over three and four sites, and private updates → rows of the table."""
    site, *others = cohorts
    people = people_of(site, n_people)
    plain = train_on_halves(site, people, steps, n_models)
    rest = [train(other, people_of(other)[: len(people) // 2], steps) for other in others]
    rows = [_attacked("one site's update", site, people, plain)]
    for n_sites in (3, 4):
        summed = [Trained(average([one.weights, *rest[: n_sites - 1]]), one.members) for one in plain]
        rows.append(_attacked(f"the sum over {n_sites} sites", site, people, summed))
    for epsilon in (8.0, 1.0):
        private = train_on_halves(site, people, steps, n_models, epsilon=epsilon, folder=folder)
        rows.append(_attacked(f"one site's update, ε = {epsilon:g}", site, people, private))
    return rows


def _attacked(name: str, site: Cohort, people: list[str], models: list[Trained]) -> tuple[str, ...]:
    by_loss, by_ratio = attack(site, people, models)
    return name, f"{by_loss.auc:.2f}", f"{by_ratio.auc:.2f}", f"{max(by_loss.found(0.05), by_ratio.found(0.05)):.0%}"


def people_of(cohort: Cohort, n_people: int | None = None) -> list[str]:
    return WindowSet(cohort, WINDOW).participants[:n_people]


def train(
    cohort: Cohort, people: list[str], steps: int, *, epsilon: float | None = None, ledger: Path | None = None
) -> Weights:
    """Train the same initial model on some people, long enough to know them by heart."""
    windows, model = WindowSet(cohort, WINDOW, people), initial_model(MODEL, 1)
    training = TrainingConfig(
        batch_size=8, steps_per_round=steps, learning_rate=3e-3, precision="float32", weight_decay=0.0
    )
    if epsilon is None:
        train_round(model, windows, training, round_number=1, rounds=1, seed=0)
    else:
        assert ledger is not None
        privacy = PrivacyConfig(epsilon=epsilon, delta=DELTA, clip=0.2)
        training = training.model_copy(update={"privacy": privacy, "clip_norm": None})
        spending = PrivacyLedger(SiteDatabase(ledger, b"benchmark"), "benchmark", delta=DELTA)
        place = {"round_number": 1, "rounds": 1}
        known = np.random.default_rng(list("".join(people).encode())).bytes  # for the same numbers every time
        train_privately(model, windows, training, **place, ledger=spending, random_bytes=known)
    return {name: values.detach().clone() for name, values in model.state_dict().items()}


def train_on_halves(
    cohort: Cohort,
    people: list[str],
    steps: int,
    n_models: int,
    *,
    epsilon: float | None = None,
    folder: Path | None = None,
) -> list[Trained]:
    """Train models on random halves of the people; everybody is in half of them."""
    made: list[Trained] = []
    for number in range(n_models):
        if number % 2:
            members = frozenset(people) - made[-1].members
        else:
            order = np.random.default_rng(number).permutation(people)
            members = frozenset(order[: len(people) // 2].tolist())
        ledger = folder / f"ledger-{epsilon}-{number}" if folder else None
        made.append(Trained(train(cohort, sorted(members), steps, epsilon=epsilon, ledger=ledger), members))
    return made


def average(weights: list[Weights]) -> Weights:
    """What a secure sum shows of sites with as many windows each."""
    return {name: torch.stack([one[name] for one in weights]).mean(dim=0) for name in weights[0]}


@dataclass(frozen=True)
class Guesses:
    """How sure the attacker is of members and of others, larger for surer."""

    members: np.ndarray
    others: np.ndarray

    @property
    def auc(self) -> float:
        """Chance that a member gets a higher score than another (Mann-Whitney)."""
        ranks = rankdata(np.concatenate([self.members, self.others]))[: len(self.members)]
        n, m = len(self.members), len(self.others)
        return float((ranks.sum() - n * (n + 1) / 2) / (n * m))

    def found(self, false_alarms: float) -> float:
        """Share of the members that are found when so many of the others are taken for members."""
        return float((self.members > np.quantile(self.others, 1 - false_alarms)).mean())


def attack(cohort: Cohort, people: list[str], models: list[Trained]) -> tuple[Guesses, Guesses]:
    """Guess the members of each model, by its loss alone, and by the likelihood ratio against all other models.

    With so few models, a model that knows nobody comes out a little below 0.5 by ratio: a member of the target is a
    member of one shadow less than of those that were not trained on it, and so is compared with a worse mean.
    """
    losses = np.log([loss_of_each(cohort, people, one.weights) for one in models])  # [models, people]
    losses -= losses.mean(axis=1, keepdims=True)  # how good a model is says nothing of a person
    member = np.array([[person in one.members for person in people] for one in models])
    ratios = np.empty_like(losses)
    for target in range(len(models)):
        shadows = np.arange(len(models)) != target
        seen, inside = losses[shadows], member[shadows]
        means = [np.where(inside == was_in, seen, np.nan) for was_in in (True, False)]
        centres = [np.nanmean(values, axis=0) for values in means]
        spreads = [float(np.sqrt(np.nanmean((v - c) ** 2))) + 1e-12 for v, c in zip(means, centres, strict=True)]
        ratios[target] = [
            _log_density(loss, centres[0][who], spreads[0]) - _log_density(loss, centres[1][who], spreads[1])
            for who, loss in enumerate(losses[target])
        ]
    return Guesses(-losses[member], -losses[~member]), Guesses(ratios[member], ratios[~member])


def loss_attack(cohort: Cohort, people: list[str], models: list[Trained]) -> Guesses:
    """Guess the members of each model by its loss alone."""
    losses = np.log([loss_of_each(cohort, people, one.weights) for one in models])
    member = np.array([[person in one.members for person in people] for one in models])
    return Guesses(-losses[member], -losses[~member])


def _log_density(value: float, mean: float, deviation: float) -> float:
    return float(np.log(NormalDist(mean, deviation).pdf(value) + 1e-300))


@torch.no_grad()
def loss_of_each(cohort: Cohort, people: list[str], weights: Weights, n_masks: int = 8) -> list[float]:
    """Mean loss of each person's windows, under the same masks for every model."""
    model = initial_model(MODEL, 0).eval()
    model.load_state_dict(weights)
    total: dict[str, list[float]] = {person: [] for person in people}
    for batch in WindowSet(cohort, WINDOW, people).segments(64):
        for number in range(n_masks):
            noise = noise_of(model, batch, number)
            loss = model(batch.signal, batch.coordinates, noise, batch.valid, mask=MODEL.mask).loss
            for person, value in zip(batch.participants, loss.tolist(), strict=True):
                total[person].append(value)
    return [float(np.mean(total[person])) for person in people]


def noise_of(model: BrainLM, batch: Batch, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return model.draw_noise(MODEL.mask, len(batch), batch.signal.shape[1], generator)


# --- gradient inversion -----------------------------------------------------------------------------------------------


def inversion(cohorts: list[Cohort], n_windows: int) -> list[tuple[str, ...]]:
    """Reconstruct windows from what a coordinator sees of a step, or of a round → rows of the table."""
    model = initial_model(MODEL, 1)
    batches = [[one_window(cohort, number) for number in range(n_windows)] for cohort in cohorts]
    mean = torch.cat([w.signal for w in WindowSet(cohorts[0], WINDOW).segments(64)]).mean(dim=0, keepdim=True)
    seen: dict[str, Callable[[int], list[Tensor]]] = {
        "one site, one step of one window": lambda n: gradient(model, batches[0][n]),
        "one site, a round of 75 steps of 4 windows": lambda n: _round(cohorts[0], n),
        "the sum over 3 sites of such steps": lambda n: _mean([gradient(model, of_site[n]) for of_site in batches[:3]]),
        "the sum over 4 sites of such steps": lambda n: _mean([gradient(model, of_site[n]) for of_site in batches]),
        "one such step, clipped, with noise 0.5": lambda n: noisy(gradient(model, batches[0][n]), 0.5, n),
        "one such step, clipped, with noise 0.01": lambda n: noisy(gradient(model, batches[0][n]), 0.01, n),
    }
    rows = []
    for name, see in seen.items():
        found = [likeness(invert(model, see(n), batches[0][n]), batches[0][n], model) for n in range(n_windows)]
        rows.append((name, *(f"{value:.2f}" for value in np.mean(found, axis=0))))
    guessed = np.mean([likeness(mean, batches[0][n], model) for n in range(n_windows)], axis=0)
    return [*rows, ("nothing: the site's mean window", *(f"{value:.2f}" for value in guessed))]


def one_window(cohort: Cohort, number: int) -> Batch:
    windows = WindowSet(cohort, WINDOW)
    return windows[[windows._places()[2 * number]]]


def gradient(model: BrainLM, batch: Batch, signal: Tensor | None = None) -> list[Tensor]:
    """Gradient of one window's loss, which a step of plain gradient descent shows; to `signal`, if that is given."""
    values = batch.signal if signal is None else signal
    with sdpa_kernel(SDPBackend.MATH):  # whose gradient has a gradient
        out = model(values, batch.coordinates, noise_of(model, batch, 0), None, mask=MODEL.mask)
        return list(torch.autograd.grad(out.loss.sum(), list(model.parameters()), create_graph=signal is not None))


def _mean(gradients: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(same).mean(dim=0) for same in zip(*gradients, strict=True)]


def _round(cohort: Cohort, seed: int) -> list[Tensor]:
    """What a usual round changes, taken for a gradient."""
    model = initial_model(MODEL, 1)
    before = [values.detach().clone() for values in model.parameters()]
    training = TrainingConfig(batch_size=4, steps_per_round=75, precision="float32")
    train_round(model, WindowSet(cohort, WINDOW), training, round_number=1, rounds=1, seed=seed)
    return [(old - new.detach()) for old, new in zip(before, model.parameters(), strict=True)]


def noisy(gradients: list[Tensor], noise_multiplier: float, seed: int) -> list[Tensor]:
    """A step of DP-SGD with one participant in it; the noise over the clip, and the clip is the gradient's length."""
    generator = torch.Generator().manual_seed(seed)
    clip = torch.stack([values.norm() for values in gradients]).norm()
    return [
        values + noise_multiplier * clip * torch.randn(values.shape, generator=generator, dtype=values.dtype)
        for values in gradients
    ]


def invert(model: BrainLM, target: list[Tensor], batch: Batch, steps: int = 300) -> Tensor:
    """Look for the window [1, P, T] whose gradient is the target; place and mask are known, the signal is not."""
    guess = torch.zeros(batch.signal.shape).normal_(generator=torch.Generator().manual_seed(0))
    guess.mul_(0.1).requires_grad_()
    size = sum(float((values**2).sum()) for values in target)
    optimizer = torch.optim.LBFGS(
        [guess],
        max_iter=steps,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
    )

    def distance() -> Tensor:
        optimizer.zero_grad()
        found = gradient(model, batch, guess)
        loss = sum(((a - b) ** 2).sum() for a, b in zip(found, target, strict=True)) / size
        loss.backward(inputs=[guess])
        return loss

    optimizer.step(distance)
    return guess.detach()


def likeness(found: Tensor, batch: Batch, model: BrainLM) -> tuple[float, float]:
    """Correlation of a reconstruction with the window, over the values that the encoder saw and over the others."""
    with torch.no_grad():
        out = model(batch.signal, batch.coordinates, noise_of(model, batch, 0), None, mask=MODEL.mask)
    hidden = out.mask.bool()
    pairs = ((found[where].numpy(), batch.signal[where].numpy()) for where in (~hidden, hidden))
    return tuple(float(np.corrcoef(a, b)[0, 1]) for a, b in pairs)  # type: ignore[return-value]


if __name__ == "__main__":
    main()
