"""Flower's own programs: a local SuperLink for simulations, and `flwr run`."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from base.errors import InputError, RunFailedError
from base.files import naming, write_text
from base.proxies import sparing_this_machine
from runtime.control import Outcome, explained, run_outcome, stop_run
from runtime.guardian import is_guarded

_START_S = 60
_POLL_S = 0.3
_LONGEST_PAUSE_S = 5.0
"""Between two questions to a SuperLink whether a run has ended."""
_PATIENCE_S, _STOP_S = 120.0, 30.0
"""With a SuperLink that does not answer: one that ended is started again after a minute at most."""
_SUBMIT_S = 10
"""For Flower to say the number of a run that was just being submitted when it is to stop."""

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Nothing phones home, and nothing is installed behind the user's back."""
_PROMPT = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25"}
"""Seconds between a SuperExec's looks for an app to start; Flower's own are 1."""


@dataclass(frozen=True)
class Simulation:
    """How sites are simulated."""

    sites: int
    """How many there are."""
    at_once: int
    """How many may compute at the same time, each in a process of its own."""
    alive: Callable[[], bool] = lambda: True
    """Whether their SuperLink still runs."""


@contextmanager
def simulation_superlink(home: Path, environment: dict[str, str]) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Run a SuperLink for simulations on a free port of this machine.

    Yields the name of the connection to it, and a function that says whether it still runs. It is stopped with
    everything that it started, however the block or this process ends: see `runtime.guardian`.
    """
    home.mkdir(parents=True, exist_ok=True)
    _wait_for_earlier(home)
    port = free_port()
    address = f"127.0.0.1:{port}"
    write_text(
        home / "config.toml",
        f'[superlink]\ndefault = "simulation"\n\n[superlink.simulation]\naddress = "{address}"\ninsecure = true\n',
    )
    command = [sys.executable, "-P", "-m", "runtime.guardian", str(home.resolve())]
    command += [program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (home / "superlink.log").open("ab") as log:  # of a run that is resumed, what was said before stays
        guardian = subprocess.Popen(
            command,
            env=environment_of(None, environment),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def alive() -> bool:
            return guardian.poll() is None

        wait_until_up(f"http://{address}/health", alive, home / "superlink.log")
        yield "simulation", alive
    finally:
        assert guardian.stdin is not None  # asked for above
        guardian.stdin.close()
        guardian.wait()


def flwr_run(
    app: Path,
    connection: str,
    run_directory: Path,
    home: Path | None,
    *,
    simulation: Simulation | None = None,
    watch: Callable[[], None] = lambda: None,
    stopping: Callable[[], None] = lambda: None,
) -> Outcome:
    """Submit a run with `flwr run` and wait until it ends, calling `watch` all the while.

    When the user stops the command, the run is stopped, after `stopping` was called.

    Parameters
    ----------
    app : Path
        Folder of the app.
    connection : str
        Name of the SuperLink connection in Flower's configuration.
    run_directory : Path
        The run's folder, which the ServerApp reads and writes.
    home : Path or None
        FLWR_HOME; the user's own if None.
    simulation : Simulation, optional
        None for a deployed federation.
    """
    command = [program("flwr"), "run", str(app), connection, "--stream"]
    command += ["--run-config", f'run-directory="{run_directory.resolve()}"']
    if simulation:
        sites = f"num-supernodes={simulation.sites} client-resources-num-cpus=1"
        command += ["--federation-config", f"{sites} init-args-num-cpus={simulation.at_once}"]
    superlink, log = connections(home)[connection], run_directory / "flower.log"
    # A run that is resumed is submitted once more: what was said before stays.
    with naming(log), log.open("ab") as file:
        file.write(f"=== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: submitted to {connection} ===\n".encode())
        file.flush()
        begun = file.tell()
        process = subprocess.Popen(
            command, env=environment_of(home, {}), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while process.poll() is None:
            watch()
            time.sleep(_POLL_S)
        watch()
        if not (run_id := _run_id(log, begun)):
            said = explained(last_words(log, begun))
            raise RunFailedError(f"'flwr run' did not start. Its last words: {said} (all of them: {log})")
        # `flwr run` exits with 0 even when the ServerApp crashed: the outcome is in the list of runs.
        return _outcome(superlink, run_id, watch, simulation.alive if simulation else lambda: True)
    except KeyboardInterrupt:  # the SuperLink would go on without us
        stopping()
        deadline = time.monotonic() + _SUBMIT_S
        while not (run_id := _run_id(log, begun)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if run_id and not _stop(superlink, run_id):
            raise RunFailedError(
                f"run {run_id} may go on: the SuperLink did not say that it was stopped. Give 'flwr stop {run_id} "
                f"{connection}' until it does."
            ) from None
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def flower_home() -> Path:
    """The user's own FLWR_HOME; an InputError if the user has neither that nor a home folder."""
    if named := os.environ.get("FLWR_HOME"):
        return Path(named)
    try:
        return Path.home() / ".flwr"
    except RuntimeError:
        raise InputError(
            "FLWR_HOME is not set, and neither is HOME, so that Flower's configuration has no place. Set FLWR_HOME to "
            "a folder."
        ) from None


