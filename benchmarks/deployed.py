"""A coordinator and hospitals on this machine, set up by the commands of docs/coordinator.md and docs/site.md."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from common import fedbrainlm

from deployment.coordinator import Federation
from deployment.supervisor import running
from runtime.flower import free_port, program


class Node:
    """A site's SuperNode; when it said each line is kept."""

    def __init__(self, settings: Path) -> None:
        self.said: list[tuple[float, str]] = []
        self._process = subprocess.Popen(
            [program("fedbrainlm"), "site", "start", str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _listen(self) -> None:
        assert self._process.stdout is not None  # asked for above
        for line in self._process.stdout:
            self.said.append((time.time(), line.strip()))

    def first(self, what: str, after: float) -> float:
        """Unix time at which it first said something that matches `what`, after a time."""
        return next(when for when, line in self.said if when >= after and re.search(what, line))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


class Deployment:
    """A federation in a folder, with a site for each cohort.

    Parameters
    ----------
    folder : Path
        New folder for all of it.
    cohorts : list of Path
        The sites' cohorts; a site is called as its cohort's folder is.
    study : dict
        The study that every site's policy lets run.
    device : str
        Where the sites train.
    """

    def __init__(self, folder: Path, cohorts: list[Path], study: dict[str, Any], device: str = "cpu") -> None:
        self.folder = folder
        self.device = device
        self.nodes: dict[str, Node] = {}
        folder.mkdir(parents=True)
        os.environ["FLWR_HOME"] = str(folder / "flwr")  # of the commands of both sides
        where = folder / "federation"
        fedbrainlm("federation", "init", where, "--name", "benchmark", "--host", "localhost", "--port", free_port())
        _change(where / "federation.yaml", superlink_port=free_port(), health_port=free_port())
        self.federation = Federation(where)
        self.sites = [self._set_up_site(cohort, study) for cohort in cohorts]
        fedbrainlm("federation", "package", where, "--out", folder / "join.json")
        self.study = folder / "study.yaml"
        self.study.write_text(yaml.safe_dump(study))
        fedbrainlm("study", "build", self.study, "--out", folder / "study.fab")

    def _set_up_site(self, cohort: Path, study: dict[str, Any]) -> Path:
        site = self.folder / cohort.name
        fedbrainlm("site", "init", site, "--name", site.name, "--cohort", cohort)
        policy = yaml.safe_load((site / "site.yaml").read_text())["policy"]
        policy |= {"studies": [study["study"]], "min_participants": 2, "min_group": 1, "max_covariate_ratio": 1.0}
        _change(site / "site.yaml", policy=policy, device=self.device, threads=1, supernode={"port": free_port()})
        fedbrainlm("federation", "add-site", self.federation.folder, site / f"{site.name}.bundle.json")
        return site

    def start(self) -> None:
        """Start the coordinator's programs and the sites; return once all sites are online."""
        fedbrainlm("federation", "start", self.federation.folder)
        for site in self.sites:
            settings = site / "site.yaml"
            fedbrainlm("site", "join", settings, self.folder / "join.json", "--by", "Benchmark", "--yes")
            fedbrainlm("site", "approve", settings, self.folder / "study.fab", "--by", "Benchmark", "--yes")
            self.nodes[site.name] = Node(settings)
        while fedbrainlm("federation", "status", self.federation.folder).count(" online ") < len(self.sites):
            time.sleep(1)

    def run(self, seen: Callable[[Path], bool]) -> Path:
        """Run the study, and call `seen` with the run's folder every second until it says that it has seen enough."""
        command = [
            program("fedbrainlm"),
            "run",
            self.study,
            "--federation",
            "benchmark",
            "--runs",
            self.folder / "runs",
        ]
        process = subprocess.Popen(list(map(str, command)))
        while process.poll() is None:
            time.sleep(1)
            folder = next((self.folder / "runs").glob("*/*/journal.sqlite"), Path()).parent
            if folder.name and seen(folder):
                process.send_signal(signal.SIGINT)
                process.wait()
                return folder
        sys.exit(f"the run ended before its time, with code {process.returncode}")

    def cpu_seconds(self) -> dict[str, float]:
        """Processor seconds that each kind of program took until now, with those of the processes that it started."""
        roots = {name: running(self.federation, name) for name in self.federation.programs()}
        nodes = [psutil.Process(node.pid) for node in self.nodes.values()]
        started = [process for node in nodes for process in node.children()]
        return {
            "SuperLink": _cpu_seconds(roots["superlink"]),
            "edge": _cpu_seconds(roots["edge"]),
            "the run's own (ServerApp)": _cpu_seconds(roots["superexec"]),
            "three SuperNodes": sum(_cpu_seconds(node) for node in nodes) - sum(map(_cpu_seconds, started)),
            "three sites' apps, training included": sum(map(_cpu_seconds, started)),
        }

    def superlink_bytes(self) -> int:
        """Resident memory of the SuperLink."""
        process = running(self.federation, "superlink")
        return process.memory_info().rss if process else 0

    def stop(self) -> None:
        for node in self.nodes.values():
            node.stop()
        fedbrainlm("federation", "stop", self.federation.folder)


def _cpu_seconds(root: psutil.Process | None) -> float:
    """Of a process, all that it started, and all that those started and that has ended."""
    seconds = 0.0
    for process in [root, *root.children(recursive=True)] if root else []:
        with suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:4])
    return seconds


def _change(path: Path, **changes: object) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
