"""A roster on the terminal."""

import typer
from rich.console import Console
from rich.table import Table

from exchange.roster import KeyRoster


def show_roster(roster: KeyRoster) -> None:
    """Print whose keys a roster lists, and its hash."""
    table = Table(title=f"Roster {roster.name}", title_justify="left")
    table.add_column("site")
    table.add_column("fingerprint of its key", no_wrap=True)
    for site in roster.sites:
        table.add_row(site.name, site.fingerprint)
    Console().print(table)
    typer.echo(f"hash: {roster.hash}")
