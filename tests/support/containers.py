"""A container engine, and containers as the compose files describe them."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.programs import PROGRAMS

DOCKER = Path(__file__).parents[2] / "docker"
ENGINE = shutil.which("podman") or shutil.which("docker")


def why_not(images: Sequence[str]) -> str | None:
    """Why containers cannot be tried here; None if they can."""
    if ENGINE is None:
        return "no container engine: install podman or docker"
    if os.geteuid() != 0:
        return "the tests give folders to the containers' user: run them as root"
    for image in images:
        if subprocess.run([ENGINE, "image", "inspect", image], capture_output=True, check=False).returncode:
            return f"no image {image}: 'make images'"
    return None


def engine(*arguments: object, code: int | None = 0, timeout: float = 1500) -> str:
    """Run a command of the engine's; return what it says."""
    done = subprocess.run([ENGINE, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False)
    if code is not None:
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def compose(name: str, **variables: str) -> dict[str, dict[str, Any]]:
    """The services of a compose file, with all that they extend, and these variables alone of this machine."""
    command = [PROGRAMS / "docker-compose", "-f", DOCKER / f"compose.{name}.yaml", "--profile", "*"]
    bare = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables}
    done = subprocess.run(
        [*command, "config", "--format", "json"], env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr  # warnings
    return json.loads(done.stdout)["services"]


class Container:
    """A running container of a service of a compose file, in which only where its folders lie may differ.

    Parameters
    ----------
    name : str
        Its name.
    service : dict
        What the compose file says of it.
    mounts : dict
        The folder of this machine for each mounted path.
    network : str
        Its network, unless the service has none.
    hosts : sequence of str
        Names and addresses that it knows.
    """

    def __init__(
        self, name: str, service: dict[str, Any], mounts: dict[str, Path], network: str, hosts: Sequence[str] = ()
    ) -> None:
        self.name, self.service = name, service
        given = ["--network", service.get("network_mode") or network, *(f"--add-host={host}" for host in hosts)]
        given += [f"--restart={service['restart']}", *options(service, mounts)]
        engine("run", "--detach", "--name", name, *given, service["image"], *service["command"])

    def run(self, *command: object, code: int | None = 0) -> str:
        """Run a command inside, as people do."""
        return engine("exec", self.name, *command, code=code)

    def python(self, text: str) -> str:
        return self.run("python", "-c", text).strip()

    def processes(self, part: str) -> list[int]:
        """Processes inside whose command has `part` in it, in the order in which they began."""
        look = f"{part!r} in ' '.join(p.info['cmdline'] or []) and p.pid != os.getpid()"
        found = self.python(f"import os, psutil; print(*(p.pid for p in psutil.process_iter(['cmdline']) if {look}))")
        return list(map(int, found.split()))

    def signal(self, name: str, part: str) -> None:
        """Send a signal to the first process whose command has `part` in it."""
        self.run("sh", "-c", f"kill -{name} {self.processes(part)[0]}")

    def is_healthy(self) -> bool:
        """Whether the image's health check passes: not every engine runs it by itself."""
        _, *check = self.inspect()["Config"]["Healthcheck"]["Test"]
        command = [ENGINE, "exec", self.name, *check]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def logs(self) -> str:
        return engine("logs", self.name)

    def inspect(self) -> dict[str, Any]:
        return json.loads(engine("container", "inspect", self.name))[0]

    def address(self) -> str:
        (network,) = self.inspect()["NetworkSettings"]["Networks"].values()
        return network["IPAddress"]

    def stop(self) -> float:
        """End it as the compose file does; return how many seconds it took."""
        grace = {"1m0s": 60, "30s": 30}[self.service["stop_grace_period"]]
        began = time.monotonic()
        engine("stop", "--time", grace, self.name)
        return time.monotonic() - began


def options(service: dict[str, Any], mounts: dict[str, Path]) -> list[str]:
    """What a compose file says of a service, as options of ``run`` for a command that ends."""
    given = [f"--user={service['user']}", f"--memory={service['mem_limit']}", f"--pids-limit={service['pids_limit']}"]
    given += ["--read-only"] * service["read_only"] + ["--init"] * service["init"]
    given += [f"--tmpfs={path}" for path in service["tmpfs"]]
    given += [f"--cap-drop={capability}" for capability in service["cap_drop"]]
    given += [f"--security-opt={option.replace(':true', '')}" for option in service["security_opt"]]
    given += [f"--sysctl={name}={value}" for name, value in service.get("sysctls", {}).items()]
    for mount in service["volumes"]:
        mode = ":ro" if mount.get("read_only") else ""
        given.append(f"--volume={mounts[mount['target']]}:{mount['target']}{mode}")
    return given
