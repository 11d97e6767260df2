r"""ComBat where participants have several visits: a random intercept for each, from two sums over the sites.

Model, after Beer et al. (NeuroImage 2020), for site i, participant j, visit t and feature v::

    y[ijtv] = alpha[v] + c[ijt] beta[v] + eta[ijv] + sigma[v] (gamma[iv] + delta[iv] e[ijtv])

with var(eta) = tau^2[v] and var(e) = 1. Where Beer et al. estimate by restricted likelihood, this does by moments,
which are sums:

1. Variance components by fitting constants (Henderson's method III; Searle, Casella & McCulloch, Variance Components,
   1992, section 5.5), for unbalanced visits. With RSS_w the residual squares of regression on covariates about each
   participant's own means, RSS that about each site's, N rows, J participants, S sites, q covariates of which r vary
   within participants, and s_j the sum of participant j's covariates about the site's mean::

       sigma^2 = RSS_w / (N - J - r)
       tau^2   = (RSS - (N - S - q) sigma^2) / (N - sum_j n_j^2 / n_i - tr(W^-1 sum_j s_j s_j'))

   A negative tau^2 is set to 0, which makes the feature's model that of ComBat.
2. Generalized least squares with site intercepts. A participant of n_j visits weighs w_j = n_j / (1 + n_j lambda)
   between participants, lambda = tau^2 / sigma^2, and as n_j within.

A site's scale comes from changes within its participants alone, since only these are free of eta. Its rows weigh
sum_j w_j in the prior of its shift. Both effects shrink as in ComBat. What is removed is the shift, and the scale of
the residual; each participant's intercept, predicted given the site's effects (BLUP), stays: it is biology. A feature
that hardly changes within the participants of a site comes back as it was there (`harmonization.methods.combat`).

Supported: participants who stay at one site, any number of visits each, one common tau^2. Not supported: travelling
participants, random slopes, site effects that change in time, missing values, a reference site.
"""

from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from harmonization.core.centring import centred
from harmonization.core.declared import Declared, Shape, Widths, everybody
from harmonization.core.errors import DesignError, HarmonizationError, SmallGroupError, TableError
from harmonization.core.protocol import Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.core.variation import hardly_varies
from harmonization.methods.combat import moments_of, solve_within, summarize
from harmonization.methods.combat_model import SiteEffect, check_columns, only_rounding
from harmonization.methods.empirical_bayes import Prior, RawEffects, shrink
from harmonization.methods.harmonizer import Harmonizer

_EXPLAINED = 1e-13
"""Share of a sum of squares that is only rounding."""
_ROUNDING = 1e-15
"""Variation within participants, relative to the largest value, that is only rounding."""


@dataclass(frozen=True)
class Visits:
    """One site's rows by participant: whose of J each is, `whose` [n], and how many each has, `counts` [J]."""

    whose: NDArray[np.int64]
    counts: Array

    @classmethod
    def of(cls, table: SiteTable) -> "Visits":
        participant = np.arange(table.n) if table.participant is None else table.participant
        _, whose, counts = np.unique(participant, return_inverse=True, return_counts=True)
        return cls(whose, counts.astype(np.float64))

    @property
    def again(self) -> NDArray[np.int64]:
        """Rows of each participant but the first: as many as there are independent changes within participants."""
        _, first = np.unique(self.whose, return_index=True)
        return np.delete(np.arange(len(self.whose)), first)

    def sums(self, values: Array) -> Array:
        """Sum of each participant's rows of `values` [n, k], [J, k]."""
        order = np.argsort(self.whose, kind="stable")
        starts = np.cumsum(self.counts).astype(np.int64) - self.counts.astype(np.int64)
        return np.add.reduceat(values[order], starts, axis=0)

    def means(self, values: Array) -> Array:
        """Mean of each participant's rows of `values` [n, k], [J, k]."""
        return self.sums(values) / self.counts[:, None]

    def within(self, values: Array) -> Array:
        """Rows of `values` [n, k] about their participant's mean; 0 in columns where that is only rounding."""
        deviations = centred(values)
        for _ in range(2):  # the second pass takes out the rounding of the first
            deviations = deviations - self.means(deviations)[self.whose]
        varying = np.abs(deviations).max(axis=0) > _ROUNDING * np.abs(values).max(axis=0)
        return np.where(varying, deviations, 0.0)

    def weights(self, ratio: Array) -> Array:
        """Weight between participants [J, p] for a ratio of variances [p]."""
        return self.counts[:, None] / (1 + self.counts[:, None] * ratio)


