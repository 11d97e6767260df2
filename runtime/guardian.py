"""Keep a SuperLink for as long as the command that needs it, then end everything that it started.

Run as ``python -m runtime.guardian HOME PROGRAM ARGUMENT...``, with a pipe as standard input that only the command
holds. However the command ends, even killed, the pipe closes. A SuperLink that ends leaves its simulation behind, and
Ray starts sessions of its own: what belongs to the run is therefore found by the FLWR_HOME in its environment.
"""

import os
import select
import subprocess
import sys

import psutil

from runtime.sockets import temporary_folder

_GRACE_S = 10
_POLL_S = 0.5


def main() -> None:
    home, *command = sys.argv[1:]
    with temporary_folder() as folder:  # of Ray's sessions, which it would leave, and of its sockets
        of_its_own = {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder), "RAY_ADDRESS": "local"}  # no other's Ray
        environment = {**os.environ, "FLWR_HOME": home, **of_its_own}
        superlink = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        while superlink.poll() is None and not select.select([sys.stdin], [], [], _POLL_S)[0]:
            pass
        while remaining := processes_of(home):
            end(remaining)
        superlink.wait()


def processes_of(home: str) -> list[psutil.Process]:
    """Processes of this user that were started with `home` as their FLWR_HOME, and their children.

    Children are looked for because Ray's workers write their title over their environment.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == home and process.status() != psutil.STATUS_ZOMBIE:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue  # another user's, or already gone
    return list(found)


def is_guarded(home: str) -> bool:
    """Whether a guardian of a command is still at work for `home`."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "runtime.guardian" in command and home in command:
            return True
    return False


def end(processes: list[psutil.Process]) -> None:
    """Ask, wait, then insist."""
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=_GRACE_S)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    main()
