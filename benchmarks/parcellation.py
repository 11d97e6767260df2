"""Measure how fast a run becomes parcel signals: `python benchmarks/parcellation.py [--repeats 5] [--labels FILE]`.

Runs of noise with 24 confounds, 400 parcels; `parcellate` and nilearn's `NiftiLabelsMasker` with the same options take
turns, each in a process of its own with one thread, and both results are compared. Without `--labels` the 400 parcels
are the nearest neighbours of Schaefer-400's coordinates within 12 mm.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from common import machine, markdown
from nilearn.maskers import NiftiLabelsMasker
from scipy.spatial import cKDTree

from cohorts import load_atlas
from cohorts.sources.confounds import Confounds
from cohorts.sources.parcellation import Cleaning, parcellate
from cohorts.sources.volumes import load_label_image

T_R = 2.0
RUNS = {
    "3 x 3 x 4 mm, 64 x 64 x 36 x 300, float32": ((64, 64, 36, 300), (3, 3, 4), np.float32),
    "3 x 3 x 4 mm, 64 x 64 x 36 x 300, int16": ((64, 64, 36, 300), (3, 3, 4), np.int16),
    "2 mm, 91 x 109 x 91 x 100, float32": ((91, 109, 91, 100), (2, 2, 2), np.float32),
}
OURS, NILEARN = "parcellate", "NiftiLabelsMasker"
OPTIONS = {"low_pass": 0.1, "high_pass": 0.01, "detrend": True, "standardize": "zscore_sample"}


def make_labels(path: Path) -> None:
    """Draw a label image at 2 mm: each voxel takes the parcel whose coordinates are nearest."""
    affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    voxels = np.indices((91, 109, 91)).reshape(3, -1).T
    distance, parcel = cKDTree(load_atlas("schaefer400").coordinates).query(nib.affines.apply_affine(affine, voxels))
    labels = np.where(distance < 12, parcel + 1, 0).astype(np.int16)
    nib.save(nib.Nifti1Image(labels.reshape(91, 109, 91), affine), path)


def make_run(path: Path, shape: tuple[int, ...], voxel: tuple[int, ...], dtype: type) -> None:
    """Write noise around 1000 over the whole brain of the template."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal(shape, dtype=np.float32) * 20 + 1000
    affine = np.diag([*map(float, voxel), 1.0])
    affine[:3, 3] = np.array([0, -18, 18]) - np.multiply(voxel, shape[:3]) / 2
    nib.save(nib.Nifti1Image(data.astype(dtype), affine), path)


def measure(what: str, run: Path, labels: Path, out: Path) -> dict[str, float]:
    """Parcellate a run, save the signals, and return the seconds it took and the peaks of memory in GiB."""
    label_image = load_label_image("schaefer400", image=labels)
    confounds = np.random.default_rng(1).standard_normal((nib.load(run).shape[3], 24))
    imported = peak_memory()
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if what == OURS:
            signal = parcellate(
                run, label_image, t_r=T_R, confounds=Confounds(confounds), cleaning=Cleaning(**OPTIONS)
            ).signal
        else:
            masker = NiftiLabelsMasker(labels, resampling_target="data", t_r=T_R, reports=False, **OPTIONS)
            signal = masker.fit_transform(run, confounds=confounds)
    seconds = time.perf_counter() - began
    peak = peak_memory()
    np.save(out, signal)
    return {"seconds": seconds, "peak": peak, "grown": peak - imported}


def peak_memory() -> float:
    """Most memory that this program has held, GiB. Linux's maxrss would count its parent's, too."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 2**20


def in_own_process(what: str, run: Path, labels: Path, out: Path) -> dict[str, float]:
    """Measure in a fresh process with one thread, as a worker has it."""
    command = [sys.executable, __file__, "--measure", what, str(run), str(labels), str(out)]
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--labels", type=Path, help="label image of Schaefer-400")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, *files = arguments.measure
        print(json.dumps(measure(what, *map(Path, files))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = arguments.labels or folder / "labels.nii.gz"
        if arguments.labels is None:
            make_labels(labels)
        for kind, (shape, voxel, dtype) in RUNS.items():
            run = folder / "run.nii.gz"
            make_run(run, shape, voxel, dtype)
            rows.append(compare(kind, run, labels, folder, arguments.repeats))
    print(f"\nMeasured on {machine()}; one thread, {arguments.repeats} turns, medians.\n")
    columns = (
        "seconds",
        "nilearn",
        "ratio",
        "peak GiB",
        "nilearn",
        "of it beyond imports",
        "nilearn",
        "max difference",
    )
    print(markdown(["run", *columns], rows))


def compare(kind: str, run: Path, labels: Path, folder: Path, repeats: int) -> tuple[str, ...]:
    """One row of the table: both take turns."""
    results: dict[str, list[dict[str, float]]] = {OURS: [], NILEARN: []}
    for _ in range(repeats):
        for what, of in results.items():
            of.append(in_own_process(what, run, labels, folder / f"{what}.npy"))
    middle = {what: {key: statistics.median(one[key] for one in of) for key in of[0]} for what, of in results.items()}
    ours, theirs = (np.load(folder / f"{what}.npy") for what in (OURS, NILEARN))
    covered = ~np.isnan(ours).all(axis=0)
    # nilearn drops parcels that vanish; where none does, its columns are the atlas's.
    same = np.abs(ours[:, covered] - theirs[:, covered]).max() if theirs.shape == ours.shape else np.nan
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(results[OURS], results[NILEARN], strict=True))
    return (
        kind,
        f"{middle[OURS]['seconds']:.2f}",
        f"{middle[NILEARN]['seconds']:.2f}",
        f"{ratio:.2f}",
        f"{middle[OURS]['peak']:.2f}",
        f"{middle[NILEARN]['peak']:.2f}",
        f"{middle[OURS]['grown']:.2f}",
        f"{middle[NILEARN]['grown']:.2f}",
        f"{same:.1e}",
    )


if __name__ == "__main__":
    main()
