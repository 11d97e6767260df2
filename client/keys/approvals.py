"""The apps that people of the site approved: by the SHA-256 of their bytes, or by signatures if the policy says so."""

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from base.files import write_text
from base.settings import Settings
from client.app_files import read_fab
from client.door.audit import AuditLog
from client.door.policy import Policy
from client.errors import AppError, ApprovalError, SignatureError
from client.keys.signatures import key_fingerprint, public_key, signer_of
from exchange.key_roster import RosterError, read_json
from exchange.refusals import Refusal, RefusalCode


class Approval(Settings):
    """One person's approval of an app, as given on the site's machine."""

    by: str
    time: str
    """In UTC."""
    key: str = ""
    """Fingerprint of the key that signed; empty where the policy lists no keys."""
    signature: str = ""


class ApprovedApp(Settings):
    """What was approved."""

    hash: str
    """SHA-256 of the FAB, Flower's bundle of the app."""
    study: str
    """Name of the study in it; empty where only the hash was given."""
    approvers: tuple[Approval, ...]
    """Approvals in their order, each person's once."""


class Approvals:
    """The site's list of approved apps, on its own disk.

    Parameters
    ----------
    state : Path
        The site's state folder. ``code/`` holds a file for each app.
    audit : AuditLog
        Approvals and withdrawals are written there; if it is damaged, nothing is approved or withdrawn (`AuditError`).
    policy : Policy
        Says whose signatures count, and how many it takes.
    """

    def __init__(self, state: Path, audit: AuditLog, policy: Policy) -> None:
        self.needed = policy.min_approvers
        self._keys = [public_key(line) for line in policy.approvers]
        self._folder = state / "code"
        self._audit = audit

    def approve(self, fab: bytes, by: str, study: str, signature: str | None = None) -> ApprovedApp:
        """Add somebody's approval of an app.

        Parameters
        ----------
        by : str
            Who gives it.
        signature : str, optional
            What ``ssh-keygen -Y sign`` wrote; needed where the policy lists keys.

        Raises
        ------
        ApprovalError
            If this person has approved it before, or did not sign where the policy lists keys.
        AppError
            If it is none of ours.
        SignatureError
            If the signature is nobody's who may approve.
        """
        read_fab(fab)
        if self._keys and signature is None:
            raise ApprovalError(
                "policy.approvers lists keys, so that an approval is a signature. Let an approver sign the app with "
                "'ssh-keygen -Y sign -n fedbrainlm-app -f KEY APP.fab', and give --signature APP.fab.sig."
            )
        key = key_fingerprint(signer_of(fab, signature, self._keys)) if self._keys and signature is not None else ""
        approval = Approval(by=by, time=_now(), key=key, signature=signature or "")
        return self._add(hashlib.sha256(fab).hexdigest(), study, approval)

    def approve_unseen(self, code_hash: str, by: str) -> ApprovedApp:
        """Add somebody's approval of an app of which only the hash is at hand.

        Raises
        ------
        ApprovalError
            If the hash is none, this person has approved it before, or the policy asks for signatures.
        """
        if not re.fullmatch("[0-9a-f]{64}", code_hash):
            raise ApprovalError(
                f"'{code_hash[:80]}' is no app; expected a FAB file, or its SHA-256 in 64 hexadecimal digits. "
                "Correct it."
            )
        if self._keys:
            raise ApprovalError("policy.approvers lists keys, and a signature is of the app's file. Give the file.")
        return self._add(code_hash, "", Approval(by=by, time=_now()))

    def _add(self, code_hash: str, study: str, approval: Approval) -> ApprovedApp:
        before = self.find(code_hash) or ApprovedApp(hash=code_hash, study=study, approvers=())
        if _person(approval) in map(_person, before.approvers):
            raise ApprovalError(f"app {code_hash}: {approval.by} has approved it before. Nothing is to be done.")
        self._audit.append("code-approved", hash=code_hash, study=study, by=approval.by, key=approval.key or None)
        approvers = (*before.approvers, approval)
        approved = before.model_copy(update={"study": study or before.study, "approvers": approvers})
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(self._path(code_hash), approved.model_dump_json(indent=2) + "\n")
        return approved

    def withdraw(self, code_hash: str, by: str) -> None:
        """Take all approvals of an app back, or raise an ApprovalError if nobody has approved it."""
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
        """Return an app that somebody approved, None for any other; an ApprovalError if its record is damaged."""
        if not re.fullmatch("[0-9a-f]{64}", code_hash) or not self._path(code_hash).is_file():
            return None
        try:
            return ApprovedApp.model_validate({**read_json(self._path(code_hash)), "hash": code_hash})
        except (RosterError, ValidationError):
            raise ApprovalError(
                f"{self._path(code_hash)}: is damaged. Remove the file and approve the app again."
            ) from None

    def missing(self, approved: ApprovedApp) -> int:
        """Count the approvals that an app lacks before it may run."""
        return max(0, self.needed - len(set(map(_person, self._counted(approved)))))

    def check(self, fab: bytes) -> ApprovedApp:
        """Return the approved app that a FAB is, if it may run.

        Parameters
        ----------
        fab : bytes
            The app as it was received: what anybody says of its hash does not count.

        Raises
        ------
        Refusal
            If it was not approved, or by too few, or holds what no app of ours does.
        """
        code_hash = hashlib.sha256(fab).hexdigest()
        remedy = "Look at it with 'fedbrainlm site show', and approve it with 'fedbrainlm site approve'."
        try:
            approved = self.find(code_hash)
            if approved is None:
                raise Refusal(RefusalCode.CODE, f"app {code_hash} ({len(fab)} bytes) is not approved. {remedy}")
            read_fab(fab)
            counted = self._counted(approved)
            if self._keys:  # what the record says of keys does not count
                given = len({key_fingerprint(signer_of(fab, one.signature, self._keys)) for one in counted})
            else:
                given = len(counted)
        except (ApprovalError, AppError, SignatureError) as error:
            raise Refusal(RefusalCode.CODE, f"app {code_hash}: {error}") from None
        if given < self.needed:
            who = ", ".join(one.by for one in approved.approvers)
            detail = f"app {code_hash} is approved by {who} alone; policy.min_approvers is {self.needed}. {remedy}"
            raise Refusal(RefusalCode.CODE, detail)
        return approved

    def _counted(self, approved: ApprovedApp) -> list[Approval]:
        """Approvals that count: where the policy lists keys, those by one of them."""
        known = {key_fingerprint(key) for key in self._keys}
        return [one for one in approved.approvers if not known or one.key in known]

    def _path(self, code_hash: str) -> Path:
        return self._folder / f"{code_hash}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _person(approval: Approval) -> str:
    """Whose approval it is: the key's, else a name without what two spellings of it differ in."""
    return approval.key or " ".join(approval.by.split()).casefold()
