"""Linear probes: how well one number about a person is read from the person's features."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import eigh

from harmonization.crossvalidation import (
    Centres,
    CrossValidation,
    Fold,
    solve_centres,
    summarize_centres,
    target_of,
)
from harmonization.errors import HarmonizationError
from harmonization.projection import Centre
from harmonization.protocol import Analysis, Array, SiteTable, State, Sums

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-4, 4, 17))
"""Penalties that the cross-validated ridge tries, in units of the mean diagonal of X'X."""


@dataclass(frozen=True)
class RidgeCentre(Centre):
    """Means of the features [p] and of the target [m]."""

    target_mean: Array


@dataclass(frozen=True)
class RidgeModel(State):
    """A ridge regression.

    Attributes
    ----------
    coef : numpy.ndarray
        [p]; [m, p] for m targets.
    intercept : numpy.ndarray
        A number; [m] for m targets.
    """

    coef: Array
    intercept: Array

    done: ClassVar[bool] = True

    def predict(self, features: Array) -> Array:
        """Predict the target [n] (or [n, m]) of features [n, p]."""
        predicted: Array = features @ self.coef.T + self.intercept
        return predicted


@dataclass(frozen=True)
class RidgeRegression(Analysis):
    """Least squares with alpha times the squared coefficients added, scikit-learn's `Ridge`.

    The first round sums to the means, the second to the cross-products about them: (X'X + alpha I) w = X'y. The
    intercept is not penalised.

    Parameters
    ----------
    alpha : float
        Penalty.
    """

    alpha: float = 1.0

    name: ClassVar[str] = "ridge"
    states: ClassVar[tuple[type[State], ...]] = (RidgeCentre, RidgeModel)

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        target = target_of(table)
        if isinstance(state, RidgeCentre):
            x, y = table.features - state.mean, target - state.target_mean
            return {"XX": x.T @ x, "Xy": (x.T @ y)[:, 0] if _is_single(table) else x.T @ y}
        return {
            "n": np.array(float(table.n)),
            "feature_sum": table.features.sum(axis=0),
            "target_sum": target.sum(axis=0),
        }

    def solve(self, total: Sums, state: State | None) -> State:
        if isinstance(state, RidgeCentre):
            penalised = total["XX"] + self.alpha * np.eye(len(total["XX"]))
            coef = _solve_symmetric(penalised, total["Xy"]).T
            mean = state.target_mean[0] if coef.ndim == 1 else state.target_mean
            return RidgeModel(coef, np.asarray(mean - coef @ state.mean))
        n = float(total["n"])
        return RidgeCentre(total["feature_sum"] / n, n, total["target_sum"] / n)


@dataclass(frozen=True)
class RidgeFits(Centres):
    """Second round: a ridge regression for each part left out.

    Attributes
    ----------
    coef : numpy.ndarray
        [K, k].
    alpha : numpy.ndarray
        [K], the penalties that were chosen.
    """

    coef: Array
    alpha: Array


@dataclass(frozen=True)
class ProbeScores(State):
    """How well held-out participants were predicted.

    Attributes
    ----------
    r2 : float
        1 - squared errors / spread about the mean, over all participants of all sites.
    mean_absolute_error, root_mean_squared_error : float
        In units of the target.
    n : float
        Participants.
    alpha : numpy.ndarray
        [K], the penalties that were chosen.
    """

    r2: float
    mean_absolute_error: float
    root_mean_squared_error: float
    n: float
    alpha: Array

    done: ClassVar[bool] = True


