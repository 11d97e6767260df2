r"""CovBat: ComBat, and then the same for the principal components, so that covariances of sites are alike too.

Algorithm (Chen et al., Human Brain Mapping 2022), with R the residuals [n, p] that ComBat leaves around the effects of
covariates, standardized by their mean and their sd (n - 1 in the denominator) over all sites::

    scores = R components'          of the first components that explain more than a share of the variance
    scores* = ComBat(scores)        without covariates and without empirical Bayes
    y* = ComBat(y) + sd (scores* - scores) components

All that sites share comes from sums: ComBat's; sums and squares of residuals; R'R, or a sketch of it; and ComBat's
again, of the scores. Shifts and scales of a site, of its features and of its scores, stay there. The answers equal
those of the authors' R package on pooled data, but for features that hardly vary at a site, which come back as they
were (`harmonization.methods.combat`).
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harmonization.core.declared import Declared, Shape, Widths, everybody
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.methods import combat
from harmonization.methods.combat import FOR_MRI, ComBat, ComBatModel, Prior, SiteEffect
from harmonization.methods.harmonizer import Harmonizer
from harmonization.methods.projection import Basis, Centre, Projection

_OVERSAMPLING = 10
"""Columns of a sketch beyond the number of participants."""


class FeatureMoments(Stage):
    """First round: ComBat's sums, of the features."""

    def part(self, analysis: "CovBat", table: SiteTable) -> Sums:
        return analysis.first_step.summarize(table, None)

    def sends(self, analysis: "CovBat", widths: Widths) -> Declared:
        return analysis.first_step.sends(widths, None)

    def advance(self, analysis: "CovBat", total: Sums) -> State:
        effects = combat.solve(total)
        if not (effects.pooled_variance > 0).any():
            raise HarmonizationError("CovBat needs features that vary inside the sites. Use the method 'none'.")
        return effects.become(CommonEffects)


@dataclass(frozen=True)
class CommonEffects(Stage):
    """After the first round: what a `ComBatModel` holds. Sums and squares of the residuals."""

    coefficients: Array
    grand_mean: Array
    pooled_variance: Array
    n: float

    @property
    def of_features(self) -> ComBatModel:
        """ComBat's model of the features."""
        return self.become(ComBatModel)

    def expected(self, table: SiteTable) -> Array:
        """Features [n, p] as their covariates alone would have them."""
        return self.grand_mean + table.design @ self.coefficients

    def cleaned(self, table: SiteTable, effect: SiteEffect) -> Array:
        """Features [n, p] as ComBat makes them alike; as expected where it leaves them as they were."""
        cleaned = self.of_features.remove(table.features, table.design, effect)
        return np.where(effect.unadjusted, self.expected(table), cleaned)

    def residuals(self, table: SiteTable, cleaned: Array) -> Array:
        """Residuals [n, p] of what ComBat made of a table, around covariates; 0 for constant features."""
        return np.where(self.pooled_variance > 0, cleaned - self.expected(table), 0.0)

    def part(self, analysis: "CovBat", table: SiteTable) -> Sums:
        return self.sums(table, self.cleaned(table, analysis.effect_on_features(self, table)))

    def sums(self, table: SiteTable, cleaned: Array) -> Sums:
        """Sums of a table of which ComBat made `cleaned` [n, p]."""
        residuals = self.residuals(table, cleaned)
        return {"residual_sum": residuals.sum(axis=0), "residual_squares": (residuals**2).sum(axis=0)}

    def sends(self, analysis: "CovBat", widths: Widths) -> Declared:
        return {name: everybody(widths.features) for name in ("residual_sum", "residual_squares")}

    def advance(self, analysis: "CovBat", total: Sums) -> State:
        mean = total["residual_sum"] / self.n
        variance = (total["residual_squares"] - self.n * mean**2) / (self.n - 1)
        # A feature that varies has a variance: what ComBat leaves of it. Others are 0 throughout.
        sd = np.sqrt(np.where(variance > 0, variance, 1.0))
        return self.become(ResidualScale, residual_mean=mean, residual_sd=sd)


@dataclass(frozen=True)
class ResidualScale(CommonEffects):
    """After the second: mean [p] and sd [p] of the residuals over all sites, 1 where the sd is 0. Their projection."""

    residual_mean: Array
    residual_sd: Array

    def standardized(self, table: SiteTable, cleaned: Array) -> Array:
        """Standardized residuals R [n, p]."""
        return (self.residuals(table, cleaned) - self.residual_mean) / self.residual_sd

    @property
    def projection(self) -> "_AllComponents":
        """The projection of the residuals."""
        return _AllComponents(min(len(self.residual_mean), int(self.n) - 1))

    def for_projection(self) -> Centre:
        """Where that projection stands: the residuals' mean is known."""
        return Centre(np.zeros(len(self.residual_mean)), self.n)

    def sums(self, table: SiteTable, cleaned: Array) -> Sums:
        return self.projection.summarize(SiteTable(self.standardized(table, cleaned)), self.for_projection())

    def sends(self, analysis: "CovBat", widths: Widths) -> Declared:
        return self.projection.sends(widths, self.for_projection())

    def advance(self, analysis: "CovBat", total: Sums) -> State:
        found: Any = self.projection.solve(total, self.for_projection())
        if not found.done:
            return self.become(ResidualBasis, basis=found.basis)
        explained = np.cumsum(found.explained_variance) / found.total_variance
        kept = np.searchsorted(explained, analysis.variance, side="right") + 1  # that explain more than was asked for
        return self.become(ResidualComponents, components=found.components[:kept])


