"""A run on the terminal: where it is, and what came out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.display import console, live
from server.journal import Journal
from server.summary import PROBE_SCORES, probe_score


@contextmanager
def watching(journal: Journal) -> Iterator[Callable[[], None]]:
    """Yield a function that shows where a run is; without a terminal it prints a line whenever the stage changes."""
    if not live():
        said: list[str] = []

        def say() -> None:
            line = _line(journal)
            if line and line not in said[-1:]:
                said.append(line)
                console.print(line, highlight=False, markup=False)

        yield say
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
    ) as bar:
        task = bar.add_task("starting Flower", total=None)

        def move() -> None:
            now = journal.progress()
            if now.stage == "pretraining":
                bar.update(task, completed=now.round_number, total=now.rounds, description=_line(journal))
            elif now.stage:
                bar.update(task, description=_line(journal), total=None)

        yield move


def print_summary(summary: dict[str, object]) -> None:
    """Print the headline numbers of a completed run."""
    out = Console()
    pretraining, harmonization, probes = (summary[name] for name in ("pretraining", "harmonization", "probes"))
    before = "start" if "masked_r2_start" in pretraining else "untrained"
    out.print(
        f"Masked R² on held-out participants: [bold]{_number(pretraining['masked_r2'])}[/] "
        f"({before} {_number(pretraining[f'masked_r2_{before}'])})"
    )
    table = Table(title="Held-out, cross-validated inside the sites", title_justify="left")
    table.add_column("features")
    table.add_column("site recognised (balanced accuracy)")
    targets = list(next(iter(probes.values()))) if probes else []
    scores = {target: probe_score(next(iter(probes.values()))[target]["raw"]) for target in targets}
    for target in targets:
        table.add_column(f"{target} ({PROBE_SCORES[scores[target]]})")
    for features, effect in harmonization.get("site_effect", {}).items():
        cells = [_change({name: value["balanced_accuracy"] for name, value in effect.items()})]
        cells[0] += f", by chance {_number(effect['raw']['null_mean'])}"
        cells += [
            _change({name: value[score] for name, value in probes[features][target].items()})
            for target, score in scores.items()
        ]
        table.add_row(features, *cells)
    out.print(table)


def _change(values: dict[str, float]) -> str:
    if "harmonized" not in values:
        return _number(values["raw"])
    return f"{_number(values['raw'])} → {_number(values['harmonized'])}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _line(journal: Journal) -> str:
    now = journal.progress()
    if now.stage == "pretraining":
        return f"pretraining: round {now.round_number} of {now.rounds}, {now.sites} sites"
    return now.stage