def connections(home: Path | None = None) -> dict[str, dict[str, Any]]:
    """The SuperLink connections in Flower's configuration, by name."""
    path = (home or flower_home()) / "config.toml"
    if not path.is_file():
        return {}
    content = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
    return {name: value for name, value in sorted(content.items()) if isinstance(value, dict)}


def _stop(connection: Mapping[str, Any], run_id: int) -> bool:
    """Stop a run; say whether Flower says that it has ended."""
    give_up = time.monotonic() + _STOP_S
    while time.monotonic() < give_up:
        with suppress(RunFailedError):  # it has ended, or the SuperLink does not answer
            stop_run(connection, run_id)
        with suppress(RunFailedError):
            if run_outcome(connection, run_id).is_final:
                return True
        time.sleep(_POLL_S)
    return False


def _outcome(
    connection: Mapping[str, Any], run_id: int, watch: Callable[[], None], alive: Callable[[], bool]
) -> Outcome:
    """Ask the SuperLink until the run has ended, ever less often: the stream of its logs may break long before."""
    answered, pause = time.monotonic(), _POLL_S
    while alive() and time.monotonic() - answered < _PATIENCE_S:
        with suppress(RunFailedError):
            if (outcome := run_outcome(connection, run_id)).is_final:
                return outcome
            answered = time.monotonic()
        again = time.monotonic() + pause
        while time.monotonic() < again:
            watch()
            time.sleep(_POLL_S)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    return Outcome("unknown", "the SuperLink did not say how the run ended")


def _run_id(log: Path, begun: int) -> int | None:
    """Flower's number of the run that was submitted at this place of the log."""
    started = re.search(r"Successfully started run (\d+)", _said(log, begun))
    return int(started.group(1)) if started else None


def environment_of(home: Path | None, extra: dict[str, str]) -> dict[str, str]:
    """Environment of Flower's programs."""
    flower_home = {"FLWR_HOME": str(home.resolve())} if home else {}
    # Flower's programs start each other by name: let them find those beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**sparing_this_machine(os.environ), **QUIET, **_PROMPT, **flower_home, **extra, "PATH": path}


def program(name: str, remedy: str = "Use 'make install', or pip install 'flwr[simulation]'.") -> str:
    """Path of a program beside this Python; else from the PATH, and where Debian keeps those of root.

    Raises
    ------
    InputError
        If it is not installed.
    """
    beside = Path(sys.executable).parent / name
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = str(beside) if beside.is_file() else shutil.which(name, path=path)
    if not found:
        raise InputError(f"'{name}' is not installed. {remedy}")
    return found


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for_earlier(home: Path) -> None:
    """Wait until all that a killed command had started has been ended: its guardian ends whatever has this home."""
    deadline = time.monotonic() + _START_S
    while is_guarded(str(home.resolve())):
        if time.monotonic() > deadline:
            raise RunFailedError(f"{home}: the SuperLink of an earlier command is still there. Try again later.")
        time.sleep(_POLL_S)


def wait_until_up(url: str, alive: Callable[[], bool], log: Path, authority: Path | None = None) -> None:
    """Wait until a program answers at `url`; a RunFailedError with its last words if it ended or took too long."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and alive():
        if answers(url, authority):
            return
        time.sleep(_POLL_S)
    raise RunFailedError(f"Flower's SuperLink did not start. Its last words: {last_words(log)} (all of them: {log})")


def answers(url: str, authority: Path | None = None, timeout_s: float = 2) -> bool:
    """Whether a program of this machine answers at `url`, which no proxy is asked for."""
    verify = ssl.create_default_context(cafile=str(authority)) if authority else True
    try:
        return httpx.get(url, timeout=timeout_s, verify=verify, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def last_words(log: Path, begun: int = 0) -> str:
    """The last three lines of a log, from some byte on, that say something, without the boxes that Flower draws."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", _said(log, begun))  # without colours
    lines = [re.sub(r"[\u2500-\u257f]|\s+", " ", line).strip() for line in plain.splitlines()]
    return " ".join([line for line in lines if line not in ("", "Error")][-3:]) or "none"


def _said(log: Path, begun: int) -> str:
    return log.read_bytes()[begun:].decode(errors="replace")
