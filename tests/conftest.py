"""Fixtures that many tests share."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from server.journal import Journal
from tests.support.federation import run_study, simulate_small_cohorts, write_sites
from tests.support.local_grid import LocalGrid

# Examples are drawn at random where people look on, and are the same each time where nobody does. None is timed: the
# machine may be busy.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def real_data() -> Path:
    """Folder of the real recordings, where it is at hand."""
    if not (SHARED / "data" / "real").is_dir():
        pytest.skip("the real recordings are not here; they are never part of the project")
    return SHARED / "data"


@pytest.fixture(scope="session")
def small_cohorts(tmp_path_factory) -> list[Path]:
    """Three simulated cohorts; never changed."""
    return simulate_small_cohorts(tmp_path_factory.mktemp("cohorts") / "small")


@dataclass(frozen=True)
class FinishedRun:
    """A small study that ran to its end in this process."""

    journal: Journal
    grid: LocalGrid
    sites: list[Path]

    @property
    def folder(self) -> Path:
        return self.journal.folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, small_cohorts) -> FinishedRun:
    """Run the small study once for all tests that only look at it."""
    folder = tmp_path_factory.mktemp("run")
    sites = write_sites(folder / "sites", small_cohorts)
    grid = LocalGrid(sites)
    return FinishedRun(run_study(folder / "run", grid), grid, sites)
