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
from harmonization.core.errors import TableError
from harmonization.core.protocol import Analysis, Array, SiteTable, State, Sums
from harmonization.core.registry import register
from harmonization.core.variation import all_but_equal, vary_less
from harmonization.methods.combat import ComBatModel, moments_of, solve_within
from harmonization.methods.projection import Centre


@dataclass(frozen=True)
class ResidualizationCentre(Centre):
    """Means of the features [p] and of the covariates [q] over all sites, and the number of participants."""

    covariate_mean: Array


@dataclass(frozen=True)
class ResidualizationModel(State):
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

    done: ClassVar[bool] = True

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
        self._check(features, covariates)
        effects = covariates @ self.coefficients
        still = all_but_equal(features, effects.var(axis=0)) | vary_less(features, effects)
        if self.site > 0:
            return SiteCentre(features.mean(axis=0), covariates.mean(axis=0), still)
        return SiteCentre(self.mean, self.covariate_mean, still)

    def remove(self, features: Array, covariates: Array, centre: "SiteCentre") -> Array:
        """Residuals [n, p] of rows of a site with a known centre, also of rows that it was not found from."""
        self._check(features, covariates)
        effects = np.where(centre.still, 0.0, self.coefficients)
        residuals: Array = features - centre.mean - (covariates - centre.covariate_mean) @ effects
        return residuals

    def projected(self, mean: Array, components: Array) -> "ResidualizationModel":
        """Return the same model for features after a projection: (features - mean [p]) @ components' [p, k]."""
        return ResidualizationModel(
            self.coefficients @ components.T, (self.mean - mean) @ components.T, self.covariate_mean, self.site
        )

    def _check(self, features: Array, covariates: Array) -> None:
        if features.shape[1] != len(self.mean) or covariates.shape[1] != len(self.coefficients):
            raise TableError(
                f"features and covariates have {features.shape[1]} and {covariates.shape[1]} columns; this model was "
                f"fitted on {len(self.mean)} and {len(self.coefficients)}. Use the same ones, in the same order."
            )


@dataclass(frozen=True)
class SiteCentre:
    """What is subtracted at one site.

    Attributes
    ----------
    mean, covariate_mean : numpy.ndarray
        [p] and [q].
    still : numpy.ndarray
        [p] bool: features that hardly vary there, from which no effect of the covariates is taken.
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
    states: ClassVar[tuple[type[State], ...]] = (ResidualizationCentre, ResidualizationModel)

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        features, covariates = table.features, table.design
        sums = {
            "n": np.array(float(table.n)),
            "feature_sum": features.sum(axis=0),
            "covariate_sum": covariates.sum(axis=0),
        }
        if isinstance(state, ResidualizationCentre):
            y, c = features - state.mean, covariates - state.covariate_mean
        elif self.site:
            y, c = centred(features), centred(covariates)
        else:
            return sums
        return {**sums, "W": c.T @ c, "V": c.T @ y}

    def sends(self, widths: Widths, state: State | None) -> Declared:
        declared = {name: sent for name, sent in moments_of(widths.features, widths.covariates).items() if name != "T"}
        first = not self.site and not isinstance(state, ResidualizationCentre)
        return {name: sent for name, sent in declared.items() if not (first and name in ("W", "V"))}

    def solve(self, total: Sums, state: State | None) -> State:
        n = float(total["n"])
        mean, covariate_mean = total["feature_sum"] / n, total["covariate_sum"] / n
        if "W" not in total:
            return ResidualizationCentre(mean, n, covariate_mean)
        coefficients = solve_within(total["W"], total["V"], n, covariate_mean)
        return ResidualizationModel(coefficients, mean, covariate_mean, float(self.site))
