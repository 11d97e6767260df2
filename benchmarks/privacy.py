"""Measure what differential privacy costs: time a step, and how well a model predicts what is hidden.

``python benchmarks/privacy.py [PRESET ...]`` trains every preset a step at a time, plainly and privately in turns, on
the same cohort of as many people as a batch has windows; ratios are medians of CPU time on one thread.
``python benchmarks/privacy.py --quality`` trains a small model on one simulated site at several ε, that of the whole
training, and says its masked R² on people who were held out.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import machine, markdown

from brainlm.config import MaskConfig, ModelConfig, PrivacyConfig, TrainingConfig, WindowConfig, load_model_config
from brainlm.evaluation import evaluate
from brainlm.model import count_parameters
from brainlm.optimization import make_optimizer
from brainlm.pretraining import initial_model, train_round
from brainlm.windows import WindowSet, split_participants
from client.door.database import SiteDatabase
from client.door.spending import PrivacyLedger
from client.privacy import train_privately
from cohorts import Cohort, Recording, load_atlas
from cohorts.simulation import simulate_cohorts, simulated_hospitals

ROOT = Path(__file__).parents[1]
DELTA = 1e-5
TRAINING = {"batch_size": 8, "precision": "float32", "warmup_steps": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["tiny", "13m"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Measured on {machine()}; one thread.\n")
    with tempfile.TemporaryDirectory() as folder:
        if given.quality:
            print(quality(Path(folder), given.people, given.steps))
        else:
            rows = [speed(preset, Path(folder) / preset, given.repeats) for preset in given.presets]
            print(markdown(["model", "parameters", "plain s a step", "private s a step", "ratio"], rows))


def speed(preset: str, folder: Path, repeats: int) -> tuple[str, ...]:
    """Time steps of 8 windows each, plain and private in turns → a row of the table."""
    config = load_model_config(ROOT / "configs" / "models" / f"{preset}.yaml")
    atlas = "schaefer100" if preset == "tiny" else "a424"
    windows = WindowSet(_noise_cohort(folder / "cohort", config.window, atlas), config.window)
    steps = 20 if preset == "tiny" else 1
    plain = TrainingConfig(**TRAINING, steps_per_round=steps)
    private = TrainingConfig(**TRAINING, steps_per_round=steps, privacy=PrivacyConfig(noise_multiplier=1.0))
    models = [initial_model(config, 1) for _ in range(2)]
    optimizers = [make_optimizer(model, plain) for model in models]
    ledger = PrivacyLedger(SiteDatabase(folder, b"benchmark"), preset, delta=DELTA)
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(1, repeats + 2):
        which = {"round_number": number, "rounds": repeats + 1}
        began = time.process_time()
        train_round(models[0], windows, plain, **which, seed=0, optimizer=optimizers[0])
        between = time.process_time()
        train_privately(models[1], windows, private, **which, ledger=ledger, optimizer=optimizers[1])
        if number > 1:  # the first one warms up
            seconds[0].append(between - began)
            seconds[1].append(time.process_time() - between)
    ratio = statistics.median(ours / theirs for theirs, ours in zip(*seconds, strict=True))
    medians = (f"{statistics.median(part) / steps:.3f}" for part in seconds)
    return preset, f"{count_parameters(models[0]) / 1e6:.1f}M", *medians, f"{ratio:.2f}"


def _noise_cohort(folder: Path, window: WindowConfig, atlas: str) -> Cohort:
    """Make a batch's number of people, with recordings of noise of two windows: their values do not matter here."""
    cohort = Cohort.create(folder, atlas=load_atlas(atlas))
    rng = np.random.default_rng(0)
    for number in range(TRAINING["batch_size"]):
        signal = rng.standard_normal((2 * window.n_frames, cohort.atlas.n_parcels), dtype=np.float32)
        cohort.add(Recording(f"sub-{number}", signal, t_r=window.t_r))
    cohort.save()
    return cohort


def quality(folder: Path, n_people: int, steps: int) -> str:
    """Train without privacy and at several ε → a table of masked R² on held-out people."""
    sites = simulated_hospitals(1, round(n_people / 1.3))  # the first is larger than the mean
    cohort = Cohort.open(simulate_cohorts(folder / "cohorts", sites, atlas="schaefer100", seed=0)[0])
    window = WindowConfig(n_frames=32, patch_frames=8)
    sizes = {"width": 32, "depth": 1, "heads": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    config = ModelConfig(window=window, mask=MaskConfig(ratio=0.75), **sizes, decode_every=1)
    people, left_out = split_participants(sorted(set(cohort.recordings["participant_id"])), 0.2, 0)
    training, held_out = WindowSet(cohort, window, people), WindowSet(cohort, window, left_out)
    plain = TrainingConfig(batch_size=64, steps_per_round=steps, learning_rate=3e-3, precision="float32")
    rows = []
    for epsilon in (None, 50.0, 8.0, 3.0, 1.0):
        model, noise = initial_model(config, 1), 0.0
        if epsilon is None:
            train_round(model, training, plain, round_number=1, rounds=1, seed=0)
        else:
            privacy = PrivacyConfig(epsilon=epsilon, delta=DELTA, clip=0.2)
            private = plain.model_copy(update={"privacy": privacy, "clip_norm": None})
            ledger = PrivacyLedger(SiteDatabase(folder, b"benchmark"), str(epsilon), delta=DELTA)
            train_privately(model, training, private, round_number=1, rounds=1, ledger=ledger)
            noise = ledger.noise_multiplier(privacy, min(1.0, plain.batch_size / len(people)), steps)
        rows.append((epsilon or "none", f"{noise:.2f}", f"{evaluate(model, held_out, seed=0).masked_r2:.3f}"))
    about = f"{len(people)} people, {count_parameters(model)} parameters, {steps} steps of {plain.batch_size} windows"
    return f"{about}\n\n{markdown(['ε', 'noise multiplier', 'masked R²'], rows)}"


if __name__ == "__main__":
    main()
