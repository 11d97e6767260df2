"""What the site gave out under masks: one plaintext for one context, kept until the next exchange.

A mask is a one-time pad. Two answers of one context would show their difference, so a question that is asked again gets
the stored answer, masked as before, or for fewer sites where one fell silent; never a new one. Nothing is computed
again for a second attempt: no training, no further noise, no second look at data that may have changed.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from client.door.database import SiteDatabase
from client.door.policy import Policy
from exchange.messages import (
    Arrays,
    EmbedReply,
    HarmonizeReply,
    SecureSum,
    SummarizeReply,
    SumReply,
    SumRequest,
    TrainReply,
)
from exchange.refusals import Refusal, RefusalCode

_REPLIES = {kind.__name__: kind for kind in (TrainReply, EmbedReply, SummarizeReply, HarmonizeReply)}
_MOST_OVERFLOWS = 3
"""Refusals of numbers that do not fit, for one study: each says something of how large a number is."""
_HEADER = ""
"""Name of an answer's header among its arrays."""
_PIECE = 2**26
"""Bytes of an array that are one row: SQLite takes no rows of a gigabyte."""


@dataclass(frozen=True)
class Kept:
    """A stored answer."""

    reply: SumReply
    """The plaintext."""
    about: dict[str, Any]
    """What else belongs to it, JSON-able."""
    question: str
    """What it answers (`exchange.messages.SumRequest.question`)."""


class KeptAnswers:
    """The site's answers under masks, each given for as many attempts at a sum as its policy lets one take."""

    def __init__(self, database: SiteDatabase, policy: Policy) -> None:
        self._database = database
        self._policy = policy

    def find(self, run: str, request: SumRequest) -> Kept | None:
        """Return the stored answer to a question that may be asked again; None if it is new.

        Raises
        ------
        Refusal
            ``sum.context-used-before`` if the context had another question, or is over; ``sum.attempt-not-allowed`` if
            the attempt does not follow the one before.
        """
        with self._database.transaction() as database:
            known = self._check(database, run, request)
            return read_answer(database, request.study, run, _secure(request).step) if known else None

    def keep(self, run: str, request: SumRequest, kept: Kept) -> None:
        """Store a new answer in place of the study's last one; of two processes the later is refused."""
        step = _secure(request).step
        with self._database.transaction() as database:
            context = (run, step, kept.question, 1, _among(request))
            try:
                database.execute("INSERT INTO contexts VALUES (?, ?, ?, ?, ?)", context)
            except sqlite3.IntegrityError:
                detail = f"step {step} of run {run} was answered at the same moment."
                raise Refusal(RefusalCode.CONTEXT, detail) from None
            write_answer(database, request.study, run, step, kept)

    def use(self, run: str, request: SumRequest) -> None:
        """Note the attempt that a stored answer is about to leave in; of two processes the later is refused."""
        secure = _secure(request)
        with self._database.transaction() as database:
            self._check(database, run, request)
            database.execute(
                "UPDATE contexts SET attempt = ?, among = ? WHERE run = ? AND step = ?",
                (secure.attempt, _among(request), run, secure.step),
            )

    def permit_overflow(self, study: str) -> None:
        """Refuse a study for which numbers did not fit again and again.

        A coordinator could find a site's number by asking for ever larger multiples of it.
        """
        with self._database.transaction() as database:
            row = database.execute("SELECT times FROM overflows WHERE study = ?", (study,)).fetchone()
        if row is not None and row[0] >= _MOST_OVERFLOWS:
            raise Refusal(
                RefusalCode.OVERFLOW,
                f"numbers did not fit in {row[0]} answers to study '{study}', which gets none any more. Find out what "
                "it asks; then give it another name.",
            )

    def note_overflow(self, study: str) -> None:
        """Count that a number did not fit."""
        with self._database.transaction() as database:
            database.execute(
                "INSERT INTO overflows VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1", (study,)
            )

    def _check(self, database: sqlite3.Connection, run: str, request: SumRequest) -> bool:
        """Refuse what would use a mask twice; return whether the context has an answer."""
        secure = _secure(request)
        row = database.execute(
            "SELECT question, attempt, among FROM contexts WHERE run = ? AND step = ?", (run, secure.step)
        ).fetchone()
        if row is None:
            _check_new(database, run, secure)
            return False
        question, attempt, among = row
        if secure.attempt != attempt:
            self._check_attempt(request, attempt, json.loads(among))
        elif among != _among(request) or (attempt == 1 and question != request.question):
            raise Refusal(
                RefusalCode.CONTEXT,
                f"step {secure.step} of run {run} was answered before, and what is asked now is not the same.",
            )
        return True

    def _check_attempt(self, request: SumRequest, attempt: int, among: dict[str, Any]) -> None:
        secure = _secure(request)
        self._policy.permit_attempt(secure.attempt)
        same = _the_same(request) == among["same"]
        if secure.attempt < attempt or not set(secure.sites) < set(among["sites"]) or not same:
            raise Refusal(
                RefusalCode.ATTEMPT,
                f"attempt {secure.attempt} among {', '.join(secure.sites)} does not follow attempt {attempt} among "
                f"{', '.join(among['sites'])}, all else being the same and one or more having fallen silent.",
            )


