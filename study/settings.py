"""The study: everything that coordinator and sites agree on, in one YAML file, and what follows from it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from base.errors import FedBrainLMError, SettingsError
from base.settings import Name, Settings, check_settings, read_yaml
from brainlm.architectures import (
    AnyConfig,
    check_architecture,
    check_model_config,
    mask_conflicts,
    weight_shapes,
)
from brainlm.checkpoints import check_checkpoint, load_settings
from brainlm.config import ModelConfig, TrainingConfig
from brainlm.embedding import RECIPES
from brainlm.errors import CheckpointError
from brainlm.provenance import check_atlas
from brainlm.released.base import ReleasedConfig
from cohorts import load_atlas
from cohorts.contract import CohortContract
from exchange.key_roster import MIN_SITES
from exchange.messages import DescribeRequest
from harmonization import CovarianceDistance, CrossValidatedPermanova, SiteSpread, SiteVariance, harmonizers
from harmonization.core.design import KNOWN, Categorical, Continuous, Covariate, Design
from harmonization.core.quantiles import DIGITS
from study.sections import (
    AnalysesConfig,
    AssociationConfig,
    CohortConfig,
    CovariateConfig,
    HarmonizationConfig,
    ProtectionConfig,
    RoundsConfig,
)

_SITE_MEASURES = (CrossValidatedPermanova, SiteVariance, SiteSpread, CovarianceDistance)
"""Measures of the site that have no place for one site."""


def blind_method(method: str) -> str:
    """Name the method of the negative control: without covariates there may be nothing for the same one to fit."""
    return harmonizers()[method].without_covariates or method


class Study(Settings):
    """``study.yaml``."""

    study: Name
    """Name of the study: in policies, folders and reports."""
    title: str = ""
    """What the report is headed by; the name if it is empty."""
    seed: int = 0
    """Decides weights, splits, windows and masks, together with names of sites and numbers of rounds."""
    cohort: CohortConfig
    model: AnyConfig = Field(json_schema_extra={"words": "a model's settings, or the path of a YAML file of them"})
    """Inline, or the path of a model's YAML file, relative to the study's. May be left out where ``start`` says it."""
    start: str | None = None
    """Path of a checkpoint, relative to the study's, whose weights training goes on from; null for fresh ones."""
    start_other_atlases: bool = False
    """Go on from ``start`` also in atlases that its model was not trained in: our own model knows parcels by their
    coordinates, but has learned nothing of these."""
    training: TrainingConfig = TrainingConfig()
    averaging: RoundsConfig = RoundsConfig()
    privacy: ProtectionConfig = ProtectionConfig()
    recipe: str = "rsfmri_brainlm_segments_v1"
    """Id of the recipe by which recordings become one vector a participant. This one averages the encoder's tokens over
    a recording's windows, and residualizes age, sex, site, mean FD and tSNR unless ``harmonization.residualize`` says
    otherwise."""
    covariates: dict[str, CovariateConfig] = Field(default_factory=dict)
    """Codings of covariates that are not among the known ones, or are to be coded otherwise."""
    harmonization: HarmonizationConfig = HarmonizationConfig()
    analyses: AnalysesConfig = AnalysesConfig()
    association: AssociationConfig | None = None

    def conflicts(self) -> Iterator[str]:
        if self.recipe not in RECIPES:
            yield f"recipe '{self.recipe}' is not known; expected one of {', '.join(RECIPES)}. Correct it."
            return
        for name, settings in self.asked_by.items():
            if name not in self.covariates and name not in KNOWN:
                yield (
                    f"covariate '{name}' of {', '.join(settings)} has no coding. Add it under 'covariates': "
                    f"{name}: {{levels: [first, second]}} for a category, {name}: {{center: 0, scale: 1}} for a number."
                )
        yield from self._repeated()
        if "site" in self.harmonization.keep:
            yield "harmonization.keep holds 'site', which harmonization is there to remove. Leave it out."
        if "site" in self.analyses.targets:
            yield "analyses.targets holds 'site', which is measured anyway. Leave it out."
        yield from self._conflicts_of_harmonization()
        yield from self._conflicts_of_private_training()
        if self.privacy.secure_sums:
            yield from self._conflicts_of_secure_sums()

    def _repeated(self) -> Iterator[str]:
        lists = {
            "cohort.atlases": self.cohort.atlases,
            "harmonization.keep": self.harmonization.keep,
            "harmonization.residualize": self.harmonization.residualize or (),
            "analyses.targets": self.analyses.targets,
            "analyses.compare": self.analyses.compare,
        }
        for setting, names in lists.items():
            for name in dict.fromkeys(name for name in names if names.count(name) > 1):
                yield f"{setting} holds '{name}' twice. Give it once."

    def _conflicts_of_private_training(self) -> Iterator[str]:
        if self.training.privacy is None:
            return
        if self.needs_quartiles() or self.starts_from_linear_prediction:
            yield (
                "training.privacy hides who was trained on, and the model rests on sums over their frames. Use "
                "window.scaling: zscore and residual: none."
            )
        elif self.needs_moments() and self.privacy.frame_noise is None:
            yield (
                "training.privacy hides who was trained on, and analyses.gaussian_baseline sums their frames without "
                "noise, so that epsilon would not hold. Set gaussian_baseline: false, or privacy.frame_noise."
            )

    def _conflicts_of_secure_sums(self) -> Iterator[str]:
        if self.averaging.quorum < MIN_SITES:
            yield (
                f"averaging.quorum is {self.averaging.quorum}, and a secure sum needs {MIN_SITES} sites. Raise it, "
                "or set privacy.secure_sums: false."
            )
        if self.averaging.robust != "none":
            yield (
                f"averaging.robust: {self.averaging.robust} must see each site's weights, which secure sums hide. Set "
                "averaging.robust: none and bound updates with privacy.max_norm, or set privacy.secure_sums: false."
            )
        unbounded = self.training.optimizer == "sgd" and self.training.clip_norm is None
        if unbounded and self.privacy.max_norm is None:
            remedy = "privacy.max_norm" if self.training.privacy else "training.clip_norm or privacy.max_norm"
            yield (
                "optimizer sgd without training.clip_norm may change weights by any amount, and a secure sum needs a "
                f"bound. Set {remedy}."
            )

    def _conflicts_of_harmonization(self) -> Iterator[str]:
        harmonization = self.harmonization
        for name, (low, high) in harmonization.smooth.items():
            if low >= high:
                yield f"harmonization.smooth: '{name}' has bounds {low:g} and {high:g}. Give the lower first."
            coded = name in self.covariates or name in KNOWN
            if name not in harmonization.keep or (coded and not isinstance(self.coding(name), Continuous)):
                yield f"harmonization.smooth: '{name}' is no number in harmonization.keep. Add it there."
        for method in dict.fromkeys((harmonization.method, *self.analyses.compare)):
            if "smooth" in harmonizers()[method].study_options and not harmonization.smooth:
                yield f"method {method} needs harmonization.smooth. Name a number and the bounds of its values."
        taking = [name for name, method in harmonizers().items() if "reference" in method.study_options]
        if harmonization.reference is not None and harmonization.method not in taking:
            yield f"harmonization.reference is an option of method {' and '.join(taking)} alone. Leave it out."
        if harmonization.reference is not None and self.analyses.leave_one_site_out:
            yield "analyses.leave_one_site_out would leave out harmonization.reference, too. Choose one of the two."
        if harmonization.order == "one_model" and harmonization.method != "combat":
            yield "harmonization.order: one_model needs method combat, whose coefficients it takes. Change one of them."

    def options_of(self, method: str, design: Design, sites: list[str]) -> dict[str, Any]:
        """Options of a method of harmonization that keeps the covariates of `design`.

        Parameters
        ----------
        sites : list of str
            Names of the sites that take part.
        """
        settings = self.harmonization
        known: dict[str, Any] = {
            "prior": settings.prior,
            "mean_only": settings.mean_only,
            "reference": settings.reference,
        }
        known |= {"smooth": self._smooth_columns(design), "sites": sites}
        return {name: known[name] for name in harmonizers()[method].study_options}

    def _smooth_columns(self, design: Design) -> list[tuple[int, float, float]]:
        """Place in a design of each number with a curve, and the bounds of its values as coded."""
        columns = []
        for name, bounds in self.harmonization.smooth.items():
            coding = self.coding(name)
            if name in design.columns and isinstance(coding, Continuous):
                low, high = ((bound - coding.center) / coding.scale for bound in bounds)
                columns.append((design.columns.index(name), low, high))
        return columns

    @property
    def residualized(self) -> tuple[str, ...]:
        """Covariates to remove at the end, with ``site`` if it is one."""
        stated = self.harmonization.residualize
        return RECIPES[self.recipe].residualize if stated is None else stated

    @property
    def kept(self) -> tuple[str, ...]:
        """Covariates whose effects harmonization keeps: in one model, those that are removed later, too."""
        removed = self.residualized if self.harmonization.order == "one_model" else ()
        return tuple(dict.fromkeys((*self.harmonization.keep, *(name for name in removed if name != "site"))))

    @property
    def complete(self) -> Design:
        """All that must be known of a participant to be in any sum.

        The same people are in all sums: of two sums that differ in a few people, the difference would be those.
        """
        return self.design(tuple(dict.fromkeys((*self.kept, *self.residualized, *self.analyses.targets))))

    def probe_of(self, target: str) -> str:
        """Name of the probe that predicts a target."""
        analyses = self.analyses
        return analyses.number_probe if isinstance(self.coding(target), Continuous) else analyses.category_probe

    def coding(self, name: str) -> Covariate:
        """Coding of a covariate: the study's own, or the known one."""
        return self.covariates[name].coding(name) if name in self.covariates else KNOWN[name]

    @property
    def asked_by(self) -> dict[str, tuple[str, ...]]:
        """Covariates and targets that it uses, in order of names, and which of its settings name each."""
        harmonization = self.harmonization
        default = " (by default that of the recipe)" if harmonization.residualize is None else ""
        named = {
            "harmonization.keep": harmonization.keep,
            f"harmonization.residualize{default}": self.residualized,
            "analyses.targets": self.analyses.targets,
        }
        columns = sorted({name for names in named.values() for name in names} - {"site"})
        return {column: tuple(setting for setting, names in named.items() if column in names) for column in columns}

    def design(self, names: tuple[str, ...]) -> Design:
        """Design of covariates by name; ``site`` is no column."""
        return Design(tuple(self.coding(name) for name in names if name != "site"))

    def needs_quartiles(self) -> bool:
        """Whether the sites' quartiles are measured before training."""
        return self.model.window.scaling == "robust"

    def needs_moments(self) -> bool:
        """Whether the sites' second moments are measured before training."""
        resampled = self.model.window.temporal == "resample"  # moments of other TRs do not add
        return resampled and (self.analyses.gaussian_baseline or self.starts_from_linear_prediction)

    @property
    def starts_from_linear_prediction(self) -> bool:
        """Whether the model is given what a linear Gaussian predictor makes of the visible signal."""
        return isinstance(self.model, ModelConfig) and self.model.residual == "gaussian"

    def asks_for(self) -> list[str]:
        """Names of everything that a site's policy must allow for this study."""
        analyses, association, method = self.analyses, self.association, self.harmonization.method
        probes = {self.probe_of(target) for target in analyses.targets}
        asked = {
            **dict.fromkeys(("pretraining", "embedding", "projection", "residualization"), True),
            **{measure.name: True for measure in _SITE_MEASURES},
            "quantiles": self.needs_quartiles(),
            "second_moments": self.needs_moments(),
            "site_classification": analyses.site_classification,
            "site_network": analyses.site_network,
            analyses.number_probe: analyses.number_probe in probes,
            analyses.category_probe: analyses.category_probe in probes,
            "leave_one_site_out": analyses.leave_one_site_out and bool(probes),
            "cross_validated_cca": association is not None,
            "late_fusion": association is not None and analyses.number_probe in probes,
            "two_tower": association is not None and association.two_tower,
            "reference_site": self.harmonization.reference is not None,
        }
        methods = dict.fromkeys((method, blind_method(method), *analyses.compare))
        return [name for name, needed in asked.items() if needed] + [name for name in methods if name != "none"]

    @property
    def columns(self) -> list[str]:
        """Names of the covariates and targets that it uses, in order."""
        return list(self.asked_by)

    def introduction(self, rounds: int | None = None) -> DescribeRequest:
        """What every site is asked first: all that the study will want of it, less what atlases and levels must be.

        Parameters
        ----------
        rounds : int, optional
            Rounds of training that are to come; all if not given.
        """
        privacy = self.training.privacy
        return DescribeRequest(
            study=self.study,
            contract={},
            window=self.model.window.model_dump(mode="json"),
            analyses=self.asks_for(),
            recipe=self.recipe,
            holdout=self.training.holdout,
            folds=self.analyses.folds,
            vectors=self.association.vectors if self.association else None,
            columns=self.columns,
            designs=[design.to_json() for design in dict.fromkeys(map(self.design, (self.kept, self.residualized)))],
            rounds=self.averaging.rounds if rounds is None else rounds,
            secure_sums=self.privacy.secure_sums,
            privacy=privacy.model_dump(mode="json") if privacy else None,
            noisy=["quantiles", "second_moments"] if self.privacy.frame_noise else [],
            all_rounds=self.averaging.rounds,
            steps_per_round=self.training.steps_per_round,
            batch_size=self.training.batch_size,
            frame_noise=self.privacy.frame_noise.model_dump(mode="json") if self.privacy.frame_noise else None,
            noisy_sums=self.frame_sums,
        )

    def opening(self, rounds: int | None = None) -> DescribeRequest:
        """What every site is asked first, all of it; `rounds` as in `introduction`."""
        return self.introduction(rounds).model_copy(update={"contract": self.contract().model_dump(mode="json")})

    @property
    def frame_sums(self) -> int:
        """How many sums over frames are measured before training, as long as no site falls silent."""
        return DIGITS * self.needs_quartiles() + self.needs_moments()

    def contract(self) -> CohortContract:
        """What a site checks its cohort against."""
        codings = [self.coding(name) for name in self.columns]
        return CohortContract(
            atlases={atlas.name: atlas.content_hash for atlas in map(load_atlas, self.cohort.atlases)},
            min_t_r=self.cohort.min_t_r,
            max_t_r=self.cohort.max_t_r,
            scalings=("raw",) if self.needs_quartiles() else ("raw", "zscore"),
            covariates={c.name: c.levels if isinstance(c, Categorical) else () for c in codings},
            asked_by=self.asked_by,
        )

    def to_yaml(self) -> str:
        """Return the study with everything in it, as `load_study` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_study(path: str | Path) -> Study:
    """Read a study, and the model's file that it may name; a SettingsError says all that is wrong with them."""
    path = Path(path)
    content = _with_model(read_yaml(path), path)
    cohort: Any = content.get("cohort")
    faults = []
    if isinstance(cohort, dict) and isinstance(cohort.get("atlases"), list):
        atlases = [_resolved(str(atlas), path.parent) for atlas in cohort["atlases"]]
        content = {**content, "cohort": {**cohort, "atlases": atlases}}
        faults = [f"{path}: cohort.atlases: {said}" for said in _atlas_faults(atlases)]
    try:
        study = check_settings(content, Study, str(path))
    except SettingsError as error:
        raise SettingsError("\n".join((str(error), *faults))) from None
    faults = faults or [f"{path}: {said}" for said in _misfits(study)]
    if faults:
        raise SettingsError("\n".join(dict.fromkeys(faults)))
    return study


