"""After pretraining: project, measure, harmonize and residualize the embeddings that lie at the sites.

Three feature sets go the same way, so that each number stands beside its baselines: the embedding of the trained model,
that of the untrained one, and functional connectivity.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from brainlm.embedding import find_recipe
from exchange.messages import Arrays, HarmonizeRequest, Step, TableSpec, join, part_of
from harmonization import Projection, Residualization
from harmonization import State as Model
from harmonization.core.selection import Selection
from harmonization.methods.projection import ProjectionModel
from harmonization.methods.residualization import ResidualizationModel
from study.associating import ASSOCIATION, describe_association, tasks_of_views
from study.comparing import (
    FEWEST_TO_COMPARE,
    HARMONIZED,
    RAW,
    Variant,
    held_out_measures,
    numbers_of,
    site_measures,
    variants_of,
)
from study.expecting import of_harmonization, size_after
from study.question import Question
from study.settings import Study
from study.state import ComponentCount, FeatureCount, Found, LeftOut, Measure, State
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


# --- features that everybody has -------------------------------------------------------------------------------------


def select(state: State, lacking: Mapping[str, np.ndarray]) -> State:
    """Leave out features that somebody lacks, and feature sets of which nobody could compare anything then.

    Parameters
    ----------
    lacking : mapping
        Feature set → for each of its features, at how many sites somebody lacks it; of feature sets that may lack some.
    """
    compared, features = [], {}
    solved: list[tuple[Step, Model]] = []
    for name, size in state.sizes.items():
        if name.startswith(_VECTORS):
            continue
        kept = lacking.get(name, np.zeros(size)) == 0
        features[name] = FeatureCount(size, size - int(kept.sum()))
        if kept.all():
            compared.append(name)
        elif kept.sum() >= _FEWEST_FEATURES:
            selection, result = Selection(kept.astype(np.float64)), f"{name}.{_SHARED}"
            compared.append(result)
            solved.append((Step(source=name, result=result, transform="selection", model=selection.kind), selection))
    return _to_apply(state.but(compared=tuple(compared)).and_found(features=features), solved)


# --- components: what the measures look through ----------------------------------------------------------------------


def component_tasks(study: Study, state: State) -> Tasks:
    """Principal components of each raw feature set, and of the vectors."""
    most = {name: _most(study, state, state.sizes[name]) for name in state.compared}
    if study.association:
        vectors = vectors_of(study)
        most[vectors] = _view_components(study, state, state.sizes[vectors])
    complete = study.complete.to_json()
    return {
        Measure("components", name): Task(Projection(k), TableSpec(features=name, complete=complete))
        for name, k in most.items()
    }


def with_components(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Let the sites project their features, and go on with the feature sets that have components."""
    solved = [
        (Step(source=task.of, result=f"{task.of}.components", transform="projection", model=model.kind), model)
        for task, model in answers.items()
    ]
    counts = {label(task.of): _count(model) for task, model in answers.items()}
    having = tuple(name for name in state.compared if Measure("components", name) in answers)
    there = {name: size for name, size in state.sizes.items() if name in having or name not in state.compared}
    found = {"components": {**state.findings.components, **counts}, "compared": tuple(map(label, having))}
    return _to_apply(state.but(compared=having, sizes=there).and_found(**found), solved)


# --- held-out participants, and harmonization by all -----------------------------------------------------------------


def held_out_tasks(study: Study, state: State) -> Tasks:
    """Measure held-out participants; fit every method to all participants."""
    tasks: dict[Measure, Task] = {}
    sites = {site: about.n_participants for site, about in state.sites.items()}
    for features in state.compared:
        for variant in variants_of(study, state.sites):
            tasks |= held_out_measures(study, features, variant, sites)
            if variant.name != RAW:
                complete = study.complete.to_json()
                table = TableSpec(features=features, covariates=variant.covariates, complete=complete)
                tasks[_model(features, variant)] = Task(variant.harmonizer, table)
    return tasks


