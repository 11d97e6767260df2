"""The site's SuperNode, which runs approved apps and no others.

Flower's SuperNode fetches whatever app a run names and executes it. Here one private function of Flower is wrapped: the
one that takes a message in. What of Flower this rests on stands in ``runtime/pins.py``.

Run as ``python -m runtime.supernode SITE.yaml``, as ``fedbrainlm site start`` does.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Error, Message
from flwr.common.config import get_fab_config, get_metadata_from_config
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from base.proxies import Proxy, impose, proxy_to, through
from base.settings import read_settings
from client.door.audit import AuditLog
from client.errors import AuditError, JoinError
from client.keys.approvals import Approvals, ApprovedApp
from client.keys.joining import authority_path, joined
from client.keys.nodekey import NodeKey
from client.logs import one_line, site_log
from client.process import keep_private, make_private
from client.settings import SiteSettings
from exchange.refusals import Refusal, RefusalCode
from runtime import relay
from runtime.executor import SuperExec, flower_home, secret_path, socket_path

_EXPECTING_S, _SOON_S = 120.0, 0.5
"""For so long after an answer the next question is looked for so often; Flower's own pause is 3 s."""
_LAST_WAIT_S = 10.0
"""For the SuperExec to end, which also ends by itself once it misses this process."""


class ApprovedAppsOnly:
    """Stands in for Flower's ``_pull_and_store_message``: takes a message in only if the app of its run is approved."""

    def __init__(self, settings: SiteSettings, state: Path) -> None:
        self.audit = AuditLog(state / "audit.jsonl", settings.name)
        self.approvals = Approvals(state, self.audit, settings.policy)
        self.log = site_log(settings.name, state)
        self._pull = flower._pull_and_store_message
        self._answered = False
        self._expecting_until = 0.0

    def __call__(self, **arguments: Any) -> int | None:
        """Take one message in, or answer it with a refusal; return its run, or None if there was no message.

        Flower calls this again once a message was answered, and pauses where there was none.
        """
        if self._answered:
            self._expecting_until = time.monotonic() + _EXPECTING_S
        while (run := self._take(**arguments)) is None and time.monotonic() < self._expecting_until:
            time.sleep(_SOON_S)
        self._answered = run is not None
        return run

    def _take(
        self,
        state: Any,
        object_store: Any,
        node_config: Any,
        receive: Callable[[], Any],
        get_run: Callable[[int], Run],
        get_fab: Callable[[str, int], Fab],
        **others: Any,
    ) -> int | None:
        messages: list[Message] = []
        runs: dict[int, Run] = {}

        def receive_if_approved() -> Any:
            received = receive()
            if received is not None:
                messages.append(received[0])
                self._check_known(state, received[0].metadata.run_id)
            return received

        def get_and_keep_run(run_id: int) -> Run:
            runs[run_id] = get_run(run_id)
            return runs[run_id]

        def get_approved_fab(fab_hash: str, run_id: int) -> Fab:
            fab = get_fab(fab_hash, run_id)
            self._accept(fab, runs[run_id])
            return fab

        try:
            return self._pull(
                state, object_store, node_config, receive_if_approved, get_and_keep_run, get_approved_fab, **others
            )
        except Refusal as refusal:
            (message,) = messages
            self._write_down(message, refusal)
            reply = Message(Error(refusal.code.number, str(refusal.code)), reply_to=message)
            flower._insert_message(reply, state, object_store)
            return int(message.metadata.run_id)

    def _check_known(self, state: Any, run_id: int) -> None:
        """Check the app of a run that has begun once more: its approval may have been withdrawn."""
        run = state.get_run(run_id)
        if run is None:
            return
        fab = state.get_fab(run.fab_hash)
        if fab is None:
            raise Refusal(RefusalCode.CODE, f"the app of run {run_id} is no longer at hand.")
        self._check(fab, run)

    def _accept(self, fab: Fab, run: Run) -> None:
        """Check the app of a new run, and write down which it is before any of its code runs."""
        approved = self._check(fab, run)
        try:
            self.audit.append("app-accepted", run=str(run.run_id), hash=approved.hash, study=approved.study)
        except (AuditError, OSError) as error:
            raise Refusal(RefusalCode.AUDIT, str(error)) from None

    def _check(self, fab: Fab, run: Run) -> ApprovedApp:
        """Refuse an app that is not approved, or that the coordinator calls by what it is not.

        Flower runs the app from the folder that the run's own id, version and hash lead to.
        """
        if run.primary_task_type == TaskType.AGENT_APP:
            raise Refusal(RefusalCode.CODE, "the coordinator asks for an agent's app, and a site runs none.")
        approved = self.approvals.check(fab.content)
        said = (run.fab_id, run.fab_version, run.fab_hash, fab.hash_str)
        if said != (*get_metadata_from_config(get_fab_config(fab.content)), approved.hash, approved.hash):
            raise Refusal(RefusalCode.CODE, f"the coordinator calls app {approved.hash} by other names: {said}.")
        return approved

    def _write_down(self, message: Message, refusal: Refusal) -> None:
        """Log and audit a refusal; nothing may be raised from here, lest the SuperNode end."""
        run, kind = str(message.metadata.run_id), one_line(message.metadata.message_type)
        try:
            self.log.error("%s %s: %s", kind, refusal.code, refusal.detail)
            self.audit.append("refusal", run=run, message=kind, code=str(refusal.code), detail=one_line(refusal.detail))
        except Exception as broken:
            print(f"fedbrainlm: the state folder cannot be written: {broken}", flush=True)