def _with_model(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Read the model that the study names, or leaves to the checkpoint that it starts from."""
    start, model = content.get("start"), content.get("model")
    if isinstance(start, str):
        start = str((path.parent / start).resolve())
        content = {**content, "start": start}
        if model is None:
            return {**content, "model": load_settings(start)[0]}
    if isinstance(model, str):
        file = path.parent / model
        return {**content, "model": check_model_config(read_yaml(file), str(file))}
    if isinstance(model, dict):
        check_architecture(model, f"{path}: model")
        return content
    return {name: value for name, value in content.items() if name != "model" or value is not None}


def _atlas_faults(atlases: list[str]) -> Iterator[str]:
    for atlas in atlases:
        try:
            load_atlas(atlas)
        except FedBrainLMError as error:
            yield str(error)


def _misfits(study: Study) -> Iterator[str]:
    """Say where the model does not go with the checkpoint that it starts from, or with an atlas."""
    if study.start is not None:
        started, _ = load_settings(study.start)
        remedy = "Leave 'model' out to take the checkpoint's."
        if weight_shapes(started) != weight_shapes(study.model):
            yield f"'model' has other weights than {study.start}. {remedy}"
        elif started.window != study.model.window:
            yield f"model.window is another than that of {study.start}, which says what its weights read. {remedy}"
        check_checkpoint(study.start)
        released = isinstance(study.model, ReleasedConfig)
        for atlas in study.cohort.atlases if released or not study.start_other_atlases else ():
            try:
                other = "" if released else "set start_other_atlases: true"
                check_atlas(load_settings(study.start)[1], load_atlas(atlas), "cohort.atlases", other)
            except CheckpointError as error:
                yield str(error)
    for loaded in map(load_atlas, study.cohort.atlases):
        yield from (f"model: {said}" for said in mask_conflicts(study.model, loaded.n_parcels))
        if isinstance(study.model, ReleasedConfig) and loaded.n_parcels != study.model.num_brain_voxels:
            yield (
                f"cohort.atlases: {loaded.name} has {loaded.n_parcels} parcels; the released model was made for "
                f"{study.model.num_brain_voxels}. Name an atlas of as many."
            )


def _resolved(atlas: str, folder: Path) -> str:
    """Make the path of an atlas's table absolute; leave names as they are."""
    return str((folder / atlas).resolve()) if Path(atlas).suffix else atlas