@dataclass(frozen=True)
class ResidualBasis(ResidualScale):
    """After the third round: an orthonormal basis [p, l] of the space that the residuals span."""

    basis: Array

    def for_projection(self) -> Centre:
        return Basis(np.zeros(len(self.residual_mean)), self.n, self.basis, 0)


@dataclass(frozen=True)
class ResidualComponents(ResidualScale):
    """Components [k, p] of the standardized residuals. ComBat's sums, of the scores on them."""

    components: Array

    def scores(self, table: SiteTable, cleaned: Array) -> Array:
        """Scores [n, k] of the standardized residuals."""
        return self.standardized(table, cleaned) @ self.components.T

    def sums(self, table: SiteTable, cleaned: Array) -> Sums:
        return combat.summarize(self.scores(table, cleaned), _no_covariates(table.n))

    def sends(self, analysis: "CovBat", widths: Widths) -> Declared:
        return combat.moments_of(len(self.components), 0)

    def advance(self, analysis: "CovBat", total: Sums) -> State:
        scores = combat.solve(total)
        return self.become(CovBatModel, score_mean=scores.grand_mean, score_variance=scores.pooled_variance)


@dataclass(frozen=True)
class CovBatModel(Answer, ResidualComponents):
    """What all sites share: also the mean [k] and the variance within sites [k] of the scores."""

    score_mean: Array
    score_variance: Array

    @property
    def of_scores(self) -> ComBatModel:
        """ComBat's model of the scores."""
        none = np.empty((0, len(self.score_mean)))
        return ComBatModel(none, self.score_mean, self.score_variance, self.n)


@dataclass(frozen=True)
class CovBatEffect(SiteEffect):
    """One site's shift and scale of features, and of scores [k], of which these are what the others are of features."""

    score_gamma: Array
    score_delta: Array
    score_unadjusted: NDArray[np.bool_]

    @property
    def of_scores(self) -> SiteEffect:
        """The site's effect on the scores."""
        return SiteEffect(self.score_gamma, self.score_delta, self.score_unadjusted)


@register
@dataclass(frozen=True)
class CovBat(Harmonizer):
    """CovBat in five rounds of sums; the final state is a `CovBatModel`.

    Parameters
    ----------
    variance : float
        Share of the variance, between 0 and 1: the fewest components that explain more are made alike.
    prior : {"parametric", "nonparametric", "none"}
        How the features' site effects are shrunk; those of the scores are not.
    mean_only : bool
        Remove shifts of the features and leave their scales; those of the scores are removed in any case. As in the
        authors' R package, and unlike neuroCombat, the shifts are those found together with scales.
    """

    variance: float = 0.95
    prior: Prior = "parametric"
    mean_only: bool = False

    name: ClassVar[str] = "covbat"
    title: ClassVar[str] = "CovBat"
    described: ClassVar[str] = "CovBat"
    study_options: ClassVar[tuple[str, ...]] = ("prior", "mean_only")
    references: ClassVar[tuple[str, ...]] = (
        FOR_MRI,
        "Chen AA, et al. Mitigating site effects in covariance for machine learning in neuroimaging data. Human "
        "Brain Mapping 2022;43:1179-1195.",
    )
    first: ClassVar[Stage] = FeatureMoments()
    states: ClassVar[tuple[type[State], ...]] = (
        CommonEffects,
        ResidualScale,
        ResidualBasis,
        ResidualComponents,
        CovBatModel,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.variance < 1:
            raise HarmonizationError(f"variance is {self.variance}; expected a share between 0 and 1.")
        _ = self.first_step  # refuses an unknown prior

    @property
    def first_step(self) -> ComBat:
        """ComBat of the features."""
        return ComBat(prior=self.prior)

    def effect_shapes(self, model: CovBatModel, n_features: int) -> dict[str, Shape]:
        scores = {f"score_{name}": shape for name, shape in SiteEffect.shapes(len(model.score_mean)).items()}
        return SiteEffect.shapes(n_features) | scores

    def estimate(self, model: CovBatModel, table: SiteTable) -> CovBatEffect:
        effect = self.effect_on_features(model, table)
        scores = model.scores(table, model.cleaned(table, effect))
        of_scores = model.of_scores.site_effect(scores, _no_covariates(table.n), prior="none")
        return CovBatEffect(
            effect.gamma, effect.delta, effect.unadjusted, of_scores.gamma, of_scores.delta, of_scores.unadjusted
        )

    def apply(self, model: CovBatModel, table: SiteTable, effect: CovBatEffect) -> Array:
        cleaned = model.cleaned(table, effect)
        scores = model.scores(table, cleaned)
        alike = model.of_scores.remove(scores, _no_covariates(table.n), effect.of_scores)
        harmonized: Array = cleaned + model.residual_sd * ((alike - scores) @ model.components)
        return np.where(effect.unadjusted, table.features, harmonized)

    def effect_on_features(self, state: CommonEffects, table: SiteTable) -> SiteEffect:
        """A site's effect on its features, which are a ComBat's."""
        if table.n < 2:
            raise HarmonizationError(
                "CovBat needs two participants at a site to know the scale of its components. Leave it out."
            )
        effect = self.first_step.estimate(state.of_features, table)
        return replace(effect, delta=np.ones_like(effect.delta)) if self.mean_only else effect


@dataclass(frozen=True)
class _AllComponents(Projection):
    """A projection to every component there is: a sketch wider than their number needs no refinement."""

    def width(self, centre: Centre) -> int:
        return min(len(centre.mean), int(centre.n) + _OVERSAMPLING)


def _no_covariates(n: int) -> Array:
    return np.empty((n, 0))
