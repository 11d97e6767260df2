"""How sites differ beyond their means: in the spread of each feature, and in how features go together."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import polygamma
from scipy.stats import f as f_distribution
from scipy.stats import false_discovery_control

from harmonization.core.declared import Declared, Widths, everybody
from harmonization.core.errors import HarmonizationError, TableError
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register

LARGEST_MATRIX = 1024
"""Features up to which a matrix over pairs of them is summed."""
_SIGNIFICANT = 0.05


class SpreadSums(Stage):
    """First round: sums of the deviations from the own site's centre, and of log variances."""

    def part(self, analysis: "SiteSpread", table: SiteTable) -> Sums:
        deviation, log_variance, varying = analysis.spread_of(table)
        return {
            "n": np.array(float(table.n)),
            "sites": np.array(1.0),
            "deviation_sum": deviation.sum(axis=0),
            "log_variance_sum": log_variance,
            "varying": varying.astype(np.float64),
            # The variance of the logarithm of a chi-squared number (Bartlett & Kendall, JRSS Supplement 1946).
            "noise": np.asarray(polygamma(1, (table.n - 1) / 2)),
        }

    def sends(self, analysis: "SiteSpread", widths: Widths) -> Declared:
        of_features = dict.fromkeys(("deviation_sum", "log_variance_sum", "varying"), everybody(widths.seen))
        return {**dict.fromkeys(("n", "sites", "noise"), everybody()), **of_features}

    def advance(self, analysis: "SiteSpread", total: Sums) -> State:
        n, sites = float(total["n"]), require_sites(total["sites"])
        return SpreadCentre(
            n=n,
            sites=sites,
            deviation=total["deviation_sum"] / n,
            log_variance=total["log_variance_sum"] / np.maximum(total["varying"], 1),
            varying=total["varying"],
            noise=float(total["noise"]) / sites,
        )


@dataclass(frozen=True)
class SpreadCentre(Stage):
    """What all sites have in common; squares about it.

    `n` participants at so many `sites`; mean `deviation` [p] from the own site's centre; mean `log_variance` [p] over
    the sites where the feature varies, whose number is `varying` [p]; and `noise`, the mean over sites of the sampling
    variance of a log variance.
    """

    n: float
    sites: float
    deviation: Array
    log_variance: Array
    varying: Array
    noise: float

    def part(self, analysis: "SiteSpread", table: SiteTable) -> Sums:
        deviation, log_variance, varying = analysis.spread_of(table)
        mean = deviation.mean(axis=0)
        return {
            "between": table.n * (mean - self.deviation) ** 2,
            "within": ((deviation - mean) ** 2).sum(axis=0),
            "log_variance_squares": varying * (log_variance - self.log_variance) ** 2,
        }

    def sends(self, analysis: "SiteSpread", widths: Widths) -> Declared:
        return dict.fromkeys(("between", "within", "log_variance_squares"), everybody(widths.seen))

    def advance(self, analysis: "SiteSpread", total: Sums) -> State:
        freedom = self.sites - 1, self.n - self.sites
        between, within = total["between"] / freedom[0], total["within"] / freedom[1]
        # Where no site's deviations vary, those of the sites are the same to rounding, or differ beyond doubt.
        beyond = np.where(total["between"] > 1e-12 * self.n * self.deviation**2, np.inf, 0.0)
        f = np.where(within > 0, between / np.where(within > 0, within, 1), beyond)
        p_values = np.asarray(f_distribution.sf(f, *freedom))
        spread = np.exp(np.sqrt(total["log_variance_squares"] / np.maximum(self.varying - 1, 1)))
        return SpreadResult(
            f=f,
            p_values=p_values,
            share_significant=float((false_discovery_control(p_values) < _SIGNIFICANT).mean()),
            geometric_sd=spread,
            mean_geometric_sd=float(spread.mean()),
            geometric_sd_by_chance=float(np.exp(np.sqrt(self.noise))),
            n_constant=int(((self.varying > 0) & (self.varying < self.sites)).sum()),
        )


@dataclass(frozen=True)
class SpreadResult(Answer):
    """How the spread of features differs between sites.

    Attributes
    ----------
    f : numpy.ndarray
        [p], Levene's statistic; infinite where deviations differ between sites alone.
    p_values : numpy.ndarray
        [p].
    share_significant : float
        Share of features with p < .05 after Benjamini & Hochberg's correction.
    geometric_sd : numpy.ndarray
        [p], geometric standard deviation of the sites' variances: 1 where they are equal, 2 where one typically is
        twice or half their geometric mean.
    mean_geometric_sd : float
        Mean over features.
    geometric_sd_by_chance : float
        About what the sites' sizes alone would give for normal data of equal variance.
    n_constant : int
        Features that are constant at one site or more, and vary at another.
    """

    f: Array
    p_values: Array
    share_significant: float
    geometric_sd: Array
    mean_geometric_sd: float
    geometric_sd_by_chance: float
    n_constant: int


