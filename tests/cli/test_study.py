"""A first study from the cohorts at hand: the very cohorts meet it, whatever they are."""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cli.main import run_command
from cohorts import Atlas, Cohort, Recording, load_atlas
from study.at_hand import open_cohorts
from study.first import find_columns
from study.settings import Study, load_study
from tests.support.federation import run_study, write_sites
from tests.support.local_grid import LocalGrid


def make(
    folder: Path,
    name: str,
    *,
    n: int = 30,
    n_frames: int = 80,
    t_r: float = 2.0,
    atlas: Atlas | str = "schaefer100",
    mean: float = 5,
    **columns: list[object],
) -> Path:
    """A cohort of matrices; by default its people differ in age and sex."""
    known = {"age": [20.0 + number for number in range(n)], "sex": ["F", "M"] * (n // 2), **columns}
    ids = [f"sub-{name}{number:02d}" for number in range(n)]
    people = pd.DataFrame({"participant_id": ids, **{key: values for key, values in known.items() if values}})
    cohort = Cohort.create(folder / name, atlas=atlas, participants=people)
    rng = np.random.default_rng(len(name))
    for participant in ids:
        signal = mean + rng.normal(size=(n_frames, cohort.atlas.n_parcels))
        cohort.add(Recording(participant, signal.astype(np.float32), t_r, participant))
    cohort.save()
    return folder / name


def init(folder: Path, cohorts: list[Path], capsys, name: str = "first.yaml") -> tuple[Study, str]:
    """Write a study, check that every cohort meets it, and return it with its text."""
    out = folder / name
    assert run_command(["study", "init", *map(str, cohorts), "--out", str(out)]) == 0
    study = load_study(out)
    open_cohorts(study, cohorts)
    for cohort in cohorts:
        assert run_command(["cohort", "check", str(cohort), "--study", str(out), "--no-report"]) == 0
        assert "the cohort meets its contract" in capsys.readouterr().out
    return study, out.read_text()


def test_simulated_hospitals_run_a_study_made_of_them_unchanged_but_for_its_length(tmp_path, small_cohorts, capsys):
    study, text = init(tmp_path, small_cohorts, capsys)

    assert study.cohort.atlases == ("schaefer100",)
    assert study.model.window.t_r == 2.5  # coimbra's, the slowest
    assert study.model.window.seconds == 60
    assert (study.averaging.quorum, study.averaging.sites, study.privacy.secure_sums) == (3, 3, True)
    assert study.analyses.targets == ("age", "sex")
    assert study.residualized == ("age", "sex", "site", "mean_fd", "tsnr")
    assert text.count("#") > 15
    content = yaml.safe_load(text)
    content["training"]["steps_per_round"], content["averaging"]["rounds"] = 2, 1
    content["analyses"] |= {"permutations": 5, "category_permutations": 2, "bootstrap": 5}
    journal = run_study(tmp_path / "run", LocalGrid(write_sites(tmp_path / "s", small_cohorts)), content)
    assert journal.progress().status == "completed"


def test_what_matrices_do_not_tell_is_left_out_and_said(tmp_path, capsys):
    cohorts = [make(tmp_path, name, mean=0, sex=["M"] * 30) for name in ("a", "b", "c")]

    study, text = init(tmp_path, cohorts, capsys)

    assert study.residualized == ("age", "site")
    assert study.harmonization.keep == ("age",)
    assert study.analyses.targets == ("age",)
    said = text.replace("\n  # ", " ")
    assert "without sex (M for everybody), mean_fd (not known of most people of a, b, c), tsnr (not known" in said


@pytest.mark.parametrize(("n_sites", "method"), [(1, "none"), (2, "combat")])
def test_few_sites_get_a_study_in_the_clear(tmp_path, capsys, n_sites, method):
    study, text = init(tmp_path, [make(tmp_path, name) for name in "ab"[:n_sites]], capsys)

    assert (study.averaging.quorum, study.privacy.secure_sums) == (n_sites, False)
    assert study.harmonization.method == method
    assert f"with {n_sites}, the coordinator reads each site's own numbers" in text


def test_columns_become_targets_and_covariates_with_their_levels(tmp_path, capsys):
    codes = [1.0, 2.0] * 14 + [math.nan, 1.0]
    own = {"dx": ["ASD", "TDC", "TDC"] * 10, "group": codes, "iq": list(np.linspace(80, 130, 30))}
    cohorts = [
        make(tmp_path, name, **own, scanner=[kind] * 30)
        for name, kind in {"a": "GE", "b": "GE", "c": "Siemens"}.items()
    ]

    study, text = init(tmp_path, cohorts, capsys)

    assert study.covariates["dx"].levels == ("ASD", "TDC")
    assert study.covariates["group"].levels == ("1", "2")
    assert (study.covariates["iq"].center, study.covariates["iq"].scale) == (100, 20)
    assert study.analyses.targets == ("age", "sex", "dx", "group")
    assert "you may add iq" in text
    assert "scanner" not in study.covariates  # it is the same for everybody within each site


def test_columns_are_taken_whatever_their_names_would_mean_in_yaml(tmp_path, capsys):
    names = ("yes", "1", "group: dx", "# cells", "Größe\nin cm", "'", "[a]")
    columns = {name: ["a", "b", "b"] * 10 for name in names}
    cohorts = [make(tmp_path, site, **columns) for site in ("x", "y", "z")]

    study, text = init(tmp_path, cohorts, capsys)

    assert set(study.covariates) == set(names)
    assert study.analyses.targets == ("age", "sex", *names[:2])
    assert "Größe" in text


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((["x"] * 30, ["x"] * 30), "x for everybody"),
        (([f"kind {number % 9}" for number in range(30)],) * 2, "text of 9 kinds"),
        ((["x"] * 29 + ["y"], ["x"] * 30), "only 1 people are y"),
        (([1.0] * 10 + [math.nan] * 20, [2.0] * 30), "not known of most people of a"),
        (
            ([1e20 * number for number in range(30)],) * 2,
            "its numbers are too large or too small to be coded. Give them in other units",
        ),
        (([f"1990-01-{1 + number:02d}" for number in range(30)],) * 2, "it tells who people are"),
    ],
)
def test_columns_of_no_use_are_left_out_with_the_reason(values, why):
    ids = [f"sub-{number}" for number in range(30)]
    people = {name: pd.DataFrame({"participant_id": ids, "x": v}) for name, v in zip("ab", values, strict=True)}

    assert find_columns(people).left_out == {"x": why}


