"""Whether the site of people who were held out can be recognised in their features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from harmonization.core.declared import Declared, Sent, Widths, everybody, in_parts, of_groups
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Array, SiteTable, State, Sums
from harmonization.core.registry import register
from harmonization.methods import combat
from harmonization.probes.class_regression import one_hot_of
from harmonization.probes.crossvalidation import Centres, CrossValidation, Fold, deviations, seen_together, target_of
from harmonization.site_effects.spread import require_sites


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
class SiteRecognition(CrossValidation):
    """What every classifier of the site shares.

    The table's target is the one-hot site [n, C]. For the null, each site deals its own rows new labels in the
    proportions of the sites, with its private seed. The effects of the table's covariates within sites are taken
    out, harmonized or not, so that what is recognised is the site and not the age of its people.

    Parameters
    ----------
    permutations : int
        Number of permuted labelings, B.
    """

    permutations: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sites:
            raise HarmonizationError("a site that is left out as a whole cannot be recognised. Leave out folds.")
        if self.permutations < 0:
            raise HarmonizationError(f"permutations is {self.permutations}; expected 0 or more.")

    def _check(self, table: SiteTable) -> None:
        super()._check(table)
        one_hot_of(table)

    def labelings(self, table: SiteTable, centres: Centres) -> NDArray[np.float64]:
        """One-hot labels [1 + B, n, C]: the true ones, then permuted ones, the same in every round.

        Sums over the parts that train give, by subtraction, those over the part left out. So inside each part, blocks
        of at least `min_group` random rows share a label, and no class's sum stands for fewer.
        """
        target, parts = target_of(table), self.deal(table)
        chances = centres.target_mean.mean(axis=0)
        random = np.random.default_rng([table.seed, 1])
        labels = np.empty((self.permutations, table.n), dtype=np.int64)
        for part in np.unique(parts):
            rows = np.flatnonzero(parts == part)
            n_blocks = max(1, len(rows) // table.min_group)
            dealt = random.choice(target.shape[1], size=(self.permutations, n_blocks), p=chances / chances.sum())
            labels[:, rows] = random.permuted(dealt[:, np.arange(len(rows)) * n_blocks // len(rows)], axis=1)
        return np.concatenate([target[None], np.eye(target.shape[1])[labels]])

    def count_recognised(self, labelings: Array, folds: list[Fold], scores: Callable[[int], Array]) -> Sums:
        """How many of the rows that were left out are recognised, of each class and labeling.

        Parameters
        ----------
        scores : callable
            Scores [1 + B, n, C] of all rows by the classifiers of one part left out.
        """
        right = np.zeros((len(labelings), labelings.shape[2]))
        for index, fold in enumerate(folds):
            held_out = ~fold.training
            best = scores(index)[:, held_out].argmax(axis=2)[..., None]
            right += (labelings[:, held_out] * np.take_along_axis(labelings[:, held_out], best, axis=2)).sum(axis=1)
        return {"right": right, "class_n": labelings.sum(axis=1)}

    def counts_of_recognised(self, n_classes: int) -> dict[str, Sent]:
        """Declare what `count_recognised` returns."""
        counts = of_groups(in_parts(everybody(1 + self.permutations, n_classes), self.n_dealt))
        return {"right": counts, "class_n": counts}

    def score(self, total: Sums) -> SiteClassificationResult:
        """Balanced accuracies from `count_recognised`."""
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


@register
@dataclass(frozen=True)
class SiteClassification(SiteRecognition):
    """Linear discriminant analysis of the site, with equal priors and a shrunken covariance (Ledoit & Wolf 2004 form).

    Features are first divided by their deviations within the sites, over the training rows, so that their units are of
    no matter; what is seen through loadings keeps its relative scale (`crossvalidation.deviations`).

    Parameters
    ----------
    shrinkage : float
        Above 0, up to 1: weight of the spherical covariance in the pooled within-site one.
    """

    shrinkage: float = 0.2

    name: ClassVar[str] = "site_classification"
    states: ClassVar[tuple[type[State], ...]] = (AdjustedCentres, SiteDiscriminants, SiteClassificationResult)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrinkage <= 1:
            raise HarmonizationError(f"shrinkage is {self.shrinkage}; expected above 0, up to 1.")

    def summarize_folds(self, table: SiteTable, folds: list[Fold], own: State | None) -> Sums:
        if isinstance(own, SiteDiscriminants):
            return self._summarize_recognised(table, folds, own)
        if isinstance(own, AdjustedCentres):
            return self._summarize_classes(table, folds, own)
        return summarize_adjusted_centres(table, folds)

    def sends_folds(self, widths: Widths, own: State | None) -> Declared:
        k, n_labelings, n_classes = widths.seen, 1 + self.permutations, widths.classes
        if isinstance(own, SiteDiscriminants):
            return self.counts_of_recognised(n_classes)
        if isinstance(own, AdjustedCentres):
            sums = {
                "XX": everybody(k, k),
                "class_n": of_groups(everybody(n_labelings, n_classes)),
                "class_sum": of_groups(everybody(n_labelings, n_classes, k)),
            }
            return {**{name: self.stacked(sent) for name, sent in sums.items()}, "together": everybody()}
        return adjusted_centres_of(self, widths)

    def solve_folds(self, total: Sums, own: State | None) -> State:
        if isinstance(own, SiteDiscriminants):
            return self.score(total)
        if isinstance(own, AdjustedCentres):
            return self._fit(total, own)
        return solve_adjusted_centres(total)

    def _summarize_classes(self, table: SiteTable, folds: list[Fold], centres: AdjustedCentres) -> Sums:
        """Second moments of the training rows, and sums of the rows of each class."""
        labelings = self.labelings(table, centres)
        parts = []
        for index, fold in enumerate(folds):
            x = adjust(fold.features, table, centres, index)[fold.training]
            classes = labelings[:, fold.training]  # [1 + B, n, C]
            parts.append(
                {
                    "XX": x.T @ x,
                    "class_n": classes.sum(axis=1),
                    "class_sum": np.einsum("bnc,np->bcp", classes, x, optimize=True),
                }
            )
        stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        return {**stacked, "together": seen_together(table)}

    def _fit(self, total: Sums, centres: AdjustedCentres) -> SiteDiscriminants:
        weights = np.empty_like(total["class_sum"])
        bias = np.empty_like(total["class_n"])
        for fold in range(len(centres.n)):
            XX, class_n, class_sum = (total[name][fold] for name in ("XX", "class_n", "class_sum"))
            between = (class_sum[0] ** 2 / np.maximum(class_n[0], 1)[:, None]).sum(axis=0)
            within = np.maximum(np.diag(XX) - between, 0) / centres.n[fold]
            scale = deviations(within, centres.mean[fold], bool(total["together"] > 0))
            scaled = self._discriminants(XX / np.outer(scale, scale), class_n, class_sum / scale)
            weights[fold], bias[fold] = scaled[0] / scale, scaled[1]
        return SiteDiscriminants(
            centres.n, centres.mean, centres.target_mean, centres.coefficients, weights=weights, bias=bias
        )

    def _summarize_recognised(self, table: SiteTable, folds: list[Fold], fitted: SiteDiscriminants) -> Sums:
        def scores(part: int) -> Array:
            x = adjust(folds[part].features, table, fitted, part)
            weighed = np.einsum("np,bcp->bnc", x, fitted.weights[part], optimize=True)
            result: Array = weighed + fitted.bias[part][:, None]
            return result

        return self.count_recognised(self.labelings(table, fitted), folds, scores)

    def _discriminants(self, XX: Array, class_n: Array, class_sum: Array) -> tuple[Array, Array]:
        """Weights [1 + B, C, p] and biases [1 + B, C] from sums about a common centre.

        With M the means of the classes and N their sizes, the shrunken covariance of a labeling is
        a XX - a M' N M + b I. XX is common to all labelings, so that one eigendecomposition of it and a C x C system
        (Woodbury) serve each permuted one. The true labeling is solved as it is: where sites lie far apart, the
        difference would lose digits.
        """
        n, n_classes, p = class_n.sum(axis=1), class_n.shape[1], len(XX)
        known = class_n > 0
        means = class_sum / np.where(known, class_n, 1)[..., None]
        freedom = np.maximum(n - n_classes, 1)
        spread = (np.trace(XX) - (means * class_sum).sum(axis=(1, 2))) / freedom / p
        a, b = (1 - self.shrinkage) / freedom, self.shrinkage * spread
        if (b <= 0).any():  # no variance within classes: nothing to weigh by
            return np.zeros_like(means), np.where(known, 0.0, -np.inf)
        values, vectors = np.linalg.eigh(XX)
        scaled = means @ vectors / (a[:, None] * values.clip(min=0) + b[:, None])[:, None]
        inner = np.eye(n_classes) - (a[:, None] * class_n)[..., None] * (means @ vectors @ scaled.swapaxes(1, 2))
        weights = np.linalg.solve(inner.swapaxes(1, 2), scaled) @ vectors.T
        true = a[0] * (XX - means[0].T @ class_sum[0]) + b[0] * np.eye(p)
        weights[0] = solve(true, means[0].T, assume_a="pos").T
        return weights, np.where(known, -0.5 * (weights * means).sum(axis=2), -np.inf)


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


def adjusted_centres_of(analysis: CrossValidation, widths: Widths) -> dict[str, Sent]:
    """Declare what `summarize_adjusted_centres` returns."""
    sums = {**combat.moments_of(widths.seen, widths.covariates), "target_sum": everybody(widths.classes)}
    return {name: analysis.stacked(sent) for name, sent in sums.items() if name != "T"}


def solve_adjusted_centres(total: Sums) -> AdjustedCentres:
    """Find the effects of the covariates within sites, and the means without them."""
    require_sites((total["target_sum"] > 0).any(axis=0).sum())
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
    """Take their mean out of features [n, k], and then, when no digit is lost any more, the covariates' effects."""
    adjusted: Array = features - centres.mean[fold] - table.design @ centres.coefficients[fold]
    return adjusted
