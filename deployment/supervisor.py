"""Keep a federation's programs running, and end all that they started.

Run as ``python -m deployment.supervisor FOLDER`` by ``fedbrainlm federation start``. A program that ends is started
again, after a pause that grows. ``run/NAME.json`` says which process each is, and when that began: a number that
another process has taken since is nobody's to end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from base.files import write_text
from base.output import say
from deployment.coordinator import Federation
from runtime.flower import environment_of
from runtime.guardian import end, processes_of

SUPERVISOR = "supervisor"
_POLL_S = 0.5
_LONGEST_PAUSE_S = 60
_STEADY_S = 120
"""After so long without a fault, the next pause is a short one again."""


@dataclass
class _Program:
    """A program that is kept running."""

    name: str
    command: list[str]
    process: "subprocess.Popen[bytes] | None" = None
    began: float = 0.0
    pause: float = 1.0

    def keep(self, federation: Federation) -> None:
        """Start the program if it is not running and its pause is over."""
        if self.process is not None and self.process.poll() is None:
            return
        now = time.monotonic()
        if self.process is not None:
            self.pause = 1.0 if now - self.began > _STEADY_S else min(2 * self.pause, _LONGEST_PAUSE_S)
            say(f"{self.name} ended with code {self.process.returncode}; again in {self.pause:g} s")
            self.process = None
            self.began = now
        if self.began and now - self.began < self.pause:
            return
        with (federation.logs / f"{self.name}.log").open("ab") as log:
            self.process = begin(self.command, federation, log, federation.home)
        self.began = now
        record(federation, self.name, self.process.pid)


def main() -> None:
    """Keep the programs of a federation until told to end."""
    federation = Federation(Path(sys.argv[1]))
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: told.append(number))
    record(federation, SUPERVISOR, os.getpid())
    programs = [_Program(name, command) for name, command in federation.programs().items()]
    while not told:
        for program in programs:
            program.keep(federation)
        time.sleep(_POLL_S)
    end_programs(federation)


def record(federation: Federation, name: str, pid: int) -> None:
    """Write down which process a program is."""
    write_text(federation.run / f"{name}.json", json.dumps({"pid": pid, "began": began(pid)}))


def began(pid: int) -> str:
    """When a process began, in words that stay the same when the clock is set: the boot, and the ticks since then.

    Raises
    ------
    psutil.NoSuchProcess
        If there is no such process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        after_its_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{boot} {int(after_its_name[19])}"  # field 22, starttime: proc_pid_stat(5)
    except FileNotFoundError:  # no such process, or a system without /proc: there, both move with the clock
        return f"{psutil.Process(pid).create_time() - psutil.boot_time():.0f} s"


def running(federation: Federation, name: str) -> psutil.Process | None:
    """Return the process of a program, if it runs."""
    path = federation.run / f"{name}.json"
    with suppress(OSError, ValueError, KeyError, psutil.Error):
        content = json.loads(path.read_text(encoding="utf-8"))
        process = psutil.Process(content["pid"])
        if began(process.pid) == content["began"] and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def end_programs(federation: Federation) -> bool:
    """End every program of a federation but the supervisor, with all that they started; say whether any ran."""
    names = [path.stem for path in federation.run.glob("*.json") if path.stem != SUPERVISOR]
    found: set[psutil.Process] = set()
    for process in filter(None, (running(federation, name) for name in names)):
        with suppress(psutil.Error):
            found |= {process, *process.children(recursive=True)}
    # A program that was started again has left what it had started before: that is known by its FLWR_HOME.
    found |= set(processes_of(str(federation.home))) - {psutil.Process()}
    end(list(found))
    for name in names:
        (federation.run / f"{name}.json").unlink(missing_ok=True)
    return bool(found)


def begin(
    command: list[str],
    federation: Federation,
    log: IO[bytes],
    home: Path | None = None,
    *,
    start_new_session: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start a program in the federation's folder, with `home` for its FLWR_HOME, else the user's own."""
    return subprocess.Popen(
        command,
        env=environment_of(home, {}),
        cwd=federation.folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=start_new_session,
    )


if __name__ == "__main__":
    main()
