r"""ComBat: location and scale of every site and feature, made alike, from one sum over the sites.

Model (Johnson, Li & Rabinovic, Biostatistics 2007; Fortin et al., NeuroImage 2018), for site i, participant j and
feature v::

    y[ijv] = alpha[v] + c[ij] beta[v] + sigma[v] (gamma[iv] + delta[iv] e[ijv])

Each site centres features and covariates by its own means and sends n, sums, W = sum C'C, V = sum C'Y and
T = sum Y*Y. From their totals::

    beta = W^-1 V      alpha = mean(y) - mean(c) beta      sigma^2 = (T - sum_k V[k] beta[k]) / N

gamma and delta stay at the site, which alone needs them, with their empirical-Bayes priors over its features
(`empirical_bayes`). The answers equal those of neuroCombat on pooled data, but for features that hardly vary at a site
(`harmonization.core.variation`): neuroCombat writes covariates into these, and here they come back as they were.

Where values are missing, each feature has an n, W, V and T of its own, of the rows that have it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from harmonization.core.centring import centred
from harmonization.core.declared import Declared, Sent, Shape, Widths, everybody, of_groups
from harmonization.core.errors import DesignError, HarmonizationError, SmallGroupError, TableError
from harmonization.core.protocol import Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.core.variation import hardly_varies
from harmonization.methods.combat_model import ComBatModel as ComBatModel
from harmonization.methods.combat_model import SiteEffect as SiteEffect
from harmonization.methods.empirical_bayes import Prior as Prior
from harmonization.methods.harmonizer import Harmonizer

Missing = Literal["refuse", "complete", "per_feature"]

_MOST_COVARIATES = 0.33
"""Columns of the design for each row, at most."""
_EXPLAINED = 1e-13
"""Share of a feature's sum of squares within sites that is only rounding once covariates are taken out."""


def summarize(features: Array, covariates: Array | None) -> Sums:
    """Return one site's sums, of features [n, p] and a design matrix [n, q], without intercept; q may be 0.

    They are n, feature_sum [p], covariate_sum [q], W [q, q], V [q, p] and T [p]; W, V and T about the site's means.
    """
    table = SiteTable(features, covariates)
    y, c = centred(table.features), centred(table.design)
    return {
        "n": np.array(float(table.n)),
        "feature_sum": table.features.sum(axis=0),
        "covariate_sum": table.design.sum(axis=0),
        "W": c.T @ c,
        "V": c.T @ y,
        "T": np.einsum("np,np->p", y, y),
    }


def moments_of(p: int, q: int) -> dict[str, Sent]:
    """Declare what `summarize` returns for p features and q covariates."""
    return {
        "n": everybody(),
        "feature_sum": everybody(p),
        "covariate_sum": everybody(q),
        "W": everybody(q, q),
        "V": everybody(q, p),
        "T": everybody(p),
    }


def _moments_per_feature(p: int, q: int) -> dict[str, Sent]:
    """Declare what `summarize_per_feature` returns: sums over groups that have a feature, or lack it."""
    of_features = {
        "counts": everybody(p),
        "feature_sum": everybody(p),
        "covariate_sum": everybody(p, q),
        "W": everybody(p, q, q),
        "V": everybody(q, p),
        "T": everybody(p),
    }
    return {"n": everybody(), **{name: of_groups(sent) for name, sent in of_features.items()}}


def summarize_per_feature(features: Array, covariates: Array, min_group: int = 1) -> Sums:
    """Return one site's sums, those of each feature, NaN where missing, over the rows that have it.

    They are n, counts [p], feature_sum [p], covariate_sum [p, q], W [p, q, q], V [q, p] and T [p]. No sum, nor the
    difference between those of two features, may stand for fewer than `min_group` rows.
    """
    (n, p), q = features.shape, covariates.shape[1]
    patterns, which = np.unique(~np.isnan(features), axis=1, return_inverse=True)
    _check_patterns(patterns, min_group)
    sums = {name: np.zeros(sent.shape) for name, sent in _moments_per_feature(p, q).items()}
    sums["n"] += n
    for number, present in enumerate(patterns.T):
        rows, columns = np.flatnonzero(present), np.flatnonzero(which.ravel() == number)
        if not len(rows):
            continue
        part = summarize(features[np.ix_(rows, columns)], covariates[rows])
        sums["counts"][columns] = len(rows)
        sums["V"][:, columns] = part["V"]
        for name in ("feature_sum", "covariate_sum", "W", "T"):
            sums[name][columns] = part[name]
    return sums


