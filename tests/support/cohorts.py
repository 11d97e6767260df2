"""Cohorts in which something is missing of some people, and what is read of cohorts."""

from dataclasses import replace
from pathlib import Path

import pytest

import cohorts.cohort
from cohorts import Cohort, Recording


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


def read_recordings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that every recording is added to whose signal is read from a store."""
    read, load = [], cohorts.cohort.load_recording

    def load_and_note(path: Path) -> Recording:
        read.append(path.stem)
        return load(path)

    monkeypatch.setattr(cohorts.cohort, "load_recording", load_and_note)
    return read


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