def test_columns_that_only_some_cohorts_have_are_left_out(tmp_path, capsys):
    cohorts = [make(tmp_path, "a", iq=list(range(30))), make(tmp_path, "b", age=[])]

    study, text = init(tmp_path, cohorts, capsys)

    assert study.analyses.targets == ("sex",)
    assert "iq is left out: not known of most people of b" in text
    assert "age (not known of most people of b)" in text


def test_windows_are_as_long_as_recordings_allow(tmp_path, capsys):
    short = [make(tmp_path, "a", n_frames=20), make(tmp_path, "b", n_frames=80, t_r=0.72)]
    study, _ = init(tmp_path, short, capsys)
    assert study.model.window.seconds == 32  # two patches: recordings of a are 40 s long

    (tmp_path / "shorter").mkdir()
    shorter = [make(tmp_path / "shorter", "c", n_frames=15), short[1]]
    assert run_command(["study", "init", *map(str, shorter), "--out", str(tmp_path / "no.yaml")]) == 2
    assert "cohort c: too many recordings are shorter than 32 s" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "no.yaml").exists()


def test_an_atlas_that_nobody_knows_by_name_is_named_by_its_table(tmp_path, capsys):
    atlas = load_atlas("schaefer100")
    own = Atlas("ours", atlas.labels[:50], atlas.coordinates[:50])
    cohorts = [make(tmp_path, name, atlas=own) for name in ("a", "b", "c")]

    study, text = init(tmp_path, cohorts, capsys)

    assert "a/atlas.json" in text  # relative to the study
    assert study.contract().atlases == {"ours": own.content_hash}


def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, small_cohorts, capsys):
    first = str(small_cohorts[0])

    def refused(*arguments: str) -> str:
        assert run_command(["study", "init", *arguments]) == 2
        return capsys.readouterr().err.replace("\n", " ")

    out = tmp_path / "s.yaml"
    assert "two cohorts are called 'aalborg'" in refused(first, first, first, "--out", str(out))
    assert "'study' is 'a b'; expected 1 to 64 letters" in refused(first, "--out", str(out), "--name", "a b")
    assert str(out) in refused(first, "--out", str(out), "--name", "a b")
    assert "expected a cohort's folder" in refused(str(tmp_path), "--out", str(out))
    assert "no such folder" in refused(first, "--out", str(tmp_path / "none" / "s.yaml"))
    assert not list(tmp_path.glob("*.yaml"))
    out.write_text("mine")
    assert "exists already" in refused(first, "--out", str(out))
    assert out.read_text() == "mine"


def test_a_file_name_that_is_no_name_of_a_study_gives_one(tmp_path, small_cohorts, capsys):
    study, _ = init(tmp_path, [Path(shutil.copytree(small_cohorts[0], tmp_path / "c"))], capsys, "my first study!.yaml")

    assert study.study == "my-first-study"
