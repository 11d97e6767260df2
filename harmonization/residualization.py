"""Linear effects of covariates, and of site, taken out of features from one sum over the sites."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harmonization import combat
from harmonization.protocol import Analysis, Array, SiteTable, State, Sums


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

    def residualize(self, features: Array, covariates: Array) -> Array:
        """Residuals [n, p] of all rows of one site."""
        by_site = self.site > 0
        feature_mean = features.mean(axis=0) if by_site else self.mean
        covariate_mean = covariates.mean(axis=0) if by_site else self.covariate_mean
        residuals: Array = features - feature_mean - (covariates - covariate_mean) @ self.coefficients
        return residuals

    def projected(self, mean: Array, components: Array) -> "ResidualizationModel":
        """Return the same model for features after a projection: (features - mean [p]) @ components' [p, k]."""
        return ResidualizationModel(
            self.coefficients @ components.T, (self.mean - mean) @ components.T, self.covariate_mean, self.site
        )


@dataclass(frozen=True)
class Residualization(Analysis):
    """Ordinary least squares of features on an intercept, the covariates and, if asked for, the site.

    With a site effect the coefficients are those within sites (Frisch, Waugh & Lovell), W^-1 V of ComBat's sums.
    Without one, the sites' means add what lies between them.

    Parameters
    ----------
    site : bool
        Whether the site is one of the effects to remove.
    """

    site: bool = True

    name: ClassVar[str] = "residualization"
    states: ClassVar[tuple[type[State], ...]] = (ResidualizationModel,)

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        sums = combat.summarize(table.features, table.design)
        del sums["T"]
        if not self.site:
            mean = table.design.mean(axis=0)
            sums["W"] += table.n * np.outer(mean, mean)
            sums["V"] += np.outer(mean, sums["feature_sum"])
        return sums

    def solve(self, total: Sums, state: State | None) -> ResidualizationModel:
        n = float(total["n"])
        mean, covariate_mean = total["feature_sum"] / n, total["covariate_sum"] / n
        W, V = total["W"], total["V"]
        if not self.site:
            W = W - n * np.outer(covariate_mean, covariate_mean)
            V = V - n * np.outer(covariate_mean, mean)
        return ResidualizationModel(
            combat.solve_within(W, V, n, covariate_mean), mean, covariate_mean, float(self.site)
        )
