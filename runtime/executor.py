"""What starts a site's apps: Flower's SuperExec, kept running.

It belongs to the SuperNode's process; or, with ``supernode.executor: elsewhere``, to a process of its own in a
container without a network: ``python -m runtime.executor SITE.yaml``, as ``fedbrainlm site execute`` runs it.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from base.proxies import only
from base.secrets import secret_once
from base.settings import read_settings
from client.process import keep_private
from client.settings import SiteSettings
from runtime import relay
from runtime.prefork import MEMORY_GB
from runtime.sockets import temporary_folder, temporary_paths_are_short

_PREFORK = Path(__file__).with_name("prefork.py")
_LONGEST_PAUSE_S = 60
_STEADY_S = 120
"""After so long without a fault, the next pause is a short one again."""


class SuperExec:
    """Flower's SuperExec, started again whenever it ends; with this process it ends by itself.

    It ends alone when its SuperNode answers with an error, such as a database that is locked.
    """

    def __init__(self, settings: SiteSettings, state: Path) -> None:
        address = f"127.0.0.1:{settings.supernode.port}"
        self.command = [sys.executable, "-P", str(_PREFORK), "--runtime-api-address", address, "--insecure"]
        # With a secret: any other program of this machine could take an app's place.
        self.command += ["--superexec-auth-secret-file", str(secret_path(state)), "--parent-pid", str(os.getpid())]
        if settings.supernode.executor == "elsewhere" and settings.supernode.health:
            self.command += ["--health-server-address", settings.supernode.health]
        # Apps reach their SuperNode, and have no use for a proxy's password.
        self._environment = {**only(None, os.environ), MEMORY_GB: str(settings.policy.max_memory_gb)}
        self._apps = flower_home(state) / "apps"
        self._told_to_end = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        """Keep it running until `end` is called, with pauses that grow."""
        # Flower never replaces an installed app: whatever lies there from before must not be taken for an approved one.
        shutil.rmtree(self._apps, ignore_errors=True)
        if temporary_paths_are_short():
            self._keep(self._environment)
            return
        with temporary_folder() as folder:  # an app's own processes speak over sockets there
            self._keep({**self._environment, "TMPDIR": str(folder)})

    def _keep(self, environment: dict[str, str]) -> None:
        pause = 1.0
        while not self._told_to_end.is_set():
            began = time.monotonic()
            said = self._run(environment)
            if time.monotonic() - began > _STEADY_S:
                pause = 1.0
            if not self._told_to_end.is_set():
                print(f"fedbrainlm: the SuperExec {said}; again in {pause:g} s", flush=True)
            self._told_to_end.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _run(self, environment: dict[str, str]) -> str:
        """Run it once; say how it ended."""
        try:
            self._process = subprocess.Popen(self.command, env=environment)
        except OSError as error:  # no memory, or too many processes
            return f"cannot be started ({error.strerror})"
        if self._told_to_end.is_set():  # meanwhile
            self._process.terminate()
        return f"ended with code {self._process.wait()}"

    def end(self) -> None:
        """End it, and do not start it again."""
        self._told_to_end.set()
        if self._process is not None:
            self._process.terminate()


def secret_path(state: Path) -> Path:
    """Return the file of the secret that the SuperNode knows its SuperExec by."""
    path = state / "superexec.secret"
    secret_once(path, lambda: secrets.token_hex(32))
    return path


def socket_path(state: Path) -> Path:
    """Where a SuperNode whose apps run elsewhere is reached."""
    return state / "supernode.socket"


def flower_home(state: Path) -> Path:
    """Folder where Flower unpacks apps: its FLWR_HOME."""
    return state / "flower"


def main() -> None:
    """Start the apps of a SuperNode that runs elsewhere, until told to end."""
    keep_private()
    path = Path(sys.argv[1])
    settings = read_settings(path, SiteSettings)
    state = (path.parent / settings.state).resolve()
    os.environ["FLWR_HOME"] = str(flower_home(state))
    relay.start(settings.supernode.port, socket_path(state))
    executor = SuperExec(settings, state)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: executor.end())
    executor.keep()


if __name__ == "__main__":
    main()
