"""Canonical correlations between two views of the same people, from sums.

Views X [n, p] and Y [n, r] are weighted so that their scores correlate most (Hotelling, Biometrika 1936). With Sxx, Syy
and Sxy the cross-products about the means::

    Sxx^-1/2 Sxy Syy^-1/2 = U diag(rho) V'     x_weights = Sxx^-1/2 U     y_weights = Syy^-1/2 V

Shrinkage s replaces Sxx by (1 - s) Sxx + s trace(Sxx) / p I, and Syy likewise: the canonical ridge (Vinod, Journal of
Econometrics 1976). 0 is plain canonical correlation, and 1 maximises the covariance, as partial least squares does.
Units of columns are of no matter to the former, and to the others all: give shrinkage views of one unit.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from harmonization.core.checks import check_width
from harmonization.core.declared import Declared, Widths, everybody
from harmonization.core.errors import HarmonizationError, TableError
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register

ROUNDING = 1e-12
"""Deviation, relative to the values, that is rounding error."""
_RANK = 1e-10
"""Eigenvalue of a correlation matrix, relative to the largest, below which columns are collinear."""
_RANK_IN_BASIS = 1e-16
"""The same where rounding does not hide it: deviations of 1e-8 of the columns', more than offsets of 1e6 round off."""


class ViewSums(Stage):
    """First round: sums of both views."""

    def part(self, analysis: Analysis, table: SiteTable) -> Sums:
        n, second_sum = np.array(float(table.n)), second_view_of(table).sum(axis=0)
        return {"n": n, "feature_sum": table.features.sum(axis=0), "second_sum": second_sum}

    def sends(self, analysis: Analysis, widths: Widths) -> Declared:
        return {"n": everybody(), "feature_sum": everybody(widths.features), "second_sum": everybody(widths.second)}

    def advance(self, analysis: "CCA", total: Sums) -> State:
        n = float(total["n"])
        return ViewMeans(n, total["feature_sum"] / n, total["second_sum"] / n)


@dataclass(frozen=True)
class ViewMeans(Stage):
    """Participants, and means of the features [p] and of the second view [r]; each view's products about them."""

    n: float
    x_mean: Array
    y_mean: Array

    def part(self, analysis: "CCA", table: SiteTable) -> Sums:
        x, y = self.views(table)
        return {"XX": x.T @ x, "YY": y.T @ y}

    def views(self, table: SiteTable) -> tuple[Array, Array]:
        """Both views of a table about their means."""
        return about(table.features, self.x_mean), about(second_view_of(table), self.y_mean)

    def sends(self, analysis: "CCA", widths: Widths) -> Declared:
        return {"XX": everybody(widths.features, widths.features), "YY": everybody(widths.second, widths.second)}

    def advance(self, analysis: "CCA", total: Sums) -> State:
        shrinkage = analysis.shrinkage
        check_columns(len(total["XX"]), len(total["YY"]), analysis.n_components, shrinkage, self.n - 1)
        x_basis, x_ridge = _basis(total["XX"], shrinkage, "features")
        y_basis, y_ridge = _basis(total["YY"], shrinkage, "second view")
        return self.become(ViewBases, x_basis=x_basis, y_basis=y_basis, x_ridge=x_ridge, y_ridge=y_ridge)


@dataclass(frozen=True)
class ViewBases(ViewMeans):
    """Also bases [p, p] and [r, r] in which the columns of each view are all but uncorrelated; all products in these.

    `x_ridge` and `y_ridge` are what shrinkage adds to the diagonal of each view's cross-products.
    """

    x_basis: Array
    y_basis: Array
    x_ridge: float
    y_ridge: float

    def part(self, analysis: "CCA", table: SiteTable) -> Sums:
        x, y = self.views(table)
        x, y = x @ self.x_basis, y @ self.y_basis
        return {"XX": x.T @ x, "YY": y.T @ y, "XY": x.T @ y}

    def sends(self, analysis: "CCA", widths: Widths) -> Declared:
        x, y = self.x_basis.shape[1], self.y_basis.shape[1]
        return {"XX": everybody(x, x), "YY": everybody(y, y), "XY": everybody(x, y)}

    def advance(self, analysis: "CCA", total: Sums) -> "CCAModel":
        x_root = _root_in_basis(total["XX"], analysis.shrinkage, self.x_basis, self.x_ridge, "features")
        y_root = _root_in_basis(total["YY"], analysis.shrinkage, self.y_basis, self.y_ridge, "second view")
        x_weights, y_weights = canonical_weights(x_root, y_root, total["XY"], analysis.n_components)
        x_weights = x_weights / np.sqrt(_score_variance(x_weights, total["XX"], self.n))
        y_weights = y_weights / np.sqrt(_score_variance(y_weights, total["YY"], self.n))
        correlations = diagonal_of(x_weights, total["XY"], y_weights) / (self.n - 1)
        x_weights, y_weights = self.x_basis @ x_weights, self.y_basis @ y_weights
        sign = np.sign(x_weights[np.abs(x_weights).argmax(axis=0), np.arange(analysis.n_components)])
        return CCAModel(correlations, x_weights * sign, y_weights * sign, self.x_mean, self.y_mean)


