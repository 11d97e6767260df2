"""Cross-validated linear probe: how well one number about a person is read from the person's features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from harmonization.core.declared import Declared, Widths, everybody, triangle
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.core.symmetric import pack, unpack
from harmonization.probes.crossvalidation import (
    CrossValidation,
    Folded,
    Target,
    TrainingCentres,
    TrainingSums,
    check_size,
    deviations,
    one_target_of,
    target_of,
)
from harmonization.probes.scoring import (
    N_SCORED,
    beside_null,
    bootstrap_weights,
    permuted_rows,
    regression_scores,
    regression_sums,
    with_interval,
)

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-4, 4, 17))
"""Penalties that the cross-validated ridge tries, for each row of standardised features that is learned from."""
_CONSTANT = 1e-12
"""Spread of a target, relative to its mean, up to which it is rounding error."""


@dataclass(frozen=True)
class Centres(TrainingCentres):
    """After the first round. Cross-products of each part about the means."""

    def check(self, analysis: "CrossValidatedRidge") -> None:
        """Refuse a round that would be too large."""
        parts, p = (1 if analysis.alike else analysis.n_parts) * analysis.n_parts, self.mean.shape[1]
        check_size(parts * p * ((p + 1) // 2 + 1 + analysis.permutations))

    def part(self, analysis: "CrossValidatedRidge", table: Folded) -> Sums:
        targets = analysis.targets(table) - self.target_mean.mean()
        return analysis.summarize_parts(table, self, lambda x, rows: _products(x, targets[rows]))

    def sends(self, analysis: "CrossValidatedRidge", widths: Widths) -> Declared:
        k, targets = widths.seen, 1 + analysis.permutations
        vectors = {"x": everybody(k), "y": everybody(targets)}
        products = {"yy": everybody(), "XX": triangle(k), "Xy": everybody(k, targets)}
        return analysis.of_parts({"n": everybody(), **vectors, **products})

    def advance(self, analysis: "CrossValidatedRidge", total: Sums) -> State:
        nested = self._nested_errors(analysis, total) if analysis.penalty == "nested" else None
        coefs, alphas = [], []
        for part in range(analysis.n_parts):
            fit = self._path(analysis, total, part, analysis.others(part))
            errors = fit.gcv(analysis.alphas) if nested is None else nested[part]
            alphas.append(analysis.alphas[int(np.argmin(errors))])
            coefs.append(fit.coefficients(alphas[-1:])[0])
        return self.become(RidgeFits, coef=np.stack(coefs), alpha=np.array(alphas, dtype=np.float64))

    def _path(self, analysis: "CrossValidatedRidge", total: Sums, left_out: int, parts: Sequence[int]) -> "RidgePath":
        """Ridge regressions of some parts, as they are seen with one part left out."""
        sums = analysis.add_parts(total, left_out, parts)
        variance = np.diag(unpack(sums["XX"])) / sums["n"] - (sums["x"] / sums["n"]) ** 2
        mean = self.mean[analysis.row_of(left_out)]
        return RidgePath(sums, deviations(variance, mean, bool(total["together"] > 0)))

    def _nested_errors(self, analysis: "CrossValidatedRidge", total: Sums) -> Array:
        """Squared errors [K, A] of each penalty with one part left out, over all others that are left out in turn."""
        errors = np.zeros((analysis.n_parts, len(analysis.alphas)))
        if len(analysis.alphas) == 1:  # there is no choice
            return errors
        true = {**total, "y": total["y"][..., :1], "Xy": total["Xy"][..., :1]}
        for first, second in analysis.pairs:
            fit = self._path(analysis, true, first, analysis.others(first, second))
            errors[first] += fit.squared_errors(analysis.alphas, analysis.add_parts(true, first, [second]))
            if analysis.alike:
                errors[second] += fit.squared_errors(analysis.alphas, analysis.add_parts(true, first, [first]))
        return errors


@dataclass(frozen=True)
class RidgeFits(Centres):
    """Ridge regressions [K, p, 1 + B] with each part left out, of the true target and B permuted ones; their errors.

    `alpha` [K] are the penalties that were chosen, for each row.
    """

    coef: Array
    alpha: Array

    def part(self, analysis: "CrossValidatedRidge", table: Folded) -> Sums:
        """Scores of the rows that were left out: of the true target with each draw, and of each permutation."""
        centre = self.target_mean.mean()
        target = analysis.targets(table) - centre
        predicted = np.empty_like(target)
        for index, fold in enumerate(table.folds):
            held_out = ~fold.training
            centred = fold.features[held_out] - self.mean[index]
            predicted[held_out] = centred @ self.coef[index] + (self.target_mean[index] - centre)
        draws, once = bootstrap_weights(table, analysis.bootstrap), np.ones((1, table.n))
        permuted = [regression_sums(y, z, once) for y, z in zip(target.T, predicted.T, strict=True)]
        return {
            "drawn": regression_sums(target[:, 0], predicted[:, 0], draws),
            "permuted": np.concatenate(permuted),
        }

    def sends(self, analysis: "CrossValidatedRidge", widths: Widths) -> Declared:
        drawn, permuted = (everybody(1 + more, N_SCORED) for more in (analysis.bootstrap, analysis.permutations))
        return {"drawn": drawn, "permuted": permuted}

    def advance(self, analysis: "CrossValidatedRidge", total: Sums) -> "ProbeScores":
        n, target, squares = (float(total["drawn"][0, column]) for column in (0, 3, 4))
        if squares - target**2 / n <= n * (_CONSTANT * float(np.abs(self.target_mean).max())) ** 2:
            raise HarmonizationError("the probe's target is the same for everybody. Choose another.")
        drawn, null = regression_scores(total["drawn"]), regression_scores(total["permuted"][1:])["r2"]
        found: dict[str, Any] = {name: float(values[0]) for name, values in drawn.items()}
        for name in ("r2", "mean_absolute_error"):
            found |= with_interval(name, drawn[name])
        return ProbeScores(**found, **beside_null(found["r2"], null), n=n, alpha=self.alpha)


@dataclass(frozen=True)
class ProbeScores(Answer):
    """How well held-out participants were predicted.

    Attributes
    ----------
    r2, r2_low, r2_high : float
        1 - squared errors / spread about the mean, over all participants of all sites, and its 95 % interval by
        bootstrap.
    mean_absolute_error, mean_absolute_error_low, mean_absolute_error_high : float
        In units of the target.
    root_mean_squared_error : float
        In units of the target.
    correlation : float
        Pearson's, of prediction and target.
    n : float
        Participants.
    alpha : numpy.ndarray
        [K], the penalties that were chosen, for each row.
    null, null_mean, null_95 : numpy.ndarray, float, float
        [B], r2 of permuted targets (`harmonization.probes.scoring.of_null`).
    p_value : float
        (1 + number of null values at least as large) / (B + 1).
    """

    r2: float
    r2_low: float
    r2_high: float
    mean_absolute_error: float
    mean_absolute_error_low: float
    mean_absolute_error_high: float
    root_mean_squared_error: float
    correlation: float
    n: float
    alpha: Array
    null: Array
    null_mean: float
    null_95: float
    p_value: float


@register
@dataclass(frozen=True)
class CrossValidatedRidge(CrossValidation):
    """Ridge regression of one target on people who were held out, its penalty chosen on the training rows.

    Every fit standardises the features by its own training rows, whose sums tell the deviations: it is scikit-learn's
    ``make_pipeline(StandardScaler(), Ridge(alpha * n))`` for n training rows, whatever the units of the features. What
    is seen through loadings keeps its relative scale (`crossvalidation.deviations`).

    One round of cross-products serves all: each part's are summed apart, so those of any training rows follow by
    adding. Targets are permuted within each part of a site, which changes X'y alone; a permuted fit takes the penalty
    of the true one in its part.

    Parameters
    ----------
    alphas : tuple of float
        Penalties to choose from, for each training row: scikit-learn's alpha, for standardised features, over n.
    penalty : {"nested", "gcv"}
        How the penalty is chosen with part k left out. "nested" leaves each other part j out, too, and takes the
        penalty of least squared error in these j. Their features are harmonized by all rows but k's, and so by j's
        own, too: that can bias the choice a little, but no score. "gcv" is generalized cross-validation,
        n RSS / (n - df)^2 (Golub, Heath & Wahba, Technometrics 1979), which two parts are enough for.
    bootstrap : int
        Draws of participants within sites for the intervals; 0 for none.
    permutations : int
        Permutations of the target, B.
    """

    alphas: tuple[float, ...] = ALPHAS
    penalty: Literal["nested", "gcv"] = "nested"
    bootstrap: int = 0
    permutations: int = 0

    name: ClassVar[str] = "cross_validated_ridge"
    predicts: ClassVar[Target] = "number"
    first: ClassVar[Stage] = TrainingSums(Centres)
    states: ClassVar[tuple[type[State], ...]] = (Centres, RidgeFits, ProbeScores)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.alphas) or not all(0 < alpha < np.inf for alpha in self.alphas):
            raise HarmonizationError(f"alphas are {list(self.alphas)}; expected positive, finite penalties.")
        if self.penalty not in ("nested", "gcv"):
            raise HarmonizationError(f"penalty is '{self.penalty}'; expected 'nested' or 'gcv'.")
        if self.penalty == "nested" and self.n_parts < 3 and len(self.alphas) > 1:
            raise HarmonizationError("two parts leave none to choose the penalty in. Use more folds, or penalty 'gcv'.")
        if min(self.bootstrap, self.permutations) < 0:
            raise HarmonizationError("expected neither bootstrap nor permutations below 0.")

    def check(self, table: SiteTable) -> None:
        super().check(table)
        one_target_of(table)
        self.targets(table)

    def targets(self, table: SiteTable) -> Array:
        """Targets [n, 1 + B]: the true one, then permuted ones, the same in every round."""
        targets: Array = target_of(table)[permuted_rows(table, self.deal(table), self.permutations), 0].T
        return targets


def _products(x: Array, targets: Array) -> Sums:
    """Cross-products of features [n, p] and targets [n, 1 + B], all about a common centre."""
    return {
        "n": np.array(float(len(x))),
        "x": x.sum(axis=0),
        "y": targets.sum(axis=0),
        "XX": pack(x.T @ x),
        "Xy": x.T @ targets,
        "yy": np.array((targets[:, 0] ** 2).sum()),
    }


class RidgePath:
    """Ridge regressions of n rows, of every penalty from one eigendecomposition, by `_products`.

    Penalties are for each row, and of coefficients of features divided by `scale` [p].
    """

    def __init__(self, sums: Sums, scale: Array) -> None:
        self.n, self.scale = float(sums["n"]), scale
        self.mean, self.target_mean = sums["x"] / self.n, sums["y"] / self.n
        products = unpack(sums["XX"]) - self.n * np.outer(self.mean, self.mean)
        values, self.vectors = eigh(products / np.outer(scale, scale))
        self.values = values.clip(min=0)
        with_target = sums["Xy"] - self.n * np.outer(self.mean, self.target_mean)
        self.rotated = self.vectors.T @ (with_target / scale[:, None])
        self.yy = float(sums["yy"] - self.n * self.target_mean[0] ** 2)

    def coefficients(self, alphas: Sequence[float]) -> Array:
        """Coefficients [A, p, 1 + B] of each penalty, of the features as they are."""
        shrunken = self.values[None] + np.asarray(alphas)[:, None] * self.n
        coefficients: Array = self.vectors @ (self.rotated / shrunken[..., None]) / self.scale[:, None]
        return coefficients

    def squared_errors(self, alphas: Sequence[float], sums: Sums) -> Array:
        """Squared errors [A] of each penalty for the true target in other rows, from their `_products`."""
        weights = self.coefficients(alphas)[:, :, 0]
        n, x, y = float(sums["n"]), sums["x"], float(sums["y"][0])
        mean, around = self.mean, float(self.target_mean[0])
        XX = unpack(sums["XX"]) - np.outer(x, mean) - np.outer(mean, x) + n * np.outer(mean, mean)
        Xy = sums["Xy"][:, 0] - x * around - mean * y + n * mean * around
        yy = float(sums["yy"]) - 2 * y * around + n * around**2
        errors: Array = yy - 2 * weights @ Xy + np.einsum("ap,pq,aq->a", weights, XX, weights, optimize=True)
        return errors

    def gcv(self, alphas: Sequence[float]) -> Array:
        """Generalized cross-validation errors [A] of each penalty."""
        rotated = self.rotated[:, 0]
        shrunken = self.values + np.asarray(alphas)[:, None] * self.n
        weights = rotated / shrunken
        rss = self.yy - 2 * weights @ rotated + weights**2 @ self.values
        freedom = self.n - 1 - (self.values / shrunken).sum(axis=1)
        errors: NDArray[np.float64] = np.full(len(rss), np.inf)
        np.divide(self.n * rss, freedom**2, out=errors, where=freedom > 0)
        return errors