@register
@dataclass(frozen=True)
class SiteSpread(Analysis):
    r"""Test of equal variance across sites, feature by feature, and the ratio of the variances.

    Levene's statistic (1960; Brown & Forsythe, JASA 1974, for medians) is that of a one-way analysis of variance of
    z = \|y - centre of the own site\|::

        F = [sum_i n_i (mean_i(z) - mean(z))^2 / (sites - 1)] / [sum_ij (z_ij - mean_i(z))^2 / (N - sites)]

    The first round sums to the means of z and of log variances, the second to squares about them. Of three sites or
    more, no single one's variance can be read from the sums. The table's covariates play no part.

    Parameters
    ----------
    centre : {"median", "mean"}
        What deviations are taken from. Medians also hold for features that are not normal.
    """

    centre: Literal["median", "mean"] = "median"

    name: ClassVar[str] = "site_spread"
    first: ClassVar[Stage] = SpreadSums()
    states: ClassVar[tuple[type[State], ...]] = (SpreadCentre, SpreadResult)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centre not in ("median", "mean"):
            raise HarmonizationError(f"centre is {self.centre!r}; expected 'median' or 'mean'.")

    def spread_of(self, table: SiteTable) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Deviations [n, p] from the site's centre, log variances [p], 0 without variance, and where there is one."""
        features = seen_features(table)
        if table.n < 2:
            raise HarmonizationError("a site has one participant, and so no spread to compare. Leave that site out.")
        variance = np.where(without_variance(features), 0, features.var(axis=0, ddof=1))
        varying = variance > 0
        return self._deviations(features), np.log(np.where(varying, variance, 1)), varying

    def _deviations(self, features: Array) -> Array:
        """Distance [n, p] of every value from its feature's centre at the site, freed from rounding errors."""
        centre = np.median(features, axis=0) if self.centre == "median" else features.mean(axis=0)
        deviation = np.where(without_variance(features), 0, np.abs(features - centre))
        equal = without_variance(deviation, np.abs(features).max(axis=0))
        return np.where(equal, deviation.mean(axis=0), deviation)


class MatrixSums(Stage):
    """First round: the sum of the sites' matrices, weighted."""

    def part(self, analysis: "CovarianceDistance", table: SiteTable) -> Sums:
        _, matrix = analysis.matrix_of(table)
        return {"freedom": np.array(table.n - 1.0), "weighted_matrix": (table.n - 1) * matrix}

    def sends(self, analysis: "CovarianceDistance", widths: Widths) -> Declared:
        return {"freedom": everybody(), "weighted_matrix": everybody(widths.seen, widths.seen)}

    def advance(self, analysis: "CovarianceDistance", total: Sums) -> State:
        if not total["weighted_matrix"].any():
            raise HarmonizationError(
                "no feature varies inside any site, so there are no covariances to compare. Give features that vary."
            )
        freedom = float(total["freedom"])
        return WithinSites(total["weighted_matrix"] / freedom, freedom)


@dataclass(frozen=True)
class WithinSites(Stage):
    """Pooled within-site covariance, or correlation, [p, p], and the sum over sites of n - 1; distances from it."""

    matrix: Array
    freedom: float

    def part(self, analysis: "CovarianceDistance", table: SiteTable) -> Sums:
        centred, matrix = analysis.matrix_of(table)
        noise = (
            _noise_of_correlation(matrix, table.n) if analysis.correlation else _noise_of_covariance(matrix, centred)
        )
        weight = (table.n - 1) / self.freedom
        return {
            "sites": np.array(1.0),
            "squared_distance": np.array(((matrix - self.matrix) ** 2).sum()),
            "noise": np.array((1 - 2 * weight) * noise),
            "pooled_noise": np.array(weight**2 * noise),
        }

    def sends(self, analysis: "CovarianceDistance", widths: Widths) -> Declared:
        return dict.fromkeys(("sites", "squared_distance", "noise", "pooled_noise"), everybody())

    def advance(self, analysis: "CovarianceDistance", total: Sums) -> State:
        sites, pooled_noise = require_sites(total["sites"]), float(total["pooled_noise"])
        distance = float(total["squared_distance"]) / sites
        by_chance = max(float(total["noise"]) / sites + pooled_noise, 0)
        measured = float((self.matrix**2).sum())
        # The size without noise is no smaller than that of equal and uncorrelated variances.
        size = max(measured - pooled_noise, float(np.trace(self.matrix)) ** 2 / len(self.matrix))
        return CovarianceDistanceResult(
            distance=float(np.sqrt(distance / measured)),
            distance_by_chance=float(np.sqrt(by_chance / measured)),
            corrected=float(np.sqrt(max(distance - by_chance, 0) / size)),
        )


