"""The site's own key pair, and the rosters that its administrator approved."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from base.files import atomic_path, write_text
from base.secrets import key_once
from client.door.audit import AuditLog
from client.errors import ApprovalError
from client.keys.nodekey import NodeKey
from exchange.bundle import ssh_fingerprint
from exchange.key_roster import MIN_SITES, KeyRoster, RosterError, SiteKey, read_json
from exchange.refusals import Refusal, RefusalCode


class Approval(NamedTuple):
    """That somebody approved a roster, by its hash, for this site; the time is in UTC."""

    hash: str
    by: str
    time: str


class Keyring:
    """A site's key and its approved rosters, on its own disk.

    Parameters
    ----------
    name : str
        Name of the site.
    state : Path
        Its state folder. ``x25519.key`` holds the private key for sums, ``supernode.key`` that of the SuperNode, and
        ``rosters/`` the approved rosters by their hash.
    audit : AuditLog
        Approvals and revocations are written there; if it is damaged, there are none (`AuditError`).
    """

    def __init__(self, name: str, state: Path, audit: AuditLog) -> None:
        self.name = name
        self.audit = audit
        self._path = state / "x25519.key"
        self._node = NodeKey(state)
        self._rosters = state / "rosters"

    @cached_property
    def private_key(self) -> X25519PrivateKey:
        """The site's private key: made the first time, and never again; a SecretError if others may read its file."""
        return X25519PrivateKey.from_private_bytes(key_once(self._path))

    @property
    def public(self) -> SiteKey:
        """The site's name and public key, as a roster lists them."""
        return SiteKey(name=self.name, public_key=self.private_key.public_key().public_bytes_raw().hex())

    def public_bundle(self) -> dict[str, str]:
        """Return what the site sends to the coordinator, its public keys, as `SiteBundle` has them."""
        own, line = self.public, self._node.public(self.name)
        return {
            "site": own.name,
            "public_key": own.public_key,
            "fingerprint": own.fingerprint,
            "supernode_key": line,
            "supernode_fingerprint": ssh_fingerprint(line),
        }

    def check(self, roster: KeyRoster) -> None:
        """Refuse a roster that does not list this site with its own key, by an `ApprovalError`."""
        try:
            listed = roster.site(self.name)
        except RosterError as error:
            raise ApprovalError(str(error)) from None
        if listed.public_key != self.public.public_key:
            raise ApprovalError(
                f"roster {roster.name}: lists a key of {self.name} with the fingerprint {listed.fingerprint}, and the "
                f"site's own has {self.public.fingerprint}. Send the coordinator what 'fedbrainlm site key' writes."
            )

    def approve(self, roster: KeyRoster, by: str) -> None:
        """Approve a roster that passes `check`, once the fingerprints in it were compared with the other sites."""
        self.check(roster)
        self._rosters.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_path(self._roster_path(roster.hash)) as temporary:
            roster.write(temporary)
        sites = [{"site": site.name, "fingerprint": site.fingerprint} for site in roster.sites]
        self.audit.append("roster-approved", hash=roster.hash, name=roster.name, sites=sites, by=by)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(self._approval_path(roster.hash), json.dumps({"hash": roster.hash, "by": by, "time": time}))

    def revoke(self, roster_hash: str, by: str) -> None:
        """Take an approval back, or raise an ApprovalError if there is none; the roster itself is kept."""
        if roster_hash not in [approval.hash for approval in self.approvals()]:
            raise ApprovalError(
                f"roster {roster_hash}: is not approved at {self.name}. 'fedbrainlm site rosters' lists those that are."
            )
        self.audit.append("roster-revoked", hash=roster_hash, by=by)
        self._approval_path(roster_hash).unlink()

    def approvals(self) -> Iterator[Approval]:
        """Yield the approvals that hold, by hash of the roster."""
        for path in sorted(self._rosters.glob("*.approval.json")):
            record = read_json(path)
            yield Approval(path.name.removesuffix(".approval.json"), str(record.get("by")), str(record.get("time")))

    def usable(self) -> list[str]:
        """Hashes of the approved rosters that the site can sum with: not of those with a key that it had before."""
        found = []
        for approval in self.approvals():
            with suppress(Refusal):
                found.append(self.approved(approval.hash).hash)
        return found

    def approved(self, roster_hash: str) -> KeyRoster:
        """Return an approved roster.

        Parameters
        ----------
        roster_hash : str
            As a message names it: nothing is taken for granted about it.

        Raises
        ------
        Refusal
            If this site's administrator has not approved it, its file was changed since, or the site's key is another.
        SecretError
            If the site's own key cannot be used.
        """
        if not re.fullmatch("[0-9a-f]{64}", roster_hash) or not self._approval_path(roster_hash).is_file():
            detail = f"roster {roster_hash!r} is not approved. See 'fedbrainlm site approve-roster'."
            raise Refusal(RefusalCode.ROSTER, detail)
        path = self._roster_path(roster_hash)
        try:
            roster = KeyRoster.read(path)
            self.check(roster)
        except (RosterError, ApprovalError) as error:
            raise Refusal(RefusalCode.ROSTER, str(error)) from None
        if roster.hash != roster_hash:
            detail = f"{path}: was changed since it was approved. Approve the roster again from its own file."
            raise Refusal(RefusalCode.ROSTER, detail)
        return roster

    def _roster_path(self, roster_hash: str) -> Path:
        return self._rosters / f"{roster_hash}.json"

    def _approval_path(self, roster_hash: str) -> Path:
        return self._rosters / f"{roster_hash}.approval.json"


def agree(name: str, keyrings: list[Keyring]) -> KeyRoster | None:
    """Make a roster of sites that all lie on this machine, as in a simulation, and approve it at each of them.

    Returns
    -------
    KeyRoster or None
        None where they are too few for secure sums.
    """
    if len(keyrings) < MIN_SITES:
        return None
    roster = KeyRoster(name=name, sites=tuple(sorted((keys.public for keys in keyrings), key=lambda key: key.name)))
    for keys in keyrings:
        keys.approve(roster, by="simulation")
    return roster
