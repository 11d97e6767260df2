"""Fixtures that many tests share."""

import gc
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from cohorts import Cohort
from server.journal import Journal
from tests.support.federation import run_study, simulate_small_cohorts, write_sites
from tests.support.local_grid import LocalGrid

# Whoever runs the tests tries the same examples. `make explore` draws others for as long as it is let; what it finds
# becomes an @example. Neither an example nor its drawing is timed: the machine may be busy.
settings.register_profile("fixed", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
settings.load_profile("fixed")
SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_finish() -> None:
    """Spare the collector what was imported: Flower has it look through everything for each record that it opens."""
    gc.collect()
    gc.freeze()


class Unsynced(sqlite3.Connection):
    """A database that leaves the writing to the operating system, whatever it is asked to wait for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA synchronous")

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        asks = statement.startswith("PRAGMA synchronous")
        return super().execute("PRAGMA synchronous = OFF" if asks else statement, *parameters)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Do without what only matters where the power fails, as no test has it do."""
    connect = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, **{"factory": Unsynced, **options}))
        yield


@pytest.fixture(autouse=True, scope="session")
def cohorts_that_did_not_change_are_read_once() -> Iterator[None]:
    """Spare a site to read its cohort for every message, unless a file of it became another one."""

    @cache
    def read(folder: Path, files: frozenset[tuple[Path, int, int, int]]) -> Cohort:
        return Cohort.open(folder)

    def open_cohort(folder: Path) -> Cohort:
        found = ((path, path.lstat()) for path in folder.rglob("*"))
        return read(folder, frozenset((path, about.st_ino, about.st_size, about.st_mtime_ns) for path, about in found))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.site.Cohort", SimpleNamespace(open=open_cohort))
        yield


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
