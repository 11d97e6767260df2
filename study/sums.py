"""Analyses that go through their rounds in lock-step: asked for together, added, solved, until each is done."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from exchange.messages import Arrays, FrameSpec, Group, Job, SummarizeReply, SummarizeRequest, TableSpec, join, part_of
from harmonization import Analysis, Design, DesignError, HarmonizationError
from harmonization import State as Answer
from harmonization.core.declared import Widths
from study.expecting import of_sums, widths_of
from study.question import Question, atlases_of
from study.settings import Study
from study.state import Found, Measure, Solved, State

_LISTED = (
    *("correlations", "training_correlations", "null_mean", "null_95", "p_value"),
    *("r2", "mean_absolute_error", "root_mean_squared_error", "gain", "gain_error"),
    *("scores", "chance"),
)
"""Arrays of answers with an entry a canonical correlation, measure or model."""


@dataclass(frozen=True)
class Task:
    """An analysis, and the tables that it is about."""

    analysis: Analysis
    table: TableSpec | FrameSpec
    sites: tuple[str, ...] | None = None
    """The sites that have such tables; None if all do."""


Tasks = Mapping[Measure, Task]


@dataclass(frozen=True)
class Sums:
    """A stage of analyses."""

    name: str
    place: str
    """What a journal calls it (`study.question.Question`)."""
    tasks: Callable[[Study, State], Tasks]
    """Make the tasks from the study and the state."""
    conclude: Callable[[Study, State, dict[Measure, Any]], State]
    """Make of study, state and answers what the next stage begins with."""
    strict: bool = False
    """Whether a task whose sums allow no answer ends the study; else it is left out, and costs none of the others."""
    optional: bool = False
    """Whether the study goes on without all of them where too few sites answer."""

    def is_over(self, study: Study, state: State) -> bool:
        """Whether every task is done, or without hope."""
        return not any(_is_pending(measure, state) for measure in self.tasks(study, state))

    def ask(self, study: Study, state: State) -> Question:
        """Ask for the sums of the next round of each task that is not done."""
        tasks = {measure: task for measure, task in self.tasks(study, state).items() if _is_pending(measure, state)}
        known = {measure: _known(measure, task, state) for measure, task in tasks.items()}
        arrays = {measure.name: answer.to_arrays() for measure, answer in known.items() if answer is not None}
        noise = None
        if any(isinstance(task.table, FrameSpec) for task in tasks.values()):
            arrays, noise = {**arrays, "scaling": state.part("scaling")}, study.privacy.frame_noise
        request = SummarizeRequest(
            arrays=join(**arrays),
            study=study.study,
            jobs={m.name: _job(t, known[m]) for m, t in tasks.items()},
            groups=[Group(parts=[m.name], sites=list(t.sites)) for m, t in tasks.items() if t.sites is not None],
            noise=noise.model_dump(mode="json") if noise else None,
        )
        declared = {m.name: t.analysis.sends(_widths(t.table, state), known[m]) for m, t in tasks.items()}
        return Question(self.place, request, SummarizeReply, of_sums(declared), optional=self.optional)

    def advance(self, study: Study, state: State, sites: Collection[str], total: Arrays) -> State:
        """Solve what was summed over `sites`.

        A sum that lacks a site that was in the one before would be wrong. When a site falls silent, it is left out for
        good, and the tasks are made anew for the others and begin again, unless they had not begun.
        """
        if self.optional and len(sites) < study.averaging.quorum:
            why = f"fewer sites than the quorum of {study.averaging.quorum} answered."
            return state.and_found(not_associated=why)
        left, tasks = state.among(sites), self.tasks(study, state)
        if len(left.sites) < len(state.sites) and (state.solving or self.tasks(study, left) != tasks):
            return left.but(solving={}).holding(states={})
        solving, arrays = dict(state.solving), {}
        for measure, task in tasks.items():
            if not _is_pending(measure, state):
                continue
            try:
                answer = task.analysis.solve(part_of(total, measure.name), _known(measure, task, state))
                solved, held = Solved(answer.kind, answer.done), answer.to_arrays()
            except HarmonizationError as error:
                if self.strict:
                    raise
                solved, held = Solved(why=_reason(task, error)), {}
            solving[measure.name], arrays[f"states/{measure.name}"] = solved, held
        return left.but(solving=solving).holding(**arrays)

    def end(self, study: Study, state: State) -> State:
        """Note the numbers of all answers, and why others are missing; go on with the answers."""
        answers, found = {}, []
        for measure, task in self.tasks(study, state).items():
            if (answer := _known(measure, task, state)) is not None:
                answers[measure] = answer
            found.append(Found(measure, numbers_of(answer), state.solving[measure.name].why))
        after = state.but(solving={}).holding(states={}).and_found(*found)
        return self.conclude(study, after, answers)


def numbers_of(answer: Answer | None) -> dict[str, Any]:
    """Return the numbers of an answer by name, and of its arrays the short ones that a summary names."""
    if answer is None:
        return {}
    named = {field.name: getattr(answer, field.name) for field in fields(answer)}
    numbers = {name: value for name, value in named.items() if isinstance(value, int | float)}
    lists = {name: named[name].tolist() for name in _LISTED if name in named and name not in numbers}
    return {name: int(value) if name == "n" else value for name, value in numbers.items()} | lists


def _is_pending(measure: Measure, state: State) -> bool:
    known = state.solving.get(measure.name, Solved())
    return not (known.done or known.why)


def _known(measure: Measure, task: Task, state: State) -> Answer | None:
    """State of an analysis after its last round; None before the first, and where there is no hope."""
    known = state.solving.get(measure.name, Solved())
    return task.analysis.read_state(known.kind, state.part(f"states/{measure.name}")) if known.kind else None


def _reason(task: Task, error: HarmonizationError) -> str:
    """Say why a task has no answer; an analysis knows covariates by their number alone."""
    design = Design.from_json(task.table.covariates) if isinstance(task.table, TableSpec) else Design()
    named = ", ".join(f"{number} {column}" for number, column in enumerate(design.columns, 1))
    return f"{error} The columns are {named}." if isinstance(error, DesignError) and named else str(error)


def _job(task: Task, known: Answer | None) -> Job:
    analysis, state = task.analysis, None if known is None else known.kind
    return Job(analysis=analysis.name, parameters=analysis.parameters(), table=task.table, state=state)


def _widths(table: TableSpec | FrameSpec, state: State) -> Widths:
    if isinstance(table, FrameSpec):
        return Widths.of_frames(atlases_of(state.sites)[table.atlas])
    return widths_of(table, state.sizes)
