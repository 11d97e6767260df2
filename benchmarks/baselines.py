"""How well predictors without training do on a cohort: the tables of docs/evaluation.md.

    python benchmarks/baselines.py COHORT

COHORT is a folder made by `fedbrainlm cohort prepare`; its recordings must hold 200 frames of 2 s.
"""

import argparse
import time

import torch
from torch import Tensor

from brainlm.baselines import make_baselines
from brainlm.config import MaskConfig, WindowConfig
from brainlm.evaluation import SCORES, ReconstructionSums, score_baselines, scores
from brainlm.gaussian import SpaceTimeGaussianPredictor
from brainlm.model import Predictor
from brainlm.windows import WindowSet, split_participants, usable_recordings
from cli.evaluate import measure_moments
from cohorts import Cohort

WINDOW = WindowConfig(t_r=2.0, n_frames=200, patch_frames=20)
FUTURE_FRAMES = 20


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort")
    cohort = Cohort.open(parser.parse_args().cohort)
    train, held_out = split_participants(list(usable_recordings(cohort, WINDOW)), 0.2, 0)
    moments = measure_moments(WINDOW, [(cohort, train)]).to_arrays()
    batch = next(WindowSet(cohort, WINDOW, held_out).segments(1000))
    n_parcels, valid = cohort.atlas.n_parcels, batch.valid
    shape = (len(batch), n_parcels, WINDOW.n_patches)
    for ratio in (0.75, 0.2):
        tokens = torch.rand(shape, generator=torch.Generator().manual_seed(0)).flatten(1)
        order = tokens.argsort(dim=1).argsort(dim=1)
        seen = (order < int(order.shape[1] * (1 - ratio))).view(shape).repeat_interleave(WINDOW.patch_frames, dim=2)
        hidden = ~seen & valid[..., None]
        predictors = make_baselines(MaskConfig(ratio=ratio), n_parcels, moments)
        for steps in (3, 5, 8, 10, 20):
            predictors[f"gaussian_space_time, {steps} steps"] = SpaceTimeGaussianPredictor(
                moments["covariance"], moments["autocovariance"], iterations=steps
            )
        show(f"random tokens, {ratio} hidden", predictors, batch.signal, hidden, valid)
    frame = torch.arange(WINDOW.n_frames)
    hidden = (frame >= WINDOW.n_frames - FUTURE_FRAMES) & valid[..., None]
    forecasters = make_baselines(MaskConfig(kind="future", ratio=0.1), n_parcels, moments)
    show(f"the last {FUTURE_FRAMES} frames hidden", forecasters, batch.signal, hidden, valid)


def show(title: str, predictors: dict[str, Predictor], signal: Tensor, hidden: Tensor, valid: Tensor) -> None:
    """Print the scores of each predictor, its R² at some horizons, and CPU seconds a window."""
    print(f"\n{title}\n| predictor | {' | '.join(SCORES)} | R² at 1, 2, 5, 10, 20 frames | CPU s a window |")
    print("|" + "---|" * (len(SCORES) + 3))
    for name, predictor in predictors.items():
        begun = time.process_time()
        sums: ReconstructionSums = score_baselines({name: predictor}, signal, hidden, valid)[name]
        seconds = (time.process_time() - begun) / len(signal)
        overall = " | ".join(f"{sums.overall[score]:.3f}" for score in SCORES)
        at = {frames: float(scores(of)["masked_r2"]) for frames, of in sums.by_horizon().items()}
        horizons = ", ".join(f"{at[frames]:.3f}" for frames in (1, 2, 5, 10, 20) if frames in at)
        print(f"| {name} | {overall} | {horizons} | {seconds:.3f} |")


if __name__ == "__main__":
    main()
