"""Flower's Control API, asked by this process: each `flwr` command starts a Python of its own, for a second of work."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from threading import Lock
from typing import Any

import click
from flwr.cli.flower_config import parse_superlink_connection
from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient

from base.errors import RunFailedError
from base.proxies import proxy_to, through

_MAKING = Lock()
"""Of a client, which looks at the environment of the whole process and writes to its output."""


@dataclass(frozen=True)
class Outcome:
    """How Flower says that a run is: ``running``, ``finished:completed``, …, or ``unknown``; and its details.

    `cause` is what ended it where Flower does not say.
    """

    status: str
    details: str
    cause: str = ""

    @property
    def is_final(self) -> bool:
        return self.status.startswith("finished")


@contextmanager
def control(connection: Mapping[str, Any]) -> Iterator[ControlHttpClient]:
    """Yield a client of a SuperLink.

    Parameters
    ----------
    connection : mapping
        As Flower's configuration has it: ``address``, and ``root-certificates`` or ``insecure``.

    Raises
    ------
    RunFailedError
        In Flower's words, if the SuperLink does not answer, or refuses what it is asked in the block.
    """
    try:
        proxy = proxy_to(str(connection.get("address")), None)  # none for a SuperLink of this machine, as ours are
        with _MAKING, through(proxy), redirect_stdout(StringIO()):  # where Flower says which SuperLink it asks
            client = init_http_client_from_connection(parse_superlink_connection(dict(connection), ""))
        with closing(client), flwr_cli_exc_handler():
            yield client
    except click.ClickException as error:
        raise RunFailedError(f"the SuperLink at {connection.get('address')}: {explained(error.message)}") from None


def run_outcome(connection: Mapping[str, Any], run_id: int) -> Outcome:
    """Ask how a run is; a RunFailedError if the SuperLink does not answer, or knows no such run."""
    with control(connection) as superlink:
        runs = superlink.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        if run_id not in runs:
            raise RunFailedError(f"the SuperLink knows no run {run_id}.")
        said = runs[run_id].status
    return Outcome(":".join(filter(None, (said.status, said.sub_status))), said.details)


def stop_run(connection: Mapping[str, Any], run_id: int) -> None:
    """Ask that a run be stopped; errors as of `control`, also where it has ended."""
    with control(connection) as superlink:
        superlink.StopRun(StopRunRequest(run_id=run_id))


def register_node(connection: Mapping[str, Any], key: bytes, name: str) -> str:
    """Let the SuperLink know a SuperNode by its public key (PEM); return its number, or nothing if it was not taken.

    Errors are as of `control`.
    """
    with control(connection) as superlink:
        return str(superlink.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id or "")


def unregister_node(connection: Mapping[str, Any], node: str) -> None:
    """Let the SuperLink forget a SuperNode; errors as of `control`."""
    with control(connection) as superlink:
        superlink.UnregisterNode(UnregisterNodeRequest(node_id=int(node)))


def node_statuses(connection: Mapping[str, Any]) -> dict[str, str]:
    """Return number → status of each SuperNode that the SuperLink knows or knew; errors as of `control`."""
    with control(connection) as superlink:
        return {str(node.node_id): node.status for node in superlink.ListNodes(ListNodesRequest()).nodes_info}


def explained(said: str) -> str:
    """Add to Flower's words what to do where they say only that the SuperLink's database is locked."""
    hint = (
        " Another program holds the SuperLink's database: end it, and repeat." if "Service Unavailable" in said else ""
    )
    return f"{said}{hint}"
