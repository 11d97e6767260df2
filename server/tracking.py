"""The rounds' metrics for TensorBoard, and for MLflow where it is installed. The journal holds all that they show."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from tensorboardX import SummaryWriter

from server.journal import Journal

_Log = Callable[[str, float, int], Any]
"""Takes a metric's name, its value and the round."""


@contextmanager
def tracking(journal: Journal) -> Iterator[Callable[[], None]]:
    """Yield a function that hands on what was measured since it was called last.

    A tracker that fails is left out, and the journal says so: no run ends for it.
    """
    loggers = {"tensorboard": _tensorboard, **({"mlflow": _mlflow} if find_spec("mlflow") else {})}
    logs: dict[str, tuple[_Log, Callable[[], Any]]] = {}
    seen = 0

    def try_each(names: Iterable[str], action: Callable[[str], Any]) -> None:
        for name in list(names):
            try:
                action(name)
            except Exception as error:  # whatever an optional program makes of its server or its disk
                logs.pop(name, None)
                journal.say(f"{name} is left out: {type(error).__name__}: {error}")

    def update() -> None:
        nonlocal seen
        rows = journal.table("metrics").iloc[seen:]
        seen += len(rows)

        def log(name: str) -> None:
            for row in rows.itertuples():
                logs[name][0](f"{row.name}/{row.site}", row.value, row.round)

        try_each(logs, log)

    try_each(loggers, lambda name: logs.update({name: loggers[name](journal)}))
    try:
        yield update
    finally:
        try_each(logs, lambda name: logs[name][1]())


def _tensorboard(journal: Journal) -> tuple[_Log, Callable[[], Any]]:
    """Write ``tensorboard/`` into the run's folder; when the run is resumed, anew from the journal."""
    folder = journal.folder / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    writer = SummaryWriter(str(folder))

    def log(name: str, value: float, round_number: int) -> None:
        writer.add_scalar(name, value, round_number)
        writer.flush()

    return log, writer.close


def _mlflow(journal: Journal) -> tuple[_Log, Callable[[], Any]]:
    """Log to where MLflow's own settings point; a run that is resumed goes on as the same run."""
    import mlflow

    facts = journal.facts()
    mlflow.set_experiment(facts.get("study", "fedbrainlm"))
    run = mlflow.start_run(run_id=facts.get("mlflow_run"), run_name=journal.folder.name)
    journal.note(mlflow_run=run.info.run_id)
    return lambda name, value, number: mlflow.log_metric(name, value, step=number), mlflow.end_run