class VarianceSums(Stage):
    """First round: the sums of ComBat, the same within participants, and what tau^2 adds to them."""

    def part(self, analysis: "LongitudinalComBat", table: SiteTable) -> Sums:
        visits = _checked_visits(table)
        y, c = visits.within(table.features), visits.within(table.design)
        between = visits.sums(centred(table.design))
        sums = summarize(table.features, table.design)
        del sums["feature_sum"]
        return {
            **sums,
            "sites": np.array(1.0),
            "participants": np.array(float(len(visits.counts))),
            "squared_counts": np.array((visits.counts**2).sum() / table.n),
            "between": between.T @ between,
            "W_within": c.T @ c,
            "V_within": c.T @ y,
            "T_within": np.einsum("np,np->p", y, y),
        }

    def sends(self, analysis: "LongitudinalComBat", widths: Widths) -> Declared:
        p, q = widths.features, widths.covariates
        sums = {name: sent for name, sent in moments_of(p, q).items() if name != "feature_sum"}
        return {
            **sums,
            **{name: everybody() for name in ("sites", "participants", "squared_counts")},
            "between": everybody(q, q),
            "W_within": everybody(q, q),
            "V_within": everybody(q, p),
            "T_within": everybody(p),
        }

    def advance(self, analysis: "LongitudinalComBat", total: Sums) -> "VarianceComponents":
        """Variance components by Henderson's method III."""
        n, participants, sites = (float(total[name]) for name in ("n", "participants", "sites"))
        if participants == n:
            raise HarmonizationError("no participant has two rows. Use ComBat, which needs no repeats.")
        coefficients = solve_within(
            total["W"], np.hstack([total["V"], total["between"]]), n, total["covariate_sum"] / n
        )
        p = len(total["T"])
        squares = total["T"] - np.einsum("qp,qp->p", total["V"], coefficients[:, :p])
        explained, rank = _explained_within(total["W_within"], total["V_within"])
        squares_within = total["T_within"] - explained
        freedom_within = n - participants - rank
        if freedom_within < 1:
            raise DesignError("covariates leave no rows to know the variance within participants. Leave some out.")
        still = (total["T"] > 0) & (squares_within <= _EXPLAINED * total["T_within"])
        if still.any():
            raise DesignError(
                f"feature {int(still.argmax()) + 1} does not vary within participants once covariates are taken out. "
                "Leave it or a covariate out, or use ComBat on one row a participant."
            )
        within = np.where(total["T"] > 0, squares_within / freedom_within, 0.0)
        rows_of_intercepts = n - float(total["squared_counts"]) - np.trace(coefficients[:, p:])
        if rows_of_intercepts <= _EXPLAINED * n:
            raise HarmonizationError("participants do not differ beside site and covariates. Add some to the sites.")
        freedom = n - sites - len(total["W"])
        return VarianceComponents(within, np.maximum(squares - freedom * within, 0.0) / rows_of_intercepts, n)


