r"""ComBat: location and scale of every site and feature, made alike, from one sum over the sites.

Model (Johnson, Li & Rabinovic, Biostatistics 2007; Fortin et al., NeuroImage 2018), for site i, participant j and
feature v::

    y[ijv] = alpha[v] + c[ij] beta[v] + sigma[v] (gamma[iv] + delta[iv] e[ijv])

Each site centres features and covariates by its own means and sends n, sums, W = sum C'C, V = sum C'Y and
T = sum Y*Y. From their totals::

    beta = W^-1 V      alpha = mean(y) - mean(c) beta      sigma^2 = (T - sum_k V[k] beta[k]) / N

gamma and delta stay at the site, which alone needs them, with their empirical-Bayes priors over its features. The
answers equal those of neuroCombat on pooled data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from scipy.special import logsumexp

from harmonization.errors import DesignError, HarmonizationError, TableError
from harmonization.harmonizer import Harmonizer
from harmonization.protocol import Array, SiteTable, State, Sums

Prior = Literal["parametric", "nonparametric", "none"]

_TOLERANCE = 1e-4
"""Stop rule of the empirical-Bayes iteration, neuroCombat's."""
_BLOCK = 512
"""Features a block of the non-parametric prior, which compares all pairs."""


def summarize(features: Array, covariates: Array) -> Sums:
    """Return one site's sums.

    Parameters
    ----------
    features : numpy.ndarray
        [n, p].
    covariates : numpy.ndarray
        Design matrix [n, q], without intercept; q may be 0.

    Returns
    -------
    dict
        n, feature_sum [p], covariate_sum [q], W [q, q], V [q, p], T [p]; W, V and T about the site's means.
    """
    y = features - features.mean(axis=0)
    c = covariates - covariates.mean(axis=0)
    return {
        "n": np.array(float(len(features))),
        "feature_sum": features.sum(axis=0),
        "covariate_sum": covariates.sum(axis=0),
        "W": c.T @ c,
        "V": c.T @ y,
        "T": np.einsum("np,np->p", y, y),
    }


def solve(total: Sums) -> "ComBatModel":
    """Estimate what all sites share from the total of their sums.

    Raises
    ------
    DesignError
        If a covariate is constant inside every site, or covariates are collinear there.
    """
    n = float(total["n"])
    mean = total["feature_sum"] / n
    coefficients = solve_within(total["W"], total["V"], n, total["covariate_sum"] / n)
    grand_mean = mean - total["covariate_sum"] / n @ coefficients
    residual = total["T"] - np.einsum("qp,qp->p", total["V"], coefficients)
    # A feature that is constant inside every site leaves only the rounding error of its centring.
    constant = total["T"] <= n * (1e-14 * np.abs(mean)) ** 2
    variance = np.where(constant, 0.0, np.maximum(residual, 0.0) / n)
    return ComBatModel(coefficients, grand_mean, variance, n)


def solve_within(W: Array, V: Array, n: float, mean: Array) -> Array:
    """Solve W beta = V [q, p] for within-site cross-products W [q, q] of n rows, after checking that W allows it."""
    # A covariate that is constant inside every site leaves only the rounding error of its centring.
    constant = np.diag(W) <= n * (1e-12 * np.maximum(np.abs(mean), 1e-300)) ** 2
    scale = np.sqrt(np.diag(W))
    if constant.any():
        raise DesignError(
            f"covariate column {int(constant.argmax()) + 1} is constant inside every site, so its effect cannot be "
            "told from the site's. Leave it out."
        )
    if len(W) and np.linalg.cond(W / np.outer(scale, scale)) > 1e10:
        raise DesignError("covariates are collinear inside the sites. Leave one of them out.")
    scaled: Array = np.linalg.solve(W / np.outer(scale, scale), V / scale[:, None])
    return scaled / scale[:, None]


@dataclass(frozen=True)
class SiteEffect(State):
    """One site's shift and scale, in units of the pooled sd: gamma [p] and delta [p] (a variance)."""

    gamma: Array
    delta: Array

    done: ClassVar[bool] = True


