"""`fedbrainlm watch`, and how commands find a run."""

import time
from pathlib import Path
from typing import Annotated

import typer

from base.errors import InputError, RunFailedError
from base.output import PlainConsole, say
from cli.ending import how_to_go_on
from cli.options import RUNS
from cli.watching import end_of, print_absences, print_event, watching
from server.journal import Journal

_POLL_S = 1.0

AS_JSON = Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event, for scripts.")]


def watch(
    run: Annotated[str, typer.Argument(help="A run's folder, or its id under --runs.")],
    runs: RUNS = Path("runs"),
    as_json: AS_JSON = False,
) -> None:
    """Show a run while it goes on, and how it ended: rounds, sites and their last answers, time left, bytes."""
    journal = Journal(find_run(run, runs))
    with watching(journal, PlainConsole(), as_json=as_json) as show:
        while (end := journal.end()) is None:
            show()
            time.sleep(_POLL_S)
    if as_json:
        print_event(end_of(end, journal))
    if end.status != "completed":
        hint = "" if "its process was killed" in end.reason else f"\n{how_to_go_on(journal)}"
        raise RunFailedError(f"the run {end.status}: {end.reason}{hint}")
    if not as_json:
        say(f"completed: {journal.folder}")
        print_absences(journal)


def find_run(run: str, runs: Path) -> Path:
    """Find the folder of a run by its path, or by its id; an InputError if there is none, or more than one."""
    found = [folder for folder in [Path(run), *sorted(runs.glob(f"*/{run}"))] if (folder / "journal.sqlite").is_file()]
    if not found:
        raise InputError(f"{run}: is no run's folder, and {runs} holds no run of that id. Look into {runs}.")
    if len({folder.resolve() for folder in found}) > 1:
        raise InputError(f"{run}: is the id of {', '.join(map(str, found))}. Name the folder.")
    return found[0]
