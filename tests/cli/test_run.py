import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from base.errors import InputError, RunFailedError
from cli.main import run_command
from cli.run import _finish, run_study
from cohorts.simulation import SimulatedSite, simulate_cohorts
from runtime.control import Outcome
from server.journal import Journal
from study.at_hand import open_cohorts
from study.settings import load_study
from tests.support.cohorts import with_gaps
from tests.support.federation import STUDY


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


def change(study, **changes: object) -> None:
    study.write_text(yaml.safe_dump({**STUDY, **changes}))


def refused(capsys, tmp_path, *arguments: object) -> str:
    """Run, expect exit code 2 and no run folder, and return what was said."""
    code = run_command(["run", *map(str, arguments), "--runs", str(tmp_path / "runs")])
    error = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()
    return error.replace("\n", " ")


def test_what_cannot_work_is_said_before_flower_starts(capsys, tmp_path, study, small_cohorts):
    first, second, _ = small_cohorts

    assert "either --simulate COHORT_DIR... or --federation" in refused(capsys, tmp_path, study)
    assert "1 cohorts were given; the study's quorum is 3" in refused(capsys, tmp_path, study, "--simulate", first)
    assert "two cohorts are called 'aalborg'" in refused(capsys, tmp_path, study, "--simulate", first, first)
    assert "is not a cohort" in refused(capsys, tmp_path, study, "--simulate", first, tmp_path)
    assert "no such connection" in refused(capsys, tmp_path, study, "--federation", "nowhere")
    assert "no such file" in refused(capsys, tmp_path, tmp_path / "none.yaml", "--simulate", first, second)


def test_cohorts_that_miss_the_contract_are_named(capsys, tmp_path, study, small_cohorts):
    change(study, cohort={"atlases": ["aal116"]})
    said = refused(capsys, tmp_path, study, "--simulate", *small_cohorts)
    assert "cohort aalborg: has atlas schaefer100; the study allows aal116" in said

    change(study, covariates={"iq": {"center": 100, "scale": 15}}, harmonization={"keep": ["iq"]})
    assert "knows no participant's iq" in refused(capsys, tmp_path, study, "--simulate", *small_cohorts)

    change(study, model={**STUDY["model"], "window": {"t_r": 2.0, "n_frames": 320, "patch_frames": 16}})
    said = refused(capsys, tmp_path, study, "--simulate", *small_cohorts)
    assert "21 of 21 recordings are shorter than the window of 640 s (they have 132 s); 0 of 21 participants" in said


def test_recordings_below_the_window_are_counted_and_too_few_of_them_refused(capsys, tmp_path, study, small_cohorts):
    """Sixty seconds, where the window has 64."""
    long = {**STUDY["analyses"], "folds": 8}
    change(study, analyses=long)
    few = with_gaps(small_cohorts[0], tmp_path / "few", short=14, frames=30)
    some = with_gaps(small_cohorts[0], tmp_path / "some", short=4, frames=30, without_age=2)
    counted = "cohort aalborg: {} of 21 recordings are shorter than the window of 64 s (they have 60 s); {} of 21 part"

    said = refused(capsys, tmp_path, study, "--simulate", few, *small_cohorts[1:])
    assert counted.format(14, 7) in said
    assert "Expected a participant or more for each of 8 folds. Shorten model.window" in said
    assert run_command(["cohort", "check", str(few), "--no-report", "--study", str(study)]) == 2
    assert counted.format(14, 7) in capsys.readouterr().err

    assert run_command(["cohort", "check", str(some), "--no-report", "--study", str(study)]) == 0
    said = capsys.readouterr().out
    assert "meets its contract" in said
    lacking = "cohort aalborg: 2 of 17 participants lack one of age, mean_fd, sex, tsnr: they are trained on, and in no"
    assert counted.format(4, 17) in said
    assert lacking in said
    open_cohorts(load_study(study), [some, *small_cohorts[1:]])
    said = capsys.readouterr().err
    assert counted.format(4, 17) in said
    assert lacking in said