@dataclass(frozen=True)
class ComBatModel(State):
    """What all sites share.

    Attributes
    ----------
    coefficients : numpy.ndarray
        [q, p], effects of the covariates.
    grand_mean : numpy.ndarray
        [p], where all covariates are 0.
    pooled_variance : numpy.ndarray
        [p], around site and covariates; 0 for features that are constant inside every site.
    n : float
        Participants.
    """

    coefficients: Array
    grand_mean: Array
    pooled_variance: Array
    n: float

    done: ClassVar[bool] = True

    def harmonize(
        self, features: Array, covariates: Array, *, prior: Prior = "parametric", mean_only: bool = False
    ) -> Array:
        """Remove a site's shift and scale from its own rows.

        Parameters
        ----------
        features : numpy.ndarray
            [n, p], all rows of one site.
        covariates : numpy.ndarray
            [n, q]; their effects are kept.
        prior : {"parametric", "nonparametric", "none"}
            How the site's effects are shrunk towards their mean over features.
        mean_only : bool
            Remove the shift and leave the scale.

        Returns
        -------
        numpy.ndarray
            [n, p]. Features without pooled variance come back as they were.
        """
        effect = self.site_effect(features, covariates, prior=prior, mean_only=mean_only)
        return self.remove(features, covariates, effect)

    def site_effect(
        self, features: Array, covariates: Array, *, prior: Prior = "parametric", mean_only: bool = False
    ) -> SiteEffect:
        """Estimate the effect of the site whose rows these are."""
        n, varying = len(features), self.pooled_variance > 0
        if n < 2 and not mean_only:
            raise HarmonizationError("ComBat needs two participants at a site to know its scale. Use mean_only.")
        if prior != "none" and varying.sum() < 2:
            raise HarmonizationError("Empirical Bayes needs two varying features. Use prior='none'.")
        z = self._standardize(features, covariates)[:, varying]
        gamma_hat = z.mean(axis=0)
        delta_hat = np.ones_like(gamma_hat) if mean_only else z.var(axis=0, ddof=1)
        effect = SiteEffect(np.zeros(len(varying)), np.ones(len(varying)))
        effect.gamma[varying], effect.delta[varying] = _shrink(gamma_hat, delta_hat, n, prior, mean_only)
        # A feature that is constant at this site has no scale to remove.
        effect.delta[effect.delta <= 0] = 1.0
        return effect

    def remove(self, features: Array, covariates: Array, effect: SiteEffect) -> Array:
        """Remove a known effect from rows of that site, also from rows that did not estimate it."""
        varying = self.pooled_variance > 0
        z = self._standardize(features, covariates)
        cleaned = (z - effect.gamma) / np.sqrt(effect.delta) * np.sqrt(self.pooled_variance) + self._expected(
            covariates
        )
        result: Array = np.where(varying, cleaned, features)
        return result

    def _expected(self, covariates: Array) -> Array:
        expected: Array = self.grand_mean + covariates @ self.coefficients
        return expected

    def _standardize(self, features: Array, covariates: Array) -> Array:
        if features.shape[1] != len(self.grand_mean) or covariates.shape[1] != len(self.coefficients):
            raise TableError(
                f"features and covariates have {features.shape[1]} and {covariates.shape[1]} columns; this model was "
                f"fitted on {len(self.grand_mean)} and {len(self.coefficients)}. Use the same ones, in the same order."
            )
        deviation = np.sqrt(self.pooled_variance)
        z: Array = (features - self._expected(covariates)) / np.where(deviation > 0, deviation, 1.0)
        return z


@dataclass(frozen=True)
class ComBat(Harmonizer):
    """ComBat as an analysis of one round; the final state is a `ComBatModel`.

    Parameters
    ----------
    prior : {"parametric", "nonparametric", "none"}
        How site effects are shrunk.
    mean_only : bool
        Remove shifts and leave scales.
    """

    prior: Prior = "parametric"
    mean_only: bool = False

    name: ClassVar[str] = "combat"
    states: ClassVar[tuple[type[State], ...]] = (ComBatModel,)

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        return summarize(table.features, table.design)

    def solve(self, total: Sums, state: State | None) -> ComBatModel:
        return solve(total)

    def estimate(self, model: ComBatModel, table: SiteTable) -> SiteEffect:
        return model.site_effect(table.features, table.design, prior=self.prior, mean_only=self.mean_only)

    def apply(self, model: ComBatModel, table: SiteTable, effect: SiteEffect) -> Array:
        return model.remove(table.features, table.design, effect)


