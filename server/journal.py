"""The run's folder: a SQLite journal that others may read while the run goes on, and atomic checkpoints.

::

    runs/<study>/<run-id>/
      study.yaml                            the study, with everything resolved
      inputs/                               copies of the files that it names (`server.keeping`)
      journal.sqlite                        status, exchanges, metrics; what a resumed run must know
      answers/<stage>-0003.safetensors      what the sites answered, until the run is completed
      checkpoints/round-0007.safetensors    the model after each round; round 0 is the initial one
      checkpoints/outer-0007.safetensors    what the outer optimizer remembered then, if it remembers anything
      scaling/<atlas>.safetensors           medians and interquartile ranges, where scaling is robust
      moments/<atlas>.safetensors           second moments of the training participants' frames
      harmonization/<name>.safetensors      what was solved, shared by all sites
      parcels.parquet                       masked R² of the final model by parcel
      reconstruction.parquet                scores of the final model and the baselines
      metrics.parquet, summary.json         written at the end
      report.html, report-tables/*.csv      made from these by `fedbrainlm report`
      sites/<name>/                         of a simulation: the site's settings and state, and its node's number
"""

import fcntl
import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from base.files import naming
from server.errors import JournalError

Status = Literal["starting", "running", "completed", "failed", "stopped"]

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS exchanges (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, message TEXT NOT NULL, round INTEGER, asked INTEGER NOT NULL,
    answered INTEGER, started REAL NOT NULL, ended REAL, bytes_down INTEGER NOT NULL, bytes_up INTEGER,
    number INTEGER, question TEXT, step INTEGER, attempt INTEGER, sites TEXT);
CREATE TABLE IF NOT EXISTS outcomes (
    exchange INTEGER NOT NULL REFERENCES exchanges (id), site TEXT NOT NULL, outcome TEXT NOT NULL, audit_head TEXT);