def test_a_report_needs_a_run_that_ended(capsys, tmp_path):
    assert run_command(["report", str(tmp_path)]) == 2

    assert "has no summary" in capsys.readouterr().err


def test_cohorts_of_another_length_and_tr_meet_the_contract(tmp_path, study, small_cohorts):
    """Mixed TRs are the rule: nothing is refused for being unlike the model's TR."""
    site = SimulatedSite("fast", n_participants=3, t_r=0.72, n_frames=200)
    (fast,) = simulate_cohorts(tmp_path / "fast", [site], atlas="schaefer100", seed=0)

    cohorts = open_cohorts(load_study(study), [*small_cohorts, fast])

    assert [cohort.name for cohort in cohorts] == ["aalborg", "bergen", "coimbra", "fast"]


@pytest.mark.parametrize(
    ("cohorts", "at_once", "said"),
    [
        ("data/oslo", None, "cohorts is 'data/oslo'; expected a list of folders"),
        (Path("data/oslo"), None, "cohorts is 'data/oslo'; expected a list of folders"),
        ([], 0, "at_once is 0; expected 1 site or more"),
        ([], -1, "at_once is -1; expected 1 site or more"),
        ([], 1, "0 cohorts were given"),
    ],
)
def test_what_python_gives_is_checked_as_what_a_command_is_given(tmp_path, study, cohorts, at_once, said):
    with pytest.raises(InputError, match=said):
        run_study(study, cohorts, tmp_path / "runs", at_once=at_once)
    assert not (tmp_path / "runs").exists()


def test_a_federation_that_cannot_be_reached_is_a_failed_run(capsys, tmp_path, study, monkeypatch):
    (tmp_path / "config.toml").write_text('[superlink.consortium]\naddress = "127.0.0.1:1"\ninsecure = true\n')
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))

    code = run_command(["run", str(study), "--federation", "consortium", "--runs", str(tmp_path / "runs")])

    assert code == 1
    assert "Connection to the SuperLink is unavailable" in capsys.readouterr().err
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert Journal(folder).progress().status == "failed"


def test_only_a_run_that_did_not_end_well_is_resumed(capsys, tmp_path, study, finished_run):
    assert "is no run's folder" in refused(capsys, tmp_path, "--resume", "20260101-000000")
    assert "Name nothing else" in refused(capsys, tmp_path, study, "--resume", finished_run.folder)
    assert "Name a study's YAML file" in refused(capsys, tmp_path)
    assert "is completed" in refused(capsys, tmp_path, "--resume", finished_run.folder)

    journal = Journal(tmp_path)
    journal.note(status="failed")
    assert "begun by an earlier version" in refused(capsys, tmp_path, "--resume", tmp_path)
    journal.note(where="simulation")
    with journal.at_work():
        assert "is still going on" in refused(capsys, tmp_path, "--resume", tmp_path)
    journal.note(where="federation:nordic")
    assert "--at-once is of simulations" in refused(capsys, tmp_path, "--resume", tmp_path, "--at-once", "2")
    assert "--at-once is of simulations" in refused(capsys, tmp_path, study, "--federation", "x", "--at-once", "2")


def test_what_ended_a_simulation_is_said_everywhere_before_what_its_server_knew_of_it(tmp_path, finished_run):
    folder = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    Journal(folder).note(status="failed", reason="describe: 0 of 3 sites answered.")
    outcome = Outcome("finished:failed", "", "the machine ran out of memory. Close other programs.")

    with pytest.raises(RunFailedError) as failed:
        _finish(load_study(folder / "study.yaml"), folder, outcome, quiet=True)

    said = "the machine ran out of memory. Close other programs. (describe: 0 of 3 sites answered.)"
    assert str(failed.value).startswith(f"{said}\nGo on with it: ")
    summary = json.loads((folder / "summary.json").read_text())
    assert (Journal(folder).progress().reason, summary["reason"]) == (said, said)
    assert summary["sites"].keys() == {"aalborg", "bergen", "coimbra"}


