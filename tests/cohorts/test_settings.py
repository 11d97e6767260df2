"""A cohort is prepared by the same settings on the command line, in a file, and in Python."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from base.errors import SettingsError
from base.wording import docstrings_of
from cli.main import run_command
from cohorts import Cohort, atlas_names
from cohorts.identities import OwnNames
from cohorts.preparation import prepare_cohort
from cohorts.settings import KINDS, MatrixSettings, Preparation, check_preparation
from tests.support.cohorts import contents


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three matrices of parcels by frames, and a table of whose they are."""
    (tmp_path / "site" / "source").mkdir(parents=True)
    for number in range(3):
        signal = np.random.default_rng(number).normal(50, 1, size=(100, 90)).astype(np.float32)
        np.save(tmp_path / "site" / "source" / f"sub-{number}.npy", signal)
    rows = "".join(f"sub-{number}\t{30 + number}\tF\n" for number in range(3))
    (tmp_path / "site" / "people.tsv").write_text("participant_id\tage\tsex\n" + rows)
    return tmp_path / "site"


def command(folder: Path, out: str, *more: object) -> list[str]:
    fast = ("--workers", "0", "--no-report", "--keep-ids")
    return ["cohort", "prepare", str(folder / "source"), str(folder / out / "oslo"), *map(str, more), *fast]


def test_options_a_file_and_python_give_the_same_cohort(folder):
    options = ("--atlas", "schaefer100", "--tr", 2, "--orientation", "parcels-first", "--select", "age=31.0")
    assert run_command(command(folder, "a", *options, "--participants", folder / "people.tsv")) == 0

    content = {"atlas": "schaefer100", "tr": 2, "orientation": "parcels-first", "select": ["age=31.0"]}
    (folder / "prepare.yaml").write_text(yaml.safe_dump({**content, "participants": "people.tsv"}))
    assert run_command(command(folder, "b", "--settings", folder / "prepare.yaml")) == 0

    settings = MatrixSettings(participants=folder / "people.tsv", **content)
    people = settings.read_participants(folder / "source")
    opened = settings.open(folder / "source", people)
    prepare_cohort(opened, folder / "c" / "oslo", settings, participants=people, names=OwnNames())

    assert len(Cohort.open(folder / "a" / "oslo")) == 1
    assert contents(folder / "a") == contents(folder / "b") == contents(folder / "c")


def test_the_settings_are_kept_and_prepare_the_same_again(folder, monkeypatch):
    monkeypatch.chdir(folder)
    options = ("--atlas", "schaefer100", "--tr", 2, "--participants", "people.tsv")
    options += ("--orientation", "parcels-first")
    assert run_command(command(folder, "a", *options)) == 0

    kept = folder / "a" / "oslo" / "site-only" / "prepare.yaml"
    said = {"kind": "matrices", "atlas": "schaefer100", "participants": str(folder / "people.tsv"), "tr": 2.0}
    said["orientation"] = "parcels-first"
    assert yaml.safe_load(kept.read_text()) == said
    assert run_command(command(folder, "b", "--settings", kept, "--tr", 2.5)) == 0

    assert Cohort.open(folder / "b" / "oslo").about.t_r == (2.5,)  # what is given counts
    monkeypatch.chdir("/")
    assert run_command(command(folder, "c", "--settings", kept)) == 0
    assert contents(folder / "c") == contents(folder / "a")


FAULTS = {"select": ["age"], "columns": "9-3", "tr": 2000.0, "high_pass": 0.1, "scaling": "z", "missing": "no"}


def test_all_faults_are_told_at_once_by_the_names_of_options(folder, capsys):
    given = ("--select", "age", "--columns", "9-3", "--tr", "2000", "--high-pass", "0.1")
    assert run_command(command(folder, "a", *given)) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    for sentence in (
        "--select age: expected COLUMN=VALUE",
        "--columns 9-3: expected FIRST-LAST",
        "--tr 2000: expected seconds, above 0 and at most 20. If it is in milliseconds, give 2.",
        "--high-pass: has no meaning for a source of kind matrices, only for fmriprep and nifti. Leave it out.",
        "--atlas is missing. Atlas of the columns: a424",
    ):
        assert sentence in said

    with pytest.raises(SettingsError) as raised:
        check_preparation({**FAULTS, "oriention": "auto"}, "matrices", "prepare.yaml")
    lines = str(raised.value).splitlines()
    assert all(line.startswith("prepare.yaml: ") for line in lines)
    for name in FAULTS:
        assert sum(f"--{name.replace('_', '-')}" in line or f"'{name}'" in line for line in lines) == 1, name
    assert "prepare.yaml: 'oriention' is not a known field. Did you mean 'orientation'?" in lines


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("kind: bids", "'kind' is 'bids'; expected one of fmriprep, xcpd, nifti, matrices"),
        ("kind: false", "'kind' is False; expected one of fmriprep, xcpd, nifti, matrices"),
        ("kind: ''", "'kind' is ''; expected one of fmriprep, xcpd, nifti, matrices"),
        ("- a", "expected 'name: value' lines"),
        ("orientation: up", "'orientation' is 'up'; expected one of auto, frames-first, parcels-first"),
        ("kind: xcpd\ncensoring: none", "'censoring' is 'none'; expected one of as-is, interpolate, drop"),
        ("kind: fmriprep\nfd_threshold: 0.2", "Confound strategy 'simple' has no option fd_threshold"),
        ("kind: nifti\nhigh_pass: 0.1\nlow_pass: 0.01", "Filters of 0.1 to 0.01 Hz"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(folder, capsys, content, said):
    (folder / "prepare.yaml").write_text(content)

    assert run_command(command(folder, "a", "--settings", folder / "prepare.yaml")) == 2

    error = " ".join(capsys.readouterr().err.split())
    assert "prepare.yaml" in error
    assert said in error
    assert not (folder / "a").exists()


def test_every_field_says_what_it_is_and_the_atlases_are_those_that_come_along():
    for model in KINDS.values():
        assert docstrings_of(model).keys() == model.model_fields.keys()
    said = docstrings_of(Preparation)["atlas"]
    assert said.removeprefix("Atlas of the columns: ").partition(", or")[0] == ", ".join(atlas_names())
