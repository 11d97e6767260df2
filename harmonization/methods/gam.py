r"""ComBat-GAM: ComBat that keeps curved effects of covariates, such as age's, from one sum over the sites.

Model (Pomponio et al., NeuroImage 2020): ComBat's, with smooth functions of some covariates in place of straight
lines. Each is a sum of B-splines with a penalty on their bends (P-splines: Eilers & Marx, Statistical Science 1996;
Wood, Generalized Additive Models, 2017). Each site expands its covariates into splines on public knots and sends
ComBat's sums W = sum C'C, V = sum C'Y and T = sum Y*Y about its own means. From their totals, for the penalty S of
bends::

    beta = (W + lambda S)^-1 V      RSS = T - 2 sum_k V[k] beta[k] + beta' W beta
    edf = trace((W + lambda S)^-1 W) + sites

equal the pooled fit with a term for every site, as R's mgcv makes it. lambda is that of a public grid with the least
generalized cross-validation score, n RSS / (n - edf)^2, for each feature apart. Shifts and scales of the sites are
ComBat's then, and what hardly varies at a site comes back as it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from scipy.linalg import eigh

from harmonization.core.declared import Declared, Shape, Widths, everybody
from harmonization.core.errors import DesignError, HarmonizationError, SmallGroupError, TableError
from harmonization.core.protocol import Answer, Array, SiteTable, State, Sums
from harmonization.core.registry import register
from harmonization.core.splines import SmoothDesign
from harmonization.methods import combat
from harmonization.methods.combat import FOR_MRI, ComBat, ComBatModel, Prior, SiteEffect
from harmonization.methods.harmonizer import Harmonizer

PENALTIES = tuple(10.0 ** (half / 2) for half in range(-4, 17))
"""Penalties to choose from unless told: 0.01 to 10^8, two a decade."""
_MOST_COLUMNS = 0.33
"""Columns of the expanded design, most, for each participant."""


@dataclass(frozen=True)
class GamModel(Answer):
    """What all sites share.

    Attributes
    ----------
    coefficients : numpy.ndarray
        [C, p], effects of the columns of the expanded design.
    grand_mean : numpy.ndarray
        [p], where all columns of the expanded design are 0.
    pooled_variance : numpy.ndarray
        [p], around site, covariates and curves; 0 for features that are constant inside every site.
    n : float
        Participants who took part in the sums.
    penalty : numpy.ndarray
        [p], lambda of each feature.
    edf : numpy.ndarray
        [p], effective degrees of freedom of each feature's fit; a site counts as 1.
    smooth : numpy.ndarray
        [s, 3]: smooth column, counted from 0, and lower and upper bound of its knots.
    n_splines : int
        Of each smooth column.
    """

    coefficients: Array
    grand_mean: Array
    pooled_variance: Array
    n: float
    penalty: Array
    edf: Array
    smooth: Array
    n_splines: int

    @property
    def of_expanded(self) -> ComBatModel:
        """The same model, for an expanded design."""
        return ComBatModel(self.coefficients, self.grand_mean, self.pooled_variance, self.n)

    @property
    def design(self) -> SmoothDesign:
        """Which columns are smooth, and how."""
        return SmoothDesign.read(self.smooth, self.n_splines)

    @property
    def n_columns(self) -> int:
        """Columns of covariates, before they are expanded."""
        return len(self.coefficients) - self.design.width(0)

    def expand(self, table: SiteTable) -> SiteTable:
        """Return the table with the expanded design for covariates."""
        if table.design.shape[1] != self.n_columns:
            raise TableError(
                f"covariates have {table.design.shape[1]} columns; this model was fitted on {self.n_columns}. Use the "
                "same ones, in the same order."
            )
        return replace(table, covariates=self.design.expand(table.design))

    def curve(self, values: Array, column: int | None = None) -> Array:
        """Expected features [m, p] at `values` [m] of a smooth column, where all other covariates are 0.

        Parameters
        ----------
        values : numpy.ndarray
            [m], coded as the covariates are.
        column : int, optional
            Counted from 0; the first smooth one if not given.
        """
        smooth = [of_column for of_column, _, _ in self.design.smooth]
        varied = smooth[0] if column is None else column
        if varied not in smooth:
            raise DesignError(f"column {varied} is not smooth. Name one of {smooth}.")
        covariates = np.zeros((len(values), self.n_columns))
        covariates[:, varied] = values
        return self.grand_mean + self.design.expand(covariates) @ self.coefficients


@register
@dataclass(frozen=True)
class ComBatGAM(Harmonizer):
    """ComBat that keeps curved effects, as an analysis of one round; the final state is a `GamModel`.

    Where a site asks for groups of several participants, those who lie under a spline with too few others are
    harmonized, but take no part in the sums.

    Parameters
    ----------
    smooth : mapping, or sequence of (column, float, float)
        For each smooth covariate: its column of the design, and public bounds of its knots, coded as the column is.
        Beyond them its effect goes on as a straight line. Covariates that have names go by them, ``{"age": (18, 90)}``;
        columns of a matrix by their number, counted from 0.
    n_splines : int
        Cubic B-splines of each smooth covariate, at least 4.
    penalties : sequence of float
        Public grid of penalties. Smooth covariates of a feature share one.
    prior, mean_only
        As of `harmonization.methods.combat.ComBat`.
    """

    smooth: tuple[tuple[int | str, float, float], ...]
    n_splines: int = 10
    penalties: tuple[float, ...] = PENALTIES
    prior: Prior = "parametric"
    mean_only: bool = False

    name: ClassVar[str] = "combat_gam"
    title: ClassVar[str] = "ComBat-GAM"
    described: ClassVar[str] = "ComBat-GAM"
    study_options: ClassVar[tuple[str, ...]] = ("prior", "mean_only", "smooth")
    without_covariates: ClassVar[str] = "combat"
    references: ClassVar[tuple[str, ...]] = (
        FOR_MRI,
        "Pomponio R, et al. Harmonization of large MRI datasets for the analysis of brain imaging patterns "
        "throughout the lifespan. NeuroImage 2020;208:116450.",
    )
    states: ClassVar[tuple[type[State], ...]] = (GamModel,)

    def __post_init__(self) -> None:
        if isinstance(self.smooth, Mapping):
            object.__setattr__(self, "smooth", _triples(self.smooth))
        super().__post_init__()
        if not len(self.penalties) or not all(0 < penalty < np.inf for penalty in self.penalties):
            raise HarmonizationError("penalties must be positive numbers, and at least one.")
        bounds = [bounds for _, *bounds in self.smooth]
        numbers = range(len(bounds)) if self._names else [column for column, *_ in self.smooth]
        SmoothDesign.read([(number, *edges) for number, edges in zip(numbers, bounds, strict=True)], self.n_splines)
        _ = self.on_expanded  # refuses options that it does not know

    def for_columns(self, names: Sequence[str]) -> Self:
        unknown = [name for name in self._names if name not in names]
        if unknown:
            raise DesignError(
                f"smooth names '{unknown[0]}', which is no number among the covariates {', '.join(names)}. Name one."
            )
        numbered = ((names.index(c) if isinstance(c, str) else c, lower, upper) for c, lower, upper in self.smooth)
        return replace(self, smooth=tuple(numbered))

    @property
    def design(self) -> SmoothDesign:
        """Which columns are smooth, and how."""
        if self._names:
            raise DesignError(
                f"smooth names '{self._names[0]}', and the covariates have no names. Give them as a table, or the "
                "number of the column."
            )
        return SmoothDesign.read(self.smooth, self.n_splines)

    @property
    def _names(self) -> list[str]:
        return [column for column, _, _ in self.smooth if isinstance(column, str)]

    @property
    def on_expanded(self) -> ComBat:
        """ComBat of tables with the expanded design."""
        return ComBat(prior=self.prior, mean_only=self.mean_only)

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        rows = self.design.shared(table.design, table.min_group)
        if not rows.any():
            raise SmallGroupError(
                f"fewer than {table.min_group} participants of a site lie under every spline. Use fewer splines."
            )
        shared = table.take(rows)
        expanded = replace(shared, covariates=self.design.expand(shared.design))
        return {**self.on_expanded.summarize(expanded, None), "sites": np.array(1.0)}

    def sends(self, widths: Widths, state: State | None) -> Declared:
        expanded = replace(widths, covariates=self.design.width(widths.covariates))
        return {**self.on_expanded.sends(expanded, None), "sites": everybody()}

    def solve(self, total: Sums, state: State | None) -> GamModel:
        n, design = float(total["n"]), self.design
        n_columns = len(total["W"]) - design.width(0)
        straight = _straight(total, design.lines(n_columns))
        _check_size(total)
        fit = _fit_penalized(total, design.penalty(n_columns), n_columns, sorted(self.penalties, reverse=True))
        fit["pooled_variance"] = np.where(straight.pooled_variance > 0, fit["pooled_variance"], 0.0)
        grand_mean = (total["feature_sum"] - total["covariate_sum"] @ fit["coefficients"]) / n
        smooth = np.array(design.smooth)
        return GamModel(**fit, grand_mean=grand_mean, n=n, smooth=smooth, n_splines=self.n_splines)

    def effect_shapes(self, model: GamModel, n_features: int) -> dict[str, Shape]:
        return SiteEffect.shapes(n_features)

    def estimate(self, model: GamModel, table: SiteTable) -> SiteEffect:
        return self.on_expanded.estimate(model.of_expanded, model.expand(table))

    def apply(self, model: GamModel, table: SiteTable, effect: SiteEffect) -> Array:
        return self.on_expanded.apply(model.of_expanded, model.expand(table), effect)


def _triples(smooth: Mapping[Any, Any]) -> tuple[tuple[Any, ...], ...]:
    """Column and bounds of each entry of a mapping, as they are on the wire; whatever else is left as it is."""
    return tuple(
        (column, *bounds) if isinstance(bounds, list | tuple) else (column, bounds) for column, bounds in smooth.items()
    )


def _straight(total: Sums, lines: Array) -> ComBatModel:
    """ComBat's own fit of straight lines: it refuses covariates without an effect, and knows constant features."""
    return combat.solve(
        {
            **total,
            "covariate_sum": total["covariate_sum"] @ lines,
            "W": lines.T @ total["W"] @ lines,
            "V": lines.T @ total["V"],
        }
    )


