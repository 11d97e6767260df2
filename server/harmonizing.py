"""After pretraining: project, measure, harmonize and residualize the embeddings that lie at the sites.

Three feature sets go the same way, so that each number stands beside its baselines: the embedding of the trained model,
that of the untrained one, and functional connectivity.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from brainlm.embedding import find_recipe
from cohorts.files import save_arrays
from exchange.messages import HarmonizeReply, HarmonizeRequest, Step, TableSpec, join
from harmonization import (
    ComBat,
    CrossValidatedRidge,
    Design,
    Projection,
    Residualization,
    SiteClassification,
    SiteVariance,
    State,
)
from harmonization.projection import ProjectionModel
from server.journal import Journal
from server.roster import Roster
from server.study import Study
from server.sums import Task, solve_together

STAGE = "harmonization"


@dataclass
class Findings:
    """Numbers of the report, by feature set.

    Attributes
    ----------
    components : dict
        Feature set → dimensions kept, and the share of the variance they hold.
    site_effect : dict
        Feature set → raw and harmonized: eta squared and held-out balanced accuracy with its null.
    probes : dict
        Feature set → target → raw, harmonized and the negative control (harmonized without covariates).
    """

    components: dict[str, Any] = field(default_factory=dict)
    site_effect: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)


class Harmonizing:
    """The stages after pretraining, each a few exchanges.

    Parameters
    ----------
    dimensions : dict
        Feature set → number of features.
    n_participants : dict
        Site → participants that it embedded.
    """

    def __init__(
        self,
        study: Study,
        roster: Roster,
        journal: Journal,
        dimensions: dict[str, int],
        n_participants: dict[str, int],
    ) -> None:
        self.study = study
        self.roster = roster
        self.journal = journal
        self.dimensions = dimensions
        self.n_participants = n_participants
        self.findings = Findings()
        self.combat = study.harmonization.method == "combat"
        self.kept = study.design(study.harmonization.keep)

    def run(self) -> Findings:
        """Run all stages."""
        self._find_components()
        self._measure_and_harmonize()
        self._project_and_residualize()
        return self.findings

    def _find_components(self) -> None:
        """Find principal components of each raw feature set: what the measures look through."""
        models = self._solve(
            lambda: {name: Task(self._projection(name), TableSpec(features=name)) for name in self.dimensions}
        )
        for name, model in models.items():
            self.findings.components[name] = _components(model)
        steps = {name: Step(source=name, result=f"{name}.components", transform="projection") for name in models}
        self._apply([(steps[name], models[name]) for name in models])

    def _measure_and_harmonize(self) -> None:
        """Measure site and age, cross-validated; fit ComBat to all participants and apply it."""
        models = self._solve(
            lambda: {name: task for features in self.dimensions for name, task in self._measures(features).items()}
        )
        for features in self.dimensions:
            self._note(features, models)
        if self.combat:
            self._apply([(self._combat_step(features), models[f"{features}/combat"]) for features in self.dimensions])

    def _combat_step(self, features: str) -> Step:
        return Step(
            source=features,
            result=f"{features}.harmonized",
            transform="combat",
            covariates=self.kept.to_json(),
            prior=self.study.harmonization.prior,
        )

    def _project_and_residualize(self) -> None:
        """Finish the recipe: project the harmonized embedding and take its covariates out; measure what is left.

        Both are linear, so the effects found in the harmonized embedding are projected along with it, and one round
        serves both.
        """
        source = "embedding.harmonized" if self.combat else "embedding"
        removed = self.study.design(self.study.residualized)
        residualization = Residualization(site="site" in self.study.residualized)

        def tasks() -> dict[str, Task]:
            projection = Task(self._projection("embedding"), TableSpec(features=source))
            effects = Task(residualization, TableSpec(features=source, covariates=removed.to_json()))
            left = {
                f"{features}/eta": Task(SiteVariance(), TableSpec(features=f"{features}.harmonized"))
                for features in self.dimensions
                if self.combat
            }
            return {"projection": projection, "residualization": effects, **left}

        models = self._solve(tasks)
        if self.combat:
            for features in self.dimensions:
                self.findings.site_effect[features]["harmonized"]["eta_squared"] = models[f"{features}/eta"].mean
        projection, effects = models["projection"], models["residualization"]
        self.findings.components["projected"] = _components(projection)
        projected = Step(source=source, result="embedding.projected", transform="projection")
        residualized = Step(
            source="embedding.projected",
            result="embedding.residualized",
            transform="residualization",
            covariates=removed.to_json(),
        )
        self._apply(
            [(projected, projection), (residualized, effects.projected(projection.mean, projection.components))]
        )

    def _projection(self, features: str) -> Projection:
        """Projection to as many components as the recipe, the features and half the participants allow."""
        most = find_recipe(self.study.recipe).components
        n_participants = sum(self.n_participants[site] for site in self.roster.sites)
        return Projection(min(most, self.dimensions[features], max(1, n_participants // 2)))

    def _measures(self, features: str) -> dict[str, Task]:
        """Tasks of one feature set: raw, with ComBat on training folds, and the negative control without covariates.

        All are measured on the participants whose kept covariates are known.

        ComBat works on the features themselves, and the probes look at them through the components of the raw ones.
        """
        analyses, with_kept = self.study.analyses, self.kept.to_json()
        prior = {"prior": self.study.harmonization.prior}
        tasks = {f"{features}/eta": Task(SiteVariance(), TableSpec(features=features, complete=with_kept))}
        variants: dict[str, tuple[bool, list[dict[str, Any]]]] = {"raw": (False, with_kept)}
        if self.combat:
            variants |= {"harmonized": (True, with_kept), "control": (True, [])}
            tasks[f"{features}/combat"] = Task(ComBat(), TableSpec(features=features, covariates=with_kept))
        for variant, (combat, covariates) in variants.items():
            options = {"n_folds": analyses.folds, **({"method": "combat", "options": prior} if combat else {})}
            table = TableSpec(
                features=features, through=f"{features}.components", covariates=covariates, complete=with_kept
            )
            tasks[f"{features}/site/{variant}"] = Task(
                SiteClassification(**options, permutations=analyses.permutations),
                table.model_copy(update={"target": "site", "sites": self.roster.sites}),
            )
            for target in analyses.targets:
                tasks[f"{features}/{target}/{variant}"] = Task(
                    CrossValidatedRidge(**options), table.model_copy(update={"target": target})
                )
        return tasks

    def _note(self, features: str, models: dict[str, Any]) -> None:
        """Enter the measures of one feature set into the findings."""
        effect: dict[str, Any] = {}
        probes: dict[str, Any] = {target: {} for target in self.study.analyses.targets}
        for variant in ("raw", "harmonized", "control") if self.combat else ("raw",):
            site = models[f"{features}/site/{variant}"]
            effect[variant] = {
                "balanced_accuracy": site.balanced_accuracy,
                "null_mean": site.null_mean,
                "null_95": site.null_95,
                "p_value": site.p_value,
            }
            for target in probes:
                scores = models[f"{features}/{target}/{variant}"]
                probes[target][variant] = {
                    "r2": scores.r2,
                    "mean_absolute_error": scores.mean_absolute_error,
                    "root_mean_squared_error": scores.root_mean_squared_error,
                    "n": int(scores.n),
                }
        effect["raw"]["eta_squared"] = models[f"{features}/eta"].mean
        self.findings.site_effect[features] = effect
        self.findings.probes[features] = probes

    def _solve(self, make_tasks: Callable[[], dict[str, Task]]) -> dict[str, Any]:
        return solve_together(make_tasks, self.study.study, self.roster, STAGE)

    def _apply(self, steps: list[tuple[Step, State]]) -> None:
        """Let every site apply solved models to its own features; keep the models, which all sites share."""
        arrays = {step.result: model.to_arrays() for step, model in steps}
        request = HarmonizeRequest(arrays=join(**arrays), study=self.study.study, steps=[step for step, _ in steps])
        replies = self.roster.ask(request, HarmonizeReply, STAGE)
        self.roster.keep(replies)
        self.n_participants = {site: min(reply.n_participants.values()) for site, reply in replies.items()}
        for step, _ in steps:
            about = {**step.model_dump(), "columns": Design.from_json(step.covariates).columns}
            save_arrays(
                self.journal.folder / "harmonization" / f"{step.result}.safetensors", arrays[step.result], about
            )


def _components(model: ProjectionModel) -> dict[str, Any]:
    share = float(model.explained_variance.sum() / model.total_variance) if model.total_variance else 0.0
    return {"components": len(model.components), "explained": share}