@dataclass(frozen=True)
class CCAModel(Answer):
    """Canonical correlations.

    Attributes
    ----------
    correlations : numpy.ndarray
        [k], of the scores of the participants that it was fitted to.
    x_weights, y_weights : numpy.ndarray
        [p, k] and [r, k]. Scores have variance 1, with n - 1 in the denominator; the largest weight of each component
        is positive in x.
    x_mean, y_mean : numpy.ndarray
        [p] and [r].
    """

    correlations: Array
    x_weights: Array
    y_weights: Array
    x_mean: Array
    y_mean: Array

    def transform(self, features: Array, second: Array) -> tuple[Array, Array]:
        """Scores [n, k] of features [n, p], and of the second view [n, r]."""
        check_width(features, len(self.x_mean))
        check_width(second, len(self.y_mean), "second views")
        return (features - self.x_mean) @ self.x_weights, (second - self.y_mean) @ self.y_weights


@register
@dataclass(frozen=True)
class CCA(Analysis):
    """Canonical correlations of the features and the second view of all sites' participants.

    The first round sums to the means, the second to each view's cross-products about them. Where the means of sites lie
    far apart, rounding errors of these could hide what varies within sites; so the third sums all cross-products in the
    bases of their eigenvectors, where large and small are parted. Sites and covariates are not
    looked at: whatever differs between sites in both views counts as association. `CrossValidatedCCA` sets it apart.

    Parameters
    ----------
    n_components : int
        Pairs of scores, k.
    shrinkage : float
        From 0 to 1: weight of the spherical covariance in that of each view.
    """

    n_components: int
    shrinkage: float = 0.0

    name: ClassVar[str] = "cca"
    additive: ClassVar[bool] = True
    first: ClassVar[Stage] = ViewSums()
    states: ClassVar[tuple[type[State], ...]] = (ViewMeans, ViewBases, CCAModel)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parameters(self.n_components, self.shrinkage)


def _score_variance(weights: Array, products: Array, n: float) -> Array:
    """Variance [k] of whitened scores, whose squares sum to 1 or, where shrinkage whitened them too, to less."""
    squares = diagonal_of(weights, products, weights)
    if (squares <= _RANK).any():
        raise HarmonizationError(
            f"the views have only {int((squares > _RANK).sum())} components that vary. Set n_components to as many."
        )
    return squares / (n - 1)


def second_view_of(table: SiteTable) -> Array:
    """Second view [n, r] of a table, which must have one."""
    if table.second is None or table.second.ndim != 2:
        raise TableError("the table has no second view [n, r]. Name the vectors to set beside the features.")
    return table.second


def check_one_row_each(table: SiteTable) -> None:
    """Refuse participants with several rows: whoever is paired with another must have one row to be paired."""
    if table.participant is not None and len(np.unique(table.participant)) < table.n:
        raise TableError("a participant has several rows, which a change of pairs would part. Give their mean.")


def check_parameters(n_components: int, shrinkage: float) -> None:
    """Refuse parameters that no data could allow."""
    if n_components < 1 or not 0 <= shrinkage <= 1:
        raise HarmonizationError(
            f"n_components and shrinkage are {n_components} and {shrinkage}; expected at least 1, and 0 to 1."
        )


def about(rows: Array, centre: Array) -> Array:
    """Rows about a centre; exactly 0 in columns that differ from it by rounding error alone."""
    centred = rows - centre
    constant = np.abs(centred).max(axis=0) <= ROUNDING * np.abs(rows).max(axis=0)
    return np.where(constant, 0.0, centred)


