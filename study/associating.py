"""The embedding beside a second table of vectors: which analyses, and what the summary says of them."""

from typing import Any

from exchange.messages import TableSpec
from harmonization import Continuous, CrossValidatedCCA, LateFusion, State, TwoTower
from study.comparing import numbers_of
from study.settings import Study
from study.state import Measure
from study.sums import Task

ASSOCIATION = "association"
_LISTED = (
    *("correlations", "training_correlations", "null_mean", "null_95", "p_value"),
    *("r2", "mean_absolute_error", "root_mean_squared_error", "gain", "gain_error"),
    *("scores", "chance"),
)
"""Arrays of the answers that the summary names."""


def tasks_of_views(study: Study, table: TableSpec) -> dict[Measure, Task]:
    """Tasks on a table with a second view."""
    settings = study.association
    assert settings is not None, "only studies with vectors associate them"

    def of(kind: str, target: str = "") -> Measure:
        return Measure(kind, ASSOCIATION, target=target)

    folds = study.analyses.folds
    n_components = min(settings.correlations, settings.components)
    correlation = CrossValidatedCCA(n_components=n_components, n_folds=folds, permutations=settings.permutations)
    tasks = {of("cca"): Task(correlation, table)}
    if settings.two_tower:
        tasks[of("two_tower")] = Task(TwoTower(), table)
    plain = table.model_copy(update={"covariates": []})  # fusion asks what both views say, age and all
    for target in study.analyses.targets:
        if isinstance(study.coding(target), Continuous):
            fused = plain.model_copy(update={"target": target})
            tasks[of("fusion", target)] = Task(LateFusion(n_folds=folds), fused)
    return tasks


def describe_association(answer: State) -> dict[str, Any]:
    """Return the numbers of an answer, and its short arrays: one entry a canonical correlation, measure or model."""
    arrays = answer.to_arrays()
    return {**numbers_of(answer), **{name: arrays[name].tolist() for name in _LISTED if name in arrays}}
