"""The real thing: `fedbrainlm run` starts a SuperLink, Ray and `flwr run`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from server.journal import Journal
from tests.support.federation import STUDY

FEDBRAINLM = Path(sys.executable).parent / "fedbrainlm"


def start(study: dict[str, object], cohorts: list[Path], folder: Path) -> "subprocess.Popen[str]":
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    command = [FEDBRAINLM, "run", folder / "study.yaml", "--runs", folder / "runs", "--simulate", *cohorts]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def processes_of(folder: Path) -> list[int]:
    """Processes whose environment or command names `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in said and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def wait_until_gone(folder: Path, seconds: float = 30) -> list[int]:
    deadline = time.monotonic() + seconds
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def test_a_simulation_equals_the_same_study_in_one_process(tmp_path, small_cohorts, finished_run):
    process = start(STUDY, small_cohorts, tmp_path)
    out, err = process.communicate(timeout=300)

    assert process.returncode == 0, err
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert f"Report: {folder / 'report.html'}" in out
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
        assert (state / "small" / "embedding.residualized.parquet").is_file()
        assert (state / "audit.jsonl").is_file()
    assert wait_until_gone(tmp_path) == []


def test_a_failed_run_exits_with_1_and_its_reason(tmp_path, small_cohorts):
    training = {**STUDY["training"], "optimizer": "sgd", "learning_rate": 1e30, "clip_norm": None}
    process = start({**STUDY, "training": training}, small_cohorts, tmp_path)
    _, err = process.communicate(timeout=300)

    assert process.returncode == 1
    assert "training.diverged" in err
    assert "Traceback" not in err
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "training.diverged" in summary["reason"]
    assert wait_until_gone(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_nothing_running(tmp_path, small_cohorts, kill):
    averaging = {**STUDY["averaging"], "rounds": 500}
    process = start({**STUDY, "averaging": averaging}, small_cohorts, tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        folders = list((tmp_path / "runs" / "small").glob("*")) if (tmp_path / "runs" / "small").is_dir() else []
        if folders and Journal(folders[0]).progress().round_number >= 2:
            break
        time.sleep(0.5)
    process.send_signal(kill)
    process.communicate(timeout=60)

    assert wait_until_gone(tmp_path, 60) == []
    last = sorted((folders[0] / "checkpoints").glob("round-*.safetensors"))[-1]
    from brainlm import load_checkpoint

    assert load_checkpoint(last)[1]["round"] >= 2
    if kill is not signal.SIGKILL:
        assert process.returncode == 130
        assert Journal(folders[0]).progress().status == "stopped"
