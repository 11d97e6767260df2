"""What versions before the one database kept in files of their own, and how it is taken in.

``sums/contexts.sqlite`` had the contexts of secure sums, ``sums/<study>/<run>-<step>.safetensors`` each study's last
answer before it was masked (hashes of the names), and ``privacy/<study>.json`` what each study had spent.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from base.errors import FileError
from base.files import read_arrays
from client.door.kept_answers import Kept, reply_of, write_answer
from client.door.spending import Spend, Spent

_TABLES = """
CREATE TABLE IF NOT EXISTS contexts (run TEXT, step INTEGER, question TEXT, attempt INTEGER, among TEXT);
CREATE TABLE IF NOT EXISTS overflows (study TEXT, times INTEGER);
"""
"""Of ``contexts.sqlite``: a file that was only just made has none."""


class _OlderSpent(Spent):
    last: str = ""
    """The last release that was paid for: an answer under masks was kept first, and paid for before it left."""


def take_in(database: sqlite3.Connection, state: Path) -> None:
    """Write into the database what the older files hold; they are left as they are."""
    owed: dict[str, tuple[str, list[Spend]]] = {}
    if (state / "sums").exists():
        rows, overflows = _contexts(state / "sums")
        database.executemany("INSERT INTO contexts VALUES (?, ?, ?, ?, ?)", rows)
        database.executemany("INSERT INTO overflows VALUES (?, ?)", overflows)
        for study, run, step, kept, spends in _answers(state / "sums", rows):
            write_answer(database, study, run, step, kept)
            owed[study] = (f"{run}/{step}", spends)
    privacy = state / "privacy"
    # Not by glob, which takes a folder that it may not read for an empty one: what was spent would be forgotten.
    files = [path for path in privacy.iterdir() if path.suffix == ".json"] if privacy.exists() else []
    texts = {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in files}
    texts = {study: _OlderSpent().to_text() for study, (_, spends) in owed.items() if spends} | texts
    for study, text in texts.items():
        content = _with_owed(text, *owed.get(study, ("", [])))
        database.execute("INSERT INTO spending VALUES (?, ?)", (study, content))


def _contexts(folder: Path) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Read what was answered under which masks, and how often a number did not fit."""
    path = folder / "contexts.sqlite"
    if not path.is_file():
        if any(folder.iterdir()):
            raise sqlite3.DatabaseError(f"{path} is missing")
        return [], []
    try:
        with closing(sqlite3.connect(path)) as older:
            older.executescript(_TABLES)
            rows = older.execute("SELECT run, step, question, attempt, among FROM contexts").fetchall()
            overflows = older.execute("SELECT study, times FROM overflows").fetchall()
    except sqlite3.Error as error:
        raise sqlite3.DatabaseError(f"{path}: {error}") from None
    return rows, overflows


def _answers(folder: Path, contexts: list[tuple[Any, ...]]) -> Iterator[tuple[str, str, int, Kept, list[Spend]]]:
    """Yield the answers that are whole, the last one last: study, run, step, what was kept, and what it costs."""
    found = []
    for run, step, _, _, among in contexts:
        try:
            study = str(json.loads(among)["same"][1])
        except (ValueError, KeyError, IndexError, TypeError):
            raise sqlite3.DatabaseError(f"{folder / 'contexts.sqlite'}: '{among}' are no sites") from None
        of_study, of_run = (hashlib.sha256(name.encode()).hexdigest()[:16] for name in (study, run))
        path = folder / of_study / f"{of_run}-{step}.safetensors"
        if path.is_file():
            found.append((path.stat().st_mtime_ns, path, study, run, step))
    for _, path, study, run, step in sorted(found):
        try:
            arrays, header = read_arrays(path)
            spends = [Spend(*spend) for spend in header["about"].pop("spends", ())]
            reply = reply_of(header["kind"], header["reply"], arrays)
            kept = Kept(reply, header["about"], header["question"])
        except (FileError, KeyError, TypeError, ValueError):  # damaged: it was never answered again, and is not now
            continue
        yield study, run, step, kept, spends


def _with_owed(text: str, release: str, spends: list[Spend]) -> str:
    """Add to what was spent the price of a kept answer that is not paid for yet; a damaged text stays so."""
    try:
        older = _OlderSpent.from_text(text)
    except ValueError:
        return text
    if release == older.last or not spends:
        return Spent(**older.model_dump(exclude={"last"})).to_text()
    return Spent(history=(*older.history, *spends), noise_multipliers=older.noise_multipliers).to_text()
