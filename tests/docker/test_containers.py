"""A coordinator and three hospitals in containers, with the options that the compose files give them."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from base.seeding import derive_seed
from cohorts import Cohort
from server.journal import Journal
from tests.support.containers import Container, compose, engine, options, why_not
from tests.support.deployment import SMALL
from tests.support.federation import STUDY
from tests.support.programs import wait_until

COORDINATOR, HOSPITAL = compose("coordinator")["coordinator"], compose("hospital")
MISSING = why_not([COORDINATOR["image"], HOSPITAL["app"]["image"]])
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

SITES = ("aalborg", "bergen", "coimbra")
COMMANDS = (
    "import json, sys; from cli.main import run_command; sys.exit(max(map(run_command, json.loads(sys.argv[1]))))"
)
"""Several commands in one process: each alone would import torch again."""
CONNECTS = """
import socket
def connects(host, port):
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return type(error).__name__
    return True
"""


class Deployment:
    """Folders as at the coordinator and at each hospital, and the containers over them."""

    def __init__(self, folder: Path, cohorts: list[Path]) -> None:
        self.folder, self.run = folder, f"fedbrainlm-{uuid4().hex[:8]}"
        self.state = folder / "state"
        self.state.mkdir()
        for cohort in cohorts:
            (folder / cohort.name / "site").mkdir(parents=True)
            shutil.copytree(cohort, folder / cohort.name / "cohort")
        self.own()
        engine("network", "create", self.run)
        self.containers: list[Container] = []

    def own(self) -> None:
        """Give all folders to the containers' user."""
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, 10001, 10001)

    def start(self) -> None:
        self.coordinator = self._start("coordinator", COORDINATOR, {"/state": self.state})
        assert wait_until(self.coordinator.is_healthy, 300), self.coordinator.logs()
        address = self.coordinator.address()
        self.nodes, self.apps = {}, {}
        for name in SITES:
            self.nodes[name] = self._start(
                f"{name}-node", HOSPITAL["supernode"], self._mounts(name), f"coordinator:{address}"
            )
            self.apps[name] = self._start(f"{name}-app", HOSPITAL["app"], self._mounts(name))

    def _start(self, name: str, service: dict, mounts: dict[str, Path], *hosts: str) -> Container:
        container = Container(f"{self.run}-{name}", service, mounts, self.run, hosts)
        self.containers.append(container)
        return container

    def _mounts(self, name: str) -> dict[str, Path]:
        site, cohort = self.folder / name / "site", self.folder / name / "cohort"
        return {"/site": site, "/site/state": site / "state", "/cohort": cohort}

    def at_coordinator(self, *commands: list[str]) -> str:
        """Give commands at a coordinator that does not run yet."""
        given = options(COORDINATOR, {"/state": self.state})
        return engine("run", "--rm", *given, COORDINATOR["image"], "python", "-c", COMMANDS, json.dumps(commands))

    def at_site(self, name: str, *commands: list[str]) -> str:
        """Give commands as the hospital's administrator."""
        given = ["--network", "none", *options(HOSPITAL["admin"], self._mounts(name))]
        image = HOSPITAL["admin"]["image"]
        return engine("run", "--rm", *given, image, "python", "-c", COMMANDS, json.dumps(commands))

    def study(self, name: str, **changes: object) -> str:
        """Write a study; return its path in the coordinator's container."""
        (self.state / f"{name}.yaml").write_text(yaml.safe_dump({**SMALL, **changes}))
        self.own()
        return f"/state/{name}.yaml"

    def are_online(self) -> bool:
        said = self.coordinator.run("fedbrainlm", "federation", "status", "/state/federation")
        return said.count("│ online") == len(SITES)

    def end(self) -> None:
        for container in self.containers:
            engine("rm", "--force", container.name, code=None)
        engine("network", "rm", self.run, code=None)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, small_cohorts) -> Iterator[Deployment]:
    """Three hospitals that are online, and have approved a small study."""
    made = Deployment(tmp_path_factory.mktemp("containers"), small_cohorts)
    try:
        set_up(made)
        made.start()
        assert wait_until(made.are_online, 400), made.nodes[SITES[0]].logs()
        yield made
    finally:
        made.end()


