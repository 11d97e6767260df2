"""Disks that are full, read-only or not mounted: each command says which file, and what to do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from base.errors import of_the_disk
from cli.main import run_command
from tests.support.disks import filled, remount, small_disk
from tests.support.federation import STUDY

COMMANDS = [
    "site init DISK/new --name bergen --cohort COHORT",
    "site key DISK/site/site.yaml --out DISK/key.json",
    "site approve DISK/site/site.yaml HASH --unseen --by Anna --yes",
    "federation init DISK/other --name other --host localhost",
    "federation add-site DISK/north DISK/site/aalborg.bundle.json",
    "federation package DISK/north --out DISK/join.json",
    "federation renew DISK/north",
    "federation start DISK/north",
    "study build study.yaml --out DISK/small.fab",
    "run study.yaml --runs DISK/runs --simulate COHORT COHORT2 COHORT3",
    "cohort simulate DISK/cohorts --sites 3",
    "cohort export COHORT DISK/export --format bids",
    "cohort export COHORT DISK/export --format huggingface",
]


@pytest.fixture
def disk(tmp_path, small_cohorts, monkeypatch) -> Iterator[Path]:
    """A small disk with a site and a federation on it."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    with small_disk(tmp_path / "disk") as folder:
        cohort = str(small_cohorts[0])
        assert run_command(["site", "init", f"{folder}/site", "--name", "aalborg", "--cohort", cohort]) == 0
        assert run_command(["federation", "init", f"{folder}/north", "--name", "north", "--host", "localhost"]) == 0
        yield folder


def said(capsys, command: str, disk: Path, cohorts: list[Path]) -> str:
    """What a command that cannot write says."""
    words = {"DISK": disk, "COHORT2": cohorts[1], "COHORT3": cohorts[2], "COHORT": cohorts[0], "HASH": "a" * 64}
    for word, value in words.items():
        command = command.replace(word, str(value))
    capsys.readouterr()
    assert run_command(command.split()) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_cannot_be_written_is_said_with_the_file(disk, small_cohorts, capsys, command):
    with filled(disk):
        full = said(capsys, command, disk, small_cohorts)
    remount(disk, "ro")
    read_only = said(capsys, command, disk, small_cohorts)

    for sentence, reason in ((full, "No space left on device"), (read_only, "Read-only file system")):
        assert reason in sentence
        assert f"Error: {disk}/" in sentence
        assert "fault of FedBrainLM" not in sentence


@pytest.mark.parametrize("command", ["start", "execute", "check"])
def test_nothing_is_begun_anew_where_the_disk_of_a_site_is_not_mounted(disk, capsys, command):
    aside, settings = disk / "site" / "aside", disk / "site" / "site.yaml"
    settings.write_text(settings.read_text().replace("executor: here", "executor: elsewhere"))
    for moved in ("not there", "empty"):
        (disk / "site" / "state").rename(aside)
        if moved == "empty":
            (disk / "site" / "state").mkdir()
        capsys.readouterr()

        assert run_command(["site", command, str(settings)]) == (1 if command == "check" else 2)

        spoken = " ".join("".join(capsys.readouterr()).split())
        assert f"state: is {moved}; expected the site's state folder. Is its disk mounted?" in spoken
        assert not (disk / "site" / "state" / "x25519.key").exists()
        if moved == "empty":
            (disk / "site" / "state").rmdir()
        aside.rename(disk / "site" / "state")


def test_a_disk_that_is_gone_is_no_fault_of_ours():
    error = of_the_disk(OSError(116, "whatever", "/mnt/cohort/index"))
    assert str(error) == (
        "/mnt/cohort/index: cannot be used (Stale file handle). See whether its disk is mounted and whole, and repeat "
        "the command."
    )
    assert of_the_disk(ConnectionRefusedError(111, "refused")) is None
    assert of_the_disk(ValueError()) is None
