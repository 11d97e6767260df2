"""Give back to the disk what the SuperLink's database no longer needs."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

_WORTH_BYTES = 2**24
"""Empty pages of fewer bytes are left for the next messages."""


def compact(database: Path) -> int:
    """Shrink the database of a SuperLink that is not running; return by how many bytes.

    Flower deletes a message once it was delivered, and what is left of a run once that has ended. SQLite keeps the
    pages for later messages: the file stays as large as it was at its fullest, when a question and the answers of all
    sites lay in it.
    """
    with suppress(sqlite3.DatabaseError, OSError):  # damaged, or no room: the SuperLink starts with it, or says why not
        before = database.stat().st_size
        with closing(sqlite3.connect(database)) as connection:
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
            if free * page_bytes >= _WORTH_BYTES:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return before - database.stat().st_size
    return 0
