"""Measure what a GPU does for a site: `python benchmarks/gpu.py [PRESET ...]`; it takes a GPU that CUDA can use.

Windows a second of whole rounds of `training`, on recordings of noise of 424 parcels, beside the processor with all its
cores in the same run; the same with workers that read ahead, which says whether the GPU waits for windows; what private
training costs there; and how far weights and embeddings are from those of the processor.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import machine, markdown

from brainlm.config import ModelConfig, PrivacyConfig, TrainingConfig, load_model_config
from brainlm.embedding import embed
from brainlm.model import count_parameters
from brainlm.pretraining import initial_model, train_round
from brainlm.windows import WindowSet
from client.door.database import SiteDatabase
from client.door.spending import PrivacyLedger
from client.privacy import train_privately
from cohorts import Cohort, Recording, load_atlas

ROOT = Path(__file__).parents[1]
N_RECORDINGS, N_FRAMES, BATCH = 64, 600, 64
REPEATS = 3
ROUND = {"round_number": 1, "rounds": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["13m", "111m"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="of a round on the GPU; the processor does one")
    given = parser.parse_args()
    device = torch.device(given.device)
    named = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if device.type == "cuda" else "no GPU"
    print(f"Measured on {named}; {machine()}.\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cohort = _noise_cohort(Path(folder) / "cohort")
        for preset in given.presets:
            config = load_model_config(ROOT / "configs" / "models" / f"{preset}.yaml")
            windows = WindowSet(cohort, config.window)
            for _ in windows.segments(BATCH):  # every recording is prepared and kept
                pass
            header = ["training", "windows a second", "to the processor", "peak GPU memory"]
            print(f"{preset}, {count_parameters(initial_model(config, 1)) / 1e6:.1f}M, batches of {BATCH}:\n")
            print(markdown(header, speeds(config, windows, device, given.steps, Path(folder))), flush=True)
            print(f"\n{differences(config, windows, cohort, device)}\n", flush=True)


def speeds(
    config: ModelConfig, windows: WindowSet, device: torch.device, steps: int, folder: Path
) -> list[tuple[str, ...]]:
    """Time rounds of the same model → rows of the table, the processor's first."""
    common = {"batch_size": BATCH, "warmup_steps": 0}
    kinds = {
        f"processor, {os.cpu_count()} threads, float32": ("cpu", {"precision": "float32", "accumulation": 8}),
        "float32": (device, {"precision": "float32"}),
        "bfloat16": (device, {"precision": "bfloat16"}),
        "bfloat16, 4 workers": (device, {"precision": "bfloat16", "workers": 4}),
        "bfloat16, checkpointing": (device, {"precision": "bfloat16", "checkpointing": True}),
        "bfloat16, private": (device, {"precision": "bfloat16", "privacy": PrivacyConfig(noise_multiplier=1.0)}),
    }
    torch.set_num_threads(os.cpu_count() or 1)
    measured: dict[str, tuple[float, float]] = {}
    for name, (where, settings) in kinds.items():
        training = TrainingConfig(**common, **settings, steps_per_round=steps if where != "cpu" else 1)
        measured[name] = _measure(config, windows, training, torch.device(where), folder / name)
        print(f"{name}: {measured[name][0]:.1f}", flush=True)
    (slowest, _), *_ = measured.values()
    return [
        (name, f"{rate:,.1f}", f"{rate / slowest:,.0f}", f"{memory / 2**30:.1f} GiB" if memory else "")
        for name, (rate, memory) in measured.items()
    ]


def _measure(
    config: ModelConfig, windows: WindowSet, training: TrainingConfig, device: torch.device, ledger: Path
) -> tuple[float, float]:
    """Time rounds, after a short one to warm up → median of windows a second, and the most bytes on the GPU."""
    model = initial_model(config, 1)
    seconds = []
    for steps in (1, *[training.steps_per_round] * REPEATS):
        this_round = training.model_copy(update={"steps_per_round": steps})
        began = time.perf_counter()
        if training.privacy:
            spent = PrivacyLedger(SiteDatabase(ledger, b"benchmark"), "benchmark", delta=1e-5)
            train_privately(model, windows, this_round, **ROUND, ledger=spent, device=device)
        else:
            train_round(model, windows, this_round, **ROUND, seed=0, device=device)
        seconds.append(time.perf_counter() - began)  # the last loss was fetched: the GPU is done
    memory = 0
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    return BATCH * training.steps_per_round / statistics.median(seconds[1:]), memory


def differences(config: ModelConfig, windows: WindowSet, cohort: Cohort, device: torch.device) -> str:
    """Train three steps and embed on both → how far they are from each other, relative to the largest number."""
    training = TrainingConfig(batch_size=8, warmup_steps=0, precision="float32", steps_per_round=3)
    models = {}
    for where in ("cpu", device):
        models[where] = initial_model(config, 1)
        train_round(models[where], windows, training, **ROUND, seed=0, device=where)
    weights = {
        where: torch.cat([w.detach().flatten().cpu() for w in model.parameters()]) for where, model in models.items()
    }
    moved = (weights["cpu"] - torch.cat([w.detach().flatten() for w in initial_model(config, 1).parameters()])).norm()
    here, there = (
        embed(models["cpu"].to(where), cohort, device=where).set_index("participant_id").to_numpy()
        for where in ("cpu", device)
    )
    of_weights = float((weights[device] - weights["cpu"]).norm() / moved)
    of_embeddings = np.abs(there - here).max() / np.abs(here).max()
    return (
        f"Three steps in float32: the weights differ by {of_weights:.1e} of the way that they went. Embeddings by the "
        f"same weights: {of_embeddings:.1e} of the largest number."
    )


def _noise_cohort(folder: Path) -> Cohort:
    """Recordings of noise: their values do not matter here."""
    cohort = Cohort.create(folder, atlas=load_atlas("a424"))
    rng = np.random.default_rng(0)
    for number in range(N_RECORDINGS):
        signal = rng.standard_normal((N_FRAMES, cohort.atlas.n_parcels), dtype=np.float32)
        cohort.add(Recording(f"sub-{number:03d}", signal, t_r=2.0))
    cohort.save()
    return cohort


if __name__ == "__main__":
    main()
