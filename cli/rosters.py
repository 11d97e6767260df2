"""A roster on the terminal."""

from rich.table import Table

from base.output import PlainConsole, say
from exchange.key_roster import KeyRoster


def show_roster(roster: KeyRoster) -> None:
    """Print whose keys a roster lists, and its hash."""
    table = Table(title=f"Roster {roster.name}", title_justify="left")
    table.add_column("site")
    table.add_column("fingerprint of its key", no_wrap=True)
    for site in roster.sites:
        table.add_row(site.name, site.fingerprint)
    PlainConsole().print(table)
    say(f"hash: {roster.hash}")
