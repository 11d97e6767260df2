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
from harmonization import Analysis, Design, DesignError, HarmonizationError, State
from harmonization.core.declared import Widths
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
    failed: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Run all tasks in lock-step and return their final states.

    `widths_of` says how many columns the tables of a spec have. Parts `shared` go with every request, and sites put
    `noise` on every sum. A task whose sums allow no answer is left out, with the reason in `failed`, and costs none of
    the others; without `failed`, the reason is raised.

    A sum that lacks a site that was in the one before would be wrong. When a site falls silent, it is left out for
    good, and the tasks are made anew for the others and begin again, unless they had not begun.
    """
    while True:
        tasks = make_tasks()
        states: dict[str, State] = {}
        hopeless: dict[str, str] = {}
        while pending := _pending(tasks, states, hopeless):
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
                try:
                    states[name] = tasks[name].analysis.solve(total, states.get(name))
                except HarmonizationError as error:
                    if failed is None:
                        raise
                    hopeless[name] = _reason(tasks[name], error)
        else:
            (failed if failed is not None else {}).update(hopeless)
            return {name: state for name, state in states.items() if name not in hopeless}


def _reason(task: Task, error: HarmonizationError) -> str:
    """Say why a task has no answer; an analysis knows covariates by their number alone."""
    design = Design.from_json(task.table.covariates) if isinstance(task.table, TableSpec) else Design()
    named = ", ".join(f"{number} {column}" for number, column in enumerate(design.columns, 1))
    return f"{error} The columns are {named}." if isinstance(error, DesignError) and named else str(error)


def _pending(tasks: Mapping[str, Task], states: Mapping[str, State], hopeless: Mapping[str, str]) -> list[str]:
    """Tasks that are neither done nor without hope."""
    return [name for name in tasks if name not in hopeless and (name not in states or not states[name].done)]


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
