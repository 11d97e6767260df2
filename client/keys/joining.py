"""The federation that a site has joined: the coordinator's package, kept in the state folder."""

from pathlib import Path

from base.files import write_text
from client.door.audit import AuditLog
from client.errors import JoinError
from exchange.bundle import JoinPackage
from exchange.key_roster import RosterError

NAME = "federation.json"


def join(state: Path, audit: AuditLog, package: JoinPackage, by: str) -> None:
    """Keep a package whose fingerprints were compared, in place of an older one.

    A JoinError if that is of another federation; an AuditError if the audit log is damaged.
    """
    path = state / NAME
    if path.is_file():
        before = joined(state)
        if before.federation != package.federation:
            raise JoinError(
                f"{path}: the site is in federation {before.federation}, and the package is of {package.federation}. "
                "Make a site of its own for another federation, or move this file away."
            )
        if before == package:
            return
    audit.append("joined", federation=package.federation, address=package.address, authority=package.fingerprint, by=by)
    write_text(path, package.to_json())
    write_text(authority_path(state), package.ca_certificate)


def joined(state: Path) -> JoinPackage:
    """Return the package that the site joined with; a JoinError if there is none, or it is damaged."""
    path = state / NAME
    if not path.is_file():
        raise JoinError(f"{path}: the site has joined no federation. See 'fedbrainlm site join'.")
    try:
        return JoinPackage.read(path)
    except RosterError as error:
        raise JoinError(f"{error} Then repeat 'fedbrainlm site join'.") from None


def authority_path(state: Path) -> Path:
    """Where the certificate of the coordinator's authority lies, for Flower."""
    return state / "ca.crt"
