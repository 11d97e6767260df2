"""The run's folder: a SQLite journal that others may read while the run goes on, and atomic checkpoints.

::

    runs/<study>/<run-id>/
      study.yaml                            the study, with everything resolved
      journal.sqlite                        status, exchanges, metrics
      checkpoints/round-0007.safetensors    the model after each round; round 0 is the initial one
      checkpoints/outer-0007.safetensors    what the outer optimizer remembered then, if it remembers anything
      scaling/<atlas>.safetensors           medians and interquartile ranges, where scaling is robust
      moments/<atlas>.safetensors           second moments of the training participants' frames
      harmonization/<name>.safetensors      what was solved, shared by all sites
      parcels.parquet                       masked R² of the final model by parcel
      reconstruction.parquet                scores of the final model and the baselines
      metrics.parquet, summary.json         written at the end
      report.html                           made from these by `fedbrainlm report`
"""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

Status = Literal["starting", "running", "completed", "failed", "stopped"]

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS exchanges (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, message TEXT NOT NULL, round INTEGER, asked INTEGER NOT NULL,
    answered INTEGER, started REAL NOT NULL, ended REAL, bytes_down INTEGER NOT NULL, bytes_up INTEGER);
CREATE TABLE IF NOT EXISTS outcomes (
    exchange INTEGER NOT NULL REFERENCES exchanges (id), site TEXT NOT NULL, outcome TEXT NOT NULL, audit_head TEXT);
CREATE TABLE IF NOT EXISTS metrics (round INTEGER NOT NULL, site TEXT NOT NULL, name TEXT NOT NULL, value REAL);
"""


@dataclass(frozen=True)
class Progress:
    """Where a run is, for a display.

    Attributes
    ----------
    status : str
        starting, running, completed, failed or stopped.
    stage : str
        What it is doing.
    round_number, rounds : int
        Last round that ended, and all.
    sites : int
        Sites that take part.
    reason : str
        Why it failed.
    """

    status: str
    stage: str
    round_number: int
    rounds: int
    sites: int
    reason: str


class Journal:
    """A run's journal. One process writes it; any number may read.

    Parameters
    ----------
    folder : Path
        The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "journal.sqlite"
        with self._connected() as database:
            database.executescript(f"PRAGMA journal_mode=WAL; {_TABLES}")

    def note(self, **facts: str | int) -> None:
        """Write facts of the run, replacing those of the same name: status, stage, reason, rounds, sites."""
        with self._connected() as database:
            database.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)", [(name, str(value)) for name, value in facts.items()]
            )

    def facts(self) -> dict[str, str]:
        """Return all facts."""
        with self._connected() as database:
            return dict(database.execute("SELECT name, value FROM facts").fetchall())

    def begin_exchange(self, stage: str, message: str, round_number: int | None, asked: int, bytes_down: int) -> int:
        """Write that a question went out; return the exchange's id."""
        with self._connected() as database:
            row = database.execute(
                "INSERT INTO exchanges (stage, message, round, asked, started, bytes_down) VALUES (?, ?, ?, ?, ?, ?)",
                (stage, message, round_number, asked, time.time(), bytes_down),
            )
            return int(row.lastrowid or 0)

    def next_step(self) -> int:
        """Number that no exchange has had yet, for a secure sum."""
        with self._connected() as database:
            (last,) = database.execute("SELECT MAX(id) FROM exchanges").fetchone()
        return int(last or 0) + 1

    def end_exchange(
        self, exchange: int, outcomes: dict[str, str], bytes_up: int, audit_heads: Mapping[str, str] | None = None
    ) -> None:
        """Write what came back: ``ok``, ``no reply`` or a code for each site, and the heads of their audit logs.

        A site's log that lacks a head which stands here was cut or rewritten since.
        """
        heads = audit_heads or {}
        with self._connected() as database:
            database.executemany(
                "INSERT INTO outcomes VALUES (?, ?, ?, ?)",
                [(exchange, site, said, heads.get(site)) for site, said in outcomes.items()],
            )
            answered = sum(said == "ok" for said in outcomes.values())
            database.execute(
                "UPDATE exchanges SET answered = ?, ended = ?, bytes_up = ? WHERE id = ?",
                (answered, time.time(), bytes_up, exchange),
            )

    def measure(self, round_number: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Write metrics of a round: site → name → value; site ``all`` is the federation."""
        rows = [(round_number, site, name, value) for site, named in metrics.items() for name, value in named.items()]
        with self._connected() as database:
            database.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", rows)

    def table(self, name: Literal["exchanges", "outcomes", "metrics"]) -> pd.DataFrame:
        """Return a whole table, in the order of writing."""
        with self._connected() as database:
            return pd.read_sql_query(f"SELECT * FROM {name} ORDER BY rowid", database)

    def progress(self) -> Progress:
        """Return where the run is."""
        facts = self.facts()
        with self._connected() as database:
            (last,) = database.execute("SELECT MAX(round) FROM exchanges WHERE ended IS NOT NULL").fetchone()
        return Progress(
            status=facts.get("status", "starting"),
            stage=facts.get("stage", ""),
            round_number=int(last or 0),
            rounds=int(facts.get("rounds", 0)),
            sites=int(facts.get("sites", 0)),
            reason=facts.get("reason", ""),
        )

    def checkpoint(self, round_number: int) -> Path:
        """Path of the model after a round."""
        return self.folder / "checkpoints" / f"round-{round_number:04d}.safetensors"

    def outer_state(self, round_number: int) -> Path:
        """Path of what the outer optimizer remembered after a round."""
        return self.folder / "checkpoints" / f"outer-{round_number:04d}.safetensors"

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self._path, timeout=30)
        try:
            with database:
                yield database
        finally:
            database.close()
