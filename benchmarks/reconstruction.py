"""Train one model on real recordings and write how well it reconstructs, against CPU time.

``python benchmarks/reconstruction.py RECORDINGS.npz --model configs/models/small.yaml --out curve.json``. RECORDINGS
holds one [frames, parcels] array a recording, one recording a participant; the first parcels are those of `--atlas`.
A fifth of the participants is held out. With ``--original``, the model is instead the design of the original code of
2023 (`brainlm.released.dense`: tokens attend to all tokens, the decoder to visible and hidden ones alike), of the size
that `--change` gives. The recordings are never part of the project.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from torch import Tensor

from base.settings import check_settings
from brainlm.architectures import AnyConfig, AnyModel, check_model_config
from brainlm.baselines import make_baselines
from brainlm.checkpoints import save_checkpoint
from brainlm.config import ModelConfig, TrainingConfig, load_model_config
from brainlm.evaluation import MODEL, compare, evaluate
from brainlm.linear_path import LinearPath
from brainlm.model import Predictor
from brainlm.pretraining import initial_model, train_round
from brainlm.windows import WindowSet, split_participants
from cli.evaluate import measure_moments
from cohorts import Cohort, Recording, load_atlas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--atlas", default="schaefer400")
    parser.add_argument("--t-r", type=float, default=2.0, help="seconds a frame")
    parser.add_argument("--model", type=Path, required=True, help="a file of configs/models")
    parser.add_argument("--change", default="{}", help="JSON that overrides the model's settings")
    parser.add_argument("--original", action="store_true", help="train the original code's design")
    parser.add_argument("--training", default="{}", help="JSON that overrides the training's settings")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=200, help="steps between two evaluations")
    parser.add_argument("--seed", type=int, default=0, help="of weights, windows and masks, not of the split")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = read_model(given.model, json.loads(given.change), given.original)
    training = check_settings(
        {"steps_per_round": given.every, "precision": "float32", **json.loads(given.training)},
        TrainingConfig,
        "--training",
    )
    with tempfile.TemporaryDirectory() as folder:
        cohort = import_recordings(given.recordings, Path(folder) / "cohort", given.atlas, given.t_r)
        found = train(cohort, config, training, given.steps, given.seed, given.out.with_suffix(".safetensors"))
    about = {"model": config.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    given.out.write_text(json.dumps({**about, "seed": given.seed, "machine": machine(), **found}, indent=1))


def read_model(path: Path, changes: dict[str, Any], original: bool) -> AnyConfig:
    """Read a model's settings; for the original's design, those that both have come from the file."""
    config = load_model_config(path)
    if not original:
        return check_settings(config.model_dump(mode="json") | changes, ModelConfig, str(path))
    same = {"window": config.window.model_dump(mode="json"), "mask_ratio": config.mask.ratio}
    return check_model_config({"architecture": "brainlm_mae", **same, **changes}, "--change")


def import_recordings(source: Path, folder: Path, atlas_name: str, t_r: float) -> Cohort:
    """Make a cohort of the first parcels of every recording."""
    atlas = load_atlas(atlas_name)
    cohort = Cohort.create(folder, atlas=atlas)
    with np.load(source) as recordings:
        for number, name in enumerate(sorted(recordings)):
            signal = recordings[name][:, : atlas.n_parcels].astype(np.float32)
            person = f"p{number:03d}"
            cohort.add(Recording(person, signal, t_r))
    cohort.save()
    return cohort


def train(
    cohort: Cohort, config: AnyConfig, training: TrainingConfig, n_steps: int, seed: int, checkpoint: Path
) -> dict[str, Any]:
    """Train; return the held-out masked R² after every few steps, with the CPU seconds so far, and the baselines'."""
    people, held_out = split_participants(sorted(cohort.recordings["participant_id"]), 0.2, 0)
    windows, unseen = (WindowSet(cohort, config.window, part) for part in (people, held_out))
    model = initial_model(config, seed)
    moments = measure_moments(config.window, [(cohort, people)])
    if isinstance(config, ModelConfig) and config.residual == "gaussian":
        model.prior = LinearPath(moments.covariance, moments.autocovariance, moments.pairs)
    rounds = n_steps // training.steps_per_round
    curve, spent = [], 0.0
    for number in range(1, rounds + 1):
        began = time.process_time()
        loss = train_round(model, windows, training, round_number=number, rounds=rounds, seed=seed).loss
        spent += time.process_time() - began
        found = evaluate(model, unseen, seed=0).masked_r2
        curve.append({"steps": number * training.steps_per_round, "cpu_s": spent, "loss": loss, "masked_r2": found})
        print(f"{curve[-1]['steps']} steps, {spent:.0f} s: loss {loss:.3f}, held-out masked R² {found:.4f}", flush=True)
    save_checkpoint(checkpoint, model.state_dict(), config)
    baselines = make_baselines(config.mask, cohort.atlas.n_parcels, moments.to_arrays())
    baselines["mean of model and gaussian_space_time"] = MeanOfTwo(model, baselines["gaussian_space_time"], unseen)
    final = compare(model, baselines, unseen, seed=0)
    scores = {name: sums.overall for name, sums in final.items()}
    print({name: round(of["masked_r2"], 4) for name, of in scores.items()})
    return {"curve": curve, "final": scores.pop(MODEL), "baselines": scores}


class MeanOfTwo:
    """The mean of the model's prediction and another's: better than both where they err in different ways."""

    def __init__(self, model: AnyModel, other: Predictor, windows: WindowSet) -> None:
        self.model, self.other = model, other
        self.coordinates = next(windows.segments(1)).coordinates

    def predict(self, signal: Tensor, visible: Tensor, valid: Tensor) -> Tensor:
        n_windows, _, n_frames = signal.shape
        # Hidden tokens have the most noise, and so stay hidden.
        noise = (~visible[:, :, :: n_frames // self.model.config.window.n_patches]).float().flatten(1)
        coordinates = self.coordinates.expand(n_windows, -1, -1)
        mine = self.model(signal, coordinates, noise, valid).reconstruction
        return (mine + self.other.predict(signal, visible, valid)) / 2


if __name__ == "__main__":
    main()
