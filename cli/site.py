"""`fedbrainlm site`: a hospital's keys, what it approves, its SuperNode, and its audit log."""

import json
import re
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from base.errors import InputError
from base.output import PlainConsole, say
from base.plain import printable
from cli import approving, taking_part
from cli.display import show_roster
from cli.writing import write_once
from client.door.audit import AuditLog
from client.keys.keyring import Keyring
from client.process import keep_private
from deployment.site_files import By, SettingsFile, login, open_site
from exchange.key_roster import KeyRoster
from exchange.refusals import Refusal

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _private() -> None:
    """Whatever a site's command writes is its owner's alone."""
    keep_private()


audit = typer.Typer(no_args_is_help=True, help="What left the hospital and what it refused, line by line.")
app.add_typer(audit, name="audit")
for command in (
    *(taking_part.init, taking_part.join, taking_part.check, taking_part.start, taking_part.execute),
    *(approving.show, approving.approve, approving.approved, approving.withdraw),
):
    app.command()(command)

_IN_COLUMNS = ("number", "time", "event")
_NOT_SHOWN = ("previous", "salt", "hex")
_HASH = re.compile(r"^([0-9a-f]{12})[0-9a-f]{52}$")

LogFile = Annotated[Path, typer.Argument(metavar="SITE.yaml|FILE", help="The hospital's settings, or an audit log.")]


@app.command()
def key(
    settings: SettingsFile,
    out: Annotated[
        Path | None, typer.Option(help="New file for the public keys, which goes to the coordinator.")
    ] = None,
) -> None:
    """Show the hospital's public keys; make the pairs the first time."""
    bundle = _keyring(settings).public_bundle()
    for name, value in bundle.items():
        say(f"{name.replace('_', ' ')}: {value}")
    if out:
        write_once(out, (json.dumps(bundle, indent=2) + "\n").encode())


@app.command()
def approve_roster(
    settings: SettingsFile,
    roster: Annotated[Path, typer.Argument(metavar="ROSTER.json", help="The roster that the coordinator sent.")],
    by: By = None,
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprints were compared; do not ask.")] = False,
) -> None:
    """Approve the keys of a federation, for secure sums among its sites."""
    ring, given = _keyring(settings), KeyRoster.read(roster)
    ring.check(given)
    show_roster(given)
    if not yes and not typer.confirm("Did you compare each fingerprint with its site, by telephone?"):
        raise InputError("the roster is not approved. Call the sites, compare, and repeat the command.")
    ring.approve(given, by or login())
    say(f"Approved for {ring.name}.")


@app.command()
def rosters(settings: SettingsFile) -> None:
    """List the approved rosters."""
    ring = _keyring(settings)
    approvals = list(ring.approvals())
    if not approvals:
        say(f"{ring.name} has approved no roster.")
    for approval in approvals:
        say(f"{approval.hash} approved by {approval.by}, {approval.time}")
        try:
            listed = ring.approved(approval.hash)
            say(f"  {listed.name}: {', '.join(site.name for site in listed.sites)}")
        except Refusal as refusal:
            say(f"  cannot be used: {refusal.detail}")


@app.command()
def revoke_roster(
    settings: SettingsFile,
    roster_hash: Annotated[str, typer.Argument(metavar="HASH", help="The roster's, as 'rosters' lists it.")],
    by: By = None,
) -> None:
    """Take the approval of a roster back."""
    ring = _keyring(settings)
    ring.revoke(roster_hash, by or login())
    say(f"Revoked for {ring.name}.")


@audit.command()
def show(
    source: LogFile,
    last: Annotated[int, typer.Option(min=1, help="How many lines, from the end.")] = 20,
    event: Annotated[str | None, typer.Option(help="Only this event, such as release or refusal.")] = None,
) -> None:
    """Show the latest lines."""
    log = _log(source)
    table = Table(title=Text(str(log.path)), title_justify="left")
    table.add_column("line", justify="right")
    for column in ("time (UTC)", "event", "what"):
        table.add_column(column, overflow="fold")
    for line in deque((line for line in log.events() if event in (None, line["event"])), maxlen=last):
        cells = (str(line["number"]), line["time"][:19], line["event"], _scalars(line))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    PlainConsole().print(table)


@audit.command()
def verify(
    source: LogFile,
    head: Annotated[
        str | None, typer.Option(metavar="SHA256", help="A head of this log that was noted before.")
    ] = None,
) -> None:
    """Check that no line was changed, removed, put in or moved. Exit code 1 if one was."""
    _report(_log(source), head)


@audit.command()
def export(source: LogFile, out: Annotated[Path, typer.Argument(help="New file.")]) -> None:
    """Copy the log for somebody else, who can verify the copy."""
    try:
        _log(source).export(out)
    except OSError as error:
        raise InputError(f"{out}: the log cannot be copied there ({error.strerror}). Choose another name.") from None
    _report(AuditLog(out), None)


def _keyring(settings: Path) -> Keyring:
    return open_site(settings).keys


def _log(source: Path) -> AuditLog:
    log = open_site(source).audit if source.suffix in (".yaml", ".yml") else AuditLog(source)
    if not log.path.is_file():
        raise InputError(f"{log.path}: no such audit log. Check the path; a new site has none yet.")
    return log


def _report(log: AuditLog, head: str | None) -> None:
    verdict = log.verify(head)
    say(f"{log.path}: {verdict}")
    if not verdict.intact:
        raise typer.Exit(1)


def _scalars(line: dict[str, Any]) -> str:
    """Everything in a line that fits into a cell: lists of arrays and of sites do not, and hashes lose their ends."""
    named = {name: value for name, value in line.items() if name not in (*_IN_COLUMNS, *_NOT_SHOWN)}
    plain = {name: str(value) for name, value in named.items() if not isinstance(value, list | dict)}
    return ", ".join(name + " " + _HASH.sub(r"\1…", value) for name, value in plain.items())
