"""Runs that are watched from outside, processes of sites, and what must not be found at the coordinator."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import yaml

from client.door.audit import AuditLog
from cohorts import Cohort
from server.journal import Journal
from tests.support.deployment import Deployment
from tests.support.programs import wait_until

PATIENCE_S = 900
_ROUNDING_S = 2.0
"""How much too early a process can seem to have begun: the system counts from a boot of whole seconds."""


class Run:
    """A run of ``fedbrainlm run`` on a federation, begun or resumed, that others may disturb."""

    def __init__(self, deployment: Deployment, study: Path | None = None, resume: "Run | None" = None) -> None:
        runs = deployment.folder / "runs"
        before = set(runs.glob("*/*"))
        what = ("--resume", resume.folder) if resume else (study, "--federation", "nordic")
        self._process = deployment.start("fedbrainlm", "run", *what, "--runs", runs)
        self._began = time.time()
        await_or_fail(lambda: resume or set(runs.glob("*/*/journal.sqlite")) - {b / "journal.sqlite" for b in before})
        self.folder = resume.folder if resume else (set(runs.glob("*/*")) - before).pop()

    @property
    def journal(self) -> Journal:
        return Journal(self.folder)

    @property
    def server(self) -> int:
        """The process of its ServerApp."""
        return int((self.folder / ".server.lock").read_text())

    def await_exchange(self, stage: str, round_number: int | None = None) -> float:
        """Wait until this command, not one before, asks the sites something; return the time of day when it did."""

        def begun() -> pd.DataFrame:
            exchanges = self.journal.table("exchanges")
            now = exchanges["ended"].isna() & (exchanges["started"] > self._began) & (exchanges["stage"] == stage)
            return exchanges[now & (exchanges["round"] == round_number if round_number else True)]

        await_or_fail(lambda: len(begun()) or self._process.poll() is not None)
        assert self._process.poll() is None, self._process.communicate()
        return float(begun()["started"].iloc[-1])

    def await_training(self, deployment: Deployment, site: str, round_number: int) -> psutil.Process:
        """Wait until a site trains in a round, and return the process that does."""
        began = self.await_exchange("pretraining", round_number)
        found: list[psutil.Process] = []
        await_or_fail(lambda: found.extend(filter(_computes, apps_of(deployment, site, began))) or found)
        return found[0]

    def outcomes(self, round_number: int) -> list[dict[str, str]]:
        """What came of each site in the exchanges of a round, in their order."""
        exchanges, outcomes = self.journal.table("exchanges"), self.journal.table("outcomes")
        return [
            dict(outcomes[outcomes["exchange"] == number][["site", "outcome"]].itertuples(index=False))
            for number in exchanges[exchanges["round"] == round_number]["id"]
        ]

    def stop(self) -> None:
        """End the command, and with it the run, if it still goes on."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.communicate(timeout=PATIENCE_S)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the command's exit code, and what it said."""
        out, err = self._process.communicate(timeout=PATIENCE_S)
        return self._process.returncode, " ".join((out + err).split())


def await_or_fail(condition: Callable[[], object]) -> float:
    """Wait until a condition holds, and return the seconds that it took."""
    began = time.monotonic()
    assert wait_until(condition, PATIENCE_S)
    return time.monotonic() - began


def apps_of(deployment: Deployment, site: str, since: float) -> list[psutil.Process]:
    """The processes in which a site answers messages, that began after a time of day."""
    home, found = str(deployment.folder / site / "state" / "flower"), []
    for process in psutil.process_iter(["name", "create_time"]):
        if process.info["name"] == "flwr-clientapp" and process.info["create_time"] > since - _ROUNDING_S:
            with suppress(psutil.Error):  # it has ended
                found += [process] if process.environ().get("FLWR_HOME") == home else []
    return found


def _computes(process: psutil.Process) -> bool:
    """Whether a process has come so far as to train: all before takes less of the processor."""
    try:
        return process.cpu_times().user > 1
    except psutil.NoSuchProcess:
        return False


def restart_node(deployment: Deployment, site: str) -> float:
    """Start a SuperNode, again and again as a system does, until it is online; return the seconds that it took."""
    deployment.start_node(site)
    return await_or_fail(lambda: is_online(deployment, site))


def is_online(deployment: Deployment, site: str) -> bool:
    """Whether a SuperNode is online; one that has ended is started again."""
    if deployment.nodes[site].poll() is not None:
        deployment.start_node(site)
    return "SuperNode ID" in (deployment.folder / f"{site}.log").read_text()


def assert_nothing_lost_or_leaked(deployment: Deployment, *secrets: str) -> None:
    """Look for half-written files, for breaks of the audit logs, and for what belongs to a site at the coordinator.

    Parameters
    ----------
    *secrets : str
        Further words that must not be at the coordinator.
    """
    words = [word.encode() for word in secrets]
    for site in deployment.sites:
        state = deployment.folder / site / "state"
        verdict = AuditLog(state / "audit.jsonl").verify()
        assert verdict.intact, f"{site}: {verdict}"
        cohort = Cohort.open(cohort_of(deployment, site))
        words += [str(deployment.folder / site).encode(), str(cohort.path).encode()]
        words += [participant.encode() for participant in cohort.participants["participant_id"]]
    for part in ("nordic", "runs", "flwr"):
        for path in filter(Path.is_file, (deployment.folder / part).rglob("*")):
            content = path.read_bytes()
            assert [word for word in words if word in content] == [], path
    half_written = [*deployment.folder.glob("runs/**/*.tmp"), *deployment.folder.glob("*/state/**/*.tmp")]
    assert half_written == []


def cohort_of(deployment: Deployment, site: str) -> Path:
    return Path(yaml.safe_load((deployment.folder / site / "site.yaml").read_text())["cohort"])
