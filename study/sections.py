"""The parts of ``study.yaml``: what each may say, and which of its fields do not go together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from base.settings import Hex64, Settings
from brainlm.config import SummaryNoise
from harmonization import harmonizers
from harmonization.core.design import Categorical, Continuous, Covariate
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
LARGEST = 1e12
"""Constant that numbers may be coded by; what is coded is squared and summed."""


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


_OUTER = {
    "fedavg": (1.0, ()),
    "fedavgm": (0.7, ("server_learning_rate", "momentum", "nesterov")),
    "fedadam": (0.01, ("server_learning_rate", "betas", "tau")),
    "fedyogi": (0.01, ("server_learning_rate", "betas", "tau")),
}
"""Outer optimizer → its usual learning rate, and the settings that are its."""
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
            if changed and name not in _OUTER[self.optimizer][1]:
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
        return self.server_learning_rate or _OUTER[self.optimizer][0]


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
