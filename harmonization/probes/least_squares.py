"""Linear and ridge regression: numbers about a person, read from the person's features."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from harmonization.core.checks import check_width
from harmonization.core.declared import Declared, Widths, everybody, triangle
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.core.symmetric import pack, unpack
from harmonization.probes.crossvalidation import target_of

_CONSTANT = 1e-12
"""Spread of a feature, relative to its mean, up to which it is rounding error."""
_COLLINEAR = 1e-11
"""Least eigenvalue, of features scaled to a diagonal of 1, from which they can be told apart."""


@dataclass(frozen=True)
class LinearModel(Answer):
    """A linear regression.

    Attributes
    ----------
    coef : numpy.ndarray
        [p]; [m, p] for m targets.
    intercept : numpy.ndarray
        A number; [m] for m targets.
    """

    coef: Array
    intercept: Array

    def predict(self, features: Array) -> Array:
        """Predict the target [n] (or [n, m]) of features [n, p]."""
        check_width(features, self.coef.shape[-1])
        return features @ self.coef.T + self.intercept


class TargetSums(Stage):
    """First round: sums of the features, and of the target."""

    def part(self, analysis: "LeastSquares", table: SiteTable) -> Sums:
        target_sum = np.asarray(_target_of(table).sum(axis=0))
        return {"n": np.array(float(table.n)), "feature_sum": table.features.sum(axis=0), "target_sum": target_sum}

    def sends(self, analysis: "LeastSquares", widths: Widths) -> Declared:
        sums = {"feature_sum": everybody(widths.features), "target_sum": everybody(*(widths.target or ()))}
        return {"n": everybody(), **sums}

    def advance(self, analysis: "LeastSquares", total: Sums) -> State:
        n = float(total["n"])
        return TargetCentre(total["feature_sum"] / n, n, np.asarray(total["target_sum"] / n))


@dataclass(frozen=True)
class TargetCentre(Stage):
    """Means of the features [p] and of the target, a number or [m], and participants; cross-products about them."""

    mean: Array
    n: float
    target_mean: Array

    def part(self, analysis: "LeastSquares", table: SiteTable) -> Sums:
        x = table.features - self.mean
        return {"XX": pack(x.T @ x), "Xy": x.T @ self.left(x, _target_of(table) - self.target_mean)}

    def left(self, x: Array, target: Array) -> Array:
        """What is left over of a target about its mean, for features [n, p] about theirs."""
        return target

    def sends(self, analysis: "LeastSquares", widths: Widths) -> Declared:
        p = widths.features
        return {"XX": triangle(p), "Xy": everybody(p, *(widths.target or ()))}

    def advance(self, analysis: "LeastSquares", total: Sums) -> State:
        coef = self.solve_normal(total["XX"], total["Xy"], analysis.penalty)
        return FirstSolution(self.mean, self.n, self.target_mean, coef)

    def solve_normal(self, packed: Array, right: Array, penalty: float) -> Array:
        """Solve the normal equations, scaled to a diagonal of 1; [p], or [m, p]."""
        products = unpack(packed)
        if penalty == 0:
            _check_rank(products, self)
        penalised = products + penalty * np.eye(len(products))
        scale = np.sqrt(np.diag(penalised))
        try:
            factor = cho_factor(penalised / np.outer(scale, scale))
        except LinAlgError:
            raise HarmonizationError(
                f"alpha is {penalty}, which is too small to tell these features apart. Give a larger one."
            ) from None
        return np.asarray((cho_solve(factor, (right.T / scale).T).T / scale), dtype=np.float64)


@dataclass(frozen=True)
class FirstSolution(TargetCentre):
    """Coefficients [p] or [m, p], as exact as cross-products allow; the same for what they leave over."""

    coef: Array

    def left(self, x: Array, target: Array) -> Array:
        return target - x @ self.coef.T

    def advance(self, analysis: "LeastSquares", total: Sums) -> State:
        gradient = total["Xy"] - analysis.penalty * self.coef.T
        coef = self.coef + self.solve_normal(total["XX"], gradient, analysis.penalty)
        return LinearModel(coef, np.asarray(self.target_mean - coef @ self.mean))


class LeastSquares(Analysis):
    """What linear and ridge regression share.

    The first round sums to the means, the second to the cross-products about them: (X'X + alpha I) w = X'y. The third
    repeats it for what is left over, y - X w, which takes out the rounding error that forming X'X brings (corrected
    seminormal equations: Bjoerck, Linear Algebra and its Applications 1987). The intercept is not penalised.
    """

    additive: ClassVar[bool] = True
    first: ClassVar[Stage] = TargetSums()
    states: ClassVar[tuple[type[State], ...]] = (TargetCentre, FirstSolution, LinearModel)

    @property
    @abstractmethod
    def penalty(self) -> float:
        """What is added to the diagonal of X'X."""


@register
@dataclass(frozen=True)
class LinearRegression(LeastSquares):
    """Least squares, scikit-learn's `LinearRegression`. Collinear features are refused."""

    name: ClassVar[str] = "linear_regression"

    @property
    def penalty(self) -> float:
        return 0.0


@register
@dataclass(frozen=True)
class RidgeRegression(LeastSquares):
    """Least squares with alpha times the squared coefficients added, scikit-learn's `Ridge`.

    Parameters
    ----------
    alpha : float
        Penalty.
    """

    alpha: float = 1.0

    name: ClassVar[str] = "ridge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < np.inf:
            raise HarmonizationError(f"alpha is {self.alpha}; expected a finite number, 0 or more.")

    @property
    def penalty(self) -> float:
        return self.alpha


def _target_of(table: SiteTable) -> Array:
    """Target of the table, [n] or [n, m] as it is there."""
    target_of(table)
    return np.asarray(table.target, dtype=np.float64)


def _check_rank(products: Array, centre: TargetCentre) -> None:
    """Refuse features whose coefficients the data do not tell: constant or collinear ones."""
    remedy = "Leave it out, or use ridge regression with a positive alpha."
    squares = np.diag(products)
    constant = squares <= centre.n * (_CONSTANT * np.abs(centre.mean)) ** 2
    if constant.any():
        raise HarmonizationError(f"feature {int(constant.argmax()) + 1} is the same for everybody. {remedy}")
    if centre.n <= len(products):
        raise HarmonizationError(
            f"{len(products)} features are too many for {centre.n:.0f} participants. Use fewer, or ridge regression "
            "with a positive alpha."
        )
    scale = np.sqrt(squares)
    if np.linalg.eigvalsh(products / np.outer(scale, scale))[0] < _COLLINEAR:
        raise HarmonizationError(
            "features are collinear. Leave some out, or use ridge regression with a positive alpha."
        )
