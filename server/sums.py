"""Analyses over the sites: ask for sums, add, solve, until each is done. Several travel together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exchange.messages import Arrays, FrameSpec, Job, SummarizeReply, SummarizeRequest, TableSpec, join
from harmonization import Analysis, State, add_sums
from server.roster import Roster


@dataclass(frozen=True)
class Task:
    """An analysis, and the tables that it is about.

    Attributes
    ----------
    sites : tuple of str or None
        The sites that have such tables; None if all do.
    """

    analysis: Analysis
    table: TableSpec | FrameSpec
    sites: tuple[str, ...] | None = None


def solve_together(
    make_tasks: Callable[[], Mapping[str, Task]],
    study: str,
    roster: Roster,
    stage: str,
    shared: Mapping[str, Arrays] | None = None,
) -> dict[str, Any]:
    """Run all tasks in lock-step and return their final states.

    Parts `shared` go with every request.

    A sum that lacks a site that was in the one before would be wrong. When a site falls silent, it is left out for
    good, and the tasks are made anew for the others and begin again.
    """
    while True:
        tasks = make_tasks()
        states: dict[str, State] = {}
        while pending := [name for name in tasks if name not in states or not states[name].done]:
            replies = roster.ask(_request(study, tasks, states, pending, shared or {}), SummarizeReply, stage)
            if len(replies) < len(roster.sites):
                roster.keep(replies)
                break
            for name in pending:
                sites = replies if tasks[name].sites is None else tasks[name].sites
                total = add_sums(replies[site].part(name) for site in sites)
                states[name] = tasks[name].analysis.solve(total, states.get(name))
        else:
            return dict(states)


def _request(
    study: str,
    tasks: Mapping[str, Task],
    states: Mapping[str, State],
    names: list[str],
    shared: Mapping[str, Arrays],
) -> SummarizeRequest:
    jobs = {
        name: Job(
            analysis=tasks[name].analysis.name,
            parameters=tasks[name].analysis.parameters(),
            table=tasks[name].table,
            state=states[name].kind if name in states else None,
        )
        for name in names
    }
    arrays = {name: states[name].to_arrays() for name in names if name in states}
    return SummarizeRequest(arrays=join(**arrays, **shared), study=study, jobs=jobs)
