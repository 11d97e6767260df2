"""One federation for the whole fault matrix: three sites, one of them behind a wire of its own, one on a small disk."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from client.door.policy import SHOWS_ONE_SITE
from server.journal import Journal
from tests.chaos import network
from tests.chaos.clocks import Clock, build
from tests.chaos.watching import Run
from tests.support.deployment import SMALL, Deployment
from tests.support.disks import small_disk
from tests.support.federation import run_study, write_sites
from tests.support.local_grid import LocalGrid

LASTING = {
    **SMALL,
    "study": "lasting",
    "training": {**SMALL["training"], "steps_per_round": 1200},
    "averaging": {**SMALL["averaging"], "rounds": 3, "quorum_deadline_s": 600},
    "analyses": {**SMALL["analyses"], "bootstrap": 0, "gaussian_baseline": False},
    "harmonization": {"method": "none"},
}
"""Secure sums of three sites, all of which are needed; rounds that last long enough to be hit within."""
REPORT = Path(__file__).parents[2] / "runs" / "chaos.json"


@dataclass
class Matrix:
    """What became of each fault, and how long it took to recover, for docs/reliability.md."""

    rows: list[dict[str, object]] = field(default_factory=list)

    def record(self, fault: str, outcome: str, **seconds: float) -> None:
        """Write a row down, with its times in seconds."""
        self.rows.append({"fault": fault, "outcome": outcome, **{name: round(s) for name, s in seconds.items()}})
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(self.rows, indent=1) + "\n")


@pytest.fixture(scope="session")
def matrix() -> Matrix:
    return Matrix()


@pytest.fixture(scope="session")
def clocks(tmp_path_factory) -> dict[str, Clock]:
    """Those of the coordinator and of a site."""
    folder = tmp_path_factory.mktemp("clocks")
    library = build(folder)
    return {name: Clock(library, folder / name) for name in ("nordic", "aalborg")}


@pytest.fixture(scope="session")
def deployment(tmp_path_factory, small_cohorts, clocks) -> Iterator[Deployment]:
    """Three hospitals that are online: coimbra behind the wire, bergen with its state on a small disk."""
    folder = tmp_path_factory.mktemp("chaos")
    cohorts = [Path(shutil.copytree(cohort, folder / "cohorts" / cohort.name)) for cohort in small_cohorts]
    within = dict.fromkeys(("nordic", "aalborg", "bergen"), network.IN_HUB) | {"coimbra": network.IN_FAR}
    within |= {name: [*within[name], *clock.within] for name, clock in clocks.items()}
    with (
        network.wire(),
        small_disk(folder / "bergen" / "state", "64m"),
        Deployment(folder, network.ADDRESS, within).running(cohorts) as made,
    ):
        for name in made.sites:
            allow(folder / name / "site.yaml")
        yield made


@pytest.fixture(scope="session")
def lasting(deployment) -> Path:
    """The lasting study, which all sites approved."""
    study = deployment.study("lasting", **LASTING)
    deployment.approve(study)
    return study


@pytest.fixture
def begin(deployment) -> Iterator[Callable[..., Run]]:
    """Begin a run of a study, or go on with one; none goes on when the test is over."""
    runs: list[Run] = []

    def begin(study: Path | None = None, *, resume: Run | None = None) -> Run:
        runs.append(Run(deployment, study, resume))
        return runs[-1]

    yield begin
    for run in runs:
        run.stop()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, small_cohorts) -> Journal:
    """The lasting study, in one process and without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return run_study(folder / "run", LocalGrid(write_sites(folder / "sites", small_cohorts)), LASTING)


def allow(site: Path) -> None:
    """Let a site take part in the studies of this folder, also in the clear."""
    settings = yaml.safe_load(site.read_text())
    settings["policy"] |= {"studies": ["*"], "analyses": ["*", *sorted(SHOWS_ONE_SITE)], "plain_grams": True}
    settings["policy"] |= {"secure_sum_required": False}
    site.write_text(yaml.safe_dump(settings))
