"""After pretraining: project, measure, harmonize and residualize the embeddings that lie at the sites.

Three feature sets go the same way, so that each number stands beside its baselines: the embedding of the trained model,
that of the untrained one, and functional connectivity. Each stage has tasks, and a function that concludes it.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from brainlm.embedding import find_recipe
from exchange.messages import Arrays, HarmonizeReply, HarmonizeRequest, Step, join, part_of
from harmonization import Projection, Residualization
from harmonization import State as Model
from harmonization.core.selection import Selection
from harmonization.methods.projection import ProjectionModel
from harmonization.methods.residualization import ResidualizationModel
from study.associating import ASSOCIATION, tasks_of_views
from study.comparing import (
    FEWEST_TO_COMPARE,
    HARMONIZED,
    RAW,
    held_out_measures,
    site_measures,
    table_of,
    variants_of,
)
from study.expecting import of_harmonization, size_after
from study.question import Question
from study.settings import Study
from study.state import ComponentCount, FeatureCount, Found, Measure, State
from study.sums import Task, Tasks

HARMONIZATION = "harmonization"
FINAL = "embedding.residualized"
"""Feature set that the recipe ends with."""
PROJECTED = "projected"
_VECTORS = "vectors."
"""How sites name feature sets that they brought along: not all participants may have them."""
_SHARED = "shared"
"""What is added to the name of a feature set, of which only the features are left that everybody has."""
_FEWEST_FEATURES = 2
"""Empirical Bayes shrinks a feature towards others."""
_PROJECTION, _RESIDUALIZATION = Measure("projection"), Measure("residualization")

Models = list[tuple[Step, Model]]
"""What is applied, and the solved model that it takes."""


def select(state: State, lacking: Mapping[str, np.ndarray]) -> State:
    """Leave out features that somebody lacks, and feature sets of which nobody could compare anything then.

    Parameters
    ----------
    lacking : mapping
        Feature set → for each of its features, at how many sites somebody lacks it; of feature sets that may lack some.
    """
    compared, features = [], {}
    models: Models = []
    for name, size in state.sizes.items():
        if name.startswith(_VECTORS):
            continue
        kept = lacking.get(name, np.zeros(size)) == 0
        features[name] = FeatureCount(size, size - int(kept.sum()))
        if kept.all():
            compared.append(name)
        elif kept.sum() >= _FEWEST_FEATURES:
            compared.append(f"{name}.{_SHARED}")
            models.append(_applied(Selection(kept.astype(np.float64)), "selection", name, compared[-1]))
    return _to_apply(state.but(compared=tuple(compared)).and_found(features=features), models)


def component_tasks(study: Study, state: State) -> Tasks:
    """Principal components of each raw feature set, through which measures look, and of the vectors."""
    most = {name: _most(study, state, state.sizes[name]) for name in state.compared}
    if study.association:
        vectors = vectors_of(study)
        most[vectors] = _view_components(study, state, state.sizes[vectors])
    return {Measure("components", name): Task(Projection(k), table_of(study, name)) for name, k in most.items()}


def with_components(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Let the sites project their features, and go on with the feature sets that have components."""
    models = [_applied(model, "projection", task.of, f"{task.of}.components") for task, model in answers.items()]
    having = tuple(name for name in state.compared if Measure("components", name) in answers)
    there = {name: size for name, size in state.sizes.items() if name in having or name not in state.compared}
    after = state.but(compared=having, sizes=there).and_found(
        components={label(task.of): _count(model) for task, model in answers.items()},
        compared=tuple(map(label, having)),
    )
    return _to_apply(after, models)


def held_out_tasks(study: Study, state: State) -> Tasks:
    """Measure held-out participants; fit every method to all participants."""
    tasks: dict[Measure, Task] = {}
    sites = {site: about.n_participants for site, about in state.sites.items()}
    for features in state.compared:
        for variant in variants_of(study, state.sites):
            tasks |= held_out_measures(study, features, variant, sites)
            if variant.name != RAW:
                table = table_of(study, features, covariates=variant.covariates)
                tasks[Measure("model", features, variant.name)] = Task(variant.harmonizer, table)
    return tasks