def set_up(made: Deployment) -> None:
    for name in SITES:
        made.at_site(name, ["site", "init", "/site", "--name", name, "--cohort", "/cohort"])
        site = made.folder / name / "site"
        settings = yaml.safe_load((site / "site.yaml").read_text())
        settings["threads"] = 1
        settings["supernode"] |= {"executor": "elsewhere", "health": "127.0.0.1:9095"}
        settings["policy"] |= {"studies": ["small"], "min_participants": 2, "min_group": 1, "min_change": 1}
        settings["policy"] |= {"columns": ["*"], "max_covariate_ratio": 1.0}
        (site / "site.yaml").write_text(yaml.safe_dump(settings))
        (site / "state" / "private_seed").write_text(str(derive_seed(STUDY["seed"], name, "private")))
        shutil.copy(site / f"{name}.bundle.json", made.state)
    made.at_coordinator(
        ["federation", "init", "/state/federation", "--name", "nordic", "--host", "coordinator"],
        *(["federation", "add-site", "/state/federation", f"/state/{name}.bundle.json"] for name in SITES),
        ["federation", "package", "/state/federation", "--out", "/state/nordic.join.json"],
        ["study", "build", made.study("small"), "--out", "/state/small.fab"],
    )
    for name in SITES:
        for sent in ("nordic.join.json", "small.fab"):
            shutil.copy(made.state / sent, made.folder / name / "site")
        made.own()
        made.at_site(
            name,
            ["site", "join", "/site/site.yaml", "/site/nordic.join.json", "--by", "Anna Berg", "--yes"],
            ["site", "approve", "/site/site.yaml", "/site/small.fab", "--by", "Anna Berg", "--yes"],
        )


def test_containers_have_no_rights_that_they_do_not_need(deployment):
    for container in (deployment.coordinator, deployment.nodes["aalborg"], deployment.apps["aalborg"]):
        status = container.run("cat", "/proc/1/status", "/proc/self/status")
        assert status.count("Uid:\t10001\t10001\t10001\t10001") == 2
        assert status.count("CapEff:\t0000000000000000") == status.count("CapBnd:\t0000000000000000") == 2
        assert status.count("NoNewPrivs:\t1") == 2
        for place in ("/", "/opt/fedbrainlm/client", "/opt/venv"):
            assert "Read-only file system" in container.run("touch", f"{place}/new", code=1)
        limits = container.inspect()["HostConfig"]
        assert limits["Memory"] == int(container.service["mem_limit"])
        assert limits["PidsLimit"] == container.service["pids_limit"]


def test_recordings_are_the_apps_alone_and_cannot_be_changed(deployment):
    node, app = deployment.nodes["aalborg"], deployment.apps["aalborg"]
    assert "participants.tsv" in app.run("ls", "/cohort")
    assert "Read-only file system" in app.run("touch", "/cohort/new", code=1)
    assert "Read-only file system" in app.run("touch", "/cohort/participants.tsv", code=1)
    assert "No such file" in node.run("ls", "/cohort", code=2)
    for container in (node, app):  # what may leave is the administrator's to say
        assert "Read-only file system" in container.run("touch", "/site/site.yaml", code=1)


def test_an_app_reaches_nothing_but_its_supernode(deployment):
    app, node, coordinator = deployment.apps["aalborg"], deployment.nodes["aalborg"], deployment.coordinator
    edge, gateway = coordinator.address(), coordinator.address().rpartition(".")[0] + ".1"
    assert app.python("import psutil; print(*psutil.net_if_addrs())") == "lo"
    tried = f"{CONNECTS}\nprint(*(connects(h, p) for h, p in [({edge!r}, 443), ({gateway!r}, 22), ('203.0.113.1', 53), "
    assert set(app.python(f"{tried}('coordinator', 443), ('example.org', 443)]))").split()) <= {"OSError", "gaierror"}
    assert app.python(f"{CONNECTS}\nprint(connects('127.0.0.1', 9094))") == "True"

    assert node.python(f"{CONNECTS}\nprint(connects('coordinator', 443), connects('127.0.0.1', 9094))") == "True True"


