"""What a site's recordings come from: each kind of source lists its runs and reads one of them at a time."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from cohorts.atlas import Atlas
from cohorts.cohort import Scale
from cohorts.errors import CohortError

LONGEST_T_R = 20.0
"""Longest repetition time in seconds that is believed; 2000 is one in milliseconds."""


@dataclass(frozen=True)
class Run:
    """One recording that a source offers, before anything of it is read."""

    name: str
    """As the source names it, such as ``sub-01_ses-1_task-rest_run-1``; unique in the source, known at the site
    alone."""
    participant: str
    """Whose it is, as in the participants table: ``sub-01``."""
    session: str = ""
    task: str = ""
    run: str = ""
    """Labels after BIDS, without ``ses-``, ``task-`` and ``run-``; empty where the name has none."""
    files: tuple[Path, ...] = ()
    """Every file that decides what reading it gives. What changes in them means reading it again."""
    part: str = ""
    """Which part of the first file, where one file holds several recordings: the key in an .npz."""


@dataclass(frozen=True)
class Reading:
    """What a source gives for one run."""

    signal: np.ndarray
    """[T, P] float32 in the order of the atlas; NaN throughout where a parcel is missing."""
    t_r: float = math.nan
    """Repetition time in seconds; NaN where the source does not know it."""
    tsnr: float = math.nan
    """Median over parcels of mean/sd over time before cleaning; NaN if unknown."""
    framewise_displacement: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """[A] float32 in millimetres, over the frames as acquired, the first NaN; empty if unknown."""
    censored: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    """[A] bool, True for frames that were dropped from `signal` or interpolated in it; empty if none were judged."""
    notices: tuple[str, ...] = ()
    """Codes of `cohorts.notices`."""


class Source(Protocol):
    """A place where recordings come from. It is small and can be pickled, since other processes read the runs."""

    @property
    def atlas(self) -> Atlas:
        """The parcels of every reading's columns."""

    @property
    def preprocessing(self) -> str:
        """What was done to the signals, in a short id that goes with every result."""

    @property
    def scaling(self) -> Scale:
        """Whether the readings have kept their units, or are z-scored parcel by parcel."""

    def runs(self) -> list[Run]:
        """List the runs in order of their names, without reading them; refuse one that has none, or is unusable."""

    def read(self, run: Run) -> Reading:
        """Read one run.

        Raises
        ------
        RecordingError
            If it is not usable, with a stable code for each fault; so do all who read its files. The message begins
            with the name of the file at fault (no folders) and a colon.
        """


def check_given_t_r(t_r: float | None) -> None:
    """Refuse a repetition time, given for all runs of a source, that cannot be one in seconds."""
    if t_r is not None and not 0 < t_r <= LONGEST_T_R:
        remedy = f"If it is in milliseconds, give {t_r / 1000:g}." if t_r > LONGEST_T_R else "Correct it."
        raise CohortError(f"--tr {t_r:g}: expected seconds, above 0 and at most {LONGEST_T_R:g}. {remedy}")


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Sort runs by their names, and refuse two of one name."""
    named: dict[str, Run] = {}
    for run in runs:
        other = named.setdefault(run.name, run)
        if other is not run:
            raise CohortError(
                f"{run.files[0]}: stands there twice, since {other.files[0]} is of {run.name}, too. Leave one image a "
                "run."
            )
    return [named[name] for name in sorted(named)]
