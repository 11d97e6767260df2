import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from server import journal as module
from server.errors import JournalError
from server.journal import Journal, RunProgress


def test_a_second_reader_sees_where_the_run_is(tmp_path):
    writer = Journal(tmp_path)
    assert Journal(tmp_path).progress() == RunProgress("starting", "", 0, 0, 0, "")
    writer.note(status="running", rounds=5, sites=3, stage="pretraining")
    for number in (1, 2):
        exchange = writer.begin_exchange("pretraining", "train", number, asked=3, bytes_down=100)
        if number == 1:
            writer.end_exchange(exchange, {"a": "ok", "b": "no reply", "c": "ok"}, bytes_up=70)

    reader = Journal(tmp_path)

    assert reader.progress() == RunProgress("running", "pretraining", 1, 5, 3, "")
    exchanges = reader.table("exchanges")
    assert exchanges["answered"].fillna(-1).tolist() == [2, -1]
    assert exchanges["bytes_up"].fillna(-1).tolist() == [70, -1]
    assert reader.table("outcomes")["outcome"].tolist() == ["ok", "no reply", "ok"]


def test_metrics_come_back_in_order(tmp_path):
    journal = Journal(tmp_path)
    journal.measure(1, {"a": {"loss": 0.5}, "all": {"loss": 0.25, "n_windows": 3}})
    journal.measure(2, {"a": {"loss": float("nan")}})

    table = journal.table("metrics")

    assert table[["round", "site", "name"]].to_numpy().tolist() == [
        [1, "a", "loss"],
        [1, "all", "loss"],
        [1, "all", "n_windows"],
        [2, "a", "loss"],
    ]
    assert table["value"].isna().tolist() == [False, False, False, True]


def test_what_was_written_survives_a_kill(tmp_path):
    script = (
        "import os; from pathlib import Path; from server.journal import Journal\n"
        f"j = Journal(Path({str(tmp_path)!r})); j.note(status='running', stage='embedding')\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)

    assert Journal(tmp_path).progress().stage == "embedding"


def test_checkpoints_sort_by_round(tmp_path):
    journal = Journal(tmp_path)

    assert journal.checkpoint(7).name == "round-0007.safetensors"
    assert sorted([journal.checkpoint(10), journal.checkpoint(9)]) == [journal.checkpoint(9), journal.checkpoint(10)]


def test_a_journal_that_another_program_locks_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    journal = Journal(tmp_path)
    other = sqlite3.connect(tmp_path / "journal.sqlite")
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(JournalError, match=r"database is locked.*end the program that holds the file"):
        journal.note(stage="embedding")

    other.close()
    journal.note(stage="embedding")
    assert journal.progress().stage == "embedding"


def test_a_run_is_one_to_the_sites_however_often_it_is_resumed(tmp_path):
    assert Journal(tmp_path).run == Journal(tmp_path).run
    assert len(Journal(tmp_path).run) == 32


def test_a_question_that_was_cut_off_is_asked_again_as_it_was(tmp_path):
    journal, sites = Journal(tmp_path), ("a", "b", "c", "d")
    first = journal.attempt("x", 1, "q1", sites)
    journal.begin_exchange("x", "m", None, 4, 0, first)
    second = replace(first, attempt=2, sites=sites[:3])
    journal.begin_exchange("x", "m", None, 3, 0, second)
    journal.begin_exchange("describe", "query.describe", None, 4, 0)

    assert (first.step, first.attempt) == (1, 1)
    assert journal.attempt("x", 1, "q1", sites) == second
    assert journal.attempt("x", 1, "q2", sites).step == 2  # another question has another number
    later = journal.attempt("x", 2, "q3", sites)
    journal.begin_exchange("x", "m", None, 4, 0, later)
    assert (later.step, later.attempt, later.sites) == (2, 1, sites)
    assert journal.attempt("x", 1, "q1", sites).step == 3  # sites forget what is over


def test_a_file_is_whole_as_long_as_it_is_what_was_sealed(tmp_path):
    journal = Journal(tmp_path)
    path = journal.checkpoint(1)
    path.parent.mkdir()
    path.write_bytes(b"weights")
    assert not journal.is_whole(path)
    journal.seal(path)
    assert journal.is_whole(path)
    assert journal.rounds_done() == 1

    path.write_bytes(b"weight!")
    assert not journal.is_whole(path)
    path.unlink()
    assert not journal.is_whole(path)


def test_a_run_that_nobody_holds_any_more_has_failed(tmp_path):
    journal = Journal(tmp_path)
    journal.note(status="running")
    with journal.at_work():
        assert journal.end() is None
    assert journal.end().status == "failed"
    assert "--resume" in journal.end().reason
    journal.note(status="completed")
    assert journal.end().status == "completed"
