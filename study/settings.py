"""The study: everything that coordinator and sites agree on, in one YAML file."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field

from base.errors import FedBrainLMError, SettingsError
from base.settings import Hex64, Name, Settings, check_settings, read_yaml
from brainlm.architectures import (
    AnyConfig,
    check_architecture,
    check_model_config,
    mask_conflicts,
    weight_shapes,
)
from brainlm.checkpoints import check_checkpoint, load_settings
from brainlm.config import ModelConfig, SummaryNoise, TrainingConfig
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
from harmonization.methods.combat import Prior
from harmonization.probes.crossvalidation import probes_of

if TYPE_CHECKING:
    Method = str
    NumberProbe = str
    CategoryProbe = str
else:
    Method = Literal[tuple(name for name, method in harmonizers().items() if method.for_studies)]
    """Ways of making sites alike."""
    NumberProbe, CategoryProbe = Literal[tuple(probes_of("number"))], Literal[tuple(probes_of("category"))]
SITE_MEASURES = tuple(
    measure.name for measure in (CrossValidatedPermanova, SiteVariance, SiteSpread, CovarianceDistance)
)
"""Measures of the site that have no place for one site."""

LARGEST = 1e12
"""Constant that numbers may be coded by; what is coded is squared and summed."""


def blind_method(method: str) -> str:
    """Name the method of the negative control: without covariates there may be nothing for the same one to fit."""
    return harmonizers()[method].without_covariates or method


class CovariateConfig(Settings):
    """How a covariate or target of this study's own is coded, by the name of its column in participants.tsv.

    Known ones need no entry: age (center 50, scale 20), sex (levels F and M), mean_fd (center 0.2, scale 0.1) and tsnr
    (center 60, scale 30). A category has levels, a number center and scale::

        covariates:
          dx: {levels: [TDC, ASD]}
          iq: {center: 100, scale: 15}
    """

    levels: tuple[str, ...] | None = Field(None, min_length=2)
    """Agreed levels of a category, as participants.tsv has them; the first is the reference. Null for a number."""
    center: float = Field(0.0, ge=-LARGEST, le=LARGEST)
    """Public constant near the mean of a number, which is coded as (value - center) / scale."""
    scale: float = Field(1.0, ge=1 / LARGEST, le=LARGEST)
    """Public constant near the standard deviation of a number."""

    def conflicts(self) -> Iterator[str]:
        if self.levels and len(set(self.levels)) < len(self.levels):
            yield f"levels {', '.join(self.levels)} hold one twice. Give each once."
        if self.levels and (self.center, self.scale) != (0, 1):
            yield "levels are of a category, center and scale of a number. Leave one of the two out."

    def coding(self, name: str) -> Covariate:
        """Return the covariate's coding."""
        return Categorical(name, self.levels) if self.levels else Continuous(name, self.center, self.scale)


class CohortConfig(Settings):
    """What every site's cohort must be like."""

    atlases: tuple[str, ...] = Field(min_length=1)
    """Names of atlases, or table files beside the study."""
    min_t_r: float = Field(0.3, gt=0)
    """Shortest repetition time that the study takes, in seconds."""
    max_t_r: float = Field(5.0, gt=0)
    """Longest repetition time that the study takes, in seconds."""

    def conflicts(self) -> Iterator[str]:
        if self.min_t_r > self.max_t_r:
            yield f"min_t_r {self.min_t_r:g} is above max_t_r {self.max_t_r:g}. Change one of them."


_OUTER_LEARNING_RATES = {"fedavg": 1.0, "fedavgm": 0.7, "fedadam": 0.01, "fedyogi": 0.01}
_OUTER_SETTINGS = {
    "fedavg": (),
    "fedavgm": ("server_learning_rate", "momentum", "nesterov"),
    "fedadam": ("server_learning_rate", "betas", "tau"),
    "fedyogi": ("server_learning_rate", "betas", "tau"),
}

_LONGEST_WAIT_S = 30 * 24 * 3600
_ROBUST_NEEDS = {"median": (2, 1), "trimmed_mean": (2, 1), "krum": (2, 3), "multi_krum": (2, 3), "bulyan": (4, 3)}
"""Replies that a rule needs: the first number for each site that may answer wrongly, and the second beside them."""


