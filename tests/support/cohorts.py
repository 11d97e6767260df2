"""Cohorts in which something is missing of some people."""

from dataclasses import replace
from pathlib import Path

from cohorts import Cohort


def with_gaps(source: Path, out: Path, *, short: int = 0, frames: int = 30, without_age: int = 0) -> Path:
    """Copy a cohort of one recording a participant: the first few with fewer frames, and the last few without age."""
    given = Cohort.open(source)
    people = given.participants
    people.loc[people.index[len(people) - without_age :], "age"] = float("nan")
    cohort = Cohort.create(out, atlas=given.atlas, name=given.name, participants=people)
    for number, recording in enumerate(given):
        cut = replace(recording, signal=recording.signal[:frames]) if number < short else recording
        cohort.add(cut)
    cohort.save()
    return out