def with_methods(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Let the sites apply every method."""
    models: Models = []
    for features in state.compared:
        for variant in variants_of(study, state.sites):
            if (model := answers.get(Measure("model", features, variant.name))) is not None:
                how = {"options": variant.options, "covariates": variant.covariates}
                models.append(_applied(model, variant.method, features, variant.features(features), **how))
    combat = answers.get(Measure("model", "embedding", HARMONIZED))
    if study.harmonization.order == "one_model" and combat is not None:
        state = state.holding(effects=ResidualizationModel.from_combat(combat).to_arrays())
    return _to_apply(state, models)


def final_tasks(study: Study, state: State) -> Tasks:
    """Measure the site in all variants, over all participants, and finish the recipe.

    The recipe projects the harmonized embedding and takes covariates out. Both are linear, so the effects found in
    the harmonized embedding are projected along with it, and one round serves both.
    """
    tasks: dict[Measure, Task] = {}
    for features in state.compared:
        for variant in variants_of(study, state.sites):
            if len(state.sites) >= FEWEST_TO_COMPARE and variant.features(features) in state.sizes:
                tasks |= site_measures(study, features, variant)
    final = _final(study, state)
    if final not in state.sizes:
        return tasks
    table = table_of(study, final)
    tasks[_PROJECTION] = Task(Projection(_most(study, state, state.sizes["embedding"])), table)
    if study.harmonization.order == "separate":
        removed = table.model_copy(update={"covariates": study.design(study.residualized).to_json()})
        tasks[_RESIDUALIZATION] = Task(Residualization(site="site" in study.residualized), removed)
    return tasks


def with_recipe(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Project the harmonized embedding, and take the covariates' effects out."""
    if (projection := answers.get(_PROJECTION)) is None:
        return state.holding(effects={})
    projected = f"embedding.{PROJECTED}"
    models = [_applied(projection, "projection", _final(study, state), projected)]
    if study.harmonization.order == "separate":
        effects, removed = answers.get(_RESIDUALIZATION), study.design(study.residualized)
    else:
        arrays, removed = state.part("effects"), study.design(study.kept)
        effects = ResidualizationModel.from_arrays(arrays) if arrays else None
    if effects is not None:
        effects = effects.projected(projection.mean, projection.components)
        models.append(_applied(effects, "residualization", projected, FINAL, covariates=removed.to_json()))
    components = {**state.findings.components, PROJECTED: _count(projection)}
    return _to_apply(state.and_found(components=components).holding(effects={}), models)


def association_tasks(study: Study, state: State) -> Tasks:
    """Set the embedding beside the vectors, where both have components, and sites enough are left."""
    if study.association is None or state.findings.not_associated:
        return {}
    final, components = _final(study, state), f"{vectors_of(study)}.components"
    if not {final, "embedding.components", components} <= state.sizes.keys():
        return {}
    table = table_of(
        study,
        final,
        through="embedding.components",
        n_loadings=_view_components(study, state, state.sizes["embedding"]),
        covariates=study.design(study.residualized).to_json(),
        second=components,
    )
    return tasks_of_views(study, table)


def with_association(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Say why nothing was associated, where it was to be."""
    if answers or study.association is None:
        return state
    if why := state.findings.not_associated:
        state = state.and_found(Found(Measure(ASSOCIATION), why=why))
    return state.and_found(not_associated="; ".join(dict.fromkeys(one.why for one in state.findings.left_out)))


def _applied(model: Model, transform: str, source: str, result: str, **how: Any) -> tuple[Step, Model]:
    """Return what sites do with a solved model, and the model."""
    return Step(source=source, result=result, transform=transform, model=model.kind, **how), model


def _to_apply(state: State, models: Models) -> State:
    """Let every site apply solved models to its own features, before anything else is asked."""
    sizes = dict(state.sizes)
    for step, model in models:
        sizes[step.result] = size_after(model, sizes[step.source])
    arrays = join(**{step.result: model.to_arrays() for step, model in models})
    return state.but(steps=tuple(step for step, _ in models), sizes=sizes).holding(models=arrays)


def ask_to_apply(study: Study, state: State) -> Question:
    """Ask the sites to apply what was solved."""
    final = FINAL if any(step.result == FINAL for step in state.steps) else None
    arrays, steps = state.part("models"), list(state.steps)
    request = HarmonizeRequest(arrays=arrays, study=study.study, steps=steps, final=final)
    return Question(HARMONIZATION, request, HarmonizeReply, of_harmonization(request, state.sizes))


def once_applied(state: State, sites: Collection[str], total: Arrays) -> State:
    """Go on with the sites that applied it."""
    tally = part_of(total, "tally")
    counted = min((int(n) for name, n in tally.items() if not name.startswith(_VECTORS)), default=state.n_counted)
    return state.among(sites).but(steps=(), n_counted=counted).holding(models={})


def vectors_of(study: Study) -> str:
    """Name of the feature set of the vectors that the sites brought along."""
    assert study.association is not None, "only studies with vectors associate them"
    return f"{_VECTORS}{study.association.vectors}"


def label(features: str) -> str:
    """Name of a feature set for people."""
    return features.removesuffix(f".{_SHARED}")


def _final(study: Study, state: State) -> str:
    """What the recipe projects in the end; one site has nothing to be made alike to."""
    harmonized = f"embedding.{HARMONIZED}"
    sought = any(variant.name == HARMONIZED for variant in variants_of(study, state.sites))
    return harmonized if sought or harmonized in state.sizes else "embedding"


def _most(study: Study, state: State, size: int) -> int:
    """As many components as the recipe, the features and half the participants allow."""
    return min(find_recipe(study.recipe).components, size, max(1, state.n_participants // 2))


def _view_components(study: Study, state: State, size: int) -> int:
    """As many components of a view as are asked for, and as a quarter of the participants allow.

    Both views together then leave half of the freedom that the training people have.
    """
    assert study.association is not None, "only studies with vectors associate them"
    return max(1, min(study.association.components, size, state.n_participants // 4))


def _count(model: ProjectionModel) -> ComponentCount:
    share = float(model.explained_variance.sum() / model.total_variance) if model.total_variance else 0.0
    return ComponentCount(len(model.components), share)
