"""Analyses over the sites: ask for sums, add, solve, until each is done. Several travel together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brainlm.config import SummaryNoise
from exchange.messages import (
    Arrays,
    FrameSpec,
    Group,
    Job,
    SummarizeReply,
    SummarizeRequest,
    TableSpec,
    join,
    part_of,
)
from harmonization import Analysis, State
from harmonization.declared import Widths
from server.expecting import of_sums
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
    widths_of: Callable[[Any], Widths],
    study: str,
    roster: Roster,
    stage: str,
    shared: Mapping[str, Arrays] | None = None,
    noise: SummaryNoise | None = None,
) -> dict[str, Any]:
    """Run all tasks in lock-step and return their final states.

    `widths_of` says how many columns the tables of a spec have. Parts `shared` go with every request, and sites put
    `noise` on every sum.

    A sum that lacks a site that was in the one before would be wrong. When a site falls silent, it is left out for
    good, and the tasks are made anew for the others and begin again, unless they had not begun.
    """
    while True:
        tasks = make_tasks()
        states: dict[str, State] = {}
        while pending := [name for name in tasks if name not in states or not states[name].done]:
            request = _request(study, tasks, states, pending, shared or {}, noise)
            declared = {
                name: tasks[name].analysis.sends(widths_of(tasks[name].table), states.get(name)) for name in pending
            }
            answers = roster.ask(request, SummarizeReply, of_sums(declared), stage)
            if len(answers.replies) < len(roster.sites):
                roster.keep(answers.replies)
                if states or make_tasks() != tasks:
                    break
            for name in pending:
                total = part_of(answers.total, name)
                states[name] = tasks[name].analysis.solve(total, states.get(name))
        else:
            return dict(states)


def _request(
    study: str,
    tasks: Mapping[str, Task],
    states: Mapping[str, State],
    names: list[str],
    shared: Mapping[str, Arrays],
    noise: SummaryNoise | None,
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
    groups = [Group(parts=[name], sites=list(sites)) for name in names if (sites := tasks[name].sites) is not None]
    return SummarizeRequest(
        arrays=join(**arrays, **shared),
        study=study,
        jobs=jobs,
        groups=groups,
        noise=noise.model_dump(mode="json") if noise else None,
    )
