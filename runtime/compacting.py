"""Give back to the disk what the SuperLink's database no longer needs."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from base.files import atomic_path

_WORTH_BYTES = 2**24
"""Empty pages of fewer bytes are left for the next messages."""


def compact(database: Path) -> int:
    """Shrink the database of a SuperLink that is not running; return by how many bytes.

    Flower deletes a message once it was delivered, and what is left of a run once that has ended. SQLite keeps the
    pages for later messages: the file stays as large as it was at its fullest, when a question and the answers of all
    sites lay in it. What is kept is copied beside it: SQLite's own way takes room in /tmp, which may be memory.
    """
    with suppress(sqlite3.DatabaseError, OSError):  # damaged, or no room: the SuperLink starts with it, or says why not
        before = database.stat().st_size
        if _empty_bytes(database) < _WORTH_BYTES:
            return 0
        with atomic_path(database) as copy:
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.execute("VACUUM INTO ?", (str(copy),))
            for part in ("-wal", "-shm"):  # of the one that is replaced; empty since the checkpoint
                database.with_name(database.name + part).unlink(missing_ok=True)
        return before - database.stat().st_size
    return 0


def _empty_bytes(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    return int(free * page_bytes)
