import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from base.errors import FileError
from base.files import locked
from deployment import serving
from deployment.coordinator import Federation, FederationSettings
from deployment.supervisor import SUPERVISOR, _Program, end_programs, record, running
from runtime.flower import environment_of

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def federation(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    federation = Federation.make(tmp_path / "north", FederationSettings(name="north", host="localhost"))
    yield federation
    serving.stop(federation)


def test_a_process_is_known_by_its_number_and_its_beginning(federation):
    process = subprocess.Popen(SLEEP)
    record(federation, "superlink", process.pid)
    assert running(federation, "superlink") == psutil.Process(process.pid)

    path = federation.run / "superlink.json"
    boot, ticks = json.loads(path.read_text())["began"].split()
    for another in (
        f"{boot} {int(ticks) - 1}",
        f"{boot[::-1]} {ticks}",
    ):  # the number is another one's, or of another boot
        path.write_text(json.dumps({"pid": process.pid, "began": another}))
        assert running(federation, "superlink") is None
    assert end_programs(federation) is False
    assert process.poll() is None
    process.kill()
    process.wait()


@pytest.mark.parametrize("step_s", [-86400, -1, 1, 3600])
def test_a_clock_that_is_set_changes_nothing(federation, monkeypatch, step_s):
    """Linux tells when a process began as a time after the boot, which psutil adds to a time of day that moves."""
    supervisor, program = subprocess.Popen(SLEEP), subprocess.Popen(SLEEP)
    record(federation, SUPERVISOR, supervisor.pid)
    record(federation, "superlink", program.pid)
    before = psutil.Process(program.pid).create_time()
    moved = psutil.boot_time() + step_s
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: moved)
    assert psutil.Process(program.pid).create_time() == before + step_s

    assert serving.processes(federation)["superlink"] == psutil.Process(program.pid)
    assert serving.start(federation) is False
    assert serving.stop(federation) is True

    assert not any(psutil.pid_exists(process.pid) for process in (supervisor, program))
    assert list(federation.run.glob("*.json")) == []


def test_a_supervisor_that_does_not_end_is_made_to(federation, monkeypatch):
    monkeypatch.setattr(serving, "_STOP_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    supervisor = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    supervisor.stdout.read(1)
    record(federation, SUPERVISOR, supervisor.pid)

    assert serving.stop(federation) is True

    assert supervisor.wait(10) == -9


def test_of_two_commands_at_once_one_starts_the_federation(federation):
    with locked(federation.run), pytest.raises(FileError, match="another command is changing it"):
        serving.start(federation)


def test_everything_that_was_started_is_ended_and_nothing_else(federation):
    text = f"import subprocess, time; subprocess.Popen({SLEEP!r}); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", text], env=environment_of(federation.home, {}))
    orphan = subprocess.Popen(SLEEP, env=environment_of(federation.home, {}))  # of a program that was started again
    other = subprocess.Popen(SLEEP, env=environment_of(None, {}))
    record(federation, "superexec", parent.pid)
    children = wait_for(lambda: psutil.Process(parent.pid).children())

    assert end_programs(federation) is True

    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert not any(psutil.pid_exists(process.pid) for process in (parent, orphan))
    assert other.poll() is None
    assert list(federation.run.glob("*.json")) == []
    other.kill()
    other.wait()


def test_a_program_that_ends_is_started_again_after_a_pause_that_grows(federation, capsys):
    program = _Program("superlink", [sys.executable, "-c", "print('said')"])
    program.keep(federation)
    program.process.wait()

    program.keep(federation)

    assert program.process is None
    assert program.pause == 2
    assert "superlink ended with code 0; again in 2 s" in capsys.readouterr().out
    program.began -= 3
    program.keep(federation)
    program.process.wait()
    assert (federation.logs / "superlink.log").read_text() == "said\nsaid\n"


def wait_for(look):
    deadline = time.monotonic() + 10
    while not (found := look()) and time.monotonic() < deadline:
        os.sched_yield()
    return found
