"""Flower's SuperExec, which starts each app as a fork of a process that has torch in memory already.

Flower starts a process for each message, and most of what a short one costs is importing torch, pandas and Flower: four
seconds of the processor. Here a second process imports them once, and nothing of ours: an app brings its own code,
which a fork imports anew and takes along when it ends. It knows no secret and starts no thread; those of OpenBLAS and
jemalloc are made for forks. Run as a file, so that nothing of the installation is imported: ``python -P prefork.py``
with the arguments of ``flower-superexec``.
"""

import importlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

NEEDED = (
    "numpy",
    "torch",
    "torch._dynamo",  # which optimizers import
    "pandas",
    "pyarrow.parquet",
    "scipy.interpolate",
    "scipy.linalg",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.signal",
    "scipy.sparse",
    "scipy.special",
    "scipy.stats",
    "cryptography.hazmat.primitives.asymmetric.x25519",
    "pydantic",
    "safetensors.torch",
    "yaml",
    "flwr.clientapp",
    "flwr.supernode.cli.flwr_clientapp",
)
"""What apps import and what is not ours."""
MEMORY_GB = "FEDBRAINLM_MEMORY_GB"
"""Environment variable that says how much memory an app may take."""
_LARGEST = 2**16
_GRACE_S = 10.0


def main() -> None:
    """Split into the SuperExec and the process that apps are forks of."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        here.close()
        serve(there)
        os._exit(0)
    there.close()
    run_superexec(here)


def run_superexec(forks: socket.socket) -> None:
    """Run Flower's SuperExec, whose apps are asked for at a socket."""
    from flwr.supercore.cli.flower_superexec import flower_superexec
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
    from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

    def launch(_self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
        if spec.task_type is not TaskType.CLIENT_APP:  # a site runs nothing else of Flower's
            return LaunchResult.failed(f"a site starts no {spec.task_type}.")
        arguments = ["flwr-clientapp", "--runtime-api-address", spec.runtime_api_address, "--token", spec.token]
        arguments += ["--insecure", "--parent-pid", str(os.getpid())]
        forks.send(json.dumps(arguments).encode())
        return LaunchResult.accepted()

    SubprocessExecutor.launch = launch  # type: ignore[method-assign, assignment]  # for this process
    threading.Thread(target=_end_with, args=(forks,), daemon=True).start()
    flower_superexec()


def _end_with(forks: socket.socket) -> None:
    """End once the process that apps are forks of has ended: both are then started again."""
    forks.recv(1)  # nothing is ever said
    print("fedbrainlm: the process that starts apps has ended, and the SuperExec with it.", flush=True)
    os._exit(1)


def serve(asked: socket.socket) -> None:
    """Import what apps need, and fork an app for each list of arguments that arrives, until the other side is gone."""
    _call_it("fedbrainlm-apps")
    for name in NEEDED:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the SuperExec ends by it, and this with the SuperExec
    apps: set[int] = set()
    while arguments := asked.recv(_LARGEST):
        if (app := os.fork()) == 0:
            asked.close()
            _become_app(json.loads(arguments))
        apps.add(app)
        apps -= _ended(apps)
    _end(apps)


def _ended(apps: set[int]) -> set[int]:
    """Let apps that have ended go, which until then stay in the system's list; return which they are."""
    ended = {app: status for app in apps for found, status in [os.waitpid(app, os.WNOHANG)] if found}
    if any(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL for status in ended.values()):
        hint = "perhaps by the system, for lack of memory: 'dmesg' tells. A smaller training.batch_size takes less."
        print(f"fedbrainlm: an app was killed while it answered a message, {hint}", flush=True)
    return set(ended)


def _end(apps: set[int]) -> None:
    """Wait until apps end, which miss their SuperExec, too; one that was just fetching its question never would."""
    deadline = time.monotonic() + _GRACE_S
    while (apps := apps - _ended(apps)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for app in apps:
        os.kill(app, signal.SIGKILL)


def _become_app(arguments: list[str]) -> None:
    """Run the app of one message, and end as Flower's own program would."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    signal.signal(signal.SIGINT, signal.default_int_handler)
    _call_it(arguments[0])
    _limit_memory()
    sys.argv = arguments
    code = 1
    try:
        flwr_clientapp()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _limit_memory() -> None:
    """Let this process have no more memory of its own than the site's policy gives: what asks for more fails alone."""
    if gigabytes := os.environ.get(MEMORY_GB):
        limit = int(float(gigabytes) * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _call_it(name: str) -> None:
    """Say in lists of processes what this one is, where the system lets us."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)


if __name__ == "__main__":
    main()
