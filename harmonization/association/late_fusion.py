"""Whether a second view of people adds to what their features predict: ridge regressions, and two ways to join them.

Early fusion is one ridge regression on both views side by side. Late fusion adds up the predictions of one ridge
regression for each view, with weights that are learned by stacking (Wolpert, Neural Networks 1992; not negative:
Breiman, Machine Learning 1996) on predictions of training people by models that did not see them.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.linalg import block_diag
from scipy.optimize import nnls

from harmonization.association.canonical_correlation import second_view_of
from harmonization.core.declared import Declared, Widths, everybody
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.core.symmetric import pack
from harmonization.probes.crossvalidation import (
    CrossValidation,
    Fold,
    Folded,
    TrainingCentres,
    TrainingSums,
    deviations,
    one_target_of,
    seen_together,
    target_of,
)
from harmonization.probes.ridge import ALPHAS, RidgePath

MODELS = ("features", "second", "early", "late")
"""What is compared, in the order of the scores."""


class ViewSums(TrainingSums):
    """First round: sums of both views side by side."""

    def part(self, analysis: "LateFusion", table: Folded) -> Sums:
        n_width = np.array([table.n, table.n * table.folds[0].features.shape[1]], dtype=np.float64)
        sums = super().part(analysis, replace(table, folds=_joined(table)))
        return {**sums, "n_width": n_width, "together": seen_together(table)}

    def sends(self, analysis: "LateFusion", widths: Widths) -> Declared:
        sums = super().sends(analysis, replace(widths, seen=widths.seen + widths.second))
        return {**sums, "n_width": everybody(2), "together": everybody()}

    def advance(self, analysis: "LateFusion", total: Sums) -> State:
        n, n_width = total["n_width"]
        width, together = int(np.rint(n_width / n)), int(total["together"] > 0)
        return self.centres(analysis, total, width=width, together=together)


@dataclass(frozen=True)
class ViewCentres(TrainingCentres):
    """Means of both views side by side, and the number of columns of the first, p. Products about them.

    `together` is 1 where features are seen through loadings, and 0 else.
    """

    width: int
    together: int

    def part(self, analysis: "LateFusion", table: Folded) -> Sums:
        """Cross-products of the training rows of each part about their means."""
        target, parts = target_of(table)[:, 0], []
        for index, fold in enumerate(_joined(table)):
            x = fold.features[fold.training] - self.mean[index]
            y = target[fold.training] - self.target_mean[index, 0]
            parts.append({"XX": x.T @ x, "Xy": x.T @ y, "yy": np.array(y @ y)})
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def sends(self, analysis: "LateFusion", widths: Widths) -> Declared:
        d = widths.seen + widths.second
        sums = {"XX": everybody(d, d), "Xy": everybody(d), "yy": everybody()}
        return {name: analysis.stacked(sent) for name, sent in sums.items()}

    def advance(self, analysis: "LateFusion", total: Sums) -> State:
        """Fit either view, and both, for each part left out."""
        parts = []
        for part, n in enumerate(self.n):
            XX, mean = total["XX"][part], self.mean[part]
            scale = np.concatenate(
                [
                    deviations(np.diag(XX[view, view]) / n, mean[view], bool(self.together))
                    for view in _views(self.width)
                ]
            )
            scaled = XX / np.outer(scale, scale), total["Xy"][part] / scale, float(total["yy"][part])
            fit = self._fit_part(analysis, *scaled, float(n))
            parts.append({**fit, "coef": fit["coef"] / scale, "inverse": fit["inverse"] / np.outer(scale, scale)})
        return self.become(ViewFits, **{name: np.stack([part[name] for part in parts]) for name in parts[0]})

    def _fit_part(self, analysis: "LateFusion", XX: Array, Xy: Array, yy: float, n: float) -> Sums:
        """Fields of `ViewFits` that have one entry a part, for one part and scaled views."""
        coef, alpha, inverses = np.zeros((3, len(XX))), np.empty(3), []
        for number, view in enumerate(_views(self.width)):
            coef[number, view], alpha[number] = analysis.choose(XX[view, view], Xy[view], yy, n)
            values, vectors = np.linalg.eigh(XX[view, view])
            inverses.append(vectors / (values.clip(min=0) + alpha[number] * n) @ vectors.T)
        coef[2], alpha[2] = analysis.choose(XX, Xy, yy, n)
        return {"coef": coef, "alpha": alpha, "inverse": block_diag(*inverses)}


@dataclass(frozen=True)
class ViewFits(ViewCentres):
    """Ridge regressions for each of K parts left out; how their predictions go together.

    `coef` [K, 3, p + r] is of the first three of `MODELS`, 0 for the other view; `alpha` [K, 3] the penalties that were
    chosen; `inverse` [K, p + r, p + r] has (X'X + penalty)^-1 of either view in the blocks of the diagonal.
    """

    coef: Array
    alpha: Array
    inverse: Array

    def part(self, analysis: "LateFusion", table: Folded) -> Sums:
        """Products of both views' predictions of training rows that the fit did not see, and of the target."""
        target = target_of(table)[:, 0]
        products = np.empty((len(table.folds), 3, 3))
        for index, fold in enumerate(_joined(table)):
            x, t = fold.features[fold.training] - self.mean[index], target[fold.training] - self.target_mean[index, 0]
            columns = []
            for coef, view in zip(self.coef[index, :2], _views(self.width), strict=True):
                leverage = 1 / self.n[index] + ((x[:, view] @ self.inverse[index, view, view]) * x[:, view]).sum(axis=1)
                columns.append(t - (t - x @ coef) / (1 - leverage))
            joined = np.column_stack([*columns, t])
            products[index] = joined.T @ joined
        return {"products": products}

    def sends(self, analysis: "LateFusion", widths: Widths) -> Declared:
        return {"products": analysis.stacked(everybody(3, 3))}

    def advance(self, analysis: "LateFusion", total: Sums) -> State:
        """Weigh both views' predictions by least squares, with weights of at least 0."""
        weights = np.stack(
            [_weights_of_at_least_0(products[:2, :2], products[:2, 2]) for products in total["products"]]
        )
        late = np.einsum("km,kmp->kp", weights, self.coef[:, :2])
        return self.become(Fusions, coef=np.concatenate([self.coef, late[:, None]], axis=1), weights=weights)


@dataclass(frozen=True)
class Fusions(TrainingCentres):
    """All models for each of K parts left out; their errors.

    `coef` [K, 4, p + r] is of `MODELS`: a sum of linear predictions is one, too. `alpha` [K, 3] are the penalties, and
    `weights` [K, 2] those of either view's prediction in late fusion.
    """

    coef: Array
    alpha: Array
    weights: Array

    def part(self, analysis: "LateFusion", table: Folded) -> Sums:
        """Errors of the rows that were left out, by all models."""
        target = target_of(table)[:, 0]
        error = np.empty((table.n, len(MODELS)))
        for index, fold in enumerate(_joined(table)):
            held_out = ~fold.training
            predicted = (fold.features[held_out] - self.mean[index]) @ self.coef[index].T
            error[held_out] = (target[held_out] - self.target_mean[index, 0])[:, None] - predicted
        centred_target = target - self.target_mean[:, 0].mean()
        gain = error[:, :1] ** 2 - error[:, 2:] ** 2
        return {
            "n": np.array(float(table.n)),
            "squared_error": (error**2).sum(axis=0),
            "absolute_error": np.abs(error).sum(axis=0),
            "gain": gain.sum(axis=0),
            "gain_squares": (gain**2).sum(axis=0),
            "target": np.array(centred_target.sum()),
            "target_squares": np.array(centred_target @ centred_target),
        }

    def sends(self, analysis: "LateFusion", widths: Widths) -> Declared:
        numbers = dict.fromkeys(("n", "target", "target_squares"), everybody())
        errors = dict.fromkeys(("squared_error", "absolute_error"), everybody(len(MODELS)))
        return {**numbers, **errors, **dict.fromkeys(("gain", "gain_squares"), everybody(2))}

    def advance(self, analysis: "LateFusion", total: Sums) -> "FusionScores":
        n = float(total["n"])
        spread = float(total["target_squares"] - total["target"] ** 2 / n)
        if spread <= 0:
            raise HarmonizationError("the probe's target is the same for everybody. Choose another.")
        variance = np.maximum(total["gain_squares"] / n - (total["gain"] / n) ** 2, 0)
        return FusionScores(
            r2=1 - total["squared_error"] / spread,
            mean_absolute_error=total["absolute_error"] / n,
            root_mean_squared_error=np.sqrt(total["squared_error"] / n),
            gain=total["gain"] / spread,
            gain_error=np.sqrt(n * variance) / spread,
            weights=self.weights,
            alpha=self.alpha,
            n=n,
        )


@dataclass(frozen=True)
class FusionScores(Answer):
    """How well held-out participants were predicted from either view and from both.

    Attributes
    ----------
    r2 : numpy.ndarray
        [4], of `MODELS`: 1 - squared errors / spread about the mean, over all participants of all sites.
    mean_absolute_error, root_mean_squared_error : numpy.ndarray
        [4], in units of the target.
    gain, gain_error : numpy.ndarray
        [2], R squared of early and of late fusion less that of the features alone, and its standard error from the
        paired differences of squared errors. The folds share training rows, which makes the error a little too small.
    weights : numpy.ndarray
        [K, 2], of either view's prediction in late fusion.
    alpha : numpy.ndarray
        [K, 3], the penalties that were chosen.
    n : float
        Participants.
    """

    r2: Array
    mean_absolute_error: Array
    root_mean_squared_error: Array
    gain: Array
    gain_error: Array
    weights: Array
    alpha: Array
    n: float


@register
@dataclass(frozen=True)
class LateFusion(CrossValidation):
    """Ridge regression of one target on the features, on the second view, and on both by early and by late fusion.

    Every fit standardises the columns of both views by its training rows, as `CrossValidatedRidge` does. If features
    are seen through loadings, the columns of either view keep their relative scale, at a mean variance of 1. For late
    fusion, each training person is predicted as if left out of the fit, by the leave-one-out formula of ridge
    regression, (t - prediction) / (1 - h): sites know the leverage h of their rows, and send sums of products of two
    predictions and the target. The second view is taken as it is, whatever makes the features of sites alike.
    Penalties are chosen by generalized cross-validation on the training rows.

    Parameters
    ----------
    alphas : tuple of float
        Penalties to choose from, as of `CrossValidatedRidge`.
    """

    alphas: tuple[float, ...] = ALPHAS

    name: ClassVar[str] = "late_fusion"
    first: ClassVar[Stage] = ViewSums(ViewCentres)
    states: ClassVar[tuple[type[State], ...]] = (ViewCentres, ViewFits, Fusions, FusionScores)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.alphas) or not all(0 < alpha < np.inf for alpha in self.alphas):
            raise HarmonizationError(f"alphas are {list(self.alphas)}; expected penalties above 0. Give one or more.")

    def check(self, table: SiteTable) -> None:
        super().check(table)
        one_target_of(table)

    def choose(self, XX: Array, Xy: Array, yy: float, n: float) -> tuple[Array, float]:
        """Coefficients [p] and penalty of the least generalized cross-validation error, for scaled features."""
        sums = {
            "n": np.array(n),
            "x": np.zeros(len(XX)),
            "y": np.zeros(1),
            "XX": pack(XX),
            "Xy": Xy[:, None],
            "yy": np.array(yy),
        }
        path = RidgePath(sums, np.ones(len(XX)))
        alpha = self.alphas[int(np.argmin(path.gcv(self.alphas)))]
        return path.coefficients([alpha])[0][:, 0], alpha


def _joined(table: Folded) -> tuple[Fold, ...]:
    """The table's folds with both views side by side."""
    second = second_view_of(table)
    return tuple(Fold(np.concatenate([fold.features, second], axis=1), fold.training) for fold in table.folds)


def _views(width: int) -> tuple[slice, slice]:
    """Columns of the features, and of the second view beside them."""
    return slice(0, width), slice(width, None)


def _weights_of_at_least_0(products: Array, with_target: Array) -> Array:
    """Weights w [m] >= 0 of the smallest w' P w - 2 w' b, for products P [m, m] and b [m] of m predictions."""
    values, vectors = np.linalg.eigh(products)
    known = values > 1e-12 * values[-1]
    root = np.sqrt(values[known])
    weights: Array = nnls(root[:, None] * vectors[:, known].T, vectors[:, known].T @ with_target / root)[0]
    return weights