def with_methods(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Keep what was measured, and let the sites apply every method."""
    found = [Found(task, numbers_of(answer)) for task, answer in answers.items() if task.kind != "model"]
    solved = [
        (_step(features, variant, model), model)
        for features in state.compared
        for variant in variants_of(study, state.sites)
        if (model := answers.get(_model(features, variant))) is not None
    ]
    after = state.and_found(found=(*state.findings.found, *found))
    combat = answers.get(Measure("model", "embedding", HARMONIZED))
    if study.harmonization.order == "one_model" and combat is not None:
        after = after.holding(effects=ResidualizationModel.from_combat(combat).to_arrays())
    return _to_apply(after, solved)


def _model(features: str, variant: Variant) -> Measure:
    return Measure("model", features, variant.name)


def _step(features: str, variant: Variant, model: Model) -> Step:
    """Apply a variant's model to a feature set."""
    return Step(
        source=features,
        result=variant.features(features),
        transform=variant.method,
        options=variant.options,
        model=model.kind,
        covariates=variant.covariates,
    )


# --- all participants, and the end of the recipe ---------------------------------------------------------------------


def final_tasks(study: Study, state: State) -> Tasks:
    """Measure the site in all variants, and finish the recipe.

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
    table = TableSpec(features=final, complete=study.complete.to_json())
    tasks[_PROJECTION] = Task(Projection(_most(study, state, state.sizes["embedding"])), table)
    if study.harmonization.order == "separate":
        removed = table.model_copy(update={"covariates": study.design(study.residualized).to_json()})
        tasks[_RESIDUALIZATION] = Task(Residualization(site="site" in study.residualized), removed)
    return tasks


def with_recipe(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Keep what was measured; project the harmonized embedding, and take the covariates' effects out."""
    measured = {task: answer for task, answer in answers.items() if task.of}
    found = [
        Found(task, {"mean": answer.mean} if task.kind == "site_variance" else numbers_of(answer))
        for task, answer in measured.items()
    ]
    after = state.and_found(found=(*state.findings.found, *found)).holding(effects={})
    if (projection := answers.get(_PROJECTION)) is None:
        return after
    result = f"embedding.{PROJECTED}"
    after = after.and_found(components={**after.findings.components, PROJECTED: _count(projection)})
    step = Step(source=_final(study, state), result=result, transform="projection", model=projection.kind)
    solved: list[tuple[Step, Model]] = [(step, projection)]
    if study.harmonization.order == "separate":
        effects, removed = answers.get(_RESIDUALIZATION), study.design(study.residualized)
    else:
        arrays, removed = state.part("effects"), study.design(study.kept)
        effects = ResidualizationModel.from_arrays(arrays) if arrays else None
    if effects is not None:
        residualized = Step(
            source=result,
            result=FINAL,
            transform="residualization",
            model=effects.kind,
            covariates=removed.to_json(),
        )
        solved.append((residualized, effects.projected(projection.mean, projection.components)))
    return _to_apply(after, solved)


# --- the embedding beside the vectors that the sites brought along ----------------------------------------------------


def vectors_of(study: Study) -> str:
    """Name of the feature set of the vectors that the sites brought along."""
    assert study.association is not None, "only studies with vectors associate them"
    return f"{_VECTORS}{study.association.vectors}"


def association_tasks(study: Study, state: State) -> Tasks:
    """Set the embedding beside the vectors, where both have components, and sites enough are left."""
    if study.association is None or state.findings.not_associated:
        return {}
    final, components = _final(study, state), f"{vectors_of(study)}.components"
    if not {final, "embedding.components", components} <= state.sizes.keys():
        return {}
    table = TableSpec(
        features=final,
        through="embedding.components",
        n_loadings=_view_components(study, state, state.sizes["embedding"]),
        covariates=study.design(study.residualized).to_json(),
        complete=study.complete.to_json(),
        second=components,
    )
    return tasks_of_views(study, table)


def with_association(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Keep what was found; why there is nothing, otherwise."""
    findings = state.findings
    if answers or study.association is None:
        found = (Found(task, describe_association(answer)) for task, answer in answers.items())
        return state.and_found(found=(*findings.found, *found))
    if findings.not_associated:
        findings = findings.leaving_out(LeftOut(Measure(ASSOCIATION), findings.not_associated))
    why = "; ".join(dict.fromkeys(one.why for one in findings.left_out))
    return state.but(findings=replace(findings, not_associated=why))


# --- what the sites apply --------------------------------------------------------------------------------------------


def _to_apply(state: State, solved: list[tuple[Step, Model]]) -> State:
    """Let every site apply solved models to its own features, before anything else is asked."""
    sizes = dict(state.sizes)
    for step, model in solved:
        sizes[step.result] = size_after(model, sizes[step.source])
    models = join(**{step.result: model.to_arrays() for step, model in solved})
    return state.but(steps=tuple(step for step, _ in solved), sizes=sizes).holding(models=models)


def ask_to_apply(study: Study, state: State) -> Question:
    """Ask the sites to apply what was solved."""
    request = HarmonizeRequest(
        arrays=state.part("models"),
        study=study.study,
        steps=list(state.steps),
        final=FINAL if any(step.result == FINAL for step in state.steps) else None,
    )
    return Question(HARMONIZATION, request, of_harmonization(request, state.sizes))


def once_applied(state: State, sites: Collection[str], total: Arrays) -> State:
    """Go on with the sites that applied it."""
    tally = part_of(total, "tally")
    counted = min((int(n) for name, n in tally.items() if not name.startswith(_VECTORS)), default=state.n_counted)
    return state.among(sites).but(steps=(), n_counted=counted).holding(models={})


# --- names and numbers -----------------------------------------------------------------------------------------------


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


def label(features: str) -> str:
    """Name of a feature set for people."""
    return features.removesuffix(f".{_SHARED}")


def _count(model: ProjectionModel) -> ComponentCount:
    share = float(model.explained_variance.sum() / model.total_variance) if model.total_variance else 0.0
    return ComponentCount(len(model.components), share)
