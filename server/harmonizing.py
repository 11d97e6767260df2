"""After pretraining: project, measure, harmonize and residualize the embeddings that lie at the sites.

Three feature sets go the same way, so that each number stands beside its baselines: the embedding of the trained model,
that of the untrained one, and functional connectivity.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from base.files import save_arrays
from brainlm.embedding import find_recipe
from exchange.messages import Arrays, HarmonizeReply, HarmonizeRequest, Step, TableSpec, join, part_of
from harmonization import ComBatModel, Design, HarmonizationError, Projection, Residualization, State
from harmonization.core.declared import Widths
from harmonization.core.selection import Selection
from harmonization.methods.projection import ProjectionModel
from harmonization.methods.residualization import ResidualizationModel
from server.associating import association_tasks, describe_association
from server.comparing import (
    FEWEST_TO_COMPARE,
    HARMONIZED,
    RAW,
    Variant,
    held_out_measures,
    lacking_sites,
    numbers_of,
    site_measures,
    variants_of,
)
from server.errors import QuorumError
from server.expecting import of_harmonization, size_after, widths_of
from server.journal import Journal
from server.roster import Roster
from server.shown import keep_shown
from server.sums import Task, solve_together
from study.settings import Study

STAGE = "harmonization"
FINAL = "embedding.residualized"
"""Feature set that the recipe ends with."""
_VECTORS = "vectors."
"""How sites name feature sets that they brought along: not all participants may have them."""
_MEASURES = {"model": "harmonization", "site": "site_classification", "network": "site_network"}
"""What people call tasks of another name."""
_SHARED = "shared"
"""What is added to the name of a feature set, of which only the features are left that everybody has."""
_FEWEST_FEATURES = 2
"""Empirical Bayes shrinks a feature towards others."""


@dataclass
class Findings:
    """Numbers of the report, by feature set.

    Attributes
    ----------
    features : dict
        Feature set → how many features it has, and how many of them were left out since somebody lacks them.
    components : dict
        Feature set → dimensions kept, and the share of the variance they hold.
    site_effect : dict
        Feature set → variant (`server.comparing.Variant`) → how much of the site is left.
    probes : dict
        Feature set → target → variant → how well the target is predicted.
    association : dict
        Analysis → what it found between the embedding and the second table of vectors.
    left_out : dict
        What the sites or their data do not allow → why.
    """

    features: dict[str, Any] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)
    site_effect: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    association: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def left_out_by_reason(self) -> dict[str, list[str]]:
        """Turn `left_out` round: reason → measures, whatever they are of. One reason often stands behind many."""
        by_reason: dict[str, list[str]] = {}
        for what, why in self.left_out.items():
            measure = _MEASURES.get(what.rpartition("/")[2], what.split("/", 2)[-1])
            if measure not in by_reason.setdefault(why, []):
                by_reason[why].append(measure)
        return by_reason


class Harmonizing:
    """The stages after pretraining, each a few exchanges.

    Parameters
    ----------
    dimensions : dict
        Feature set → number of features.
    n_participants : int
        Participants that the sites embedded.
    lacking : dict
        Feature set → for each of its features, at how many sites somebody lacks it; of feature sets that may lack some.
    """

    def __init__(
        self,
        study: Study,
        roster: Roster,
        journal: Journal,
        dimensions: dict[str, int],
        n_participants: int,
        lacking: Arrays,
    ) -> None:
        self.study = study
        self.roster = roster
        self.journal = journal
        self.dimensions = dict(dimensions)
        self._sizes = dict(dimensions)
        if study.association is not None:
            self._sizes[self._vectors] = self._vector_dimensions()
        self._lacking = lacking
        self._n_counted = n_participants
        self.findings = Findings()
        self.removed = study.design(study.residualized)
        self._made: set[str] = set()  # feature sets on the sites' disks beside those that they embedded
        self._combat: ComBatModel | None = None

    def run(self) -> Findings:
        """Run all stages. What the sites or their data do not allow is left out and named, and costs nothing else."""
        self._leave_out()
        self._find_components()
        self._harmonize()
        self._finish()
        if self.study.association is not None:
            self._associate()
        for why, what in self.findings.left_out_by_reason().items():
            self.journal.say(f"left out: {', '.join(what)}: {why}")
        self.findings.left_out |= lacking_sites(self.study, len(self.roster.sites))  # said when the run began
        return self.findings

    def _associate(self) -> None:
        """Set the embedding beside the vectors; what does not work out costs none of the other findings."""
        left_out = self.findings.left_out
        try:
            needed = (self._final, "embedding.components", f"{self._vectors}.components")
            models = self._solve(self._association_tasks) if all(map(self._is_there, needed)) else {}
        except (HarmonizationError, QuorumError) as error:
            left_out["association"], models = str(error), {}
        for name, state in models.items():
            self.findings.association[name.removeprefix("association/")] = describe_association(state)
        if not models:
            self.findings.association["failed"] = "; ".join(dict.fromkeys(left_out.values()))

    @property
    def n_participants(self) -> int:
        """Participants behind the sums: as the sites last counted, less those of sites that fell silent since."""
        described = sum(self.roster.about[site].n_participants for site in self.roster.sites)
        return min(self._n_counted, described)

    @property
    def variants(self) -> list[Variant]:
        """What is compared, among the sites that are left."""
        return variants_of(self.study, self.roster.sites)

    @property
    def _final(self) -> str:
        """What the recipe projects in the end; one site has nothing to be made alike to."""
        harmonized = f"embedding.{HARMONIZED}"
        sought = any(variant.name == HARMONIZED for variant in self.variants)
        return harmonized if sought or self._is_there(harmonized) else "embedding"

    def _is_there(self, features: str) -> bool:
        return features in self.dimensions or features in self._made

    def _leave_out(self) -> None:
        """Leave out features that somebody lacks, and feature sets of which nobody could compare anything then."""
        steps: list[tuple[Step, State]] = []
        for name, size in list(self.dimensions.items()):
            kept = self._lacking.get(name, np.zeros(size)) == 0
            self.findings.features[name] = {"features": size, "left_out": size - int(kept.sum())}
            if kept.all():
                continue
            del self.dimensions[name]
            if kept.sum() >= _FEWEST_FEATURES:
                selection, result = Selection(kept.astype(np.float64)), f"{name}.{_SHARED}"
                self.dimensions[result] = int(kept.sum())
                steps.append((Step(source=name, result=result, transform="selection", model=selection.kind), selection))
        self._apply(steps)

    def _find_components(self) -> None:
        """Find principal components of each raw feature set: what the measures look through."""
        models = self._solve(self._component_tasks)
        steps = []
        for task, model in models.items():
            name = task.removesuffix("/components")
            self.findings.components[_label(name)] = _components(model)
            step = Step(source=name, result=f"{name}.components", transform="projection", model=model.kind)
            steps.append((step, model))
        self._apply(steps)
        self.dimensions = {name: size for name, size in self.dimensions.items() if f"{name}/components" in models}

    def _component_tasks(self) -> dict[str, Task]:
        most = {name: self._most(size) for name, size in self.dimensions.items()}
        if self.study.association:
            most[self._vectors] = self._view_components(self._vector_dimensions())
        complete = self.study.complete.to_json()
        return {
            f"{name}/components": Task(Projection(k), TableSpec(features=name, complete=complete))
            for name, k in most.items()
        }

    def _harmonize(self) -> None:
        """Measure held-out participants; fit every method to all participants, and apply it."""
        models = self._solve(self._held_out_tasks)
        self._combat = models.get(f"embedding/{HARMONIZED}/model")
        for features in self.dimensions:
            effect: dict[str, Any] = {}
            probes: dict[str, Any] = {}
            for variant in self.variants:
                for name, state in _measured(models, features, variant).items():
                    kind, _, target = name.partition("/")
                    found = numbers_of(state)
                    if kind == "site":
                        effect.setdefault(variant.name, {}).update(found)
                    elif kind in ("permanova", "network"):
                        effect.setdefault(variant.name, {})[kind] = found
                    elif kind == "probe":
                        probes.setdefault(target, {}).setdefault(variant.name, {}).update(found)
                    elif variant.name in probes.get(target, {}):  # without the probe itself nobody looks at it
                        probes[target][variant.name]["new_site"] = found
            self.findings.site_effect[_label(features)], self.findings.probes[_label(features)] = effect, probes
        self._apply(
            [
                (_step(features, variant, models[f"{features}/{variant.name}/model"]), model)
                for features in self.dimensions
                for variant in self.variants
                if (model := models.get(f"{features}/{variant.name}/model")) is not None
            ]
        )

    def _held_out_tasks(self) -> dict[str, Task]:
        tasks: dict[str, Task] = {}
        sites = {site: about.n_participants for site, about in self.roster.about.items()}
        for features in self.dimensions:
            for variant in self.variants:
                measures = held_out_measures(self.study, features, variant, sites)
                tasks |= {f"{features}/{variant.name}/{name}": task for name, task in measures.items()}
                if variant.name != RAW:
                    complete = self.study.complete.to_json()
                    table = TableSpec(features=features, covariates=variant.covariates, complete=complete)
                    tasks[f"{features}/{variant.name}/model"] = Task(variant.harmonizer, table)
        return tasks

    def _finish(self) -> None:
        """Measure the site in all variants, and finish the recipe.

        The recipe projects the harmonized embedding and takes covariates out. Both are linear, so the effects found in
        the harmonized embedding are projected along with it, and one round serves both.
        """
        models = self._solve(self._final_tasks)
        for features in self.dimensions:
            for variant in self.variants:
                measured = _measured(models, features, variant)
                if not measured:
                    continue
                effect = self.findings.site_effect[_label(features)].setdefault(variant.name, {})
                if "site_variance" in measured:
                    effect["eta_squared"] = measured.pop("site_variance").mean
                effect |= {name: numbers_of(state) for name, state in measured.items()}
        self._apply_recipe(models)

    def _final_tasks(self) -> dict[str, Task]:
        tasks: dict[str, Task] = {}
        for features in self.dimensions:
            for variant in self.variants:
                comparable = len(self.roster.sites) >= FEWEST_TO_COMPARE
                if comparable and self._is_there(variant.features(features)):
                    measures = site_measures(self.study, features, variant)
                    tasks |= {f"{features}/{variant.name}/{name}": task for name, task in measures.items()}
        if not self._is_there(self._final):
            return tasks
        table = TableSpec(features=self._final, complete=self.study.complete.to_json())
        tasks["projection"] = Task(Projection(self._most(self.dimensions["embedding"])), table)
        if self.study.harmonization.order == "separate":
            removed = table.model_copy(update={"covariates": self.removed.to_json()})
            tasks["residualization"] = Task(Residualization(site="site" in self.study.residualized), removed)
        return tasks

    @property
    def _vectors(self) -> str:
        """Name of the feature set of the vectors that the sites brought along."""
        assert self.study.association is not None, "only studies with vectors associate them"
        return f"{_VECTORS}{self.study.association.vectors}"

    def _vector_dimensions(self) -> int:
        return next(iter(self.roster.about.values())).n_vector_dimensions  # as many at each site that was kept

    def _association_tasks(self) -> dict[str, Task]:
        assert self.study.association is not None, "only studies with vectors associate them"
        table = TableSpec(
            features=self._final,
            through="embedding.components",
            n_loadings=self._view_components(self.dimensions["embedding"]),
            covariates=self.removed.to_json(),
            complete=self.study.complete.to_json(),
            second=f"{self._vectors}.components",
        )
        return association_tasks(self.study, table)

    def _view_components(self, size: int) -> int:
        """As many components of a view as are asked for, and as a quarter of the participants allow.

        Both views together then leave half of the freedom that the training people have.
        """
        assert self.study.association is not None, "only studies with vectors associate them"
        return max(1, min(self.study.association.components, size, self.n_participants // 4))

    def _apply_recipe(self, models: dict[str, Any]) -> None:
        """Project the harmonized embedding, and take the covariates' effects out."""
        if "projection" not in models:
            return
        projection, result = models["projection"], "embedding.projected"
        self.findings.components["projected"] = _components(projection)
        steps = [(Step(source=self._final, result=result, transform="projection", model=projection.kind), projection)]
        if self.study.harmonization.order == "separate":
            effects, removed = models.get("residualization"), self.removed
        else:
            effects = ResidualizationModel.from_combat(self._combat) if self._combat is not None else None
            removed = self.study.design(self.study.kept)
        if effects is not None:
            residualized = Step(
                source=result,
                result=FINAL,
                transform="residualization",
                model=effects.kind,
                covariates=removed.to_json(),
            )
            steps.append((residualized, effects.projected(projection.mean, projection.components)))
        self._apply(steps)

    def _most(self, size: int) -> int:
        """As many components as the recipe, the features and half the participants allow."""
        most = find_recipe(self.study.recipe).components
        return min(most, size, max(1, self.n_participants // 2))

    def _solve(self, make_tasks: Callable[[], dict[str, Task]]) -> dict[str, Any]:
        """Run tasks; those whose sums allow no answer are left out, and named with the reason."""

        def columns(table: TableSpec) -> Widths:
            return widths_of(table, self._sizes)

        return solve_together(make_tasks, columns, self.study.study, self.roster, STAGE, failed=self.findings.left_out)

    def _apply(self, steps: list[tuple[Step, State]]) -> None:
        """Let every site apply solved models to its own features; keep the models, which all sites share."""
        if not steps:
            return
        arrays = {step.result: model.to_arrays() for step, model in steps}
        results = [step.result for step, _ in steps]
        self._made |= set(results)
        request = HarmonizeRequest(
            arrays=join(**arrays),
            study=self.study.study,
            steps=[step for step, _ in steps],
            final=FINAL if FINAL in results else None,
        )
        for step, model in steps:
            self._sizes[step.result] = size_after(model, self._sizes[step.source])
        expected = of_harmonization(request, {step.result: model for step, model in steps}, self._sizes)
        answers = self.roster.ask(request, HarmonizeReply, expected, STAGE)
        self.roster.keep(answers.replies)
        tally = part_of(answers.total, "tally")
        self._n_counted = min(int(n) for name, n in tally.items() if not name.startswith(_VECTORS))
        keep_shown(self.journal.folder, answers.replies)
        for step, _ in steps:
            about = {**step.model_dump(), "columns": Design.from_json(step.covariates).columns}
            save_arrays(
                self.journal.folder / "harmonization" / f"{step.result}.safetensors", arrays[step.result], about
            )


def _label(features: str) -> str:
    """Name of a feature set for people."""
    return features.removesuffix(f".{_SHARED}")


def _components(model: ProjectionModel) -> dict[str, Any]:
    share = float(model.explained_variance.sum() / model.total_variance) if model.total_variance else 0.0
    return {"components": len(model.components), "explained": share}


def _step(features: str, variant: Variant, model: State) -> Step:
    """Apply a variant's model to a feature set."""
    return Step(
        source=features,
        result=variant.features(features),
        transform=variant.method,
        options=variant.options,
        model=model.kind,
        covariates=variant.covariates,
    )


def _measured(models: dict[str, Any], features: str, variant: Variant) -> dict[str, Any]:
    """Final states of one variant's measures, by name."""
    prefix = f"{features}/{variant.name}/"
    named = {name.removeprefix(prefix): state for name, state in models.items() if name.startswith(prefix)}
    named.pop("model", None)
    return named
