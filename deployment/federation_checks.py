"""What a coordinator needs before a run, thing by thing."""

import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from deployment import probes, serving
from deployment.authority import days_left, read_certificate
from deployment.checks import Check, Found, attempt, expiry, versions
from deployment.coordinator import Federation
from exchange.key_roster import MIN_SITES
from runtime.control import node_statuses

_DISK_GB = 10


def checks(federation: Federation) -> Iterator[Check]:
    """Yield each check as it is made; those that need a running SuperLink are left out where there is none."""
    yield attempt("versions", versions)
    for what, look in _AT_REST.items():
        yield attempt(what, look, federation)
    if not serving.is_up(federation):
        said = f"does not answer at {federation.superlink}. Use 'fedbrainlm federation start'."
        yield Check("SuperLink", "fail", said)
        return
    for what, look in _AT_WORK.items():
        yield attempt(what, look, federation)


def _keys(federation: Federation) -> Found:
    paths = (federation.authority.ca_key, federation.authority.server_key, federation.superexec_secret)
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            return "fail", f"{path}: others than its owner may use it (mode {mode:o}). Run 'chmod 600 {path}'."
    return "pass", f"{len(paths)} private files, nobody else's to read"


def _authority(federation: Federation) -> Found:
    days = days_left(read_certificate(federation.authority.ca_certificate))
    return expiry(days, "Make a new federation: every hospital must join again.")


def _certificate(federation: Federation) -> Found:
    days = days_left(read_certificate(federation.authority.server_certificate))
    return expiry(days, f"Use 'fedbrainlm federation renew {federation.folder}'.")


def _disk(federation: Federation) -> Found:
    free = shutil.disk_usage(federation.folder).free / 1e9
    said = f"{free:.0f} GB free, the SuperLink's database has {database_bytes(federation) / 1e9:.1f}"
    if free < _DISK_GB:
        return "fail", f"{said}; expected {_DISK_GB} free. Make room."
    return "pass", said


def database_bytes(federation: Federation) -> int:
    """Size of the SuperLink's database, with what SQLite keeps beside it."""
    return sum(path.stat().st_size for path in federation.folder.glob("superlink.sqlite*"))


def _sites(federation: Federation) -> Found:
    names = [member.bundle.site for member in federation.active()]
    if len(names) < MIN_SITES:
        return "warn", f"{len(names)}; secure sums need {MIN_SITES}. See 'fedbrainlm federation add-site'."
    return "pass", ", ".join(names)


def _edge_settings(federation: Federation) -> Found:
    command = federation.programs().get("edge")
    if command is None:
        return "pass", f"{federation.folder / 'nginx.conf'} is run by other means"
    done = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        return "fail", f"nginx refuses them: {done.stderr.strip()} Correct federation.yaml."
    return "pass", "nginx accepts them"


def _programs(federation: Federation) -> Found:
    dead = [name for name, process in serving.processes(federation).items() if process is None]
    if dead:
        return "fail", f"{', '.join(dead)} not running. See {federation.logs}, then start again."
    return "pass", "all running"


def _health(federation: Federation) -> Found:
    directly = [("grpc.enable_http_proxy", 0)]  # whatever the environment says: it is this machine that is asked
    with grpc.insecure_channel(f"127.0.0.1:{federation.settings.health_port}", directly) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=probes.WAIT_S)
        except grpc.RpcError as error:
            return "fail", f"{error.code().name}. See {federation.logs / 'superlink.log'}."
    if answer.status != HealthCheckResponse.SERVING:
        return "fail", f"the SuperLink is not serving. See {federation.logs / 'superlink.log'}."
    return "pass", "serving"


def _name(federation: Federation) -> Found:
    host = federation.settings.host
    try:
        return "pass", f"{host} is {', '.join(probes.resolve(host))}"
    except OSError as error:
        return "fail", f"{host}: {error}. Hospitals need this name: add it to the DNS, or correct 'host'."


def _fleet(federation: Federation) -> Found:
    """The edge lets nothing through but the Fleet API: asked here, on this machine."""
    settings, authority = federation.settings, federation.authority.ca_certificate
    address = f"localhost:{settings.port}"
    try:
        shown = probes.certificate(address, authority)
    except OSError as error:
        return "fail", f"port {settings.port} of this machine: {error}. See {federation.logs}."
    for path in ("/v1/control/start-run", "/v1/runtime/pull-task-input", "/health"):
        status = probes.get(address, path, authority).status
        if status != 403:
            return "fail", f"answers {path} with {status}; expected 403. Use the nginx.conf as it was written."
    return expiry(days_left(shown), "Renew it, and restart the federation.")


def _control(federation: Federation) -> Found:
    """Who reaches the SuperLink itself can start runs: it must listen on loopback alone."""
    port = federation.settings.superlink_port
    outside = {address for address in _own_addresses() if not address.startswith(("127.", "::1"))}
    for address in sorted(outside):
        if probes.listens(port, address):
            return "fail", f"port {port} is open at {address}: others could start runs. Close it."
    return "pass", f"only on {federation.superlink}"


def _online(federation: Federation) -> Found:
    nodes = node_statuses(federation.connection)
    states = {member.bundle.site: nodes.get(member.node or "", "not registered") for member in federation.active()}
    away = [f"{name} ({state})" for name, state in states.items() if state != "online"]
    if away:
        return "warn", f"not online: {', '.join(away)}. Let them see 'fedbrainlm site check'."
    return "pass", f"all {len(states)} sites"


def _own_addresses() -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return set()


_AT_REST: dict[str, Callable[[Federation], Found]] = {
    "keys": _keys,
    "authority": _authority,
    "certificate": _certificate,
    "disk": _disk,
    "sites": _sites,
    "edge settings": _edge_settings,
}
_AT_WORK: dict[str, Callable[[Federation], Found]] = {
    "programs": _programs,
    "health service": _health,
    "DNS": _name,
    "edge": _fleet,
    "control": _control,
    "online": _online,
}
