"""The real thing: `fedbrainlm run` starts a SuperLink, Ray and `flwr run`."""

import json
import os
import signal

import pytest

from brainlm import load_checkpoint
from server.journal import Journal
from tests.support.federation import PLAIN, STUDY
from tests.support.programs import processes_of, start, start_run, wait_until

HOSTILE = {
    **dict.fromkeys(("http_proxy", "HTTPS_PROXY", "grpc_proxy"), "http://127.0.0.1:9"),
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "RAY_ADDRESS": "127.0.0.1:9",
}
"""What an environment may say that is none of a simulation's business."""


def test_a_simulation_equals_the_same_study_in_one_process(tmp_path, small_cohorts, finished_run):
    """Whatever the environment says of proxies and other Rays, and however deep temporary files lie."""
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    process = start_run(STUDY, tmp_path, "--simulate", *small_cohorts, TMPDIR=deep, **HOSTILE)
    out, err = process.communicate(timeout=300)

    assert process.returncode == 0, err
    assert list(deep.glob("fedbrainlm-*")) == []
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert f"Report: {folder.relative_to(tmp_path) / 'report.html'}" in out
    assert (folder / "report.html").stat().st_size > 100_000
    assert "pretraining: round" in err
    for number in range(3):
        checkpoint = Journal(folder).checkpoint(number)
        assert checkpoint.read_bytes() == finished_run.journal.checkpoint(number).read_bytes()
    real, in_process = (json.loads((path / "summary.json").read_text()) for path in (folder, finished_run.folder))
    for features, targets in in_process["probes"].items():
        for variant, scores in targets["age"].items():  # BLAS may add in another order with other threads
            assert real["probes"][features]["age"][variant] == pytest.approx(scores, rel=1e-9)
    for cohort in small_cohorts:
        state = folder / "sites" / cohort.name / "state"
        assert (state / "studies" / "small" / "embedding.residualized.parquet").is_file()
        assert (state / "audit.jsonl").is_file()
    assert processes_of(tmp_path) == []


@pytest.mark.slow
def test_a_failed_run_exits_with_1_and_its_reason(tmp_path, small_cohorts):
    training = {**STUDY["training"], "optimizer": "sgd", "learning_rate": 1000, "clip_norm": None}
    process = start_run({**PLAIN, "training": training}, tmp_path, "--simulate", *small_cohorts)
    _, err = process.communicate(timeout=300)

    assert process.returncode == 1
    assert "training.diverged" in err
    assert "Traceback" not in err
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "training.diverged" in summary["reason"]
    assert processes_of(tmp_path) == []


@pytest.mark.slow
def test_a_simulation_that_runs_out_of_memory_says_so_and_what_to_do(tmp_path, small_cohorts):
    """By Ray's own watch over memory, which is told that 1 % is too much."""
    monitor = {"RAY_memory_usage_threshold": 0.01, "RAY_memory_monitor_refresh_ms": 100}
    process = start_run(STUDY, tmp_path, "--simulate", *small_cohorts, **monitor)
    _, err = process.communicate(timeout=400)

    assert process.returncode == 1
    said = " ".join(err.split())
    assert "the machine ran out of memory" in said
    assert "Close other programs" in said
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert "ran out of memory" in json.loads((folder / "summary.json").read_text())["reason"]
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_nothing_running(tmp_path, small_cohorts, kill):
    averaging = {**STUDY["averaging"], "rounds": 500}
    process = start_run({**STUDY, "averaging": averaging}, tmp_path, "--simulate", *small_cohorts)
    runs = tmp_path / "runs" / "small"
    assert wait_until(lambda: list(runs.glob("*/checkpoints/round-0002*")), 120)
    process.send_signal(kill)
    _, err = process.communicate(timeout=60)

    assert wait_until(lambda: not processes_of(tmp_path), 60)
    (folder,) = runs.iterdir()
    last = sorted((folder / "checkpoints").glob("round-*.safetensors"))[-1]
    assert load_checkpoint(last)[1]["round"] >= 2
    if kill is not signal.SIGKILL:
        assert process.returncode == 130
        last = f"Stopped. Go on with it: fedbrainlm run --resume {folder.relative_to(tmp_path)}"
        assert err.splitlines()[-1] == last
        summary = json.loads((folder / "summary.json").read_text())
        end = ("stopped", "stopped by the user")
        assert (summary["status"], summary["reason"]) == end
        assert (Journal(folder).progress().status, Journal(folder).progress().reason) == end


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretraining", "harmonization"])
def test_a_run_whose_server_is_killed_is_resumed_to_the_same_weights(tmp_path, small_cohorts, finished_run, stage):
    """By the process that the run's folder names; Flower takes a minute to miss it."""
    process = start_run(STUDY, tmp_path, "--simulate", *small_cohorts)
    begun = {"pretraining": "checkpoints/round-0001*", "harmonization": "answers/harmonization-0001*"}[stage]
    assert wait_until(lambda: list(tmp_path.glob(f"runs/small/*/{begun}")), 240)
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    os.kill(int((folder / ".server.lock").read_text()), signal.SIGKILL)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 1
    assert f"fedbrainlm run --resume {folder.relative_to(tmp_path)}" in err
    watched = start("fedbrainlm", "watch", folder.name, folder=tmp_path)
    assert "the run failed" in watched.communicate(timeout=60)[1]

    resumed = start("fedbrainlm", "run", "--resume", folder.name, "--json", folder=tmp_path)
    out, err = resumed.communicate(timeout=600)

    assert resumed.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert {"event": "note", "text": "resumed"} in events
    assert [event["round"] for event in events if event["event"] == "round"] == [1, 2]
    end = {"event": "end", "status": "completed", "reason": "", "folder": str(folder.relative_to(tmp_path))}
    assert events[-1] == end
    for number in range(3):
        checkpoint = Journal(folder).checkpoint(number)
        assert checkpoint.read_bytes() == finished_run.journal.checkpoint(number).read_bytes()
    assert (folder / "report.html").is_file()
    assert processes_of(tmp_path) == []
