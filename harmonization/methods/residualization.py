"""Linear effects of covariates, and of site, taken out of features from sums over the sites.

After ComBat that can go in two orders. Either residuals are taken of harmonized features, with effects estimated anew
from these (`Residualization`). Or one model serves both: ComBat is fitted with all covariates kept, and its own
coefficients are subtracted (`ResidualizationModel.from_combat`). Both are the same where ComBat only shifts, by the
sites' own means. Where it shrinks or scales, what it leaves is no longer free of the covariates to the last digit; the
first order takes that out, too, and the second does not.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from harmonization.core.centring import centred
from harmonization.core.declared import Declared, Widths
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.core.variation import all_but_equal, vary_less
from harmonization.methods.combat import ComBatModel, moments_of, solve_within
from harmonization.methods.combat_model import check_columns


class EffectSums(Stage):
    """First round: sums, and where the site is an effect, products about its own means."""

    def part(self, analysis: "Residualization", table: SiteTable) -> Sums:
        return _sums(table) | (_products(centred(table.features), centred(table.design)) if analysis.site else {})

    def sends(self, analysis: "Residualization", widths: Widths) -> Declared:
        return _declared(widths, *(("W", "V") if analysis.site else ()))

    def advance(self, analysis: "Residualization", total: Sums) -> State:
        if analysis.site:
            return _model(analysis, total)
        n = float(total["n"])
        return ResidualizationCentre(total["feature_sum"] / n, n, total["covariate_sum"] / n)


@dataclass(frozen=True)
class ResidualizationCentre(Stage):
    """Means of the features [p] and of the covariates [q] over all sites, and the number of participants.

    The second round has products about these.
    """

    mean: Array
    n: float
    covariate_mean: Array

    def part(self, analysis: "Residualization", table: SiteTable) -> Sums:
        return _sums(table) | _products(table.features - self.mean, table.design - self.covariate_mean)

    def sends(self, analysis: "Residualization", widths: Widths) -> Declared:
        return _declared(widths, "W", "V")

    def advance(self, analysis: "Residualization", total: Sums) -> State:
        return _model(analysis, total)


def _sums(table: SiteTable) -> Sums:
    n = np.array(float(table.n))
    return {"n": n, "feature_sum": table.features.sum(axis=0), "covariate_sum": table.design.sum(axis=0)}


def _products(y: Array, c: Array) -> Sums:
    return {"W": c.T @ c, "V": c.T @ y}


def _declared(widths: Widths, *products: str) -> Declared:
    """Declare `_sums`, and which of the products go with them."""
    moments = moments_of(widths.features, widths.covariates)
    return {name: moments[name] for name in ("n", "feature_sum", "covariate_sum", *products)}


def _model(analysis: "Residualization", total: Sums) -> "ResidualizationModel":
    n = float(total["n"])
    covariate_mean = total["covariate_sum"] / n
    coefficients = solve_within(total["W"], total["V"], n, covariate_mean)
    return ResidualizationModel(coefficients, total["feature_sum"] / n, covariate_mean, float(analysis.site))


@dataclass(frozen=True)
class ResidualizationModel(Answer):
    """Common effects of the covariates.

    Attributes
    ----------
    coefficients : numpy.ndarray
        [q, p].
    mean : numpy.ndarray
        [p], of the features over all sites.
    covariate_mean : numpy.ndarray
        [q], over all sites.
    site : float
        1 if each site's own mean is removed, 0 if the common one.
    """

    coefficients: Array
    mean: Array
    covariate_mean: Array
    site: float

    @classmethod
    def from_combat(cls, model: ComBatModel) -> Self:
        """Return the model whose residuals of *harmonized* features are ``harmonized - alpha - c beta`` of ComBat.

        They are ComBat's standardized residuals, times the pooled standard deviation.
        """
        return cls(model.coefficients, model.grand_mean, np.zeros(len(model.coefficients)), 0.0)

    def residualize(self, features: Array, covariates: Array) -> Array:
        """Residuals [n, p] of all rows of one site.

        From features that hardly vary there beside the covariates' effects (`harmonization.core.variation`) the mean
        alone is taken: they have no such effect, and taking it out would write it in.
        """
        return self.remove(features, covariates, self.centre(features, covariates))

    def centre(self, features: Array, covariates: Array) -> "SiteCentre":
        """Return what is subtracted from rows of the site whose rows these are."""
        check_columns(features, covariates, self.coefficients)
        effects = covariates @ self.coefficients
        still = all_but_equal(features, effects.var(axis=0)) | vary_less(features, effects)
        if self.site > 0:
            return SiteCentre(features.mean(axis=0), covariates.mean(axis=0), still)
        return SiteCentre(self.mean, self.covariate_mean, still)

    def remove(self, features: Array, covariates: Array, centre: "SiteCentre") -> Array:
        """Residuals [n, p] of rows of a site with a known centre, also of rows that it was not found from."""
        check_columns(features, covariates, self.coefficients)
        effects = np.where(centre.still, 0.0, self.coefficients)
        return features - centre.mean - (covariates - centre.covariate_mean) @ effects

    def projected(self, mean: Array, components: Array) -> "ResidualizationModel":
        """Return the same model for features after a projection: (features - mean [p]) @ components' [p, k]."""
        return ResidualizationModel(
            self.coefficients @ components.T, (self.mean - mean) @ components.T, self.covariate_mean, self.site
        )


@dataclass(frozen=True)
class SiteCentre:
    """What is subtracted at one site: its means [p] and [q].

    No effect of the covariates is taken from features that hardly vary there, `still` [p] bool.
    """

    mean: Array
    covariate_mean: Array
    still: NDArray[np.bool_]


@register
@dataclass(frozen=True)
class Residualization(Analysis):
    """Ordinary least squares of features on an intercept, the covariates and, if asked for, the site.

    With a site effect the coefficients are those within sites (Frisch & Waugh, Econometrica 1933; Lovell, JASA 1963),
    W^-1 V of sums about each site's own means, in one round. Without one, W and V are about the common means, which
    takes another round.

    Parameters
    ----------
    site : bool
        Whether the site is one of the effects to remove.
    """

    site: bool = True

    name: ClassVar[str] = "residualization"
    first: ClassVar[Stage] = EffectSums()
    states: ClassVar[tuple[type[State], ...]] = (ResidualizationCentre, ResidualizationModel)
