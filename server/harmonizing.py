"""After pretraining: project, measure, harmonize and residualize the embeddings that lie at the sites.

Three feature sets go the same way, so that each number stands beside its baselines: the embedding of the trained model,
that of the untrained one, and functional connectivity.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brainlm.embedding import find_recipe
from cohorts.files import save_arrays
from exchange.messages import Arrays, HarmonizeReply, HarmonizeRequest, Step, TableSpec, join, part_of
from harmonization import ComBatModel, Design, HarmonizationError, Projection, Residualization, State
from harmonization.projection import ProjectionModel
from harmonization.residualization import ResidualizationModel
from harmonization.selection import Selection
from server.associating import association_tasks, describe_association
from server.comparing import (
    HARMONIZED,
    RAW,
    Variant,
    held_out_measures,
    numbers_of,
    site_measures,
    variants_of,
)
from server.errors import QuorumError, StudyError
from server.journal import Journal
from server.roster import Roster
from server.shown import keep_shown
from server.study import Study
from server.sums import Task, solve_together

STAGE = "harmonization"
FINAL = "embedding.residualized"
"""Feature set that the recipe ends with."""
_VECTORS = "vectors."
"""How sites name feature sets that they brought along: not all participants may have them."""
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
    """

    features: dict[str, Any] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)
    site_effect: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    association: dict[str, Any] = field(default_factory=dict)


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
        self._lacking = lacking
        self._n_counted = n_participants
        self.findings = Findings()
        self.removed = study.design(study.residualized)
        harmonized = study.harmonization.method != "none"
        self._final = f"embedding.{HARMONIZED}" if harmonized else "embedding"
        self._combat: ComBatModel | None = None

    def run(self) -> Findings:
        """Run all stages.

        Raises
        ------
        StudyError
            If the sites that are left cannot do what the study asks.
        """
        reference = self.study.harmonization.reference
        if reference is not None and reference not in self.roster.sites:
            raise StudyError(f"harmonization.reference: site '{reference}' does not take part. Name another.")
        self._leave_out()
        self._find_components()
        self._harmonize()
        self._finish()
        if self.study.association is not None:
            self._associate()
        return self.findings

    def _associate(self) -> None:
        """Set the embedding beside the vectors; what does not work out costs none of the other findings."""
        try:
            models = self._solve(self._association_tasks)
        except (HarmonizationError, QuorumError) as error:
            self.findings.association["failed"] = str(error)
            return
        for name, state in models.items():
            self.findings.association[name.removeprefix("association/")] = describe_association(state)

    @property
    def n_participants(self) -> int:
        """Participants behind the sums: as the sites last counted, less those of sites that fell silent since."""
        described = sum(self.roster.about[site].n_participants for site in self.roster.sites)
        return min(self._n_counted, described)

    @property
    def variants(self) -> list[Variant]:
        """What is compared, among the sites that are left."""
        return variants_of(self.study, self.roster.sites)

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
        for name, model in models.items():
            self.findings.components[_label(name)] = _components(model)
        self._apply(
            [
                (Step(source=name, result=f"{name}.components", transform="projection", model=model.kind), model)
                for name, model in models.items()
            ]
        )

    def _component_tasks(self) -> dict[str, Task]:
        most = {name: self._most(size) for name, size in self.dimensions.items()}
        if self.study.association:
            most[self._vectors] = self._view_components(self._vector_dimensions())
        complete = self.study.complete.to_json()
        return {name: Task(Projection(k), TableSpec(features=name, complete=complete)) for name, k in most.items()}

    def _harmonize(self) -> None:
        """Measure held-out participants; fit every method to all participants, and apply it."""
        models = self._solve(self._held_out_tasks)
        self._combat = models.get(f"embedding/{HARMONIZED}/model")
        for features in self.dimensions:
            effect: dict[str, Any] = {}
            probes: dict[str, Any] = {target: {} for target in self.study.analyses.targets}
            for variant in self.variants:
                measured = _measured(models, features, variant)
                effect[variant.name] = numbers_of(measured.pop("site")) if "site" in measured else {}
                for other in ("permanova", "network"):
                    if other in measured:
                        effect[variant.name][other] = numbers_of(measured.pop(other))
                for name, state in measured.items():
                    kind, _, target = name.partition("/")
                    found = numbers_of(state)
                    if kind == "probe":
                        probes[target].setdefault(variant.name, {}).update(found)
                    else:
                        probes[target].setdefault(variant.name, {})["new_site"] = found
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
                effect = self.findings.site_effect[_label(features)][variant.name]
                measured = _measured(models, features, variant)
                effect["eta_squared"] = measured.pop("site_variance").mean
                effect |= {name: numbers_of(state) for name, state in measured.items()}
        self._apply_recipe(models)

    def _final_tasks(self) -> dict[str, Task]:
        tasks: dict[str, Task] = {}
        for features in self.dimensions:
            for variant in self.variants:
                measures = site_measures(self.study, features, variant)
                tasks |= {f"{features}/{variant.name}/{name}": task for name, task in measures.items()}
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
        found = {site: about.n_vector_dimensions for site, about in self.roster.about.items()}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{site} {number}" for site, number in found.items())
            raise StudyError(f"{self._vectors} have other dimensions at each site ({listed}). Use one model for all.")
        return next(iter(found.values()))

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
        projection = models["projection"]
        self.findings.components["projected"] = _components(projection)
        if self.study.harmonization.order == "separate":
            effects, removed = models["residualization"], self.removed
        else:
            assert isinstance(self._combat, ComBatModel), "the study was checked to use ComBat"
            effects, removed = ResidualizationModel.from_combat(self._combat), self.study.design(self.study.kept)
        result = "embedding.projected"
        projected = Step(source=self._final, result=result, transform="projection", model=projection.kind)
        residualized = Step(
            source=result,
            result=FINAL,
            transform="residualization",
            model=effects.kind,
            covariates=removed.to_json(),
        )
        effects = effects.projected(projection.mean, projection.components)
        self._apply([(projected, projection), (residualized, effects)])

    def _most(self, size: int) -> int:
        """As many components as the recipe, the features and half the participants allow."""
        most = find_recipe(self.study.recipe).components
        return min(most, size, max(1, self.n_participants // 2))

    def _solve(self, make_tasks: Callable[[], dict[str, Task]]) -> dict[str, Any]:
        return solve_together(make_tasks, self.study.study, self.roster, STAGE)

    def _apply(self, steps: list[tuple[Step, State]]) -> None:
        """Let every site apply solved models to its own features; keep the models, which all sites share."""
        if not steps:
            return
        arrays = {step.result: model.to_arrays() for step, model in steps}
        results = [step.result for step, _ in steps]
        request = HarmonizeRequest(
            arrays=join(**arrays),
            study=self.study.study,
            steps=[step for step, _ in steps],
            final=FINAL if FINAL in results else None,
        )
        answers = self.roster.ask(request, HarmonizeReply, STAGE)
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