def inverse_roots(xx: Array, yy: Array, n_components: int, shrinkage: float, freedom: float) -> tuple[Array, Array]:
    """Matrices that whiten both views, after checking that `freedom` independent rows allow it."""
    check_columns(len(xx), len(yy), n_components, shrinkage, freedom)
    return _inverse_root(xx, shrinkage, "features"), _inverse_root(yy, shrinkage, "second view")


def check_columns(p: int, r: int, n_components: int, shrinkage: float, freedom: float) -> None:
    """Refuse views of more columns or components than `freedom` independent rows allow."""
    if n_components > (most := max(int(min(p, r, freedom)), 0)):
        raise HarmonizationError(
            f"n_components is {n_components}; expected 1 to {most} for {p} and {r} columns of so many people. Ask for "
            "fewer, or add people."
        )
    if shrinkage == 0 and p + r > freedom:
        raise HarmonizationError(
            f"{p} and {r} columns fit {int(freedom)} degrees of freedom of the participants perfectly, by chance. "
            f"Reduce each view to at most {max(int(freedom) // 2, 1)} principal components, or set shrinkage."
        )


def _inverse_root(products: Array, shrinkage: float, view: str) -> Array:
    """Return R [p, p] with R' S R = I for (shrunken) cross-products S [p, p]."""
    _check_varying(products, view)
    ridge = shrinkage * np.trace(products) / len(products)
    values, vectors, scale = _correlations((1 - shrinkage) * products + ridge * np.eye(len(products)))
    _check_rank(values > _RANK * values[-1], view)
    return (vectors / np.sqrt(values)) @ vectors.T / scale[:, None]


def _basis(products: Array, shrinkage: float, view: str) -> tuple[Array, float]:
    """Basis [p, p] in which (shrunken) cross-products are all but diagonal, and what shrinkage adds to these."""
    _check_varying(products, view)
    ridge = float(shrinkage * np.trace(products) / len(products))
    _, vectors, scale = _correlations((1 - shrinkage) * products + ridge * np.eye(len(products)))
    return vectors / scale[:, None], ridge


def _root_in_basis(products: Array, shrinkage: float, basis: Array, ridge: float, view: str) -> Array:
    """Return R, as `_inverse_root` does, for cross-products in the basis that `_basis` found."""
    shrunken = (1 - shrinkage) * products + ridge * basis.T @ basis
    squares = np.diag(shrunken)
    _check_rank(squares > _RANK_IN_BASIS * squares.max(), view)
    values, vectors, scale = _correlations(shrunken)
    _check_rank(values > _RANK * values[-1], view)
    return (vectors / np.sqrt(values)) @ vectors.T / scale[:, None]


def _correlations(products: Array) -> tuple[Array, Array, Array]:
    """Eigenvalues [p], rising, and vectors [p, p] of cross-products as correlations, and the columns' scale [p]."""
    scale = np.sqrt(np.diag(products))
    values, vectors = eigh(products / np.outer(scale, scale))
    return values, vectors, scale


def _check_varying(products: Array, view: str) -> None:
    """Refuse columns without variance."""
    if (constant := np.diag(products) <= 0).any():
        raise HarmonizationError(f"column {int(constant.argmax()) + 1} of the {view} does not vary. Leave it out.")


def _check_rank(varies: NDArray[np.bool_], view: str) -> None:
    """Refuse columns unless each of their directions varies."""
    if not varies.all():
        raise HarmonizationError(
            f"the {len(varies)} columns of the {view} are collinear. Reduce them to at most {int(varies.sum())} "
            "principal components, or set shrinkage."
        )


def canonical_weights(x_root: Array, y_root: Array, xy: Array, n_components: int) -> tuple[Array, Array]:
    """Weights [..., p, k] and [..., r, k] of the largest canonical correlations."""
    left, _, right = np.linalg.svd(x_root.T @ xy @ y_root, full_matrices=False)
    return x_root @ left[..., :n_components], y_root @ right[..., :n_components, :].swapaxes(-1, -2)


def diagonal_of(left: Array, products: Array, right: Array) -> Array:
    """Diagonal of left' S right, [..., k]."""
    diagonal: Array = (left * (products @ right)).sum(axis=-2)
    return diagonal
