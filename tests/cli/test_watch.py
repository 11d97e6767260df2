import json
import shutil
import sqlite3

import pytest
from rich.console import Console

from base.errors import InputError
from cli.main import run_command
from cli.watch import find_run
from cli.watching import _view
from server.journal import Journal


@pytest.fixture
def small_run(tmp_path):
    """A run of two rounds, of which the second one is going on."""
    folder = tmp_path / "runs" / "small" / "20260101-000000"
    folder.mkdir(parents=True)
    journal = Journal(folder)
    journal.checkpoint(1).parent.mkdir()
    journal.note(status="running", rounds=2, sites=2, stage="pretraining")
    exchange = journal.begin_exchange("pretraining", "train", 1, asked=2, bytes_down=100)
    journal.end_exchange(exchange, {"a": "ok", "b": "no reply"}, bytes_up=70)
    journal.measure(1, {"all": {"loss": 0.5}})
    journal.checkpoint(1).write_bytes(b"weights")
    journal.seal(journal.checkpoint(1))
    journal.say("b answered twice")
    return journal


def watched(capsys, *arguments: object) -> tuple[int, str, str]:
    code = run_command(["watch", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err.replace("\n", " ")


def test_a_run_that_completed_is_told_in_lines(capsys, tmp_path, small_run):
    small_run.note(status="completed")

    code, out, _ = watched(capsys, "20260101-000000", "--runs", tmp_path / "runs")

    assert code == 0
    assert out.splitlines() == [
        "pretraining: round 1 of 2, 1 of 2 sites, loss 0.5000; b: no reply",
        "note: b answered twice",
        "pretraining: 2 sites",
        f"completed: {small_run.folder}",
    ]


def test_sites_that_were_not_in_all_of_a_run_are_named_at_its_end(capsys, small_run):
    small_run.note(status="completed")
    small_run.leave_out("c", "describe", "policy.small-group")

    _, out, _ = watched(capsys, small_run.folder)
    _, events, _ = watched(capsys, small_run.folder, "--json")

    last = "Not in all of the run: c was left out when the sites gathered: policy.small-group ("
    assert out.splitlines()[-1].startswith(last)
    (absence,) = json.loads(events.splitlines()[-1])["absences"]
    assert (absence["site"], absence["why"]) == ("c", "policy.small-group")


def test_a_script_reads_events(capsys, small_run):
    small_run.note(status="failed", reason="below the quorum")

    code, out, err = watched(capsys, small_run.folder, "--json")

    assert code == 1
    assert "below the quorum" in err
    events = {event["event"]: event for event in map(json.loads, out.splitlines())}
    assert events["round"]["sites"] == {"a": "ok", "b": "no reply"}
    assert (events["round"]["loss"], events["round"]["bytes_up"], events["round"]["bytes_down"]) == (0.5, 70, 100)
    assert (events["end"]["status"], events["end"]["reason"]) == ("failed", "below the quorum")


def test_a_run_that_was_killed_is_told_from_one_that_goes_on(capsys, small_run):
    code, _, err = watched(capsys, small_run.folder)

    assert code == 1
    assert f"killed. Go on with 'fedbrainlm run --resume {small_run.folder}'" in err.replace("  ", " ")


def test_a_run_is_found_by_its_folder_or_its_id(tmp_path, small_run):
    runs, name = tmp_path / "runs", small_run.folder.name

    assert find_run(str(small_run.folder), runs) == find_run(name, runs) == small_run.folder
    with pytest.raises(InputError, match="holds no run of that id"):
        find_run("20250101-000000", runs)
    shutil.copytree(small_run.folder, runs / "other" / name)
    with pytest.raises(InputError, match="Name the folder"):
        find_run(name, runs)


def shown(journal: Journal) -> str:
    console = Console(width=120)
    with console.capture() as seen:
        console.print(_view(journal))
    return seen.get()


def test_what_is_left_of_training_goes_by_the_last_rounds_and_one_that_waited_changes_nothing(tmp_path):
    journal = Journal(tmp_path)
    journal.note(status="running", stage="gathering the sites", rounds=0)
    assert "round" not in shown(journal)
    journal.note(stage="pretraining", rounds=10)
    journal.checkpoint(1).parent.mkdir()
    began = 1000.0
    for number, seconds in enumerate((200, 60, 60, 5000, 60, 60), 1):  # compiled first, and stopped for an hour
        exchange = journal.begin_exchange("pretraining", "train", number, asked=2, bytes_down=100)
        journal.end_exchange(exchange, {"a": "ok"}, bytes_up=70)
        with sqlite3.connect(tmp_path / "journal.sqlite") as database:
            times = (began + 20, began + seconds, exchange)  # between two rounds, the coordinator averages
            database.execute("UPDATE exchanges SET started = ?, ended = ? WHERE id = ?", times)
        began += seconds
        journal.checkpoint(number).write_bytes(b"weights")
        journal.seal(journal.checkpoint(number))
        if number == 1:
            assert "0:27:00 of training left" in shown(journal)
    assert "round 6 of 10" in shown(journal)
    assert "0:04:00 of training left" in shown(journal)

    journal.note(stage="harmonization")
    journal.begin_exchange("harmonization", "summarize", None, asked=2, bytes_down=1)
    assert "1 question so far" in shown(journal)
    assert "round" not in shown(journal)
