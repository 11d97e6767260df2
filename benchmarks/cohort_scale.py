"""What ten thousand recordings cost: preparing them, preparing them again, opening and showing the cohort.

    python benchmarks/cohort_scale.py [RECORDINGS ...]

Recordings of 40 frames and 100 parcels, drawn in code, so that what is measured is the store and not the reading.
Peak memory is that of the process that prepares; it should not grow with the number of recordings but by their index.
"""

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cohorts import Atlas, Cohort, load_atlas
from cohorts.cohort import Scale
from cohorts.identities import KeyedNames
from cohorts.preparation import prepare_cohort
from cohorts.quality import QualityRules
from cohorts.sources.kinds import Reading, Run


@dataclass(frozen=True)
class DrawnSource:
    """Recordings of noise, drawn by their number."""

    n_recordings: int

    @property
    def atlas(self) -> Atlas:
        return load_atlas("schaefer100")

    @property
    def preprocessing(self) -> str:
        return "drawn"

    @property
    def scaling(self) -> Scale:
        return "raw"

    def runs(self) -> list[Run]:
        return [
            Run(f"sub-{n:05d}_task-rest", f"sub-{n:05d}", task="rest", part=str(n)) for n in range(self.n_recordings)
        ]

    def read(self, run: Run) -> Reading:
        return Reading(np.random.default_rng(int(run.part)).normal(size=(40, 100)).astype(np.float32), t_r=2.0)


def prepare(n_recordings: int, folder: Path) -> None:
    """Prepare a cohort twice in this process; print seconds and peak memory."""
    source, names = DrawnSource(n_recordings), KeyedNames(folder / "key")
    start = time.perf_counter()
    prepare_cohort(source, folder / "cohort", names=names, rules=QualityRules(), workers=2)
    first = time.perf_counter()
    prepare_cohort(source, folder / "cohort", names=names, rules=QualityRules(), workers=2)
    second = time.perf_counter()
    Cohort.open(folder / "cohort")
    opened = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    show = [Path(sys.executable).with_name("fedbrainlm"), "cohort", "show", folder / "cohort"]
    subprocess.run(show, check=True, stdout=subprocess.DEVNULL)
    shown = time.perf_counter()
    seconds = f"{first - start:.1f} | {second - first:.1f} | {opened - second:.2f} | {shown - opened:.2f}"
    print(f"| {n_recordings:,} | {seconds} | {peak:.0f} |")


def main() -> None:
    """Measure each size in a process of its own."""
    if sys.argv[1:2] == ["--one"]:
        prepare(int(sys.argv[2]), Path(sys.argv[3]))
        return
    print("| recordings | prepare (s) | again, nothing new (s) | open (s) | `cohort show` (s) | peak (MB) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in sys.argv[1:] or ("1000", "10000"):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, __file__, "--one", size, folder], check=True)


if __name__ == "__main__":
    main()