class RoundsConfig(Settings):
    """The rounds of federated averaging, the outer optimizer, and when to stop waiting."""

    rounds: int = Field(16, ge=1, le=100_000)
    """Rounds of training: all sites train for ``training.steps_per_round``, then their weights are averaged."""
    optimizer: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    """What becomes of the sites' average: the new model (``fedavg``), or a direction for an optimizer's step."""
    server_learning_rate: float | None = Field(None, gt=0)
    """Of the outer step. Null: 0.7 for fedavgm, 0.01 for fedadam and fedyogi."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of fedavgm."""
    nesterov: bool = True
    """Whether fedavgm looks ahead."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """How much of the first and second moments fedadam and fedyogi keep in a round."""
    tau: float = Field(1e-3, gt=0)
    """Added to the root of their second moment: steps of weights that move less than it stay small."""
    robust: Literal["none", "median", "trimmed_mean", "krum", "multi_krum", "bulyan"] = "none"
    """What takes the place of the sites' average, so that a site that answers wrongly cannot spoil it: docs/training.md
    compares the rules."""
    byzantine: int = Field(1, ge=1, le=10_000)
    """Sites that may answer wrongly without harm, in any way and together."""
    quorum: int = Field(3, ge=1, le=10_000)
    """Sites that must answer every exchange; the run waits for them as long as quorum_deadline_s, and then fails."""
    sites: int | None = Field(None, ge=1, le=10_000)
    """Sites to wait for at the start, as long as start_deadline_s; a quorum may then go on. Null: the quorum."""
    deadline_s: float = Field(3600, gt=0, le=_LONGEST_WAIT_S)
    """Seconds that an exchange may take."""
    start_deadline_s: float = Field(600, gt=0, le=_LONGEST_WAIT_S)
    """Seconds to wait for the sites at the start, and when a run is resumed."""
    quorum_deadline_s: float = Field(600, ge=0, le=_LONGEST_WAIT_S)
    """Seconds after a question in which sites that fell silent are asked again while fewer than the quorum answered."""

    def conflicts(self) -> Iterator[str]:
        if self.sites is not None and self.sites < self.quorum:
            yield f"averaging.sites is {self.sites}, below the quorum of {self.quorum}. Raise it."
        for name in ("server_learning_rate", "momentum", "nesterov", "betas", "tau"):
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and name not in _OUTER_SETTINGS[self.optimizer]:
                yield f"averaging.{name} is no setting of {self.optimizer}. Leave it out."
        if self.robust == "none" and self.byzantine != type(self).model_fields["byzantine"].default:
            yield "averaging.byzantine is a setting of averaging.robust. Choose a rule, or leave it out."
        if self.quorum < self.robust_needs:
            yield (
                f"averaging.quorum is {self.quorum}, and {self.robust} with averaging.byzantine {self.byzantine} needs "
                f"{self.robust_needs} sites. Raise the quorum, or choose another averaging.robust."
            )

    @property
    def robust_needs(self) -> int:
        """Fewest replies that the robust rule can do with; 0 without one."""
        each, beside = _ROBUST_NEEDS.get(self.robust, (0, 0))
        return each * self.byzantine + beside

    @property
    def outer_learning_rate(self) -> float:
        """Learning rate of the outer step."""
        return self.server_learning_rate or _OUTER_LEARNING_RATES[self.optimizer]


class ProtectionConfig(Settings):
    """How the sites' answers are kept from the coordinator."""

    secure_sums: bool = True
    """Mask what is summed, so that a coordinator that follows the protocol reads sums over three or more sites and no
    single site's."""
    roster: Hex64 | None = None
    """Hash of the roster of keys that all sites must have approved; null for the one that they have in common."""
    max_attempts: int = Field(2, ge=1, le=100)
    """Attempts at one secure sum. Each further one is among the sites that are left when one fell silent."""
    max_norm: float | None = Field(None, gt=0)
    """L2 norm that every site's update of the model is scaled down to if it is longer, so that none outweighs the
    others; null for no such bound."""
    frame_noise: SummaryNoise | None = None
    """Noise on what is summed over frames before training: quartiles and second moments, at the price of the sites'
    privacy budgets. A participant's second moments have about the length of their frames times parcels."""