def _check_size(total: Sums) -> None:
    """Refuse more columns than participants can tell apart, whatever the penalty."""
    n, sites, width = float(total["n"]), float(total["sites"]), len(total["W"])
    if width > min(_MOST_COLUMNS * n, n - sites - 1):
        raise DesignError(
            f"{width} columns of covariates and splines are too many for {int(n)} participants at {int(sites)} sites; "
            f"expected at most {_MOST_COLUMNS} for each. Use fewer splines."
        )


def _fit_penalized(total: Sums, S: Array, n_free: int, penalties: list[float]) -> Sums:
    """Fit every feature with each of L penalties, and keep the one with the least score, the first of equal ones.

    One change of coordinates makes W and the penalty of bends S [C, C] diagonal together, so that each penalty costs a
    division: in it W = diag(w), S = diag(s), V = a, and beta = a / (w + lambda s). S leaves `n_free` dimensions free:
    one a covariate.
    """
    W, V, T, n = total["W"], total["V"], total["T"], float(total["n"])
    # W alone may be singular, where nobody's age lies under a spline. With the penalty it is not.
    balance = np.diag(W)[np.diag(S) > 0].sum() / np.trace(S)
    M = W + balance * S
    scale = np.sqrt(np.diag(M))
    s, vectors = eigh(S / np.outer(scale, scale), M / np.outer(scale, scale))
    s[:n_free] = 0.0  # but for rounding, which a large penalty would magnify
    w = np.clip(1 - balance * s, 0.0, 1.0)
    vectors = vectors / scale[:, None]
    a = vectors.T @ V
    stiffness = w + np.outer(penalties, s)  # [L, C]
    squares = np.maximum(T - (2 / stiffness - w / stiffness**2) @ a**2, 0.0)  # [L, p]
    edf = (w / stiffness).sum(axis=1) + float(total["sites"])  # [L]
    best = (n * squares / (n - edf[:, None]) ** 2).argmin(axis=0)
    return {
        "coefficients": vectors @ (a / stiffness[best].T),
        "pooled_variance": squares[best, np.arange(len(best))] / n,
        "penalty": np.asarray(penalties)[best],
        "edf": edf[best],
    }
