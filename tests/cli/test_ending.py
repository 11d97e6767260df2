"""However a run ends: its journal, its summary, its report and what is said agree."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from base.errors import InputError, RunFailedError, StoppedError
from cli.ending import end_noted
from cli.main import run_command
from cli.run import _finish
from runtime.flower import Outcome
from server.errors import QuorumError
from server.journal import WHERE, Journal
from study.settings import Study, load_study
from tests.support.federation import PLAIN, STUDY, run_study, write_sites
from tests.support.local_grid import LocalGrid


@pytest.fixture
def begun(tmp_path) -> Path:
    """The folder of a simulation that was set up."""
    folder = tmp_path / "run"
    (folder / "sites").mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    (folder / "study.yaml").write_text(study_of(folder).to_yaml())
    Journal(folder).note(status="running", stage="pretraining", **{WHERE: "simulation"})
    return folder


def study_of(folder: Path) -> Study:
    return load_study(folder / "study.yaml")


def ends_of(folder: Path) -> set[tuple[str, str]]:
    """Status and reason, as every file has them."""
    progress, end = Journal(folder).progress(), Journal(folder).end()
    summary = json.loads((folder / "summary.json").read_text())
    return {(progress.status, progress.reason), (end.status, end.reason), (summary["status"], summary["reason"])}


def test_a_run_that_the_user_stops_is_stopped_everywhere_and_says_how_to_go_on(begun):
    with (
        pytest.raises(StoppedError, match=f"Go on with it: fedbrainlm run --resume {begun}$"),
        end_noted(study_of(begun), begun),
    ):
        raise KeyboardInterrupt

    assert ends_of(begun) == {("stopped", "stopped by the user")}
    assert run_command(["report", str(begun)]) == 0
    report = (begun / "report.html").read_text()
    assert "stopped by the user" in report
    assert '<span class="status stopped">' in report


def test_what_breaks_while_the_user_stops_a_run_is_no_failure(tmp_path, small_cohorts):
    """The ServerApp loses its SuperLink, and writes an end of its own."""
    folder = tmp_path / "run"

    def stop(node: int, message: object) -> bool:
        if node == 1:
            Journal(folder).note(stopped="stopped by the user")
        return False

    with pytest.raises(QuorumError):
        run_study(folder, LocalGrid(write_sites(tmp_path / "s", small_cohorts), stop), PLAIN)
    assert ends_of(folder) == {("stopped", "stopped by the user")}


def test_a_study_that_was_completed_while_it_was_stopped_stays_completed(finished_run, tmp_path):
    folder = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))

    with (
        pytest.raises(StoppedError, match=f"completed. Its report: fedbrainlm report {folder}$"),
        end_noted(study_of(folder), folder),
    ):
        raise KeyboardInterrupt

    assert ends_of(folder) == {("completed", "")}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RunFailedError("Flower did not start."), "Flower did not start.\nGo on with it: fedbrainlm run --resume"),
        (InputError("no such connection."), "no such connection."),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_what_breaks_while_a_run_is_set_up_is_its_reason(begun, error, says):
    with pytest.raises(type(error), match=says), end_noted(study_of(begun), begun):
        raise error

    assert ends_of(begun) == {("failed", str(error))}


def test_before_its_sites_are_set_up_a_run_is_begun_again(begun):
    (begun / "sites").rmdir()

    assert Journal(begun).end().reason.endswith("Begin it again")
    with pytest.raises(StoppedError, match="Begin it again"), end_noted(study_of(begun), begun):
        raise KeyboardInterrupt


def test_a_run_that_was_killed_is_told_so_in_its_report_too(begun):
    """Nobody was left to write it."""
    (begun / "summary.json").write_text('{"status": "completed", "reason": ""}')  # the moment before the journal

    assert run_command(["report", str(begun)]) == 0

    (end,) = ends_of(begun)
    assert end[0] == "failed"
    assert "its process was killed" in end[1]
    assert "its process was killed" in (begun / "report.html").read_text()


def test_there_is_no_report_of_a_run_that_goes_on(begun, capsys):
    with Journal(begun).at_work():
        assert run_command(["report", str(begun)]) == 2
    assert "still going on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "status"), [("finished:stopped", "stopped"), ("finished:failed", "failed"), ("unknown", "failed")]
)
def test_what_flower_says_stands_where_the_serverapp_said_nothing(begun, outcome, status):
    with pytest.raises(RunFailedError, match="fedbrainlm run --resume"):
        _finish(study_of(begun), begun, Outcome(outcome, "as it was"), quiet=True)

    assert ends_of(begun) == {(status, "as it was")}