CREATE TABLE IF NOT EXISTS metrics (
    round INTEGER NOT NULL, site TEXT NOT NULL, name TEXT NOT NULL, value REAL, PRIMARY KEY (round, site, name));
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, time REAL NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS left_out (site TEXT PRIMARY KEY, stage TEXT NOT NULL, why TEXT NOT NULL);
"""
WHERE = "where"
"""Fact: the connection to the federation that a run is on; ``simulation``, or its name after a colon."""
_PATIENCE_S = 30
"""Seconds to wait for another process that holds the database."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at an answer of all sites, which is the same however often a site has to be asked.

    Its place in the run is a stage, and a number among the stage's questions, or rounds; `question` is the hash of what
    is asked, and step, attempt and sites are those of the request (`exchange.messages.SecureSum`).
    """

    stage: str
    number: int
    question: str
    step: int
    attempt: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class RunProgress:
    """Where a run is, for a display: the last round that ended, how many sites take part, and why it failed."""

    status: Status
    stage: str
    round_number: int
    rounds: int
    sites: int
    reason: str


class Journal:
    """The journal in a run's folder. One process writes it; any number may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "journal.sqlite"
        with self._connected() as database:
            database.executescript(f"PRAGMA journal_mode=WAL; {_TABLES}")

    @property
    def run(self) -> str:
        """What the sites know the run by: drawn once, and the same when the run is resumed as another of Flower's."""
        self._write("INSERT OR IGNORE INTO facts VALUES ('run', ?)", [(secrets.token_hex(16),)])
        return self.facts()["run"]

    @contextmanager
    def at_work(self, who: Literal["server", "command"] = "server") -> Iterator[None]:
        """Hold the run for this process until the block or the process ends; a JournalError if another one holds it."""
        with self._lock(who).open("ab", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JournalError(
                    f"{self.folder}: the run is still going on. Wait for its end with 'fedbrainlm watch', or stop it."
                ) from None
            with naming(self._lock(who)):
                file.truncate(0)
                file.write(str(os.getpid()).encode())  # for whoever wants to know which process it is
            if who == "server":
                self._clear()
            yield

    def _clear(self) -> None:
        """Delete files that a kill left half-written, under the names that they had until they were whole."""
        for folder in ("", "checkpoints", "answers", "scaling", "moments", "harmonization", "shown/*"):
            for path in self.folder.glob(f"{folder}/.*.tmp" if folder else ".*.tmp"):
                path.unlink()

    @property
    def is_worked_on(self) -> bool:
        """Whether a process holds the run."""
        for who in ("server", "command"):
            if self._lock(who).exists():
                with self._lock(who).open("r") as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return True
        return False

    def _lock(self, who: str) -> Path:
        return self.folder / f".{who}.lock"

    def note(self, **facts: str | int) -> None:
        """Write facts of the run, replacing those of the same name: status, stage, reason, rounds, sites."""
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", [(name, str(value)) for name, value in facts.items()])

    def facts(self) -> dict[str, str]:
        """Return all facts."""
        return dict(self._read("SELECT name, value FROM facts"))

    def say(self, text: str) -> None:
        """Write down what somebody who looks at the run should know."""
        self._write("INSERT INTO notes (time, text) VALUES (?, ?)", [(time.time(), text)])

    def fail(self, reason: str) -> None:
        """Write that the run failed; where the user is stopping it, that it was stopped: what broke then broke of that.

        The command that stops a run says so before (fact ``stopped``), so that all that is written of its end is one.
        """
        stopped = self.facts().get("stopped", "")
        self.note(status="stopped" if stopped else "failed", reason=stopped or reason)

    def begin_exchange(
        self,
        stage: str,
        message: str,
        round_number: int | None,
        asked: int,
        bytes_down: int,
        attempt: Attempt | None = None,
    ) -> int:
        """Write that a question went out, and which attempt at an answer it is; return the exchange's id."""
        place: tuple[Any, ...] = (None,) * 5
        if attempt is not None:
            among = json.dumps(attempt.sites)
            place = (attempt.number, attempt.question, attempt.step, attempt.attempt, among)
        with self._connected() as database:
            row = database.execute(
                "INSERT INTO exchanges (stage, message, round, asked, started, bytes_down, number, question, step, "
                "attempt, sites) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (stage, message, round_number, asked, time.time(), bytes_down, *place),
            )
            return int(row.lastrowid or 0)

    def attempt(self, stage: str, number: int, question: str, sites: tuple[str, ...]) -> Attempt:
        """Return the attempt at a question that a kill cut off, to be made again; else the first one.

        A question that was asked before the run's last one is a new one to the sites, which forget what is over.
        """
        columns = "stage, number, question, step, attempt, sites"
        asked = self._read(f"SELECT {columns} FROM exchanges WHERE step IS NOT NULL ORDER BY id DESC LIMIT 1")
        last = replace(Attempt(*asked[0]), sites=tuple(json.loads(asked[0][-1]))) if asked else None
        if last is not None and (last.stage, last.number, last.question) == (stage, number, question):
            return last
        return Attempt(stage, number, question, 1 if last is None else last.step + 1, 1, sites)

    def last_round(self) -> int:
        """Last round of training that sites were asked for; 0 before the first."""
        return int(self._first("SELECT MAX(round) FROM exchanges") or 0)

    def last_question(self, stage: str) -> int:
        """Last question of a stage that sites were asked, counted from 1; 0 before the first."""
        return int(self._first("SELECT MAX(number) FROM exchanges WHERE stage = ?", stage) or 0)

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

    def leave_out(self, site: str, stage: str, why: str) -> None:
        """Write that the run goes on without a site, since which stage and why; what stands there stays."""
        self._write("INSERT OR IGNORE INTO left_out VALUES (?, ?, ?)", [(site, stage, why)])
        self.note(left_out=", ".join(sorted(site for site, _, _ in self.left_out())))

    def leave_nobody_out(self) -> None:
        """Forget who was left out, of a run whose sites gather anew because it had not begun."""
        self._write("DELETE FROM left_out", [()])
        self.note(left_out="")

    def left_out(self) -> list[tuple[str, str, str]]:
        """Return the sites that the run went on without, since which stage each, and why."""
        return self._read("SELECT site, stage, why FROM left_out ORDER BY site")

    def unanswered(self) -> list[tuple[str, str, int | None, str]]:
        """Return what sites did not answer in the end, as it was asked: site, stage, round, and what came instead."""
        return self._read(
            "SELECT site, stage, round, outcome FROM (SELECT *, ROW_NUMBER() OVER "
            "(PARTITION BY site, stage, number ORDER BY exchange DESC) AS place FROM outcomes JOIN exchanges "
            "ON exchange = id WHERE step IS NOT NULL OR stage = 'describe') "
            "WHERE place = 1 AND outcome != 'ok' ORDER BY exchange"
        )

    def measure(self, round_number: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Write metrics of a round: site → name → value; site ``all`` is the federation."""
        self._write(
            "INSERT INTO metrics VALUES (?, ?, ?, ?) "
            "ON CONFLICT (round, site, name) DO UPDATE SET value = excluded.value",  # a round that is done again
            [(round_number, site, name, value) for site, named in metrics.items() for name, value in named.items()],
        )

    def seal(self, path: Path) -> None:
        """Write down that a file of the run is whole."""
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?)", [(self._name(path), _sha256(path))])

    def is_whole(self, path: Path) -> bool:
        """Whether a file is as it was when it was sealed."""
        sealed = self._first("SELECT sha256 FROM files WHERE name = ?", self._name(path))
        try:
            return sealed is not None and _sha256(path) == sealed
        except OSError:
            return False

    def files(self) -> dict[str, str]:
        """Return the SHA-256 of every file that was sealed, by its name in the run's folder."""
        return dict(self._read("SELECT name, sha256 FROM files ORDER BY name"))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def table(self, name: Literal["exchanges", "outcomes", "metrics", "notes"]) -> pd.DataFrame:
        """Return a whole table, in the order of writing."""
        with self._connected() as database:
            return pd.read_sql_query(f"SELECT * FROM {name} ORDER BY rowid", database)

    def progress(self) -> RunProgress:
        """Return where the run is."""
        facts, last = self.facts(), self._first("SELECT MAX(round) FROM exchanges WHERE ended IS NOT NULL")
        return RunProgress(
            status=next((status for status in get_args(Status) if status == facts.get("status")), "starting"),
            stage=facts.get("stage", ""),
            round_number=int(last or 0),
            rounds=int(facts.get("rounds", 0)),
            sites=int(facts.get("sites", 0)),
            reason=facts.get("reason", ""),
        )

    def end(self) -> RunProgress | None:
        """Return how the run ended; None while it goes on.

        Whoever was killed could not say so: a run that nobody holds any more has failed.
        """
        worked_on, now = self.is_worked_on, self.progress()  # in this order: the end is noted before it is let go
        if now.status not in ("starting", "running"):
            return now
        killed = f"its process was killed. Go on with 'fedbrainlm run --resume {self.folder}'"
        if not self.is_set_up:
            killed = "its process was killed before its sites were set up. Begin it again"
        return None if worked_on else replace(now, status="failed", reason=killed)

    @property
    def is_set_up(self) -> bool:
        """Whether the run can go on: in a simulation, whether its sites were made."""
        return self.facts().get(WHERE) != "simulation" or (self.folder / "sites").is_dir()

    def rounds_done(self) -> int:
        """Rounds of training whose checkpoints were written."""
        last = self._first("SELECT MAX(name) FROM files WHERE name LIKE 'checkpoints/round-%'")
        return int(Path(last).stem.partition("-")[2]) if last else 0

    def checkpoint(self, round_number: int) -> Path:
        """Path of the model after a round."""
        return self.folder / "checkpoints" / f"round-{round_number:04d}.safetensors"

    def outer_state(self, round_number: int) -> Path:
        """Path of what the outer optimizer remembered after a round."""
        return self.folder / "checkpoints" / f"outer-{round_number:04d}.safetensors"

    def answers(self, stage: str, number: int) -> Path:
        """Path of what the sites answered to one question of a stage."""
        return self.folder / "answers" / f"{stage}-{number:04d}.safetensors"

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        with self._connected() as database:
            database.executemany(statement, rows)

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._connected() as database:
            return database.execute(query, values).fetchall()

    def _first(self, query: str, *values: Any) -> Any:
        """Value in the first row; None where there is no row."""
        return next((value for (value,) in self._read(query, *values)), None)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            database = sqlite3.connect(self._path, timeout=_PATIENCE_S)
            try:
                with database:
                    yield database
            finally:
                database.close()
        except sqlite3.DatabaseError as error:  # locked, full, damaged, or not to be written
            raise JournalError(
                f"{self._path}: cannot be used ({error}). Free the disk, or end the program that holds the file; then "
                "go on with 'fedbrainlm run --resume'."
            ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
