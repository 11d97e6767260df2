"""Whether the site of people who were held out can be recognised in their features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from harmonization.core.declared import Declared, Sent, Widths, everybody, in_parts, of_groups
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.methods import combat
from harmonization.probes.class_regression import one_hot_of
from harmonization.probes.crossvalidation import (
    CrossValidation,
    Folded,
    TrainingCentres,
    TrainingSums,
    deviations,
    seen_together,
    target_of,
)
from harmonization.probes.scoring import of_null
from harmonization.site_effects.spread import require_sites


class AdjustedSums(TrainingSums):
    """First round: the sums of ComBat, of the training rows with each part left out."""

    def part(self, analysis: "SiteRecognition", table: Folded) -> Sums:
        target = target_of(table)
        parts = []
        for fold in table.folds:
            rows = fold.training
            # Sums about a site's own means: without rows there are none, and nothing to add.
            sums = combat.summarize(fold.features[rows], table.design[rows]) if rows.any() else None
            sums = sums or {n: np.zeros_like(v) for n, v in combat.summarize(fold.features, table.design).items()}
            parts.append({**sums, "target_sum": target[rows].sum(axis=0)})
        return {name: np.stack([part[name] for part in parts]) for name in parts[0] if name != "T"}

    def sends(self, analysis: "SiteRecognition", widths: Widths) -> Declared:
        sums = {**combat.moments_of(widths.seen, widths.covariates), "target_sum": everybody(widths.classes)}
        return {name: analysis.stacked(sent) for name, sent in sums.items() if name != "T"}

    def advance(self, analysis: "SiteRecognition", total: Sums) -> State:
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
        following: State = self.following(n, adjusted, total["target_sum"] / n[:, None], coefficients)
        return following


@dataclass(frozen=True)
class WithinCentres(TrainingCentres):
    """Means of the training rows, once the effects [K, q, k] of the covariates within sites are taken out."""

    coefficients: Array

    def adjusted(self, table: Folded, index: int) -> Array:
        """Features [n, k] of a fold without their mean, and then, when no digit is lost any more, without effects."""
        features = table.folds[index].features
        adjusted: Array = features - self.mean[index] - table.design @ self.coefficients[index]
        return adjusted


@dataclass(frozen=True)
class SiteClassificationResult(Answer):
    """How well the site of held-out participants is recognised.

    Attributes
    ----------
    balanced_accuracy : float
        Mean over sites of the share recognised; 1 / sites by chance.
    null, null_mean, null_95 : numpy.ndarray, float, float
        [B], the same with permuted labels (`harmonization.probes.scoring.of_null`).
    p_value : float
        (1 + number of null values at least as large) / (B + 1).
    """

    balanced_accuracy: float
    null: Array
    null_mean: float
    null_95: float
    p_value: float


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

    def check(self, table: SiteTable) -> None:
        super().check(table)
        one_hot_of(table)

    def labelings(self, table: SiteTable, centres: TrainingCentres) -> NDArray[np.float64]:
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

    def count_recognised(self, table: Folded, centres: TrainingCentres, scores: Callable[[int], Array]) -> Sums:
        """How many of the rows that were left out are recognised, of each class and labeling.

        `scores` gives those [1 + B, n, C] of all rows by the classifiers of one part left out.
        """
        labelings = self.labelings(table, centres)
        right = np.zeros((len(labelings), labelings.shape[2]))
        for index, fold in enumerate(table.folds):
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
            **of_null(null),
            p_value=float((1 + (null >= accuracy).sum()) / (len(null) + 1)),
        )


@dataclass(frozen=True)
class AdjustedCentres(WithinCentres):
    """After the first round. Second moments of the training rows, and sums of the rows of each class."""

    def part(self, analysis: "SiteClassification", table: Folded) -> Sums:
        labelings = analysis.labelings(table, self)
        parts = []
        for index, fold in enumerate(table.folds):
            x = self.adjusted(table, index)[fold.training]
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

    def sends(self, analysis: "SiteClassification", widths: Widths) -> Declared:
        k, n_labelings, n_classes = widths.seen, 1 + analysis.permutations, widths.classes
        sums = {
            "XX": everybody(k, k),
            "class_n": of_groups(everybody(n_labelings, n_classes)),
            "class_sum": of_groups(everybody(n_labelings, n_classes, k)),
        }
        return {**{name: analysis.stacked(sent) for name, sent in sums.items()}, "together": everybody()}

    def advance(self, analysis: "SiteClassification", total: Sums) -> State:
        weights = np.empty_like(total["class_sum"])
        bias = np.empty_like(total["class_n"])
        for fold in range(len(self.n)):
            XX, class_n, class_sum = (total[name][fold] for name in ("XX", "class_n", "class_sum"))
            between = (class_sum[0] ** 2 / np.maximum(class_n[0], 1)[:, None]).sum(axis=0)
            within = np.maximum(np.diag(XX) - between, 0) / self.n[fold]
            scale = deviations(within, self.mean[fold], bool(total["together"] > 0))
            scaled = analysis.discriminants(XX / np.outer(scale, scale), class_n, class_sum / scale)
            weights[fold], bias[fold] = scaled[0] / scale, scaled[1]
        return self.become(SiteDiscriminants, weights=weights, bias=bias)


@dataclass(frozen=True)
class SiteDiscriminants(AdjustedCentres):
    """Linear discriminants for each part left out, of the true labels and of B permuted ones; whom they recognise.

    `weights` [K, 1 + B, C, p] and `bias` [K, 1 + B, C]; the first of the second axis is of the true labels.
    """

    weights: Array
    bias: Array

    def part(self, analysis: "SiteClassification", table: Folded) -> Sums:
        def scores(part: int) -> Array:
            weighed = np.einsum("np,bcp->bnc", self.adjusted(table, part), self.weights[part], optimize=True)
            result: Array = weighed + self.bias[part][:, None]
            return result

        return analysis.count_recognised(table, self, scores)

    def sends(self, analysis: "SiteClassification", widths: Widths) -> Declared:
        return analysis.counts_of_recognised(widths.classes)

    def advance(self, analysis: "SiteClassification", total: Sums) -> State:
        return analysis.score(total)


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
    shows_one_site: ClassVar[bool] = True
    first: ClassVar[Stage] = AdjustedSums(AdjustedCentres)
    states: ClassVar[tuple[type[State], ...]] = (AdjustedCentres, SiteDiscriminants, SiteClassificationResult)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrinkage <= 1:
            raise HarmonizationError(f"shrinkage is {self.shrinkage}; expected above 0, up to 1.")

    def discriminants(self, XX: Array, class_n: Array, class_sum: Array) -> tuple[Array, Array]:
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