def test_a_completed_study_is_one_whatever_flower_says(tmp_path, finished_run):
    """Its ServerApp tells Flower once how it ended, which a SuperLink that is just starting does not hear."""
    folder = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    (folder / "report.html").unlink(missing_ok=True)

    _finish(load_study(folder / "study.yaml"), folder, Outcome("finished:failed", "No heartbeat"), quiet=True)

    assert (folder / "report.html").is_file()
    assert Journal(folder).progress().status == "completed"


def test_all_that_is_wrong_with_the_cohorts_is_said_at_once(capsys, tmp_path, study, small_cohorts):
    change(
        study,
        harmonization={"reference": "oslo"},
        analyses={**STUDY["analyses"], "folds": 15},
        covariates={"iq": {"center": 100}, "sex": {"levels": ["M", "X"]}},
        cohort={"atlases": ["schaefer100"], "max_t_r": 1.8},
    )

    said = refused(capsys, tmp_path, study, "--simulate", *small_cohorts)

    assert "no cohort is called 'oslo'. Name one of aalborg, bergen, coimbra" in said
    assert "cohort coimbra: all 11 recordings are as long as the window of 64 s. Expected a participant or more" in said
    assert "for each of 15 folds. Lower analyses.folds, or" in said
    assert "cohort aalborg: has recordings of TR 2 s" in said
    assert "cohort bergen: sex has levels outside M, X: 'F' (" in said


@pytest.fixture
def told_apart(tmp_path):
    """Make cohorts from one table a site of their people, and return their folders."""

    def make(**columns: tuple[list[object], ...]) -> list[Path]:
        folders = simulate_cohorts(
            tmp_path / "made",
            [SimulatedSite(name, n_participants=6, t_r=2.0, n_frames=66) for name in ("a", "b", "c")],
            atlas="schaefer100",
            seed=0,
        )
        for site, folder in enumerate(folders):
            table = pd.read_csv(folder / "participants.tsv", sep="\t")
            for name, values in columns.items():
                table[name] = values[site]
            table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
        return folders

    return make


@pytest.mark.parametrize(
    ("columns", "changes", "said"),
    [
        (
            {"sex": (["F"] * 6,) * 3},
            {},
            "sex: is F for everybody in these cohorts, and tells nothing. Leave it out of har",
        ),
        (
            {"dx": (["a", "b"] * 3,) * 3},
            {"covariates": {"dx": {"levels": ["a", "b", "c"]}}, "analyses": {"targets": ["dx"], "folds": 3}},
            "dx: nobody in these cohorts is c. Leave that out of its levels, or leave it out of analyses.targets",
        ),
        (
            {"scanner": (["a"] * 6, ["a"] * 6, ["b"] * 6)},
            {"covariates": {"scanner": {"levels": ["a", "b"]}}, "harmonization": {"keep": ["scanner"]}},
            "scanner: is the same for everybody within each cohort, so its effect cannot be told from the site's",
        ),
        (
            {"iq": ([100.0] * 6,) * 3},
            {"covariates": {"iq": {}}, "analyses": {"targets": ["iq"], "folds": 3}},
            "iq: is 100 for everybody in these cohorts",
        ),
        (
            {
                "iq": ([math.nan] * 5 + [99.0], [100.0] * 6, [90.0] * 6),
                "age": ([30.0] * 5 + [math.nan], *[[20.0] * 6] * 2),
            },
            {"covariates": {"iq": {}}, "analyses": {"targets": ["iq"], "folds": 3}},
            "cohort a: 0 of 6 participants have all of age, iq, mean_fd, sex, tsnr; expected one or more for each of",
        ),
    ],
)
def test_what_the_people_at_hand_do_not_tell_is_said_before_training(
    capsys, tmp_path, study, told_apart, columns, changes, said
):
    folders = told_apart(**columns)
    change(study, **{"analyses": {"targets": [], "folds": 3}, **changes})

    assert said in refused(capsys, tmp_path, study, "--simulate", *folders)
