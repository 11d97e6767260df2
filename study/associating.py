"""The embedding beside a second table of vectors: which analyses."""

from exchange.messages import TableSpec
from harmonization import Continuous, CrossValidatedCCA, LateFusion, TwoTower
from study.settings import Study
from study.state import Measure
from study.sums import Task

ASSOCIATION = "association"


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