def command(settings_path: Path, settings: SiteSettings, state: Path) -> list[str]:
    """Arguments of ``flower-supernode`` for a site that has joined a federation.

    Raises
    ------
    JoinError
        If it has not.
    SecretError
        If its key cannot be used.
    """
    _ = NodeKey(state).private
    arguments = ["flower-supernode", "--superlink", joined(state).address]
    arguments += ["--root-certificates", str(authority_path(state))]
    arguments += ["--auth-supernode-private-key", str(NodeKey(state).path)]
    arguments += ["--node-config", f'site-config="{settings_path.resolve()}"']
    arguments += ["--isolation", "process", "--superexec-auth-secret-file", str(secret_path(state))]
    arguments += ["--port", str(settings.supernode.port)]
    if settings.supernode.health:
        arguments += ["--health-server-address", settings.supernode.health]
    return arguments


def authentication(address: str, authority: Path, key: EllipticCurvePrivateKey, proxy: Proxy | None = None) -> None:
    """Ask the SuperLink whether it knows a SuperNode key, without activating anything.

    An activation with a heartbeat of no length is refused for that only once key, clock and registration are accepted.

    Raises
    ------
    JoinError
        If the SuperLink does not accept the key, or another answer comes.
    """
    version, signature = RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())
    request = ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=0)
    try:
        with through(proxy):
            client = FleetHttpClient.from_server_address(address, False, str(authority), [version, signature])
        with closing(client):
            client.ActivateNode(request)
    except httpx.HTTPStatusError as error:
        said = FlowerError.from_json(error.response.text)
        code = said.code if said else error.response.status_code
        if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
            return
        raise JoinError(_NOT_KNOWN.get(int(code), f"the coordinator answers with {code}. Ask it why.")) from None
    except httpx.HTTPError as error:
        raise JoinError(f"{address}: {error}. Ask the coordinator whether it is running.") from None


_NOT_KNOWN = {
    401: "the coordinator refuses this site's signature. Compare the clocks, and that the key is the site's own.",
    403: "the coordinator's edge refuses the request. Ask the coordinator for a package of this version.",
    int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED): "the coordinator does not know this site's SuperNode key, or has "
    "revoked it. Send it the bundle that 'fedbrainlm site init' wrote.",
}


def main() -> None:
    """Run the SuperNode until it is told to end."""
    keep_private()
    path = Path(sys.argv[1])
    settings = read_settings(path, SiteSettings)
    state = (path.parent / settings.state).resolve()
    make_private(state)
    sys.argv = command(path, settings, state)
    os.environ["FLWR_HOME"] = str(flower_home(state))
    proxy = proxy_to(joined(state).address, settings.supernode.proxy)
    impose(proxy)
    if proxy is not None:
        print(f"fedbrainlm: the coordinator is reached through {proxy}, as {proxy.named_by} says", flush=True)
    flower._pull_and_store_message = ApprovedAppsOnly(settings, state)  # type: ignore[assignment]  # called so
    executor = SuperExec(settings, state)
    keeper = threading.Thread(target=executor.keep, name="superexec", daemon=True)
    if settings.supernode.executor == "elsewhere":
        relay.start(socket_path(state), settings.supernode.port)
    else:
        keeper.start()
    try:
        flower_supernode()
    except Exception:
        traceback.print_exc()
    # Flower comes here when it gives the coordinator up. Its HTTP thread would keep the process, offline for good.
    print("fedbrainlm: the SuperNode gave up, and ends to be started again.", flush=True)
    executor.end()
    if keeper.is_alive():
        keeper.join(_LAST_WAIT_S)
    os._exit(1)


if __name__ == "__main__":
    main()