def write_answer(database: sqlite3.Connection, study: str, run: str, step: int, kept: Kept) -> None:
    """Store an answer in place of the study's last one."""
    arrays = {name: np.asarray(values) for name, values in kept.reply.arrays.items()}
    header = {
        "kind": type(kept.reply).__name__,
        "reply": kept.reply.model_dump(mode="json"),
        "about": kept.about,
        "question": kept.question,
        "arrays": {name: [values.dtype.str, values.shape] for name, values in arrays.items()},
    }
    database.execute("DELETE FROM kept WHERE study = ?", (study,))
    rows = ((study, run, step, *piece) for piece in _pieces(json.dumps(header).encode(), arrays))
    database.executemany("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?)", rows)


def _pieces(header: bytes, arrays: Arrays) -> Iterator[tuple[str, int, Any]]:
    contents = {_HEADER: np.frombuffer(header, np.uint8)}
    contents |= {name: np.ravel(values).view(np.uint8) for name, values in arrays.items()}
    for name, content in contents.items():
        for number, start in enumerate(range(0, len(content), _PIECE)):
            yield name, number, content[start : start + _PIECE]


def read_answer(database: sqlite3.Connection, study: str, run: str, step: int) -> Kept:
    """Return a stored answer; one that is not there any more, or is damaged, is refused."""
    rows = database.execute(
        "SELECT name, content FROM kept WHERE study = ? AND run = ? AND step = ? ORDER BY name, piece",
        (study, run, step),
    )
    contents: dict[str, bytearray] = {}
    for name, content in rows:
        contents.setdefault(name, bytearray()).extend(content)
    try:
        header = json.loads(contents[_HEADER])
        arrays = {
            name: np.frombuffer(contents.get(name, bytearray()), dtype).reshape(shape)
            for name, (dtype, shape) in header["arrays"].items()
        }
    except (KeyError, ValueError):
        raise Refusal(RefusalCode.CONTEXT, f"step {step} of run {run} is over; its answer is not kept.") from None
    return Kept(reply_of(header["kind"], header["reply"], arrays), header["about"], header["question"])


def reply_of(kind: str, header: dict[str, Any], arrays: Arrays) -> SumReply:
    """Make a reply of what was stored of it."""
    return _REPLIES[kind](**header, arrays=arrays)


def _check_new(database: sqlite3.Connection, run: str, secure: SecureSum) -> None:
    if secure.attempt != 1:
        raise Refusal(RefusalCode.ATTEMPT, f"attempt {secure.attempt} of a sum that the site never saw begin.")
    (last,) = database.execute("SELECT MAX(step) FROM contexts WHERE run = ?", (run,)).fetchone()
    if last is not None and last > secure.step:
        raise Refusal(RefusalCode.CONTEXT, f"step {secure.step} of run {run} came after step {last}.")


def _secure(request: SumRequest) -> SecureSum:
    if request.secure is None:
        raise Refusal(RefusalCode.PROTOCOL, "the request is for an answer in the clear.")
    return request.secure


def _the_same(request: SumRequest) -> list[Any]:
    """What a further attempt has in common with the first, though it does not ask again; as it is in JSON."""
    secure = _secure(request)
    return [type(request).__name__, request.study, secure.roster, secure.bound]


def _among(request: SumRequest) -> str:
    """Whom an attempt is masked among, as canonical JSON."""
    secure = _secure(request)
    groups = [group.model_dump() for group in request.groups]
    content = {"sites": secure.sites, "groups": groups, "same": _the_same(request)}
    return json.dumps(content, sort_keys=True)
