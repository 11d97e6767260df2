"""A federation as docs/coordinator.md and docs/site.md set it up: every step is a command that they give."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest
import yaml

from base.seeding import derive_seed
from deployment.coordinator import Federation
from runtime.flower import QUIET
from tests.support.federation import STUDY
from tests.support.programs import free_port, processes_of, start, wait_until

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin") is None,
    reason="nginx is not installed: apt install nginx-light",
)
SMALL = {
    **STUDY,
    "averaging": {**STUDY["averaging"], "deadline_s": 600, "start_deadline_s": 300},
    "analyses": {"targets": [], "folds": 3, "permutations": 0},
}
"""Few exchanges, with time for each: it starts a process at every site."""


class Deployment:
    """A coordinator and hospitals on this machine, each in its folder, and the commands that people give there.

    Parameters
    ----------
    folder : Path
        Where the folders lie.
    host : str
        Name or address at which the sites reach the coordinator.
    within : dict, optional
        Name of a site, or ``nordic`` for the coordinator → words that go before its commands.
    **environment : str
        Further variables that all programs find.
    """

    def __init__(
        self, folder: Path, host: str = "localhost", within: dict[str, list[str]] | None = None, **environment: str
    ) -> None:
        self.folder = folder
        self.host = host
        self.within = within or {}
        self.environment = {**QUIET, "FLWR_HOME": str(folder / "flwr"), **environment}
        self.sites: list[str] = []
        self.nodes: dict[str, subprocess.Popen[str]] = {}

    @contextmanager
    def running(self, cohorts: list[Path]) -> Iterator[Self]:
        """Set up a federation with a site for each cohort, as the guides say, until the end of a block."""
        self.command("federation", "init", "nordic", "--name", "nordic", "--host", self.host, "--port", free_port())
        path = self.folder / "nordic" / "federation.yaml"
        ports = {"superlink_port": free_port(), "health_port": free_port()}
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **ports}))
        try:
            for cohort in cohorts:
                self.set_up_site(cohort.name, cohort)
                said = self.command("federation", "add-site", "nordic", f"{cohort.name}/{cohort.name}.bundle.json")
                assert "registered when the federation starts" in said
            self.sites = [cohort.name for cohort in cohorts]
            self.command("federation", "package", "nordic", "--out", "nordic.join.json")
            self.command("federation", "start", "nordic")
            for name in self.sites:
                self.command("site", "join", f"{name}/site.yaml", "nordic.join.json", "--by", "Anna Berg", "--yes")
                self.start_node(name)
            assert wait_until(self.all_online, 180)
            yield self
        finally:
            for name in list(self.nodes):
                self.stop_node(name)
            self.command("federation", "stop", "nordic")
        assert wait_until(lambda: processes_of(self.folder) == [], 30)

    def start(
        self, program: str, *arguments: object, at: str = "nordic", log: Path | None = None
    ) -> "subprocess.Popen[str]":
        """Start a program where the coordinator or a site is."""
        within = self.within.get(at, [])
        return start(program, *arguments, folder=self.folder, log=log, within=within, **self.environment)

    def command(self, *arguments: object, code: int = 0) -> str:
        """Give a command to its end, and return what it says."""
        process = self.start("fedbrainlm", *arguments)
        out, err = process.communicate(timeout=1200)
        assert process.returncode == code, f"{arguments}\n{out}\n{err}"
        return " ".join((out + err).split())

    @property
    def federation(self) -> Federation:
        return Federation(self.folder / "nordic")

    @property
    def edge(self) -> str:
        return f"localhost:{self.federation.settings.port}"

    def set_up_site(self, name: str, cohort: Path) -> Path:
        """Make a site with a policy for the small study, and its private seed as in a simulation."""
        self.command("site", "init", name, "--name", name, "--cohort", cohort)
        path = self.folder / name / "site.yaml"
        settings = yaml.safe_load(path.read_text())
        settings["supernode"]["port"] = free_port()
        settings["threads"] = 1
        settings["policy"] |= {"studies": ["small"], "min_participants": 2, "min_group": 1, "min_change": 1}
        settings["policy"] |= {"columns": ["*"], "max_covariate_ratio": 1.0}
        path.write_text(yaml.safe_dump(settings))
        (path.parent / "state" / "private_seed").write_text(str(derive_seed(STUDY["seed"], name, "private")))
        return path

    def start_node(self, name: str) -> None:
        """Start a site's SuperNode; what it says goes into ``NAME.log``."""
        log = self.folder / f"{name}.log"
        self.nodes[name] = self.start("fedbrainlm", "site", "start", f"{name}/site.yaml", at=name, log=log)

    def stop_node(self, name: str) -> None:
        node = self.nodes.pop(name)
        node.terminate()
        node.communicate(timeout=60)

    def start_ended_nodes(self) -> None:
        """Start the SuperNodes that have ended, as the hospitals' systems do."""
        for name in [name for name, node in self.nodes.items() if node.poll() is not None]:
            self.start_node(name)

    def status(self, name: str) -> str:
        rows = self.command("federation", "status", "nordic").split("│")
        return next(row.strip() for before, row in pairwise(rows) if before.strip() == name)

    def all_online(self) -> bool:
        return all(self.status(name) == "online" for name in self.sites)

    def check(self, name: str) -> str:
        """What ``site check`` says, however it ends."""
        process = self.start("fedbrainlm", "site", "check", f"{name}/site.yaml", at=name)
        return " ".join(process.communicate(timeout=60)[0].split())

    def study(self, name: str, **changes: object) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **changes}))
        return path

    def approve(self, study: Path) -> str:
        """Build a study's app, and approve it at each site; return its hash."""
        fab = study.with_suffix(".fab")
        code_hash = self.command("study", "build", study, "--out", fab).split()[-1]
        for name in self.sites:
            assert "may run" in self.command("site", "approve", f"{name}/site.yaml", fab, "--by", "Anna Berg", "--yes")
        return code_hash