@dataclass(frozen=True)
class VarianceComponents(Stage):
    """After the first round: sigma^2, `within`, and tau^2, `between` [p], and the number of rows.

    Both are 0 for features that are constant inside every site. Generalized least squares about each site's intercept
    follows.
    """

    within: Array
    between: Array
    n: float

    @property
    def ratio(self) -> Array:
        """Lambda [p]: variance between participants for one within."""
        return self.between / np.where(self.within > 0, self.within, 1.0)

    def part(self, analysis: "LongitudinalComBat", table: SiteTable) -> Sums:
        """Sums about the site's intercept, and that intercept; weights differ by feature."""
        visits = _checked_visits(table)
        y, c = visits.means(centred(table.features)), visits.means(centred(table.design))
        y_within, c_within = visits.within(table.features), visits.within(table.design)
        w = visits.weights(self.ratio)
        total = w.sum(axis=0)
        y_mean, c_mean = (w * y).sum(axis=0) / total, w.T @ c / total[:, None]
        products = np.einsum("jq,jr->jqr", c, c).reshape(len(c), -1)
        W = (w.T @ products).reshape(len(total), c.shape[1], c.shape[1])
        W += c_within.T @ c_within - total[:, None, None] * np.einsum("pq,pr->pqr", c_mean, c_mean)
        return {
            "W": W,
            "V": c_within.T @ y_within + c.T @ (w * y) - total * c_mean.T * y_mean,
            "feature_sum": table.n * (table.features.mean(axis=0) + y_mean),
            "covariate_sum": table.n * (table.design.mean(axis=0) + c_mean),
        }

    def sends(self, analysis: "LongitudinalComBat", widths: Widths) -> Declared:
        p, q = widths.features, widths.covariates
        return {
            "W": everybody(p, q, q),
            "V": everybody(q, p),
            "feature_sum": everybody(p),
            "covariate_sum": everybody(p, q),
        }

    def advance(self, analysis: "LongitudinalComBat", total: Sums) -> State:
        scale = np.sqrt(np.einsum("pqq->pq", total["W"]))
        scaled = total["W"] / (scale[:, :, None] * scale[:, None, :])
        coefficients = (np.linalg.solve(scaled, total["V"].T[..., None] / scale[..., None])[..., 0] / scale).T
        grand_mean = (total["feature_sum"] - np.einsum("pq,qp->p", total["covariate_sum"], coefficients)) / self.n
        return self.become(LongitudinalModel, coefficients=coefficients, grand_mean=grand_mean)


@dataclass(frozen=True)
class LongitudinalModel(Answer, VarianceComponents):
    """Second round: variance components, and the effects of the covariates [q, p] and the mean [p] given them."""

    coefficients: Array
    grand_mean: Array