class ComBatHarmonizer:
    """ComBat on pooled tables, with scikit-learn's manners.

    Parameters
    ----------
    prior : {"parametric", "nonparametric", "none"}
        How site effects are shrunk.
    mean_only : bool
        Remove shifts and leave scales.

    Examples
    --------
    >>> harmonizer = ComBatHarmonizer().fit(X_train, covariates_train, site_train)
    >>> harmonizer.transform(X_test, covariates_test, site_test)
    """

    def __init__(self, prior: Prior = "parametric", mean_only: bool = False) -> None:
        self.prior: Prior = prior
        self.mean_only = mean_only

    def fit(self, X: Array, covariates: Array | None, site: Sequence[Any]) -> Self:
        """Estimate from rows X [n, p], covariates [n, q] (or None) and the site of each row."""
        X, covariates, rows = self._by_site(X, covariates, site)
        parts = [summarize(X[index], covariates[index]) for index in rows.values()]
        self.model_ = solve({name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]})
        self.effects_ = {
            name: self.model_.site_effect(X[index], covariates[index], prior=self.prior, mean_only=self.mean_only)
            for name, index in rows.items()
        }
        return self

    def transform(self, X: Array, covariates: Array | None, site: Sequence[Any]) -> Array:
        """Harmonize rows. A site that was not fitted is estimated from the rows given, with all else frozen."""
        X, covariates, rows = self._by_site(X, covariates, site)
        harmonized = np.empty_like(X)
        for name, index in rows.items():
            effect = self.effects_.get(name) or self.model_.site_effect(
                X[index], covariates[index], prior=self.prior, mean_only=self.mean_only
            )
            harmonized[index] = self.model_.remove(X[index], covariates[index], effect)
        return harmonized

    def fit_transform(self, X: Array, covariates: Array | None, site: Sequence[Any]) -> Array:
        """Estimate from rows and harmonize them."""
        return self.fit(X, covariates, site).transform(X, covariates, site)

    @staticmethod
    def _by_site(X: Array, covariates: Array | None, site: Sequence[Any]) -> tuple[Array, Array, dict[Any, Any]]:
        """Check the rows and find those of each site."""
        X = np.asarray(X, dtype=np.float64)
        table = SiteTable(X, None if covariates is None else np.asarray(covariates, dtype=np.float64))
        labels = np.asarray(site)
        if labels.shape != (table.n,):
            raise TableError(f"site has shape {labels.shape}; expected ({table.n},), one name a row.")
        return X, table.design, {name: np.flatnonzero(labels == name) for name in np.unique(labels).tolist()}


def _shrink(gamma_hat: Array, delta_hat: Array, n: int, prior: Prior, mean_only: bool) -> tuple[Array, Array]:
    """Shrink one site's raw effects [p] towards what its other features say."""
    if prior == "none":
        return gamma_hat, delta_hat
    gamma_bar, t2 = gamma_hat.mean(), gamma_hat.var(ddof=1)
    if mean_only:
        return (t2 * gamma_hat + gamma_bar) / (t2 + 1), delta_hat
    if prior == "nonparametric":
        return _nonparametric(gamma_hat, delta_hat, n)
    return _parametric(gamma_hat, delta_hat, n, float(gamma_bar), float(t2))


def _parametric(gamma_hat: Array, delta_hat: Array, n: int, gamma_bar: float, t2: float) -> tuple[Array, Array]:
    """Posterior means under normal and inverse-gamma priors matched by moments (Johnson et al. 2007, section 3)."""
    m, s2 = delta_hat.mean(), delta_hat.var(ddof=1)
    if s2 == 0:  # all scales alike: the prior is a point
        return (t2 * n * gamma_hat + m * gamma_bar) / (t2 * n + m), np.full_like(delta_hat, m)
    a, b = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    gamma, delta = gamma_hat, delta_hat
    change = np.inf
    while change > _TOLERANCE:
        new_gamma = (t2 * n * gamma_hat + delta * gamma_bar) / (t2 * n + delta)
        squares = (n - 1) * delta_hat + n * (gamma_hat - new_gamma) ** 2
        new_delta = (0.5 * squares + b) / (n / 2 + a - 1)
        # Divided by the signed old value, as neuroCombat does: its answers, not a tighter fixed point, are the norm.
        with np.errstate(divide="ignore", invalid="ignore"):
            changes = np.concatenate([np.abs(new_gamma - gamma) / gamma, np.abs(new_delta - delta) / delta])
        change = np.nanmax(changes)
        gamma, delta = new_gamma, new_delta
    return gamma, delta


def _nonparametric(gamma_hat: Array, delta_hat: Array, n: int) -> tuple[Array, Array]:
    """Posterior means under the empirical distribution of the other features' effects.

    The likelihood of feature i under the effect of feature j is summed on the log scale: as products of densities it
    underflows from a few hundred participants on. Memory is bounded by blocks of features.
    """
    if (delta_hat <= 0).any():  # constant at this site: no scale to learn from, and none to remove
        known = delta_hat > 0
        gamma, delta = gamma_hat.copy(), np.ones_like(delta_hat)
        if known.sum() > 1:
            gamma[known], delta[known] = _nonparametric(gamma_hat[known], delta_hat[known], n)
        return gamma, delta
    gamma, delta = np.empty_like(gamma_hat), np.empty_like(delta_hat)
    log_delta = np.log(delta_hat)
    for start in range(0, len(gamma_hat), _BLOCK):
        rows = slice(start, start + _BLOCK)
        squares = (n - 1) * delta_hat[rows, None] + n * (gamma_hat[rows, None] - gamma_hat[None]) ** 2
        log_likelihood = -0.5 * n * (np.log(2 * np.pi) + log_delta) - squares / (2 * delta_hat)
        own = np.arange(start, start + len(squares))
        log_likelihood[np.arange(len(squares)), own] = -np.inf
        weights = np.exp(log_likelihood - logsumexp(log_likelihood, axis=1, keepdims=True))
        gamma[rows], delta[rows] = weights @ gamma_hat, weights @ delta_hat
    return gamma, delta
