"""The audit log: one line for everything that left the site, and for everything that it refused.

The lines are a chain. Each names the SHA-256 of the line before it, so that no line can be changed, removed, put in or
moved without every later one saying so. The SHA-256 of the last line is the log's *head*: who has noted a head can
later show that nothing up to there was touched. A log that was cut off at its end, or written anew as a whole, is a
chain like any other; only a head that was noted elsewhere shows that.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import RecordDict

from base.files import naming, new_path, sync
from client.app_files import files_of
from client.errors import AuditError

BEGIN = "begin"
"""Event of the first line of a log. It holds a random salt, so that nobody can guess a head."""
TORN = "torn"
"""Event that keeps the bytes of a line that was never finished."""
_NOTHING = "0" * 64
"""What the first line names as the line before it."""
_BLOCK = 2**16
_LONGEST = 2**26
"""Bytes of the longest line that is read: a line describes arrays, and holds none."""
_LONGEST_EVENT = _LONGEST // 4
"""Bytes of the longest line that is written. A part of it that a power cut leaves still has room in a line of its own,
in hexadecimal."""
_APP = Path(__file__).parents[2]


def describe_records(records: RecordDict) -> list[dict[str, Any]]:
    """List what a reply carries: name, dtype, shape, bytes and SHA-256 of each array and of the header."""
    items = [
        {
            "name": name,
            "dtype": array.dtype,
            "shape": list(array.shape),
            "bytes": len(array.data),
            "sha256": _sha256(array.data),
        }
        for arrays in records.array_records.values()
        for name, array in arrays.items()
    ]
    for name, config in records.config_records.items():
        text = json.dumps(dict(config), sort_keys=True)
        items.append({"name": name, "bytes": len(text), "sha256": _sha256(text.encode()), "text": text})
    return items


@cache
def app_hash(folder: Path = _APP) -> str:
    r"""Return the SHA-256 of the list of an app's files, each with its own SHA-256.

    It can be had without us, in a folder where the FAB was unpacked::

        find . -type f -not -path './.info/*' -printf '%P\n' | LC_ALL=C sort | xargs sha256sum | sha256sum

    Flower does not tell an app the hash of its FAB; the SuperNode, which knows it, writes that down before any code of
    the app runs (``app-accepted``). An app that lies about itself is convicted by that line alone.

    Parameters
    ----------
    folder : Path
        Where the packages lie.
    """
    lines = (f"{_sha256((folder / name).read_bytes())}  {name}\n" for name in files_of(folder))
    return _sha256("".join(lines).encode())


@dataclass(frozen=True)
class Verdict:
    """What `AuditLog.verify` found. As text it is one sentence, or two."""

    n_lines: int
    """Lines from the first that are one unbroken chain."""
    head: str
    """SHA-256 of the last of them."""
    head_line: int | None = None
    """Line whose SHA-256 is the head that was asked about, counted from 1."""
    defect: str = ""
    """What is wrong; empty if nothing is."""
    line: int | None = None
    """The first line that is wrong, counted from 1; None if no single line is."""

    @property
    def intact(self) -> bool:
        return not self.defect

    def __str__(self) -> str:
        if self.defect:
            place = f"line {self.line} " if self.line else ""
            before = "" if self.head_line is None else f" The head that was given is line {self.head_line}."
            return f"broken: {place}{self.defect}.{before}"
        said = f"intact: {self.n_lines} lines in one chain, with head {self.head}."
        if self.head_line is None:
            return (
                f"{said} A change of the last line, lines cut off at the end, and a log written anew cannot be "
                "seen in the file alone, unless you give the head that you noted before (--head)."
            )
        return f"{said} The head that was given is line {self.head_line}; {self.n_lines - self.head_line} came since."


class AuditLog:
    """An append-only file of JSON lines that form a chain.

    Parameters
    ----------
    path : Path
        Made with its folder when the first line is written, mode 600.
    site : str
        Name of the site, for the first line.
    """

    def __init__(self, path: Path, site: str = "") -> None:
        self.path = path
        self.site = site

    def append(self, event: str, **fields: Any) -> str:
        """Write one event and wait until it is on the disk, so that nothing leaves unrecorded.

        Several processes may do so at a time. Only the end of the file is read, however long the log is. A line may
        stand for an answer that did not leave after all; no answer leaves without its line.

        A power cut can leave a line half written at the end, without its newline. What that line stood for never left,
        because this function had not returned. Its bytes become a line of their own, of event ``torn``, in hexadecimal
        and with their SHA-256, and the chain goes on: nothing vanishes, be it a power cut's or somebody's work.

        Parameters
        ----------
        event : str
            What happened, such as ``release``.
        **fields
            JSON-able values, without NaN and infinity. `number`, `time` and `previous` are the log's own.

        Returns
        -------
        str
            The log's new head.

        Raises
        ------
        AuditError
            If the log's last line is not one of its own, or does not follow from the line before it; or if the new one
            would be longer than lines are.
        OSError
            If the disk does not take the line.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path) as descriptor:
            tail = _read_tail(descriptor, self.path)
            events: list[tuple[str, dict[str, Any]]]
            events = [] if tail.number else [(BEGIN, {"site": self.site, "salt": secrets.token_hex(32)})]
            if tail.torn:
                kept = {"bytes": len(tail.torn), "sha256": _sha256(tail.torn), "hex": tail.torn.hex()}
                events.append((TORN, kept))
            head, text, line = tail.head, b"", b""
            for number, (name, content) in enumerate([*events, (event, fields)], start=tail.number + 1):
                line = _line(number, name, content, head)
                head, text = _sha256(line), text + line + b"\n"
            if len(line) > _LONGEST_EVENT:
                raise AuditError(
                    f"{self.path}: a line of event '{event}' would be longer than lines are. It is not written."
                )
            with naming(self.path):
                # Over the torn bytes, never a truncation before: the line that keeps them is longer than they are.
                _write(descriptor, text, tail.end)
                os.fsync(descriptor)
            if tail.number == 0:
                sync(self.path.parent)
        return head

    def read(self) -> list[dict[str, Any]]:
        """Return all events after the first line, oldest first."""
        return [event for event in self.events() if event["event"] != BEGIN]

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield all lines, oldest first, but not one that is half written; an AuditError if one is damaged."""
        for number, line in enumerate(_lines(self.path) if self.path.is_file() else (), start=1):
            event = _parse(line.rstrip(b"\n"))
            if line.endswith(b"\n"):
                if event is None:
                    raise AuditError(f"{self.path}: line {number} is damaged. See 'fedbrainlm site audit verify'.")
                yield event

    def verify(self, head: str | None = None) -> Verdict:
        """Look for any line that was changed, removed, put in, moved or repeated, and for a log that was cut off.

        The file is read once, a line at a time. What it alone cannot show: whether its last line was changed or lines
        after it removed, or whether all was written anew. A head that was noted before shows it for all lines up to
        that one's.

        Parameters
        ----------
        head : str, optional
            What `append` returned at some time, in hexadecimal.

        Raises
        ------
        AuditError
            If there is no such log, or `head` is not 64 hexadecimal digits.
        """
        wanted = None if head is None else _checked_head(head)
        lines = _lines(self.path)
        number, latest, line_before, head_line = 0, _NOTHING, b"", None
        for line in lines:
            if broken := _defect(line, number + 1, latest, line_before, lines):
                return Verdict(number, latest, head_line, broken[1], broken[0])
            number, latest, line_before = number + 1, _sha256(line[:-1]), line
            head_line = number if latest == wanted else head_line
        if number == 0:
            return Verdict(0, latest, None, "the log is empty, without even its first line")
        if wanted and head_line is None:
            defect = "no line has the head that was given: since it was noted, lines were cut off or written anew"
            return Verdict(number, latest, None, defect)
        return Verdict(number, latest, head_line)

    def export(self, path: Path) -> None:
        """Copy the log as it is now to a new file, mode 600, for `verify` elsewhere."""
        with new_path(path) as temporary, _locked(self.path, os.O_RDONLY, fcntl.LOCK_SH):
            shutil.copyfile(self.path, temporary)


def _line(number: int, event: str, fields: dict[str, Any], previous: str) -> bytes:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    content = dict(number=number, time=time, event=event, **fields, previous=previous)
    return json.dumps(content, allow_nan=False).encode()


class _Tail(NamedTuple):
    """The end of a log: number and SHA-256 of its last whole line, where that ends, and what follows it."""

    number: int
    head: str
    end: int
    torn: bytes


def _read_tail(descriptor: int, path: Path) -> _Tail:
    """Read the last two lines, and check that one follows from the other."""
    size = os.fstat(descriptor).st_size
    length = min(size, _BLOCK)
    block = os.pread(descriptor, length, size - length)
    while block.count(b"\n") < 3 and length < min(size, 2 * _LONGEST):  # the end of the line before both is in sight
        length = min(size, 2 * length)
        block = os.pread(descriptor, length, size - length)
    *lines, torn = block.split(b"\n")
    if not lines and len(torn) <= _LONGEST:
        return _Tail(0, _NOTHING, 0, torn)
    before, last = [b"", b"", *lines][-2:]
    event = _parse(last)
    known = _parse(before) if before else {"number": 0}
    link = (known["number"] + 1, _sha256(before) if before else _NOTHING) if known else None
    if len(torn) > _LONGEST or event is None or (event["number"], event["previous"]) != link:
        raise AuditError(
            f"{path}: the end of this audit log is damaged, and nothing leaves until it is mended. See 'fedbrainlm "
            "site audit verify', find out who changed it, and keep it under another name: the site then begins anew."
        )
    return _Tail(event["number"], _sha256(last), size - len(torn), torn)


def _defect(
    line: bytes, number: int, latest: str, line_before: bytes, following: Iterator[bytes]
) -> tuple[int, str] | None:
    """Say which line is wrong, and what is, if line `number` does not follow from `latest`, the SHA-256 before it."""
    if not line.endswith(b"\n"):
        return number, f"is half written ({len(line)} bytes): cut, or after a power cut the next answer sets it aside"
    event = _parse(line[:-1])
    if event is None:
        return number, "is not a line of an audit log: it was changed or put in"
    said = event["number"]
    if event["previous"] == latest:
        in_place = said == number and (number == 1) == (event["event"] == BEGIN)
        return None if in_place else (number, "is not what stood there: it was changed")
    if said > number:
        return number, f"says that it is line {said}: lines before it were removed or moved"
    if said < number and line == line_before:
        return number, "repeats the line before it"
    if said < number:
        return number, f"says that it is line {said}: it was moved or repeated, or others were put in before it"
    after = _parse(next(following, b"").rstrip(b"\n"))
    if number == 1 or (after is not None and after["previous"] != _sha256(line[:-1])):
        return number, "does not name the line before it: it was changed"
    changed = "one of the two was changed" if after is None else "it was changed"
    return number - 1, f"is not the line after which line {number} was written: {changed}"


def _parse(line: bytes) -> dict[str, Any] | None:
    """Read a line without its newline; None if it is not one of an audit log."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    types = {"number": int, "time": str, "event": str, "previous": str}
    if not isinstance(event, dict) or any(type(event.get(name)) is not kind for name, kind in types.items()):
        return None
    return event


def _checked_head(head: str) -> str:
    head = head.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", head):
        raise AuditError(f"'{head}' is not a head; expected 64 hexadecimal digits, as they were noted. Correct it.")
    return head


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines with their newlines, up to where the log ends now; others may append meanwhile."""
    try:
        with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
            size = os.fstat(descriptor).st_size
        with path.open("rb") as file:
            while file.tell() < size and (line := file.readline(_LONGEST)):
                yield line
    except FileNotFoundError:
        raise AuditError(f"{path}: no such audit log. Check the path; a new site has none yet.") from None
    except OSError as error:
        raise AuditError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None


@contextmanager
def _locked(path: Path, flags: int = os.O_RDWR | os.O_CREAT, lock: int = fcntl.LOCK_EX) -> Iterator[int]:
    """Open a log that other processes, too, append to; wait until none of them is at it."""
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, lock)
        yield descriptor
    finally:
        os.close(descriptor)  # and so unlock


def _write(descriptor: int, text: bytes, offset: int) -> None:
    while text:
        written = os.pwrite(descriptor, text, offset)
        text, offset = text[written:], offset + written


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
