"""What the site gave out under masks: one plaintext for one context, kept until the next exchange.

A mask is a one-time pad. Two answers of one context would show their difference, so a question that is asked again gets
the stored answer, masked as before, or for fewer sites where one fell silent; never a new one. Nothing is computed
again for a second attempt: no training, no further noise, no second look at data that may have changed.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from base.files import HEADER, save_arrays
from client.door.policy import Policy
from exchange.messages import (
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
_TABLES = """
CREATE TABLE IF NOT EXISTS contexts (
    run TEXT NOT NULL, step INTEGER NOT NULL, question TEXT NOT NULL, attempt INTEGER NOT NULL, among TEXT NOT NULL,
    PRIMARY KEY (run, step));
CREATE TABLE IF NOT EXISTS overflows (study TEXT PRIMARY KEY, times INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Kept:
    """A stored answer.

    Attributes
    ----------
    reply : SumReply
        The plaintext.
    about : dict
        What else belongs to it, JSON-able.
    question : str
        What it answers (`exchange.messages.SumRequest.question`).
    """

    reply: SumReply
    about: dict[str, Any]
    question: str


class SumStore:
    """The site's answers under masks.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    policy : Policy
        The site's: how many attempts one sum may take.
    """

    def __init__(self, folder: Path, policy: Policy) -> None:
        self._folder = folder
        self._policy = policy

    def find(self, run: str, request: SumRequest) -> Kept | None:
        """Return the stored answer to a question that may be asked again; None if it is new.

        Raises
        ------
        Refusal
            ``sum.context-used-before`` if the context had another question, or is over; ``sum.attempt-not-allowed`` if
            the attempt does not follow the one before.
        """
        with self._connected() as database:
            known = self._check(database, run, request)
        return self._read(request.study, run, _secure(request).step) if known else None

    def keep(self, run: str, request: SumRequest, kept: Kept) -> None:
        """Store a new answer, on the disk before it returns, and forget the study's plaintext of the one before it.

        Raises
        ------
        Refusal
            ``sum.context-used-before`` if another process of the site was faster.
        """
        step = _secure(request).step
        path = self._path(request.study, run, step)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        header = {"kind": type(kept.reply).__name__, "reply": kept.reply.model_dump(mode="json"), "about": kept.about}
        try:
            with self._connected() as database:  # the context is taken before its answer is in place
                database.execute(
                    "INSERT INTO contexts VALUES (?, ?, ?, 1, ?)", (run, step, kept.question, _among(request))
                )
                save_arrays(path, kept.reply.arrays, {**header, "question": kept.question})
        except sqlite3.IntegrityError:
            raise Refusal(RefusalCode.CONTEXT, f"step {step} of run {run} was answered at the same moment.") from None
        with self._connected():  # while nobody writes: hidden files are answers that a kill left half written
            for older in path.parent.iterdir():
                if older != path:
                    older.unlink()

    def use(self, run: str, request: SumRequest) -> None:
        """Note the attempt that an answer is about to leave in.

        Raises
        ------
        Refusal
            As `find`: another process of the site may have been faster.
        """
        secure = _secure(request)
        with self._connected() as database:
            self._check(database, run, request)
            database.execute(
                "UPDATE contexts SET attempt = ?, among = ? WHERE run = ? AND step = ?",
                (secure.attempt, _among(request), run, secure.step),
            )

    def permit_overflow(self, study: str) -> None:
        """Refuse a study for which numbers did not fit again and again.

        A coordinator could find a site's number by asking for ever larger multiples of it.

        Raises
        ------
        Refusal
            Naming the rule.
        """
        with self._connected() as database:
            row = database.execute("SELECT times FROM overflows WHERE study = ?", (study,)).fetchone()
        if row is not None and row[0] >= _MOST_OVERFLOWS:
            raise Refusal(
                RefusalCode.OVERFLOW,
                f"numbers did not fit in {row[0]} answers to study '{study}', which gets none any more. Find out what "
                "it asks; then give it another name.",
            )

    def note_overflow(self, study: str) -> None:
        """Count that a number did not fit."""
        with self._connected() as database:
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
            self._check_new(database, run, secure)
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

    def _check_new(self, database: sqlite3.Connection, run: str, secure: SecureSum) -> None:
        if secure.attempt != 1:
            raise Refusal(RefusalCode.ATTEMPT, f"attempt {secure.attempt} of a sum that the site never saw begin.")
        (last,) = database.execute("SELECT MAX(step) FROM contexts WHERE run = ?", (run,)).fetchone()
        if last is not None and last > secure.step:
            raise Refusal(RefusalCode.CONTEXT, f"step {secure.step} of run {run} came after step {last}.")

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

    def _read(self, study: str, run: str, step: int) -> Kept:
        path = self._path(study, run, step)
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads(file.metadata()[HEADER])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        except (OSError, ValueError, SafetensorError):
            raise Refusal(RefusalCode.CONTEXT, f"step {step} of run {run} is over; its answer is not kept.") from None
        reply = _REPLIES[header["kind"]](**header["reply"], arrays=arrays)
        return Kept(reply, header["about"], header["question"])

    def _path(self, study: str, run: str, step: int) -> Path:
        """Names that arrive are hashed: they may hold anything."""
        of_study, of_run = (hashlib.sha256(name.encode()).hexdigest()[:16] for name in (study, run))
        return self._folder / of_study / f"{of_run}-{step}.safetensors"

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        path = self._folder / "contexts.sqlite"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(path, timeout=30)) as database:
                database.execute("PRAGMA synchronous=FULL")
                database.executescript(_TABLES)
                database.execute("BEGIN IMMEDIATE")  # what is checked is still true when it is written
                with database:
                    yield database
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise Refusal(
                RefusalCode.SETUP,
                f"{path}: cannot be used ({error}), and no sum is masked without it. Free the disk or mend its "
                "permissions; if it is damaged, restore it from a backup.",
            ) from error


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
