"""The apps that the site's administrators approved, by the SHA-256 of their bytes."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.audit import AuditLog
from client.errors import ApprovalError
from cohorts.files import write_text
from exchange.refusals import Refusal, RefusalCode
from exchange.roster import RosterError, read_json


@dataclass(frozen=True)
class Approver:
    """Who approved an app, and when, in UTC."""

    by: str
    time: str


@dataclass(frozen=True)
class ApprovedApp:
    """What was approved.

    Attributes
    ----------
    hash : str
        SHA-256 of the FAB, Flower's bundle of the app.
    study : str
        Name of the study in it; empty where only the hash was given.
    approvers : tuple of Approver
        In their order, each once.
    """

    hash: str
    study: str
    approvers: tuple[Approver, ...]


class Approvals:
    """The site's list of approved apps, on its own disk.

    Parameters
    ----------
    state : Path
        The site's state folder. ``code/`` holds a file for each app.
    audit : AuditLog
        Approvals and withdrawals are written there.
    needed : int
        How many people must approve an app before it may run.
    """

    def __init__(self, state: Path, audit: AuditLog, needed: int) -> None:
        self.needed = needed
        self._folder = state / "code"
        self._audit = audit

    def approve(self, code_hash: str, by: str, study: str = "") -> ApprovedApp:
        """Add somebody's approval of an app.

        Raises
        ------
        ApprovalError
            If the hash is none, or this person has approved it before.
        AuditError
            If the audit log is damaged.
        """
        if not re.fullmatch("[0-9a-f]{64}", code_hash):
            raise ApprovalError(
                f"'{code_hash}' is no app; expected a FAB file, or its SHA-256 in 64 hexadecimal digits. Correct it."
            )
        before = self.find(code_hash) or ApprovedApp(code_hash, study, ())
        if _person(by) in [_person(approver.by) for approver in before.approvers]:
            raise ApprovalError(f"app {code_hash}: {by} has approved it before. Let somebody else approve it, too.")
        self._audit.append("code-approved", hash=code_hash, study=study, by=by)
        approver = Approver(by, datetime.now(UTC).isoformat(timespec="seconds"))
        approved = ApprovedApp(code_hash, study or before.study, (*before.approvers, approver))
        self._write(approved)
        return approved

    def withdraw(self, code_hash: str, by: str) -> None:
        """Take all approvals of an app back.

        Raises
        ------
        ApprovalError
            If nobody has approved it.
        AuditError
            If the audit log is damaged.
        """
        if self.find(code_hash) is None:
            raise ApprovalError(f"app {code_hash}: is not approved. 'fedbrainlm site approved' lists those that are.")
        self._audit.append("code-withdrawn", hash=code_hash, by=by)
        self._path(code_hash).unlink()

    def listed(self) -> Iterator[ApprovedApp]:
        """Yield all apps that somebody approved, by their hash."""
        for path in sorted(self._folder.glob("*.json")):
            if (approved := self.find(path.stem)) is not None:
                yield approved

    def find(self, code_hash: str) -> ApprovedApp | None:
        """Return an app that somebody approved; None for any other.

        Raises
        ------
        ApprovalError
            If its record is damaged.
        """
        if not re.fullmatch("[0-9a-f]{64}", code_hash) or not self._path(code_hash).is_file():
            return None
        try:
            record = read_json(self._path(code_hash))
            approvers = tuple(Approver(str(entry["by"]), str(entry["time"])) for entry in record["approvers"])
            return ApprovedApp(code_hash, str(record["study"]), approvers)
        except (RosterError, KeyError, TypeError):
            raise ApprovalError(
                f"{self._path(code_hash)}: is damaged. Remove the file and approve the app again."
            ) from None

    def may_run(self, approved: ApprovedApp) -> bool:
        """Whether enough people approved it."""
        return len({_person(approver.by) for approver in approved.approvers}) >= self.needed

    def check(self, fab: bytes) -> str:
        """Return the SHA-256 of an app that may run.

        Parameters
        ----------
        fab : bytes
            The app as it was received: what anybody says of its hash does not count.

        Raises
        ------
        Refusal
            If it was not approved, or by too few.
        """
        code_hash = hashlib.sha256(fab).hexdigest()
        try:
            approved = self.find(code_hash)
        except ApprovalError as error:
            raise Refusal(RefusalCode.CODE, str(error)) from None
        remedy = "Read it, and approve it with 'fedbrainlm site approve'."
        if approved is None:
            raise Refusal(RefusalCode.CODE, f"app {code_hash} ({len(fab)} bytes) is not approved. {remedy}")
        if not self.may_run(approved):
            who = ", ".join(approver.by for approver in approved.approvers)
            detail = f"app {code_hash} is approved by {who} alone; policy.approvers is {self.needed}. {remedy}"
            raise Refusal(RefusalCode.CODE, detail)
        return code_hash

    def _write(self, approved: ApprovedApp) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        approvers = [{"by": approver.by, "time": approver.time} for approver in approved.approvers]
        record = {"hash": approved.hash, "study": approved.study, "approvers": approvers}
        write_text(self._path(approved.hash), json.dumps(record, indent=2) + "\n")

    def _path(self, code_hash: str) -> Path:
        return self._folder / f"{code_hash}.json"


def _person(name: str) -> str:
    """A name without what two spellings of it differ in."""
    return " ".join(name.split()).casefold()
