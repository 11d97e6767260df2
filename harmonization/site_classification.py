"""Whether the site of people who were held out can be recognised in their features."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from harmonization import combat
from harmonization.crossvalidation import Centres, CrossValidation, Fold, target_of
from harmonization.protocol import Array, SiteTable, State, Sums


@dataclass(frozen=True)
class AdjustedCentres(Centres):
    """First round: means of the training rows, once the effects of q covariates within sites are taken out.

    Attributes
    ----------
    coefficients : numpy.ndarray
        [K, q, k].
    """

    coefficients: Array


@dataclass(frozen=True)
class SiteDiscriminants(AdjustedCentres):
    """Second round: linear discriminants for each part left out, of the true labels and of B permuted ones.

    Attributes
    ----------
    weights : numpy.ndarray
        [K, 1 + B, C, p]; the first of the second axis is the true one.
    bias : numpy.ndarray
        [K, 1 + B, C].
    """

    weights: Array
    bias: Array


@dataclass(frozen=True)
class SiteClassificationResult(State):
    """How well the site of held-out participants is recognised.

    Attributes
    ----------
    balanced_accuracy : float
        Mean over sites of the share recognised; 1 / sites by chance.
    null : numpy.ndarray
        [B], the same with permuted labels.
    null_mean, null_95 : float
        Mean and 95th percentile of the null.
    p_value : float
        (1 + number of null values at least as large) / (B + 1).
    """

    balanced_accuracy: float
    null: Array
    null_mean: float
    null_95: float
    p_value: float

    done: ClassVar[bool] = True


@dataclass(frozen=True)
class SiteClassification(CrossValidation):
    """Linear discriminant analysis of the site, with equal priors and a shrunken covariance (Ledoit & Wolf 2004 form).

    The table's target is the one-hot site [n, C]. For the null, each site deals its own rows new labels in the
    proportions of the sites, with its private seed. The effects of the table's covariates within sites are taken
    out, with ComBat and without, so that what is recognised is the site and not the age of its people.

    Parameters
    ----------
    shrinkage : float
        Above 0, up to 1: weight of the spherical covariance in the pooled within-site one.
    permutations : int
        Number of permuted labelings, B.
    """

    shrinkage: float = 0.2
    permutations: int = 100

    name: ClassVar[str] = "site_classification"
    states: ClassVar[tuple[type[State], ...]] = (AdjustedCentres, SiteDiscriminants, SiteClassificationResult)

    def summarize_folds(self, table: SiteTable, folds: list[Fold], own: State | None) -> Sums:
        if isinstance(own, SiteDiscriminants):
            return self._summarize_recognised(table, folds, own)
        if isinstance(own, AdjustedCentres):
            return self._summarize_classes(table, folds, own)
        return summarize_adjusted_centres(table, folds)

    def solve_folds(self, total: Sums, own: State | None) -> State:
        if isinstance(own, SiteDiscriminants):
            return self._score(total)
        if isinstance(own, AdjustedCentres):
            return self._fit(total, own)
        return solve_adjusted_centres(total)

    def _summarize_classes(self, table: SiteTable, folds: list[Fold], centres: AdjustedCentres) -> Sums:
        """Second moments of the training rows, and sums of the rows of each class."""
        labelings = self._labelings(table, centres)
        parts = []
        for index, fold in enumerate(folds):
            x = adjust(fold.features, table, centres, index)[fold.training]
            classes = _without_small_cells(labelings[:, fold.training], table.min_group)  # [1 + B, n, C]
            parts.append(
                {
                    "XX": x.T @ x,
                    "class_n": classes.sum(axis=1),
                    "class_sum": np.einsum("bnc,np->bcp", classes, x, optimize=True),
                }
            )
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def _fit(self, total: Sums, centres: AdjustedCentres) -> SiteDiscriminants:
        weights = np.empty_like(total["class_sum"])
        bias = np.empty_like(total["class_n"])
        for fold in range(len(centres.n)):
            for labeling in range(weights.shape[1]):
                weights[fold, labeling], bias[fold, labeling] = self._discriminants(
                    total["XX"][fold], total["class_n"][fold, labeling], total["class_sum"][fold, labeling]
                )
        return SiteDiscriminants(
            centres.n, centres.mean, centres.target_mean, centres.coefficients, weights=weights, bias=bias
        )

    def _summarize_recognised(self, table: SiteTable, folds: list[Fold], fitted: SiteDiscriminants) -> Sums:
        """How many of the rows that were left out are recognised, of each class and labeling."""
        labelings = self._labelings(table, fitted)
        right = np.zeros((len(labelings), labelings.shape[2]))
        for index, fold in enumerate(folds):
            held_out = ~fold.training
            x = adjust(fold.features, table, fitted, index)[held_out]
            scores = np.einsum("np,bcp->bnc", x, fitted.weights[index], optimize=True) + fitted.bias[index][:, None]
            hit = np.take_along_axis(labelings[:, held_out], scores.argmax(axis=2)[..., None], axis=2)
            right += (labelings[:, held_out] * hit).sum(axis=1)
        return {"right": right, "class_n": labelings.sum(axis=1)}

    def _score(self, total: Sums) -> SiteClassificationResult:
        present = total["class_n"] > 0
        recall = total["right"] / np.where(present, total["class_n"], 1)
        accuracies = recall.sum(axis=1) / present.sum(axis=1)
        accuracy, null = float(accuracies[0]), accuracies[1:]
        return SiteClassificationResult(
            balanced_accuracy=accuracy,
            null=null,
            null_mean=float(null.mean()) if len(null) else float("nan"),
            null_95=float(np.quantile(null, 0.95)) if len(null) else float("nan"),
            p_value=float((1 + (null >= accuracy).sum()) / (len(null) + 1)),
        )

    def _labelings(self, table: SiteTable, centres: Centres) -> NDArray[np.float64]:
        """One-hot labels [1 + B, n, C]: the true ones, then permuted ones, the same in every round."""
        target = target_of(table)
        chances = centres.target_mean.mean(axis=0)
        dealt = np.random.default_rng([table.seed, 1]).choice(
            target.shape[1], size=(self.permutations, table.n), p=chances / chances.sum()
        )
        return np.concatenate([target[None], np.eye(target.shape[1])[dealt]])

    def _discriminants(self, XX: Array, class_n: Array, class_sum: Array) -> tuple[Array, Array]:
        """Weights [C, p] and biases [C] from sums about a common centre."""
        n, n_classes, p = class_n.sum(), len(class_n), len(XX)
        known = class_n > 0
        means = class_sum / np.where(known, class_n, 1)[:, None]
        within = (XX - means.T @ class_sum) / max(n - n_classes, 1)
        spread = np.trace(within) / p
        if spread <= 0:  # no variance within sites: nothing to weigh by
            return np.zeros_like(means), np.where(known, 0.0, -np.inf)
        shrunken = (1 - self.shrinkage) * within + self.shrinkage * spread * np.eye(p)
        weights = solve(shrunken, means.T, assume_a="pos").T
        return weights, np.where(known, -0.5 * (weights * means).sum(axis=1), -np.inf)


def _without_small_cells(labelings: Array, min_group: int) -> Array:
    """Leave the rows out of a labeling [B, n, C] that its smallest classes hold, so that no class's sum stands for few.

    The sum over all classes is known, so those left out must together be enough, too. Permuted labels stay random.
    """
    kept = labelings.copy()
    for labeling, counts in zip(kept, labelings.sum(axis=1), strict=True):
        left_out = 0
        for label in np.argsort(counts, kind="stable"):
            if counts[label] and (counts[label] < min_group or 0 < left_out < min_group):
                labeling[:, label] = 0
                left_out += counts[label]
    return kept


def summarize_adjusted_centres(table: SiteTable, folds: list[Fold]) -> Sums:
    """Return the sums that `solve_adjusted_centres` needs: those of ComBat, of the training rows of each part."""
    target = target_of(table)
    parts = []
    for fold in folds:
        rows = fold.training
        # Sums about a site's own means: without rows there are none, and nothing to add.
        sums = combat.summarize(fold.features[rows], table.design[rows]) if rows.any() else None
        sums = sums or {n: np.zeros_like(v) for n, v in combat.summarize(fold.features, table.design).items()}
        parts.append({**sums, "target_sum": target[rows].sum(axis=0)})
    return {name: np.stack([part[name] for part in parts]) for name in parts[0] if name != "T"}


def solve_adjusted_centres(total: Sums) -> AdjustedCentres:
    """Find the effects of the covariates within sites, and the means without them."""
    n = total["n"]
    mean, covariate_mean = total["feature_sum"] / n[:, None], total["covariate_sum"] / n[:, None]
    coefficients = np.stack(
        [
            combat.solve_within(W, V, float(rows), around)
            for W, V, rows, around in zip(total["W"], total["V"], n, covariate_mean, strict=True)
        ]
    )
    adjusted = mean - np.einsum("kq,kqp->kp", covariate_mean, coefficients)
    return AdjustedCentres(n, adjusted, total["target_sum"] / n[:, None], coefficients)


def adjust(features: Array, table: SiteTable, centres: AdjustedCentres, fold: int) -> Array:
    """Take the covariates' effects out of features [n, k], and their mean."""
    adjusted: Array = features - table.design @ centres.coefficients[fold] - centres.mean[fold]
    return adjusted
