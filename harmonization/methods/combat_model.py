"""What ComBat's sites share, and what each site does with it to its own rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harmonization.core.centring import centred
from harmonization.core.declared import Shape
from harmonization.core.errors import HarmonizationError, TableError
from harmonization.core.protocol import Answer, Array, SiteTable
from harmonization.core.variation import hardly_varies
from harmonization.methods.empirical_bayes import Prior, raw_effects, shrink
from harmonization.methods.harmonizer import Effect

_ROUNDING = 1e-13
"""Difference of two numbers, relative to the features they come from, that is only rounding."""


@dataclass(frozen=True)
class SiteEffect(Effect):
    """One site's shift and scale, in units of the pooled sd.

    Attributes
    ----------
    gamma : numpy.ndarray
        [p], shifts; 0 where nothing is adjusted, NaN in features of which the site had no value.
    delta : numpy.ndarray
        [p], scales (variances); 1 where nothing is adjusted, NaN in features of which the site had no value.
    unadjusted : numpy.ndarray
        [p] bool: features that hardly vary at the site (`harmonization.core.variation`), and come back as they were.
    """

    gamma: Array
    delta: Array
    unadjusted: NDArray[np.bool_]

    @property
    def n_unadjusted(self) -> int:
        return int(self.unadjusted.sum())

    @classmethod
    def shapes(cls, n_features: int) -> dict[str, Shape]:
        """Shapes of its arrays for so many features."""
        return dict.fromkeys(("gamma", "delta", "unadjusted"), (n_features,))


@dataclass(frozen=True)
class ComBatModel(Answer):
    """What all sites share.

    Attributes
    ----------
    coefficients : numpy.ndarray
        [q, p], effects of the covariates.
    grand_mean : numpy.ndarray
        [p], where all covariates are 0.
    pooled_variance : numpy.ndarray
        [p], around site and covariates; 0 for features that are constant inside every site. With a reference site,
        its own.
    n : float
        Participants.
    """

    coefficients: Array
    grand_mean: Array
    pooled_variance: Array
    n: float

    def harmonize(
        self, features: Array, covariates: Array, *, prior: Prior = "parametric", mean_only: bool = False
    ) -> Array:
        """Remove a site's shift and scale from its own rows.

        Parameters
        ----------
        features : numpy.ndarray
            [n, p], all rows of one site; NaN where missing.
        covariates : numpy.ndarray
            [n, q]; their effects are kept.
        prior : {"parametric", "nonparametric", "none"}
            How the site's effects are shrunk towards their mean over features.
        mean_only : bool
            Remove the shift and leave the scale.

        Returns
        -------
        numpy.ndarray
            [n, p]. Features that hardly vary at the site, or at none, come back as they were, and NaN as NaN.
        """
        table = SiteTable(features, covariates, incomplete=True)
        effect = self.site_effect(table.features, table.design, prior=prior, mean_only=mean_only)
        return self.remove(table.features, table.design, effect)

    def site_effect(
        self, features: Array, covariates: Array, *, prior: Prior = "parametric", mean_only: bool = False
    ) -> SiteEffect:
        """Estimate the effect of the site whose rows these are, in each feature from the rows that have it.

        Features that hardly vary here (`harmonization.core.variation`) are left as they are, and take no part in the
        priors. Where one alone varies, there are no others that it could be shrunk towards.

        Raises
        ------
        HarmonizationError
            If the rows are too few to know a scale, or the features to know a prior.
        """
        z = self._without_rounding(self._standardize(features, covariates), features)
        counts, varying = (~np.isnan(z)).sum(axis=0), self.pooled_variance > 0
        unadjusted = hardly_varies(features, self.pooled_variance, covariates @ self.coefficients)
        known = ~unadjusted & (counts > 0)
        if len(z) < 2 and not mean_only:
            raise HarmonizationError("ComBat needs two participants at a site to know its scale. Use mean_only.")
        if (counts[known] < 2).any() and not mean_only:
            raise HarmonizationError(
                f"feature {int((known & (counts < 2)).argmax()) + 1} has one value at a site, and ComBat needs two to "
                "know its scale. Leave it out there, or use mean_only."
            )
        if prior != "none" and (varying & (counts > 0)).sum() < 2:
            raise HarmonizationError("Empirical Bayes needs two varying features. Use prior='none'.")
        effect = SiteEffect(np.where(unadjusted, 0.0, np.nan), np.where(unadjusted, 1.0, np.nan), unadjusted)
        if known.any():
            effect.gamma[known], effect.delta[known] = shrink(raw_effects(z[:, known], mean_only), prior, mean_only)
        return effect

    def remove(self, features: Array, covariates: Array, effect: SiteEffect) -> Array:
        """Remove a known effect from rows of that site, also from rows that did not estimate it.

        Raises
        ------
        HarmonizationError
            If the rows have a feature of which the site had no value when its effect was estimated.
        """
        z = self._standardize(features, covariates)
        unknown = np.isnan(effect.gamma) & ~np.isnan(z).all(axis=0)
        if unknown.any():
            raise HarmonizationError(
                f"feature {int(unknown.argmax()) + 1} had no value at this site when its effect was estimated. "
                "Estimate it anew from rows that have the feature."
            )
        cleaned = (z - effect.gamma) / np.sqrt(effect.delta) * np.sqrt(self.pooled_variance)
        cleaned = cleaned + covariates @ self.coefficients + self.grand_mean
        return np.where(effect.unadjusted, features, cleaned)

    def _standardize(self, features: Array, covariates: Array) -> Array:
        check_columns(features, covariates, self.coefficients)
        deviation = np.sqrt(self.pooled_variance)
        left = features - self.grand_mean - covariates @ self.coefficients
        return left / np.where(deviation > 0, deviation, 1.0)

    def _without_rounding(self, z: Array, features: Array) -> Array:
        """Make equal the rows of `z` [n, p] that differ by the rounding of the features alone.

        Covariates that hardly anybody has elsewhere can explain a small site to the last digit. What is left of it
        has no scale.
        """
        present = ~np.isnan(z)
        mean = np.where(present, z, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
        return np.where(present & only_rounding(centred(z), features, self.pooled_variance), mean, z)


def only_rounding(deviations: Array, features: Array, variance: Array) -> NDArray[np.bool_]:
    """Tell in which features [n, p], divided by the root of a variance [p], deviations [n, p] are rounding alone."""
    size = np.fmax.reduce(np.abs(features), axis=0, initial=0.0) / np.sqrt(np.where(variance > 0, variance, 1.0))
    rounding: NDArray[np.bool_] = np.abs(deviations).max(axis=0) <= _ROUNDING * size
    return rounding


def check_columns(features: Array, covariates: Array, coefficients: Array) -> None:
    """Refuse features [n, p] and covariates [n, q] for which these are not the coefficients [q, p]."""
    q, p = coefficients.shape
    if (features.shape[1], covariates.shape[1]) != (p, q):
        raise TableError(
            f"features and covariates have {features.shape[1]} and {covariates.shape[1]} columns; this model was "
            f"fitted on {p} and {q}. Use the same ones, in the same order."
        )