def _check_patterns(patterns: Array, min_group: int) -> None:
    """Refuse patterns [n, K] of present rows that differ in few: so would their sums, by those rows' covariates."""
    if min_group <= 1:
        return
    present = patterns.astype(np.float64)
    sizes = present.sum(axis=0)
    differing = sizes[:, None] + sizes - 2 * present.T @ present
    smallest = min(sizes[sizes > 0].min(initial=np.inf), differing[~np.eye(len(sizes), dtype=bool)].min(initial=np.inf))
    if smallest < min_group:
        raise SmallGroupError(
            f"sums per feature would single out {int(smallest)} participants, who have, or lack, a value that others "
            f"do not; the site's rule is at least {min_group}. Use missing='complete'."
        )


def solve(total: Sums) -> ComBatModel:
    """Estimate what all sites share from the total of their sums, which `summarize` or its like per feature made.

    Raises
    ------
    DesignError
        If a covariate is constant inside every site, covariates are collinear there, they are more than a third of
        the participants, or they leave a feature without variance.
    """
    if "counts" in total:
        return _solve_per_feature(total)
    n = float(total["n"])
    covariate_mean = total["covariate_sum"] / n
    coefficients = solve_within(total["W"], total["V"], n, covariate_mean)
    grand_mean = total["feature_sum"] / n - covariate_mean @ coefficients
    residual = total["T"] - np.einsum("qp,qp->p", total["V"], coefficients)
    explained = (residual <= _EXPLAINED * total["T"]) & (total["T"] > 0)
    if explained.any():
        raise DesignError(
            f"feature {int(explained.argmax()) + 1} has no variance left inside the sites once covariates are taken "
            "out. Leave it or a covariate out."
        )
    return ComBatModel(coefficients, grand_mean, residual / n, n)


def _solve_per_feature(total: Sums) -> ComBatModel:
    """Solve each feature by its own sums."""
    models = []
    for feature, count in enumerate(total["counts"]):
        if not count:
            raise TableError(f"feature {feature + 1} has no value at any site. Leave it out.")
        own = {name: total[name][feature] for name in ("covariate_sum", "W")}
        own |= {name: total[name][feature : feature + 1] for name in ("feature_sum", "T")}
        try:
            models.append(solve({"n": count, "V": total["V"][:, feature : feature + 1], **own}))
        except DesignError as error:
            raise DesignError(f"in the rows that have feature {feature + 1}, {error}") from None
    return ComBatModel(
        np.concatenate([model.coefficients for model in models], axis=1),
        np.concatenate([model.grand_mean for model in models]),
        np.concatenate([model.pooled_variance for model in models]),
        float(total["n"]),
    )


def check_number_of_covariates(q: int, n: float) -> None:
    """Refuse more than a third of a covariate column for each of `n` rows."""
    if q > _MOST_COVARIATES * n:
        raise DesignError(
            f"{q} covariate columns are too many for {int(n)} rows; expected at most {_MOST_COVARIATES} of their "
            "number. Leave some out."
        )


def solve_within(W: Array, V: Array, n: float, mean: Array) -> Array:
    """Solve W beta = V [q, p] for within-site cross-products W [q, q] of n rows, after checking that both allow it."""
    check_number_of_covariates(len(W), n)
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


class SiteMoments(Stage):
    """First round: sums of vectors, covariates and their products about the site's means."""

    def part(self, analysis: "ComBat", table: SiteTable) -> Sums:
        rows = analysis.rows_of(table)
        if analysis.missing == "per_feature":
            return summarize_per_feature(rows.features, rows.design, table.min_group)
        return summarize(rows.features, rows.design)

    def sends(self, analysis: "ComBat", widths: Widths) -> Declared:
        moments = _moments_per_feature if analysis.missing == "per_feature" else moments_of
        return moments(widths.features, widths.covariates)

    def advance(self, analysis: "ComBat", total: Sums) -> State:
        model = solve(total)
        return model if analysis.reference is None else model.become(CovariateEffects)


@dataclass(frozen=True)
class CovariateEffects(Stage):
    """With a reference site: effects [q, p] of the covariates, variance [p] around site and covariates, participants.

    The reference site's means and variances enter this round's sum alone.
    """

    coefficients: Array
    pooled_variance: Array
    n: float

    def part(self, analysis: "ComBat", table: SiteTable) -> Sums:
        """Sums of the reference site's rows, without the effects of covariates; zeros at all others.

        What hardly varies has no squares: those of the covariates' effects alone would be taken for its scale.
        """
        rows = analysis.rows_of(table)
        effects = rows.design @ self.coefficients
        left = rows.features - effects
        still = hardly_varies(rows.features, self.pooled_variance, effects)
        sums = {
            "sites": np.array(1.0),
            "counts": (~np.isnan(left)).sum(axis=0).astype(np.float64),
            "feature_sum": np.nansum(left, axis=0),
            "squares": np.where(still, 0.0, (centred(left) ** 2).sum(axis=0)),
        }
        if not analysis.is_reference(rows):
            return {name: np.zeros_like(values) for name, values in sums.items()}
        if sums["counts"].min() < max(rows.min_group, 2):
            raise SmallGroupError(
                f"the reference site has {int(sums['counts'].min())} participants with a feature; expected at least "
                f"{max(rows.min_group, 2)}. Choose another."
            )
        return sums

    def sends(self, analysis: "ComBat", widths: Widths) -> Declared:
        of_features = dict.fromkeys(("counts", "feature_sum", "squares"), of_groups(everybody(widths.features)))
        return {"sites": everybody(), **of_features}

    def advance(self, analysis: "ComBat", total: Sums) -> ComBatModel:
        if (found := int(total["sites"])) != 1:
            many = f"{found} sites are" if found else "no site is"
            raise HarmonizationError(
                f"{many} called '{analysis.reference}', as the reference is. Name one site that is there."
            )
        mean, variance = (total[name] / total["counts"] for name in ("feature_sum", "squares"))
        return ComBatModel(self.coefficients, mean, variance, self.n)