@dataclass(frozen=True)
class CovarianceDistanceResult(Answer):
    """How far the sites' matrices are from the pooled one, relative to its size; squares are averaged over sites.

    Attributes
    ----------
    distance : float
        As measured.
    distance_by_chance : float
        What sampling alone would give.
    corrected : float
        Distance beyond chance; 0 where there is none.
    """

    distance: float
    distance_by_chance: float
    corrected: float


@register
@dataclass(frozen=True)
class CovarianceDistance(Analysis):
    r"""Frobenius distance of each site's covariance C_i from the pooled within-site one, C, relative to \|\|C\|\|.

    The first round sums to C, the mean of the C_i with weights w_i = (n_i - 1) / sum (n_i - 1), the second to squared
    distances and to what sampling adds to them. With v_i = E \|\|C_i - S_i\|\|^2, for the true covariance S_i::

        E ||C_i - C||^2 = ||S_i - S||^2 + (1 - 2 w_i) v_i + sum_j w_j^2 v_j

    For normal data v_i = (tr(S_i)^2 + tr(S_i^2)) / (n_i - 1). Each site estimates its own without that assumption: v_i
    is E \|\|C_i\|\|^2 - tr(S_i^2), and Himeno & Yamada (J. Multivariate Analysis 2014) estimate tr(S_i^2) without bias.
    For correlations, v_i is that of normal data. The table's covariates play no part.

    Parameters
    ----------
    correlation : bool
        Compare correlations, so that the variances of features are of no matter.
    """

    correlation: bool = False

    name: ClassVar[str] = "covariance_distance"
    first: ClassVar[Stage] = MatrixSums()
    states: ClassVar[tuple[type[State], ...]] = (WithinSites, CovarianceDistanceResult)

    def matrix_of(self, table: SiteTable) -> tuple[Array, Array]:
        """A site's centred features [n, p], and their covariance or correlation [p, p]."""
        features = seen_features(table)
        if table.n < 3:
            raise HarmonizationError(
                f"a site has {table.n} participants; comparing covariances needs three. Leave it out."
            )
        if features.shape[1] > LARGEST_MATRIX:
            raise TableError(
                f"features have {features.shape[1]} columns; covariances are compared for up to {LARGEST_MATRIX}. Use "
                "their principal components."
            )
        centred = np.where(without_variance(features), 0, features - features.mean(axis=0))
        matrix = _correlation(centred) if self.correlation else centred.T @ centred / (table.n - 1)
        return centred, matrix


def _correlation(centred: Array) -> Array:
    """Correlations [p, p] of centred features [n, p]; constant ones go with none, not even themselves."""
    norm = np.sqrt((centred**2).sum(axis=0))
    scaled = centred / np.where(norm > 0, norm, 1)
    return scaled.T @ scaled


def _noise_of_covariance(covariance: Array, centred: Array) -> float:
    """Estimate E ||C - S||^2 for one site, from its covariance C [p, p] and its centred features [n, p]."""
    n, trace, squares = len(centred), float(np.trace(covariance)), float((covariance**2).sum())
    if n == 3:  # too few for fourth moments: the estimate for normal data (Srivastava, J. Japan Statist. Soc. 2005)
        return trace**2 / 2
    fourth = float(((centred**2).sum(axis=1) ** 2).sum()) / (n - 1)
    without_noise = (n - 1) * (n - 2) * squares + trace**2 - n * fourth
    return squares - (n - 1) / (n * (n - 2) * (n - 3)) * without_noise


def _noise_of_correlation(correlation: Array, n: int) -> float:
    """Estimate the same for correlations of normal data: exact where they are 0, of first order elsewhere."""
    varying, freedom = np.diag(correlation), n - 1
    shrinking = (np.outer(varying, varying) * (1 - correlation**2) ** 2).sum()
    return float(shrinking * (freedom + 2) / (freedom**2 - 1))


def seen_features(table: SiteTable) -> Array:
    """Features [n, p] as an analysis sees them: through the table's loadings, if it has any."""
    return table.features if table.loadings is None else table.features @ table.loadings


def require_sites(sites: Array) -> float:
    """Return the number of sites, of which there must be two to compare."""
    if sites < 2:
        raise HarmonizationError("there is one site only, and nothing to compare it with. Use two or more.")
    return float(sites)


def without_variance(values: Array, size: Array | None = None) -> NDArray[np.bool_]:
    """Tell which columns of values [n, p], whose inputs are of a size [p], are constant but for rounding errors."""
    mean = values.mean(axis=0)
    size = np.abs(mean) if size is None else size
    negligible: NDArray[np.bool_] = ((values - mean) ** 2).sum(axis=0) <= len(values) * (1e-14 * size) ** 2
    return negligible
