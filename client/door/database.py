"""The site's database: what it told of whom, what it gave out under masks, and what that cost of its privacy budget.

One file, so that an answer, its lines in the release ledger and its price are there together or not at all. What was
done in a transaction is on the disk when it ends, and an answer leaves after that.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path

from exchange.refusals import Refusal, RefusalCode

OLDER_FOLDERS = ("sums", "privacy")
"""What earlier versions kept beside the ledger, in the state folder."""
_VERSION = 2
_PATIENCE_S = 60
"""Seconds to wait for another process that writes."""
_KEPT = "kept"
_TABLES = {
    "key": "(digest BLOB NOT NULL)",
    # The release ledger (`client.door.ledger`).
    "studies": """(
        study TEXT PRIMARY KEY, rounds INTEGER NOT NULL, releases INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "people": "(id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, members BLOB NOT NULL)",
    "questions": "(id INTEGER PRIMARY KEY, question TEXT NOT NULL UNIQUE)",
    "told": "(data TEXT, people INTEGER REFERENCES people, PRIMARY KEY (data, people)) WITHOUT ROWID",
    "answers": """(
        question INTEGER REFERENCES questions, people INTEGER REFERENCES people, sites TEXT, study TEXT, run TEXT,
        times INTEGER NOT NULL, last TEXT NOT NULL, PRIMARY KEY (question, people, sites, study, run)
    ) WITHOUT ROWID""",
    "refused": "(study TEXT PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID",
    # Answers under masks (`client.door.kept_answers`).
    "contexts": """(
        run TEXT NOT NULL, step INTEGER NOT NULL, question TEXT NOT NULL, attempt INTEGER NOT NULL,
        among TEXT NOT NULL, PRIMARY KEY (run, step)
    )""",
    "overflows": "(study TEXT PRIMARY KEY, times INTEGER NOT NULL)",
    _KEPT: """(
        study TEXT NOT NULL, run TEXT NOT NULL, step INTEGER NOT NULL, name TEXT NOT NULL, piece INTEGER NOT NULL,
        content BLOB NOT NULL, PRIMARY KEY (study, run, step, name, piece)
    )""",
    # What was spent (`client.door.spending`).
    "spending": "(study TEXT PRIMARY KEY, content TEXT NOT NULL)",
    "taken_in": "(folder TEXT PRIMARY KEY)",  # folders of an earlier version that are not removed yet
}


class SiteDatabase:
    """One SQLite file in the site's state folder.

    Parameters
    ----------
    state : Path
        The state folder. The file is made with mode 600 if it is not there.
    secret : bytes
        The site's, the same always: ids of participants are hashed with a key of it.
    take_in : callable, optional
        Writes into the database what earlier versions kept in the state folder in files of their own
        (`client.door.older_files`); those go once it is on the disk.
    """

    def __init__(
        self, state: Path, secret: bytes, take_in: Callable[[sqlite3.Connection, Path], None] | None = None
    ) -> None:
        # The name that the ledger alone had: a version that knows only that refuses this one, and tells nothing twice.
        self.path = state / "ledger.sqlite"
        self.key = blake2b(secret).digest()
        self._take_in = take_in
        self._open: sqlite3.Connection | None = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the database for this process alone; keep what was done in the block only if nothing is raised.

        A transaction within another is a part of that.

        Raises
        ------
        Refusal
            If the database is damaged, of another key or of a newer version, or cannot be written.
        """
        if self._open is not None:
            yield self._open
            return
        try:
            self._make_file()
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE_S, isolation_level=None)) as self._open:
                self._open.execute("PRAGMA synchronous = EXTRA")  # FULL, and the folder's entry of the journal, too
                self._open.execute("PRAGMA secure_delete = ON")  # plaintext that is deleted is gone
                self._open.execute("BEGIN IMMEDIATE")
                self._check(self._open)
                yield self._open
                self._open.execute("COMMIT")  # without it, closing undoes what was done
        except (sqlite3.Error, OSError) as error:
            raise Refusal(
                RefusalCode.SETUP,
                f"the release ledger {self.path} cannot be used ({error}), and nothing leaves without it. Free the "
                "disk or mend its permissions; if it is damaged, restore it from a backup.",
            ) from error
        finally:
            self._open = None

    def _make_file(self) -> None:
        if not self.path.exists():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT, 0o600))  # SQLite's own would be readable by others

    def _check(self, database: sqlite3.Connection) -> None:
        """Make the tables of a new file, bring an older one up to date, and refuse one that is not to be used."""
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise Refusal(
                RefusalCode.SETUP,
                f"the release ledger {self.path} is of version {version}, and this version of FedBrainLM knows up to "
                f"{_VERSION}: a newer one made it. Use that one.",
            )
        digest = blake2b(b"release ledger", key=self.key).digest()
        if version == 0 and self.path.stat().st_size == 0:
            _make_tables(database)
            database.execute("INSERT INTO key VALUES (?)", (digest,))
        else:
            _require_whole(database, version)
        if database.execute("SELECT digest FROM key").fetchall() != [(digest,)]:
            raise Refusal(
                RefusalCode.SETUP,
                f"the release ledger {self.path} was written with another private seed, so that nobody in it would be "
                "known again. Restore the state folder's private_seed.",
            )
        if version < _VERSION:
            self._bring_up_to_date(database, version)
        elif self._take_in is not None:
            self._remove_older(database)

    def _bring_up_to_date(self, database: sqlite3.Connection, version: int) -> None:
        _make_tables(database)
        database.execute("DROP TABLE IF EXISTS trained")  # rounds whose answer was not stored yet: both come together
        if self._take_in is not None:
            self._take_in(database, self.path.parent)
            database.executemany("INSERT INTO taken_in VALUES (?)", [(name,) for name in OLDER_FOLDERS])
        elif version:
            raise sqlite3.DatabaseError(f"it is of version {version}; expected {_VERSION}")
        database.execute(f"PRAGMA user_version = {_VERSION}")

    def _remove_older(self, database: sqlite3.Connection) -> None:
        """Remove the folders that were taken in, now that this is on the disk; refuse such a one that came since."""
        taken_in = {name for (name,) in database.execute("SELECT folder FROM taken_in")}
        for folder in map(self.path.with_name, OLDER_FOLDERS):
            if folder.exists() and folder.name not in taken_in:
                raise Refusal(
                    RefusalCode.SETUP,
                    f"{folder} is of an earlier version, and came after {self.path.name} had taken its like in: what "
                    "it says was told or spent would be forgotten. Restore the whole state folder from one backup, or "
                    "remove this folder.",
                )
            if folder.exists():
                shutil.rmtree(folder)
        database.execute("DELETE FROM taken_in")


def _make_tables(database: sqlite3.Connection) -> None:
    for name, columns in _TABLES.items():
        database.execute(f"CREATE TABLE IF NOT EXISTS {name} {columns}")


def _require_whole(database: sqlite3.Connection, version: int) -> None:
    """Refuse a damaged database. Plaintext, which may be large, is looked at when it is read."""
    if version == 0:
        raise sqlite3.DatabaseError("it is of no version")
    there = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if version == _VERSION and not there >= _TABLES.keys():
        raise sqlite3.DatabaseError("a table is missing")
    for name in sorted(there & _TABLES.keys() - {_KEPT}):
        (found,) = database.execute(f"PRAGMA quick_check('{name}')").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
