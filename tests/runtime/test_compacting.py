import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from runtime.compacting import compact

LARGE, SMALL = 40, 4


@pytest.fixture
def database(tmp_path) -> Path:
    """As Flower leaves it: in WAL mode, with pages of messages that were delivered and deleted."""
    path = tmp_path / "superlink.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE objects (name TEXT, content BLOB)")
        connection.executemany("INSERT INTO objects VALUES (?, ?)", [(n, bytes(2**20)) for n in range(LARGE)])
        connection.commit()
    return path


def keep(path: Path, n: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM objects WHERE CAST(name AS INTEGER) >= ?", (n,))
        connection.commit()


def names(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM objects ORDER BY rowid")]


def test_what_was_deleted_is_given_back_and_the_rest_stays(database):
    keep(database, 2)
    assert database.stat().st_size > LARGE * 2**20

    assert compact(database) > (LARGE - 3) * 2**20

    assert names(database) == ["0", "1"]
    assert sum(path.stat().st_size for path in database.parent.iterdir()) < 3 * 2**20


def test_a_few_empty_pages_are_left(database):
    keep(database, LARGE - SMALL)
    size = database.stat().st_size

    assert compact(database) == 0
    assert database.stat().st_size == size


def test_what_is_no_database_is_left_to_the_superlink(tmp_path):
    assert compact(tmp_path / "none.sqlite") == 0
    assert not (tmp_path / "none.sqlite").exists()

    (tmp_path / "damaged.sqlite").write_bytes(b"no database" * 1000)
    assert compact(tmp_path / "damaged.sqlite") == 0
    assert (tmp_path / "damaged.sqlite").read_bytes() == b"no database" * 1000