def test_nobody_on_the_network_reaches_what_is_inside(deployment):
    node, coordinator = deployment.nodes["aalborg"], deployment.coordinator
    asked = f"{CONNECTS}\nprint(*(connects({node.address()!r}, port) for port in (9094, 9095)))"
    assert coordinator.python(asked) == "ConnectionRefusedError ConnectionRefusedError"
    asked = f"{CONNECTS}\nprint(*(connects('coordinator', port) for port in (8000, 8001, 443)))"
    assert node.python(asked) == "ConnectionRefusedError ConnectionRefusedError True"


def test_the_checks_of_both_containers_pass_each_on_its_side(deployment):
    assert "the coordinator knows this site's SuperNode key" in " ".join(
        deployment.nodes["aalborg"].run("fedbrainlm", "site", "check", "/site/site.yaml").split()
    )
    assert "21 participants" in deployment.apps["aalborg"].run("fedbrainlm", "site", "check", "/site/site.yaml")


def test_a_study_with_secure_sums_equals_the_same_study_in_one_process(deployment, finished_run):
    command = ("fedbrainlm", "run", "/state/small.yaml", "--federation", "nordic", "--runs", "/state/runs")
    deployment.coordinator.run(*command)

    (folder,) = (deployment.state / "runs" / "small").iterdir()
    assert Journal(folder).checkpoint(2).read_bytes() == finished_run.journal.checkpoint(2).read_bytes()
    assert (folder / "report.html").is_file()
    for name in SITES:
        assert '"masked": true' in (deployment.folder / name / "site" / "state" / "audit.jsonl").read_text()


def test_the_coordinator_s_logs_tell_nothing_of_a_hospital_s_people_and_folders(deployment):
    said = deployment.coordinator.logs()
    for path in deployment.state.rglob("*.log"):  # also those of the runs
        said += path.read_text(errors="replace")
    assert "serves at coordinator:443" in said
    assert "Starting Flower SuperLink" in said
    secrets = ["/site/", "/cohort", str(deployment.folder)]
    for name in SITES:
        secrets += Cohort.open(deployment.folder / name / "cohort").covariates()["participant_id"].tolist()
    assert [secret for secret in secrets if secret in said] == []


def test_an_app_that_no_site_approved_is_refused_by_all(deployment):
    study = deployment.study("other", seed=6)
    said = deployment.coordinator.run(
        "fedbrainlm", "run", study, "--federation", "nordic", "--runs", "/state/unapproved", code=1
    )
    assert said.count("site.code-not-approved") == len(SITES)


def test_a_supernode_that_hangs_is_not_healthy(deployment):
    node = deployment.nodes["bergen"]
    assert node.is_healthy()
    node.signal("STOP", "runtime.supernode")
    try:
        assert not node.is_healthy()
    finally:
        node.signal("CONT", "runtime.supernode")
    assert wait_until(node.is_healthy, 30)


def test_what_is_killed_comes_back(deployment):
    app, node = deployment.apps["coimbra"], deployment.nodes["coimbra"]
    before = app.processes("prefork.py")
    app.signal("KILL", "prefork.py")
    assert wait_until(lambda: len(app.processes("prefork.py")) == 2 and app.processes("prefork.py") != before, 60)
    assert wait_until(app.is_healthy, 60)

    restarts = node.inspect()["RestartCount"]
    node.signal("KILL", "runtime.supernode")
    # Refused for as long as the coordinator takes the former one for alive.
    assert wait_until(lambda: node.inspect()["RestartCount"] > restarts, 60)
    assert wait_until(node.is_healthy, 180), node.logs()
    assert wait_until(deployment.are_online, 400), node.logs()


def test_all_end_in_time_when_told(deployment):
    """Last: nothing runs afterwards."""
    for container in (deployment.apps["aalborg"], deployment.nodes["aalborg"], deployment.coordinator):
        assert container.stop() < 30
        assert container.inspect()["State"]["ExitCode"] != 137  # it ended by itself
    assert deployment.coordinator.inspect()["State"]["ExitCode"] == 0
    assert "Stopped." in deployment.coordinator.logs()