class HarmonizationConfig(Settings):
    """How the sites' embeddings are made comparable."""

    method: Method = "combat"
    """How sites are made alike: docs/harmonization.md compares the methods."""
    prior: Prior = "parametric"
    """How ComBat and its kin shrink a site's effects; covbat's scores are never shrunk."""
    mean_only: bool = False
    """Remove the sites' shifts and leave their scales."""
    reference: str | None = None
    """Name of a site that the others are made like, with method combat; it comes back unchanged, and its means are
    shown to all."""
    smooth: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Numbers whose effects are curves with method combat_gam, each with the public bounds of its values."""
    keep: tuple[str, ...] = ("age", "sex")
    """Covariates whose effects are kept."""
    residualize: tuple[str, ...] | None = None
    """Covariates to remove at the end; null for those of the recipe. ``site`` stands for the site."""
    order: Literal["separate", "one_model"] = "separate"
    """Whether what is removed at the end is estimated anew from the harmonized embedding, or taken from the one model
    that ComBat fitted, which then keeps all covariates."""


class AnalysesConfig(Settings):
    """What is measured before and after harmonization."""

    targets: tuple[str, ...] = ("age",)
    """What probes predict."""
    number_probe: NumberProbe = "cross_validated_ridge"
    """What predicts targets that are numbers."""
    category_probe: CategoryProbe = "cross_validated_logistic"
    """What predicts targets that are categories."""
    folds: int = Field(5, ge=3, le=1000)
    """Folds within every site: one to score, the others to learn from and to choose the penalty in."""
    permutations: int = Field(100, ge=0, le=1_000_000)
    """Permutations behind the nulls of site effects and of probes of numbers."""
    category_permutations: int = Field(20, ge=0, le=1_000_000)
    """The same for probes of categories, whose every permutation is fitted anew by Newton's method."""
    bootstrap: int = Field(200, ge=0, le=1_000_000)
    """Draws of participants within sites behind the probes' confidence intervals; 0 for none."""
    leave_one_site_out: bool = False
    """Also try probes on whole sites that were left out. By subtraction this shows each site's own sums, so every
    site's policy must name ``leave_one_site_out``."""
    site_classification: bool = False
    """Also let linear discriminants recognise the site of held-out people. Their sums have a place for each site, and
    so show its mean features; every site's policy must name ``site_classification``."""
    site_network: bool = False
    """Also let a small network recognise the site: dozens of exchanges more. It shows each site's mean features, too;
    every site's policy must name ``site_network``."""
    compare: tuple[Method, ...] = ()
    """Further methods to measure beside the study's own."""
    gaussian_baseline: bool = True
    """Sum second moments of the frames, so that sites can set the linear Gaussian predictor beside the model; not
    with ``temporal: adaptive``, since moments of other TRs do not add."""


class AssociationConfig(Settings):
    """The embedding beside a second table of vectors that every site holds: `fedbrainlm cohort vectors`."""

    vectors: str = Field(
        "vectors",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
        json_schema_extra={"words": "1 to 64 letters, digits, '_' and '-', a letter or digit first"},
    )
    """Name of the vectors."""
    components: int = Field(20, ge=2, le=10_000)
    """Principal components of each view that are compared; fewer where participants or dimensions are few."""
    correlations: int = Field(3, ge=1, le=10_000)
    """Canonical correlations."""
    permutations: int = Field(1000, ge=0, le=1_000_000)
    """Permutations of one view within the sites."""
    two_tower: bool = False
    """Also align both views by contrastive learning: dozens of exchanges more."""


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

    @property
    def _predicts_numbers(self) -> bool:
        return any(isinstance(self.coding(target), Continuous) for target in self.analyses.targets)

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
        analyses = ["pretraining", "embedding", "projection", "residualization", *SITE_MEASURES]
        if self.needs_quartiles():
            analyses.append("quantiles")
        if self.needs_moments():
            analyses.append("second_moments")
        if self.analyses.site_classification:
            analyses.append("site_classification")
        if self.analyses.site_network:
            analyses.append("site_network")
        asked = {self.probe_of(target) for target in self.analyses.targets}
        probes = [name for name in (self.analyses.number_probe, self.analyses.category_probe) if name in asked]
        analyses += probes
        if probes and self.analyses.leave_one_site_out:
            analyses.append("leave_one_site_out")
        if self.association:
            analyses.append("cross_validated_cca")
            analyses += ["late_fusion"] if self._predicts_numbers else []
            analyses += ["two_tower"] if self.association.two_tower else []
        if self.harmonization.reference is not None:
            analyses.append("reference_site")
        method = self.harmonization.method
        named = dict.fromkeys((method, blind_method(method), *self.analyses.compare))
        return [*analyses, *(method for method in named if method != "none")]

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
        """What every site is asked first, all of it.

        Parameters
        ----------
        rounds : int, optional
            As in `introduction`.
        """
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
    """Read a study, and the model's file that it may name.

    Raises
    ------
    CohortError
        If a file, a setting or an atlas is wrong.
    """
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
    """Say where the model does not go with the checkpoint that it starts from, or with an atlas.

    Raises
    ------
    CheckpointError
        If the checkpoint holds no numbers to train from.
    """
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
