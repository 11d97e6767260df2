import json
import shutil
from pathlib import Path

import pytest
import yaml

from cli.control import Outcome
from cli.errors import RunFailedError
from cli.main import run_command
from cli.run import _finish
from cohorts.simulation import SimulatedSite, simulate_cohorts
from server.journal import Journal
from server.study import load_study
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

    change(study, cohort={"atlases": ["schaefer100"], "max_t_r": 1.8})
    assert "cohort aalborg: has recordings of TR 2 s" in refused(capsys, tmp_path, study, "--simulate", *small_cohorts)

    change(study, covariates={"iq": {"center": 100, "scale": 15}}, harmonization={"keep": ["iq"]})
    assert "knows no participant's iq" in refused(capsys, tmp_path, study, "--simulate", *small_cohorts)

    change(study, covariates={"sex": {"levels": ["M", "X"]}})
    assert "sex has levels outside M, X" in refused(capsys, tmp_path, study, "--simulate", *small_cohorts)

    change(study, model={**STUDY["model"], "window": {"t_r": 2.0, "n_frames": 320, "patch_frames": 16}})
    assert "no recording is 640 s long" in refused(capsys, tmp_path, study, "--simulate", *small_cohorts)


def test_a_report_needs_a_run_that_ended(capsys, tmp_path):
    assert run_command(["report", str(tmp_path)]) == 2

    assert "has no summary" in capsys.readouterr().err


def test_cohorts_of_another_length_and_tr_meet_the_contract(tmp_path, study, small_cohorts):
    """Mixed TRs are the rule: nothing is refused for being unlike the model's TR."""
    from cli.run import _open_all
    from server.study import load_study

    site = SimulatedSite("fast", n_participants=3, t_r=0.72, n_frames=200)
    (fast,) = simulate_cohorts(tmp_path / "fast", [site], atlas="schaefer100", seed=0)

    cohorts = _open_all(load_study(study), [*small_cohorts, fast])

    assert [cohort.name for cohort in cohorts] == ["aalborg", "bergen", "coimbra", "fast"]


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