@register
@dataclass(frozen=True)
class LongitudinalComBat(Harmonizer):
    """ComBat with a random intercept for each participant, in two rounds; the final state is a `LongitudinalModel`.

    All rows of a participant are to be in one table: its intercept is predicted from those that are there. Where
    nobody has two rows it is refused: that is for `ComBat`.

    Parameters
    ----------
    prior, mean_only
        As of `harmonization.methods.combat.ComBat`.
    """

    prior: Prior = "parametric"
    mean_only: bool = False

    name: ClassVar[str] = "combat_longitudinal"
    title: ClassVar[str] = "longitudinal ComBat"
    described: ClassVar[str] = "longitudinal ComBat"
    for_studies: ClassVar[bool] = False
    first: ClassVar[Stage] = VarianceSums()
    states: ClassVar[tuple[type[State], ...]] = (VarianceComponents, LongitudinalModel)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior not in get_args(Prior):
            raise HarmonizationError(f"prior is '{self.prior}'; expected one of {', '.join(get_args(Prior))}.")

    def effect_shapes(self, model: LongitudinalModel, n_features: int) -> dict[str, Shape]:
        return SiteEffect.shapes(n_features)

    def estimate(self, model: LongitudinalModel, table: SiteTable) -> SiteEffect:
        visits = _visits(table)
        check_columns(table.features, table.design, model.coefficients)
        if len(visits.again) < 1 and not self.mean_only:
            raise HarmonizationError("no participant of a site has two rows, which tell its scale. Use mean_only.")
        unadjusted = self._hardly_varies(visits, model, table)
        if self.prior != "none" and (model.within > 0).sum() < 2:
            raise HarmonizationError("Empirical Bayes needs two varying features. Use prior='none'.")
        effect = SiteEffect(np.zeros(len(unadjusted)), np.ones(len(unadjusted)), unadjusted)
        if not unadjusted.all():
            raw = _raw_effects(visits, model, table, ~unadjusted, self.mean_only)
            effect.gamma[~unadjusted], effect.delta[~unadjusted] = shrink(raw, self.prior, self.mean_only)
        return effect

    def apply(self, model: LongitudinalModel, table: SiteTable, effect: SiteEffect) -> Array:
        visits, left = _visits(table), _left(model, table)
        without_shift = left - np.sqrt(model.within) * effect.gamma
        weight = visits.counts[:, None] * model.ratio
        intercepts = (weight / (weight + effect.delta) * visits.means(without_shift))[visits.whose]
        residual = without_shift - intercepts
        harmonized = table.features - left + intercepts + residual / np.sqrt(effect.delta)
        return np.where(effect.unadjusted, table.features, harmonized)

    def _hardly_varies(self, visits: Visits, model: LongitudinalModel, table: SiteTable) -> NDArray[np.bool_]:
        """Tell which features [p] hardly vary at a site, in the changes that tell its scale, or else in all rows."""
        effects = table.design @ model.coefficients
        if self.mean_only:
            return hardly_varies(table.features, model.within + model.between, effects)
        changes, expected = (visits.within(values)[visits.again] for values in (table.features, effects))
        return hardly_varies(changes, model.within, expected)


def _visits(table: SiteTable) -> Visits:
    if np.isnan(table.features).any():
        raise TableError("features hold NaN, which longitudinal ComBat does not support. Leave those rows out.")
    return Visits.of(table)


def _checked_visits(table: SiteTable) -> Visits:
    """Visits, none in a number that few have: weights that differ by feature would tell their sum of covariates."""
    visits, min_group = _visits(table), table.min_group
    numbers, people = np.unique(visits.counts, return_counts=True)
    if people.min() < min_group:
        raise SmallGroupError(
            f"{people.min()} participants have {int(numbers[people.argmin()])} rows; the site's rule is at least "
            f"{min_group} for each number of visits. Leave some visits out."
        )
    return visits


def _explained_within(W: Array, V: Array) -> tuple[Array, int]:
    """Sum of squares [p] that covariates explain within participants, and how many of them say something there."""
    scale = np.sqrt(np.diag(W))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(W / np.outer(scale, scale))
    known = values > 1e-10
    squares: Array = ((vectors[:, known].T @ (V / scale[:, None])) ** 2 / values[known, None]).sum(axis=0)
    return squares, int(known.sum())


def _left(model: LongitudinalModel, table: SiteTable) -> Array:
    """What mean and covariates do not explain of the features [n, p]."""
    check_columns(table.features, table.design, model.coefficients)
    return table.features - model.grand_mean - table.design @ model.coefficients


def _raw_effects(
    visits: Visits, model: LongitudinalModel, table: SiteTable, varying: NDArray[np.bool_], mean_only: bool
) -> RawEffects:
    """Return a site's effects in features that vary there, from what mean and covariates leave of its rows."""
    z = _left(model, table)[:, varying] / np.sqrt(model.within[varying])
    w = visits.weights(model.ratio[varying])
    gamma = (w * visits.means(z)).sum(axis=0) / w.sum(axis=0)
    freedom = len(visits.again)
    changes = visits.within(z)
    explained = only_rounding(changes, table.features[:, varying], model.within[varying])
    squares = np.where(explained, 0.0, (changes**2).sum(axis=0))
    delta = np.ones_like(gamma) if mean_only else np.where(squares > 0, squares / max(freedom, 1), 1.0)
    return RawEffects(gamma, delta, squares, w.sum(axis=0), np.full_like(gamma, freedom))
