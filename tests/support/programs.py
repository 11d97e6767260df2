"""Start the real programs, and look for what they leave behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

PROGRAMS = Path(sys.executable).parent


def start(
    program: str,
    *arguments: object,
    folder: Path,
    log: Path | None = None,
    within: Sequence[str] = (),
    **environment: object,
) -> "subprocess.Popen[str]":
    """Start a program that lies beside this Python, in `folder`; what it says goes into pipes, or into `log`.

    The command goes behind the words of `within`, such as those of a program that enters a network namespace.
    """
    variables = {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    output = log.open("w") if log else subprocess.PIPE
    return subprocess.Popen(
        [*within, str(PROGRAMS / program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        text=True,
        cwd=folder,
        env={**variables, **{name: str(value) for name, value in environment.items()}},
        preexec_fn=_hear_interrupts,
    )


def _hear_interrupts() -> None:
    """Undo that a shell lets its background jobs, and all that they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_at_once(program: str, *given: Sequence[object]) -> list[str]:
    """Run a Python program in a process for each of its arguments; return what each prints.

    The program reads a line of its input before it begins, so that all of them begin together.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    processes = [subprocess.Popen([sys.executable, "-c", program, *map(str, one)], **pipes) for one in given]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes)
    return said


def start_run(study: dict[str, object], folder: Path, *where: object, **environment: object) -> "subprocess.Popen[str]":
    """Start ``fedbrainlm run`` on a study, with its runs in `folder`."""
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return start("fedbrainlm", "run", "study.yaml", "--runs", "runs", *where, folder=folder, **environment)


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until a condition holds; say whether it did in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
