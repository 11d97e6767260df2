"""Whom a run on a deployed federation may meet: the names of its sites, by the numbers of their nodes."""

from pathlib import Path

from deployment.coordinator import Federation
from runtime.flower import connections


def registered_names(connection: str) -> dict[str, str]:
    """Names of the sites that a federation of this machine registered, by Flower's numbers of their nodes.

    Empty where the connection was not made by ``fedbrainlm federation``: a site then goes by its number until it says
    what it is.
    """
    authority = Path(connections().get(connection, {}).get("root-certificates", ""))  # FOLDER/keys/ca.crt
    folder = authority.parent.parent
    if not (authority.is_absolute() and (folder / "federation.yaml").is_file()):
        return {}
    return {member.node: member.bundle.site for member in Federation(folder).active() if member.node is not None}
