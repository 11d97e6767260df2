"""`fedbrainlm federation`: a coordinator's certificates, sites and programs, and the roster that sites agree on."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from base.errors import InputError
from base.output import PlainConsole, say
from base.settings import check_settings
from cli.display import show_roster
from cli.metrics import metrics
from cli.writing import write_once
from deployment import federation_checks, serving
from deployment.authority import days_left, read_certificate
from deployment.checks import STRICT, report
from deployment.coordinator import Federation, FederationSettings, Member
from exchange.bundle import SiteBundle
from exchange.key_roster import KeyRoster, read_json
from runtime.control import node_statuses

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.command()(metrics)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The federation's folder.")]
Site = Annotated[str, typer.Argument(metavar="SITE", help="Name of the site.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for the federation.")],
    name: Annotated[str, typer.Option(help="Name of the federation.")],
    host: Annotated[str, typer.Option(help="Host name by which hospitals reach this machine.")],
    port: Annotated[int, typer.Option(help="Port that hospitals reach; below 1024 only root may listen.")] = 443,
) -> None:
    """Make a federation: its authority, certificates, secrets and settings. What is there already stays."""
    settings = check_settings({"name": name, "host": host, "port": port}, FederationSettings, "federation init")
    federation = Federation.make(folder, settings)
    say(f"Federation {federation.name} at {federation.settings.host}:{federation.settings.port}")
    say(f"fingerprint of its authority: {federation.package().fingerprint}")
    say(f"Settings: {folder / 'federation.yaml'}")


@app.command()
def add_site(
    folder: Folder,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What 'fedbrainlm site init' wrote.")],
) -> None:
    """Add a hospital; it is registered now, or when the federation starts."""
    federation = Federation(folder)
    given = SiteBundle.read(bundle)
    member = federation.admit(given)
    say(f"site: {given.site}")
    say(f"fingerprint: {given.fingerprint}")
    say(f"supernode fingerprint: {given.supernode_fingerprint}")
    member = serving.register(federation, member) if serving.is_up(federation) else federation.keep(member)
    where = "Registered." if member.node else "Noted: it is registered when the federation starts."
    say(f"{where} Compare both fingerprints with the hospital, by telephone.")


@app.command()
def revoke_site(folder: Folder, site: Site) -> None:
    """Shut a hospital out. The others should take back their approval of the roster that lists it."""
    federation = Federation(folder)
    member = federation.member(site)
    if member.node is not None:
        if not serving.is_up(federation):
            raise InputError(
                f"{site}: is registered with the SuperLink, which is not running. Start the federation, then repeat."
            )
        serving.unregister(federation, member)
    federation.revoke(site)
    say(f"Revoked {site}. Send the others a new package, and let them revoke the roster that lists it.")


@app.command()
def package(
    folder: Folder, out: Annotated[Path, typer.Option(help="New file for the package, which goes to every hospital.")]
) -> None:
    """Write what hospitals join with: address, authority, and the roster once there are three."""
    made = Federation(folder).package()
    write_once(out, made.to_json().encode())
    say(f"address: {made.address}")
    say(f"fingerprint of the authority: {made.fingerprint}")
    if made.roster:
        show_roster(made.roster)
    else:
        say("No roster: secure sums need three sites. Add them, and write another package.")


@app.command()
def start(
    folder: Folder,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay until told to end, then end all: for containers.")
    ] = False,
) -> None:
    """Start the SuperLink, its SuperExec and the edge, and register hospitals that wait for it."""
    federation = Federation(folder)
    federation.write_configuration()
    if not serving.start(federation):
        say("Running already.")
    if not foreground:
        _register_waiting(federation)
        return
    with serving.until_told(federation):
        _register_waiting(federation)
    say("Stopped.")


def _register_waiting(federation: Federation) -> None:
    for member in federation.active():
        if member.node is None:
            serving.register(federation, member)
            say(f"Registered {member.bundle.site}.")
    say(f"Federation {federation.name} serves at {federation.settings.host}:{federation.settings.port}.")
    sys.stdout.flush()  # into a log, too


@app.command()
def stop(folder: Folder) -> None:
    """End what 'start' started; a run that goes on ends as failed."""
    say("Stopped." if serving.stop(Federation(folder)) else "Was not running.")


@app.command()
def status(folder: Folder) -> None:
    """Show programs, certificates, and which hospitals are online."""
    federation = Federation(folder)
    for name, process in serving.processes(federation).items():
        say(f"{name}: " + (f"running (process {process.pid})" if process else "not running"))
    for path in (federation.authority.ca_certificate, federation.authority.server_certificate):
        certificate = read_certificate(path)
        left = days_left(certificate)
        ends = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        say(f"{path.name}: " + (f"expires {ends}, in {left} days" if left >= 0 else f"EXPIRED {ends}"))
    _show_sites(federation)


@app.command()
def check(folder: Folder, strict: STRICT = False) -> None:
    """Check everything that the federation needs. Exit code 0 if nothing fails."""
    report(federation_checks.checks(Federation(folder)), strict=strict)


@app.command()
def renew(folder: Folder) -> None:
    """Sign the edge's certificate anew. Hospitals need nothing; the federation must be restarted."""
    federation = Federation(folder)
    ends = federation.authority.renew(federation.settings.host)
    say(f"server.crt: expires {ends:%Y-%m-%d}. Restart: 'fedbrainlm federation stop', then 'start'.")


@app.command()
def roster(
    bundles: Annotated[list[Path], typer.Argument(help="What each site wrote with 'fedbrainlm site key --out'.")],
    out: Annotated[Path, typer.Option(help="New file for the roster, which goes to every site.")],
    name: Annotated[str, typer.Option(help="Name of the federation.")] = "federation",
) -> None:
    """Make the roster of the sites' public keys. Each site then approves it with 'fedbrainlm site approve-roster'."""
    made = KeyRoster.from_bundles(name, [read_json(path) for path in bundles])
    write_once(out, made.canonical())
    show_roster(made)


def _show_sites(federation: Federation) -> None:
    members = federation.members()
    if not members:
        say("No sites yet: see 'fedbrainlm federation add-site'.")
        return
    seen = serving.heartbeats(federation)
    nodes = node_statuses(federation.connection) if serving.is_up(federation) else None
    table = Table(title="Sites", title_justify="left")
    for column in ("site", "state", "last seen (UTC)", "Flower", "clock"):
        table.add_column(column, no_wrap=True)
    for member in members:
        beat = seen.get(member.bundle.site)
        table.add_row(
            member.bundle.site,
            _state(member, nodes),
            f"{beat.time:%Y-%m-%d %H:%M:%S}" if beat else "never",
            beat.version if beat else "",
            f"{beat.skew_s:+.0f} s" if beat else "",
        )
    PlainConsole().print(table)
    say("fingerprints (secure sums; SuperNode):")
    for member in members:
        bundle = member.bundle
        say(f"  {bundle.site}: {bundle.fingerprint}; {bundle.supernode_fingerprint}")


def _state(member: Member, nodes: dict[str, str] | None) -> str:
    if member.revoked:
        return f"revoked {member.revoked[:10]}"
    if member.node is None:
        return "waits for start"
    if nodes is None:
        return "not known: no SuperLink"
    return nodes.get(member.node, "not known to the SuperLink")
