"""Measure how fast windows are sampled: `python benchmarks/windows.py [--seconds 2] [--repeats 9]`.

Windows of 200 frames of 424 parcels in batches of 64, from recordings that are in memory already (warm), on one core;
beside them, in turns and in one process, plain loops over memory-mapped arrays of the same prepared recordings, frames
first and parcels first.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import machine, markdown

from brainlm.config import WindowConfig
from brainlm.windows import WindowSet, prepare
from cohorts import Cohort, Recording, load_atlas

BATCH, FRAMES, N_RECORDINGS, N_FRAMES = 64, 200, 100, 600


def make_cohort(folder: Path) -> Cohort:
    """Recordings of noise: their values do not matter here."""
    atlas = load_atlas("a424")
    rng = np.random.default_rng(0)
    cohort = Cohort.create(folder, atlas=atlas)
    for number in range(N_RECORDINGS):
        signal = rng.standard_normal((N_FRAMES, atlas.n_parcels), dtype=np.float32)
        cohort.add(Recording(f"sub-{number:03d}", signal, t_r=2.0))
    cohort.save()
    return cohort


def map_array(values: np.ndarray, path: Path) -> np.memmap:
    """Write an array to a file and map it."""
    mapped = np.memmap(path, np.float32, "w+", shape=values.shape)
    mapped[:] = values
    mapped.flush()
    return np.memmap(path, np.float32, "r", shape=values.shape)


def plain_loop(mapped: np.memmap, axis: int, rng: np.random.Generator) -> torch.Tensor:
    """Copy a batch out of a memory-mapped array, a window after the other; frames are the recordings' axis `axis`."""
    shape = list(mapped.shape[1:])
    shape[axis] = FRAMES
    batch = np.empty((BATCH, *shape), np.float32)
    for row in range(BATCH):
        start = rng.integers(N_FRAMES - FRAMES + 1)
        frames = slice(start, start + FRAMES)
        recording = mapped[rng.integers(len(mapped))]
        batch[row] = recording[frames] if axis == 0 else recording[:, frames]
    return torch.from_numpy(batch)


def rate(sample: Callable[[], object], seconds: float) -> float:
    """Windows a second of processor time, which other programs on the machine do not count into."""
    done, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        sample()
        done += BATCH
    return done / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time of one measurement")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        window = WindowConfig(t_r=2.0, n_frames=FRAMES, patch_frames=20)
        cohort = make_cohort(Path(folder) / "cohort")
        windows = WindowSet(cohort, window)
        prepared = np.stack([prepare(recording, window) for recording in cohort])
        parcels_first = map_array(prepared, Path(folder) / "parcels-first")
        frames_first = map_array(prepared.transpose(0, 2, 1), Path(folder) / "frames-first")
        del prepared
        samplers: dict[str, Callable[[], object]] = {
            "plain loop over np.memmap, frames first": lambda: plain_loop(frames_first, 0, rng),
            "plain loop over np.memmap, parcels first": lambda: plain_loop(parcels_first, 1, rng),
            "`WindowSet.sample`, warm": lambda: windows.sample(BATCH, rng),
            "the same, turned parcels first": lambda: windows.sample(BATCH, rng).signal.contiguous(),
            "`WindowSet.sample`, cold": lambda: WindowSet(cohort, window).sample(BATCH, rng),
        }
        for sampler in samplers.values():
            sampler()
        for _ in windows.segments(BATCH):  # every recording is prepared and kept
            pass
        rates: dict[str, list[float]] = {name: [] for name in samplers}
        for _ in range(arguments.repeats):
            for name, sampler in samplers.items():
                rates[name].append(rate(sampler, arguments.seconds))
    plain = next(iter(rates.values()))
    rows = [
        (
            name,
            f"{statistics.median(measured):,.0f}",
            f"{min(measured):,.0f} to {max(measured):,.0f}",
            f"{statistics.median(a / b for a, b in zip(measured, plain, strict=True)):.2f}",
        )
        for name, measured in rates.items()
    ]
    print(f"\nMeasured on {machine()}; one thread, {arguments.repeats} turns.\n")
    print(markdown(["windows from", "windows a second", "range", "ratio"], rows))


if __name__ == "__main__":
    main()