@dataclass(frozen=True)
class CrossValidatedRidge(CrossValidation):
    """Ridge regression of one target, its penalty chosen on the training folds by generalized cross-validation.

    GCV (Golub, Heath & Wahba, Technometrics 1979) needs the same sums as the fit, n RSS / (n - df)^2, and so no
    further round.

    Parameters
    ----------
    alphas : tuple of float
        Penalties to choose from, in units of the mean diagonal of X'X, so that the scale of the features is of no
        matter.
    """

    alphas: tuple[float, ...] = ALPHAS

    name: ClassVar[str] = "cross_validated_ridge"
    states: ClassVar[tuple[type[State], ...]] = (Centres, RidgeFits, ProbeScores)

    def summarize_folds(self, table: SiteTable, folds: list[Fold], own: State | None) -> Sums:
        if isinstance(own, RidgeFits):
            return self._summarize_errors(table, folds, own)
        if isinstance(own, Centres):
            return self._summarize_products(table, folds, own)
        return summarize_centres(table, folds)

    def solve_folds(self, total: Sums, own: State | None) -> State:
        if isinstance(own, RidgeFits):
            return self._score(total, own)
        if isinstance(own, Centres):
            return self._fit(total, own)
        return solve_centres(total)

    def _summarize_products(self, table: SiteTable, folds: list[Fold], centres: Centres) -> Sums:
        """Cross-products of the training rows about their means."""
        target = target_of(table)
        parts = []
        for index, fold in enumerate(folds):
            x = fold.features[fold.training] - centres.mean[index]
            y = target[fold.training, 0] - centres.target_mean[index, 0]
            parts.append({"XX": x.T @ x, "Xy": x.T @ y, "yy": np.array(y @ y)})
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def _fit(self, total: Sums, centres: Centres) -> RidgeFits:
        fits = [
            self._choose(total["XX"][fold], total["Xy"][fold], float(total["yy"][fold]), float(n))
            for fold, n in enumerate(centres.n)
        ]
        return RidgeFits(
            centres.n,
            centres.mean,
            centres.target_mean,
            coef=np.stack([coef for coef, _ in fits]),
            alpha=np.array([alpha for _, alpha in fits]),
        )

    def _summarize_errors(self, table: SiteTable, folds: list[Fold], fits: RidgeFits) -> Sums:
        """Errors of the rows that were left out."""
        target = target_of(table)[:, 0]
        predicted = np.empty(table.n)
        for index, fold in enumerate(folds):
            held_out = ~fold.training
            centred = fold.features[held_out] - fits.mean[index]
            predicted[held_out] = centred @ fits.coef[index] + fits.target_mean[index, 0]
        error = target - predicted
        centred_target = target - fits.target_mean[:, 0].mean()
        return {
            "n": np.array(float(table.n)),
            "squared_error": np.array(error @ error),
            "absolute_error": np.array(np.abs(error).sum()),
            "target": np.array(centred_target.sum()),
            "target_squares": np.array(centred_target @ centred_target),
        }

    def _score(self, total: Sums, fits: RidgeFits) -> ProbeScores:
        n = float(total["n"])
        spread = float(total["target_squares"] - total["target"] ** 2 / n)
        if spread <= 0:
            raise HarmonizationError("the probe's target is the same for everybody. Choose another.")
        return ProbeScores(
            r2=1 - float(total["squared_error"]) / spread,
            mean_absolute_error=float(total["absolute_error"]) / n,
            root_mean_squared_error=float(np.sqrt(total["squared_error"] / n)),
            n=n,
            alpha=fits.alpha,
        )

    def _choose(self, XX: Array, Xy: Array, yy: float, n: float) -> tuple[Array, float]:
        """Coefficients [p] and penalty of least generalized cross-validation error."""
        values, vectors = eigh(XX)
        values = values.clip(min=0)
        rotated = vectors.T @ Xy
        unit = float(values.mean()) or 1.0

        def error(alpha: float) -> float:
            weights = rotated / (values + alpha * unit)
            rss = yy - 2 * weights @ rotated + (weights**2) @ values
            freedom = n - 1 - (values / (values + alpha * unit)).sum()
            return float(n * rss / freedom**2) if freedom > 0 else np.inf

        alpha = min(self.alphas, key=error)
        return vectors @ (rotated / (values + alpha * unit)), alpha


def _solve_symmetric(matrix: Array, right: Array) -> Array:
    try:
        return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)
    except np.linalg.LinAlgError:
        raise HarmonizationError("the features are collinear. Give the ridge regression a positive alpha.") from None


def _is_single(table: SiteTable) -> bool:
    return table.target is not None and table.target.ndim == 1
