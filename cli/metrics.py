"""`fedbrainlm federation metrics`: what `status` and `watch` show, for Prometheus.

Every scrape looks anew, by the functions that those commands use. Labels name programs, certificates, sites and
studies, and nothing else.
"""

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, get_args

import typer
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric

from base.errors import InputError, RunFailedError
from base.output import say
from cli.options import RUNS
from deployment import serving
from deployment.authority import read_certificate
from deployment.coordinator import Federation
from deployment.federation_checks import database_bytes
from runtime.control import node_statuses
from server.errors import JournalError
from server.journal import Journal, Status

_STATUSES: tuple[Status, ...] = get_args(Status)


class FederationCollector:
    """Looks at a federation, and at the newest run of each study in the folder `runs`, whenever it is asked."""

    def __init__(self, federation: Federation, runs: Path) -> None:
        self._federation = federation
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as prometheus_client asks for them."""
        yield from self._programs()
        yield from self._sites()
        yield from self._runs_of_studies()

    def _programs(self) -> Iterator[Metric]:
        federation, keys = self._federation, self._federation.authority
        running = {name: process is not None for name, process in serving.processes(federation).items()}
        certificates = {path.name: read_certificate(path) for path in (keys.ca_certificate, keys.server_certificate)}
        ends = {name: certificate.not_valid_after_utc.timestamp() for name, certificate in certificates.items()}
        yield _gauge("program_up", "Whether a program runs", running, "program")
        yield _gauge("superlink_up", "Whether the SuperLink answers", {"": serving.is_up(federation)})
        yield _gauge("certificate_expiry_timestamp_seconds", "When a certificate expires", ends, "certificate")
        yield _gauge("database_bytes", "Size of the SuperLink's database", {"": database_bytes(federation)})
        yield _gauge("disk_free_bytes", "Free beside it", {"": shutil.disk_usage(federation.folder).free})

    def _sites(self) -> Iterator[Metric]:
        members, nodes = self._federation.active(), {}
        with suppress(RunFailedError):  # the SuperLink does not answer: then nobody is online
            nodes = node_statuses(self._federation.connection)
        online = {member.bundle.site: nodes.get(member.node or "") == "online" for member in members}
        beats = {name: beat for name, beat in serving.heartbeats(self._federation).items() if name in online}
        seen = {name: beat.time.timestamp() for name, beat in beats.items()}
        skew = {name: beat.skew_s for name, beat in beats.items()}
        yield _gauge("site_online", "Whether a site's SuperNode is online", online, "site")
        yield _gauge("site_last_seen_timestamp_seconds", "When a site's last heartbeat came", seen, "site")
        yield _gauge("site_clock_skew_seconds", "Seconds that a site's clock is ahead", skew, "site")

    def _runs_of_studies(self) -> Iterator[Metric]:
        status = GaugeMetricFamily("fedbrainlm_run_status", "Whether it is this", labels=["study", "status"])
        gauges = [_gauge(name, says, {}, "study") for name, says in _OF_RUN.items()]
        for study, folder in _newest(self._runs).items():
            with suppress(JournalError):  # held by another program: the next scrape tells
                name, numbers = _state(Journal(folder))
                for one in _STATUSES:
                    status.add_metric([study, one], one == name)
                for gauge, value in zip(gauges, numbers, strict=True):
                    gauge.add_metric([study], value)
        yield from (status, *gauges)


_OF_RUN = {
    "run_round": "Rounds of training that are done",
    "run_rounds": "Rounds of training in all",
    "run_sites": "Sites that take part",
    "run_sites_answered": "Sites that answered the last question",
    "run_up_bytes": "Received from the sites",
    "run_down_bytes": "Sent to the sites",
}


def _newest(runs: Path) -> dict[str, Path]:
    """The newest run of each study: runs are named by the time when they began."""
    folders = sorted((path.parent for path in runs.glob("*/*/journal.sqlite")), key=lambda run: run.name)
    return {folder.parent.name: folder for folder in folders}


def _state(journal: Journal) -> tuple[str, list[float]]:
    """The status of a run, and the numbers of `_OF_RUN`."""
    now, exchanges = journal.end() or journal.progress(), journal.table("exchanges")
    answered = exchanges["answered"].dropna().to_list()
    sent, received = exchanges["bytes_down"].sum(), exchanges["bytes_up"].sum()
    return now.status, [journal.rounds_done(), now.rounds, now.sites, (answered or [0])[-1], received, sent]


def _gauge(name: str, says: str, values: Mapping[str, float], label: str = "") -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"fedbrainlm_{name}", says, labels=[label] if label else [])
    for value_of, value in values.items():
        family.add_metric([value_of] if label else [], value)
    return family


def metrics(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The federation's folder.")],
    runs: RUNS = Path("runs"),
    port: Annotated[int, typer.Option(help="Port to serve at.")] = 9464,
    address: Annotated[str, typer.Option(help="Address to serve at; whoever reaches it can read.")] = "127.0.0.1",
) -> None:
    """Serve for Prometheus what 'status' and 'watch' show, until ended."""
    registry = CollectorRegistry()
    registry.register(FederationCollector(Federation(folder), runs))
    try:
        server, _ = start_http_server(port, address, registry)
    except OSError as error:
        raise InputError(f"{address}:{port}: cannot be served at ({error.strerror}). Choose another --port.") from None
    say(f"Metrics: http://{address}:{server.server_port}/metrics")
    threading.Event().wait()
