"""`fedbrainlm federation`: what the sites of a federation agree on."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.output import write_once
from exchange.roster import KeyRoster, read_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="What the sites of a federation agree on: the roster of their keys.",
)


@app.callback()
def _group() -> None:
    """Keep `roster` a command of its own name while it is the only one."""


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


def show_roster(roster: KeyRoster) -> None:
    """Print whose keys a roster lists, and its hash."""
    table = Table(title=f"Roster {roster.name}", title_justify="left")
    table.add_column("site")
    table.add_column("fingerprint of its key", no_wrap=True)
    for site in roster.sites:
        table.add_row(site.name, site.fingerprint)
    Console().print(table)
    typer.echo(f"hash: {roster.hash}")
