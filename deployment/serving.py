"""A federation at work: start and stop its programs, register its sites, and see who is online."""

import json
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psutil
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from base.errors import InputError, RunFailedError
from base.files import locked
from deployment import probes
from deployment.authority import days_left, read_certificate
from deployment.coordinator import Federation, Member
from deployment.supervisor import SUPERVISOR, begin, end_programs, running
from runtime.compacting import compact
from runtime.control import node_statuses, register_node, unregister_node
from runtime.flower import answers, last_words, wait_until_up

_STOP_S = 40
_EDGE_S = 15
_POLL_S = 0.3
_LOG_END = 2**20
"""Bytes at the end of the edge's log that are read: a day of heartbeats of three sites, and hours of fifty."""


@dataclass(frozen=True)
class Heartbeat:
    """The last that was seen of a site."""

    time: datetime
    """When."""
    version: str
    """Its version of Flower."""
    skew_s: float
    """Seconds that its clock was ahead, less the way that the message took."""


def start(federation: Federation) -> bool:
    """Start the federation's programs; False if they run already.

    Raises
    ------
    CohortError
        If another command is starting them.
    InputError
        If nginx is not installed, or the certificate has expired.
    RunFailedError
        If the SuperLink or the edge does not come up; then nothing runs.
    """
    federation.make_folders()
    with locked(federation.run):
        return _start(federation)


def _start(federation: Federation) -> bool:
    if running(federation, SUPERVISOR) is not None:
        return False
    federation.programs()  # what is not installed is said before anything starts
    if days_left(read_certificate(federation.authority.server_certificate)) < 0:
        raise InputError(
            f"{federation.authority.server_certificate}: has expired. Use 'fedbrainlm federation renew', then repeat."
        )
    end_programs(federation)  # what a supervisor left that was killed
    compact(federation.database)
    with (federation.logs / "supervisor.log").open("ab") as log:
        command = [sys.executable, "-P", "-m", "deployment.supervisor", str(federation.folder)]
        process = begin(command, federation, log, start_new_session=True)
    try:
        url = f"https://{federation.superlink}/health"
        log_of_it = federation.logs / "superlink.log"
        wait_until_up(url, lambda: process.poll() is None, log_of_it, federation.authority.ca_certificate)
        _wait_for_edge(federation)
    except BaseException:
        process.terminate()  # it may not have written down yet who it is
        process.wait(_STOP_S)
        stop(federation)
        raise
    return True


@contextmanager
def until_told(federation: Federation) -> Iterator[None]:
    """Wait after the block until this process is told to end; however that comes, end the federation's programs.

    Raises
    ------
    RunFailedError
        If the supervisor ended by itself.
    """
    try:
        yield
        supervisor = running(federation, SUPERVISOR)
        if supervisor is not None:
            supervisor.wait()
        raise RunFailedError(f"the supervisor ended. Its log: {federation.logs / 'supervisor.log'}")
    except KeyboardInterrupt:
        return
    finally:
        stop(federation)


def _wait_for_edge(federation: Federation) -> None:
    port, log, deadline = federation.settings.port, federation.logs / "edge.log", time.monotonic() + _EDGE_S
    while federation.settings.run_edge and not probes.listens(port):
        if time.monotonic() > deadline:
            said = last_words(log) if log.is_file() else "none"
            raise RunFailedError(
                f"the edge does not answer at port {port}. Its last words: {said} (all of them: {log})"
            )
        time.sleep(_POLL_S)


def stop(federation: Federation) -> bool:
    """End what `start` started; False if nothing ran."""
    supervisor = running(federation, SUPERVISOR)
    if supervisor is not None:
        with suppress(psutil.Error):
            supervisor.terminate()
            with suppress(psutil.TimeoutExpired):
                supervisor.wait(_STOP_S)
            supervisor.kill()  # or it would start again what is ended now
    (federation.run / f"{SUPERVISOR}.json").unlink(missing_ok=True)
    return end_programs(federation) or supervisor is not None


def processes(federation: Federation) -> dict[str, psutil.Process | None]:
    """The federation's programs, by name: their processes, if they run."""
    return {name: running(federation, name) for name in (SUPERVISOR, *federation.program_names)}


def is_up(federation: Federation) -> bool:
    """Whether the SuperLink answers."""
    try:
        return answers(f"https://{federation.superlink}/health", federation.authority.ca_certificate, timeout_s=5)
    except OSError:  # the certificate cannot be read
        return False


def register(federation: Federation, member: Member) -> Member:
    """Let the SuperLink know a site's SuperNode by its key; nothing is done if it does.

    Errors are as of `runtime.control.control`.
    """
    if member.node is not None:
        return member
    site = member.bundle.site
    node = register_node(federation.connection, _pem(member.bundle.supernode_key), site)
    if not node:
        raise RunFailedError(f"the SuperLink did not register {site}. Its log: {federation.logs / 'superlink.log'}")
    return federation.keep(replace(member, node=node))


def unregister(federation: Federation, member: Member) -> None:
    """Let the SuperLink forget a site's SuperNode, which it then no longer answers; errors as of `register`."""
    if member.node is not None and node_statuses(federation.connection).get(member.node) != "unregistered":
        unregister_node(federation.connection, member.node)


def heartbeats(federation: Federation) -> dict[str, Heartbeat]:
    """The last heartbeat of each site that the edge let through, by the site's name."""
    path = federation.logs / "heartbeats.log"
    if not path.is_file():
        return {}
    sites = {sent_key(member.bundle.supernode_key): member.bundle.site for member in federation.members()}
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _LOG_END))
        lines = log.read().splitlines()
    found = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # the first line may be cut, and a stranger may send anything
            event = json.loads(line)
            if event["status"] == 200 and event["key"] in sites:
                found[sites[event["key"]]] = _heartbeat(event)
    return found


def _heartbeat(event: dict[str, Any]) -> Heartbeat:
    seen = datetime.fromtimestamp(float(event["time"]), UTC)
    signed = datetime.fromisoformat(event["signed"])
    return Heartbeat(seen, str(event["version"])[:20], (signed - seen).total_seconds())


def sent_key(line: str) -> str:
    """A public key as a SuperNode sends it."""
    return b64encode(_pem(line)).decode()


def _pem(line: str) -> bytes:
    """A public key of OpenSSH's format, in Flower's."""
    return load_ssh_public_key(line.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
