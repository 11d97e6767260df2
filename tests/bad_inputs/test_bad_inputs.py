"""Every bad input ends in a sentence: nothing crashes, hangs, is half-written, or tells who a participant is."""

import hashlib
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli.main import run_command
from cohorts import Cohort
from tests.bad_inputs.cases import ACCEPTED, CASES, RECIPES, REFUSED, STOPPED, Case, readme_rows

#: Ids and dates that stand in the sources. A pseudonym, 16 hexadecimal digits, may begin like one of them, and a
#: sentence advises names such as sub-01_ses-1.
_OWN_NAMES = re.compile(rb"sub-A?0\d(?![0-9a-f]|_ses-1\.)|A0[1-3](?![0-9a-f])|20190304|Mueller")
_REMEDIES = (
    "Add|Ask|Check|Choose|Clean|Copy|Correct|Export|Find|Fill|Give|If it is in|Interpolate|It is probably|It looks|"
    "It seems|Known fields|Leave|Lower|Make|Merge|Move|Name|Recode|Rename|Repeat|Resample|Restore|Run|Save|Say|Take|"
    "Use|Wait|Write|Did you mean"
)
_SECONDS = 20


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_a_sentence_and_leaves_nothing_behind(case: Case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    undo = case.build()
    try:
        before = _fingerprints(tmp_path)
        with _in_time():
            code = run_command(list(case.command))
        said = capsys.readouterr()
        after = _fingerprints(tmp_path)
        if case.outcome in (REFUSED, STOPPED):
            assert code == 2, said
            _check_sentence(case, said.err)
            assert case.outcome == STOPPED or not [path for path in after.keys() - before if path.endswith(".yaml")]
        else:
            assert code == 0, said
            cohort = Cohort.open(tmp_path / case.command[3])
            _check_cohort(case, cohort)
            _check_sentence(case, said.out)
            if "--keep-ids" not in case.command:
                _check_own_names(cohort.path)
    finally:
        for step in undo:
            step()
    assert "Traceback" not in said.err + said.out
    assert "fault of FedBrainLM" not in said.err
    assert {path: after.get(path) for path in before} == before
    if case.outcome != STOPPED:
        assert not [path for path in after if path.endswith((".tmp", ".partial")) or ".partial/" in path]


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("big-endian float64 array", 0),
        ("UTF-16, as spreadsheets save it", 0),
        ("Windows line ends", 0),
        ("byte-order mark before the header", 0),
        ("bytes after the numbers of a .nii", 0),
        ("scaled int16 image", 0.02),
        ("big-endian image", 0),
        ("NIfTI-2 image", 0),
    ],
)
def test_another_form_of_the_same_numbers_gives_the_same_recording(name, tolerance, tmp_path, monkeypatch):
    case = next(case for case in CASES if case.name == name)
    read = []
    for number, build in enumerate((lambda: case.good.make(Path()), case.build)):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        build()
        assert run_command([*case.command, "--key", str(tmp_path / "key")]) == 0
        read.append({recording.recording_id: recording.signal for recording in Cohort.open("result/cohort")})

    assert read[0].keys() == read[1].keys()
    for recording_id, signal_ in read[0].items():
        np.testing.assert_allclose(read[1][recording_id], signal_, rtol=0, atol=tolerance)


def test_the_readme_lists_every_kind():
    assert [name for name, _, _ in readme_rows()] == list(RECIPES)
    assert len(CASES) >= 60


def _check_sentence(case: Case, said: str) -> None:
    """What the user sees is the case's sentence, which ends in what to do."""
    said = " ".join(said.split())
    pattern = ".*?".join(map(re.escape, case.says.split("…")))
    assert re.search(pattern, said), f"{case.says}\n  is not in\n{said}"
    assert case.outcome == ACCEPTED or re.search(rf"(?:[.,:;(]|\bor) (?:{_REMEDIES})\b", case.says, re.IGNORECASE)


def _check_cohort(case: Case, cohort: Cohort) -> None:
    """The good recordings are in and finite, and the bad one, if there is one, in the quarantine."""
    quarantined = [] if case.outcome == ACCEPTED else [case.outcome]
    assert cohort.quarantined["code"].tolist() == quarantined
    assert len(cohort) == 3 - len(quarantined)
    assert all(np.isfinite(recording.signal).all() for recording in cohort)


def _check_own_names(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).parts[0] != "site-only":
            content = path.read_bytes()
            if path.suffix == ".parquet":  # which is compressed
                content = pd.read_parquet(path).to_csv().encode()
            assert not (found := _OWN_NAMES.search(content)), f"{path}: {found}"
            assert not _OWN_NAMES.search(str(path.relative_to(folder)).encode())


def _fingerprints(folder: Path) -> dict[str, str]:
    """Path → what is there, of every file and folder but what the command is to make."""
    found = {}
    for path in folder.rglob("*"):
        readable = path.is_file() and os.access(path, os.R_OK)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if readable else "other"
        found[str(path.relative_to(folder))] = digest
    return found


@contextmanager
def _in_time() -> Iterator[None]:
    """Fail where a command waits for ever, as for the other end of a pipe."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"not done after {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