FOR_MRI = (
    "Fortin JP, et al. Harmonization of cortical thickness measurements across scanners and sites. "
    "NeuroImage 2018;167:104-120."
)
"""What brought ComBat to images: methods after it cite it, too."""


@register
@dataclass(frozen=True)
class ComBat(Harmonizer):
    """ComBat as an analysis of one round, or of two with a reference site; the final state is a `ComBatModel`.

    Parameters
    ----------
    prior : {"parametric", "nonparametric", "none"}
        How site effects are shrunk.
    mean_only : bool
        Remove shifts and leave scales.
    reference : str, optional
        Name of a site that all others are made alike to; its own rows stay as they are. In a second round its means
        (at covariates of 0) and variances are all that enters the sum: **everybody learns them**, whatever hides the
        sums of the sites from each other. Features that hardly vary there come back as they were.
    missing : {"refuse", "complete", "per_feature"}
        What to do where features are NaN: nothing; estimate from participants who have all of them; or estimate each
        feature from those who have it, as if it were harmonized alone. In the last two every value that is there is
        harmonized, and NaN stays NaN. Sums per feature are refused where they would tell of few participants.
    """

    prior: Prior = "parametric"
    mean_only: bool = False
    reference: str | None = None
    missing: Missing = "refuse"

    name: ClassVar[str] = "combat"
    title: ClassVar[str] = "ComBat"
    described: ClassVar[str] = "ComBat"
    study_options: ClassVar[tuple[str, ...]] = ("prior", "mean_only", "reference")
    references: ClassVar[tuple[str, ...]] = (
        "Johnson WE, Li C, Rabinovic A. Adjusting batch effects in microarray expression data using empirical "
        "Bayes methods. Biostatistics 2007;8:118-127.",
        FOR_MRI,
    )
    first: ClassVar[Stage] = SiteMoments()
    states: ClassVar[tuple[type[State], ...]] = (CovariateEffects, ComBatModel)
    counts_missing: ClassVar[bool] = True

    @property
    def asks_for(self) -> tuple[str, ...]:
        return (self.name,) if self.reference is None else (self.name, "reference_site")

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, known in (("prior", get_args(Prior)), ("missing", get_args(Missing))):
            if getattr(self, option) not in known:
                raise HarmonizationError(f"{option} is '{getattr(self, option)}'; expected one of {', '.join(known)}.")

    def effect_shapes(self, model: ComBatModel, n_features: int) -> dict[str, Shape]:
        return SiteEffect.shapes(n_features)

    def estimate(self, model: ComBatModel, table: SiteTable) -> SiteEffect:
        if self.is_reference(table):
            nothing = np.zeros_like(model.grand_mean)
            return SiteEffect(nothing, nothing + 1, nothing.astype(bool))
        rows = self.rows_of(table)
        return model.site_effect(rows.features, rows.design, prior=self.prior, mean_only=self.mean_only)

    def apply(self, model: ComBatModel, table: SiteTable, effect: SiteEffect) -> Array:
        if self.is_reference(table):
            return table.features
        return model.remove(table.features, table.design, effect)

    def is_reference(self, table: SiteTable) -> bool:
        """Whether the table is the reference site's."""
        return self.reference is not None and table.site == self.reference

    def rows_of(self, table: SiteTable) -> SiteTable:
        """Return the rows that may be learned from."""
        complete = np.asarray(~np.isnan(table.features).any(axis=1))
        if self.missing == "per_feature" or complete.all():
            return table
        if self.missing == "refuse":
            raise TableError(
                "features hold NaN. Leave those participants out, or use missing='complete' or 'per_feature'."
            )
        if complete.sum() < max(table.min_group, 1):
            raise SmallGroupError(
                f"{int(complete.sum())} participants of a site have all features; expected at least "
                f"{max(table.min_group, 1)}. Leave features out that many lack, or use missing='per_feature'."
            )
        return table.take(complete)
