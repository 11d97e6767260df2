import subprocess
import sys

from server.journal import Journal, Progress


def test_a_second_reader_sees_where_the_run_is(tmp_path):
    writer = Journal(tmp_path)
    assert Journal(tmp_path).progress() == Progress("starting", "", 0, 0, 0, "")
    writer.note(status="running", rounds=5, sites=3, stage="pretraining")
    for number in (1, 2):
        exchange = writer.begin_exchange("pretraining", "train", number, asked=3, bytes_down=100)
        if number == 1:
            writer.end_exchange(exchange, {"a": "ok", "b": "no reply", "c": "ok"}, bytes_up=70)

    reader = Journal(tmp_path)

    assert reader.progress() == Progress("running", "pretraining", 1, 5, 3, "")
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
