"""A source of recordings that are made in code, for what every source has in common."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cohorts import Atlas, RecordingError, load_atlas
from cohorts.sources.kinds import Reading, Run


@dataclass(frozen=True)
class MadeSource:
    """Runs whose files say what becomes of them: a seed, or a fault.

    A file holds ``seed 3``; ``refuse``; ``crash``, which kills the process that reads it; ``fail``, an error that
    nobody foresaw.
    """

    folder: Path
    n_frames: int = 80
    scaling: ClassVar = "raw"

    @property
    def atlas(self) -> Atlas:
        return load_atlas("schaefer100")

    @property
    def preprocessing(self) -> str:
        return "made"

    def runs(self) -> list[Run]:
        names = sorted(path.stem for path in self.folder.iterdir())
        return [self._run(name) for name in names]

    def read(self, run: Run) -> Reading:
        what, _, value = run.files[0].read_text().partition(" ")
        if what == "refuse":
            raise RecordingError("refused", f"{run.files[0].name}: is of {run.participant}; expected nobody. Go.")
        if what == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            raise ZeroDivisionError
        rng = np.random.default_rng(int(value))
        signal_ = rng.normal(size=(self.n_frames, 100)).astype(np.float32)
        fd = rng.uniform(0, 0.2, self.n_frames).astype(np.float32)
        fd[0] = np.nan
        censored = fd > 0.19
        return Reading(signal_ + 50, t_r=2.0, framewise_displacement=fd + (what == "moved"), censored=censored)

    def _run(self, name: str) -> Run:
        entities = dict(part.partition("-")[::2] for part in name.split("_"))
        return Run(
            name,
            f"sub-{entities['sub']}",
            entities.get("ses", ""),
            entities.get("task", ""),
            entities.get("run", ""),
            (self.folder / f"{name}.txt",),
        )
