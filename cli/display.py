"""Progress on the terminal; quiet where there is none."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from base.output import PlainConsole, say
from base.plain import printable
from cohorts import Cohort
from cohorts.identities import Linkage
from cohorts.notices import NOTICES
from exchange.key_roster import KeyRoster

console = PlainConsole(stderr=True)


@contextmanager
def counter(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that moves a bar."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not live(),
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_quarantine(cohort: Cohort) -> None:
    """Say what was refused and why, in the site's own names."""
    quarantined = cohort.quarantined
    if quarantined.empty:
        return
    linkage = Linkage.read(cohort.path)
    say(f"{len(quarantined)} quarantined:")
    for row in quarantined[:20].itertuples():
        say(f"  {printable(linkage.told(row.recording_id, row.message))}")
    if len(quarantined) > 20:
        say(f"  … and {len(quarantined) - 20} more in {cohort.path / 'quarantine.jsonl'}")


def show_remarks(cohort: Cohort) -> None:
    """Say what is to be known of the participants."""
    for remark in cohort.remarks:
        say(f"Note: {printable(remark)}")


def show_notices(cohort: Cohort) -> None:
    """Say what is to be known of recordings that are in the cohort, and of how many."""
    for code, count in cohort.notices.items():
        say(f"Of {count} of {len(cohort)} recordings: {NOTICES.get(code, code)}.")


def show_roster(roster: KeyRoster) -> None:
    """Print whose keys a roster lists, and its hash."""
    table = Table(title=f"Roster {roster.name}", title_justify="left")
    table.add_column("site")
    table.add_column("fingerprint of its key", no_wrap=True)
    for site in roster.sites:
        table.add_row(site.name, site.fingerprint)
    PlainConsole().print(table)
    say(f"hash: {roster.hash}")


def live() -> bool:
    return sys.stderr.isatty()
