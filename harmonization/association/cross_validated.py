"""Whether two views of the same people go together beyond their site: canonical correlations in people left out."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from harmonization.association.canonical_correlation import (
    ROUNDING,
    about,
    canonical_weights,
    check_one_row_each,
    check_parameters,
    diagonal_of,
    inverse_roots,
    second_view_of,
)
from harmonization.core.declared import Declared, Sent, Widths, by_part, everybody
from harmonization.core.errors import HarmonizationError, SmallGroupError
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.methods.combat import solve_within
from harmonization.probes.scoring import of_null

_FOLDS, _PERMUTATIONS = 40, 41
"""Streams of a site's private seed."""


class StudySums(Stage):
    """First round: sums of both views and of the covariates, and the number of sites."""

    def part(self, analysis: "CrossValidatedCCA", table: SiteTable) -> Sums:
        analysis.check_table(table)
        return {
            "n": np.array(float(table.n)),
            "sites": np.array(1.0),
            "feature_sum": table.features.sum(axis=0),
            "second_sum": second_view_of(table).sum(axis=0),
            "covariate_sum": table.design.sum(axis=0),
        }

    def sends(self, analysis: "CrossValidatedCCA", widths: Widths) -> Declared:
        sizes = {"feature_sum": widths.features, "second_sum": widths.second, "covariate_sum": widths.covariates}
        return {"n": everybody(), "sites": everybody(), **{name: everybody(size) for name, size in sizes.items()}}

    def advance(self, analysis: "CrossValidatedCCA", total: Sums) -> State:
        n = float(total["n"])
        return StudyMeans(
            n=n,
            x_mean=total["feature_sum"] / n,
            y_mean=total["second_sum"] / n,
            covariate_mean=total["covariate_sum"] / n,
            sites=float(total["sites"]),
        )


@dataclass(frozen=True)
class StudyMeans(Stage):
    """Means over all sites of both views [p] and [r] and of the covariates [q]; products of each training set."""

    n: float
    x_mean: Array
    y_mean: Array
    covariate_mean: Array
    sites: float

    def part(self, analysis: "CrossValidatedCCA", table: SiteTable) -> Sums:
        """Sums over the rows with each fold left out, and over that fold."""
        analysis.check_table(table)
        rows, folds = _rows(table, self.x_mean, self.y_mean, self.covariate_mean), analysis.deal(table)
        first_covariate = rows.shape[1] - len(self.covariate_mean)
        parts = []
        for fold in range(analysis.n_folds):
            training = folds != fold
            within = about(rows, rows[training].mean(axis=0))
            centred = within if analysis.within_sites else rows
            parts.append(
                {
                    "within": within[training, first_covariate:].T @ within[training],
                    **_sums("training", centred[training]),
                    **_sums("held_out", centred[~training]),
                }
            )
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def sends(self, analysis: "CrossValidatedCCA", widths: Widths) -> Declared:
        q, n_folds = widths.covariates, analysis.n_folds
        d = widths.seen + widths.second + q
        sums = {"n": everybody(), "sum": everybody(d), "products": everybody(d, d)}
        both = {f"{part}_{name}": sent for part in ("training", "held_out") for name, sent in sums.items()}
        return {name: by_part(sent, n_folds, n_folds) for name, sent in {"within": everybody(q, d), **both}.items()}

    def advance(self, analysis: "CrossValidatedCCA", total: Sums) -> State:
        """Fit every training set, and try it on the fold left out."""
        q, r = len(self.covariate_mean), len(self.y_mean)
        p = total["training_sum"].shape[1] - q - r
        if analysis.n_folds * (p + q) * (r + q) > analysis.message_floats:
            raise HarmonizationError(
                f"one permutation of views of {p} and {r} columns takes more than {analysis.message_floats} numbers. "
                "Reduce the views to principal components, or raise message_floats."
            )
        fits = [self._fit_fold(analysis, total, fold, p) for fold in range(analysis.n_folds)]
        fitted = FoldFits(
            n=self.n,
            correlations=np.empty(0),
            null=np.empty((0, analysis.n_components)),
            training_correlations=np.mean([fit.pop("training_correlations") for fit in fits], axis=0),
            **{name: np.stack([fit[name] for fit in fits]) for name in fits[0]},
        )
        unchanged = np.zeros((1, analysis.n_folds, p + q, r + q))
        correlations = _held_out_correlations(fitted, unchanged, analysis.n_components)[0]
        return replace(fitted, correlations=correlations).concluded(analysis)

    def _fit_fold(self, analysis: "CrossValidatedCCA", total: Sums, fold: int, p: int) -> Sums:
        """Fields of `FoldFits` that have one entry a fold, and the training correlations, for one fold."""
        n, q, both = float(total["training_n"][fold]), len(self.covariate_mean), p + len(self.y_mean)
        within = total["within"][fold]
        without = _residual_maker(solve_within(within[:, both:], within[:, :both], n, self.covariate_mean))
        products = _products(total, "training", fold)
        training = without.T @ products @ without
        explained = np.diag(training) <= ROUNDING * np.diag(products)[:both]
        training[explained, explained] = 0.0  # a covariate among the views leaves rounding error alone
        xx, xy, yy = training[:p, :p], training[:p, p:], training[p:, p:]
        freedom = n - q - (self.sites if analysis.within_sites else 1)
        roots = inverse_roots(xx, yy, analysis.n_components, analysis.shrinkage, freedom)
        return {
            "coefficients": -without[both:],
            "x_root": roots[0],
            "y_root": roots[1],
            "training": xy,
            "held_out": without.T @ _products(total, "held_out", fold) @ without,
            "training_correlations": _correlations(*canonical_weights(*roots, xy, analysis.n_components), xx, xy, yy),
        }


@dataclass(frozen=True)
class FoldFits(Stage):
    """Fits with each of K folds left out, and the permutations that were tried so far; the changes by further ones.

    `n` people; effects of the covariates on both views, `coefficients` [K, q, p + r]; inverse square roots of the
    training rows' (shrunken) cross-products, `x_root` [K, p, p] and `y_root` [K, r, r]; cross-products of the training
    rows' views, `training` [K, p, r], and of the held-out rows about their mean, of both views side by side, `held_out`
    [K, p + r, p + r]; `correlations` of held-out rows and `training_correlations` [k]; the former under the first b
    permutations, `null` [b, k].
    """

    n: float
    coefficients: Array
    x_root: Array
    y_root: Array
    training: Array
    held_out: Array
    correlations: Array
    training_correlations: Array
    null: Array

    def part(self, analysis: "CrossValidatedCCA", table: SiteTable) -> Sums:
        """What the next permutations add to each fold's cross-products of (x, c) and (y, c), [b, K, p + q, r + q]."""
        analysis.check_table(table)
        done, n_folds = len(self.null), analysis.n_folds
        rows = _rows(table, table.features.mean(axis=0), second_view_of(table).mean(axis=0), table.design.mean(axis=0))
        p, r = len(self.x_root[0]), len(self.y_root[0])
        left, right = np.delete(rows, np.s_[p : p + r], axis=1), rows[:, p:]
        block = self._block(analysis, left.shape[1], right.shape[1])
        changes = np.empty((block, n_folds, left.shape[1], right.shape[1]))
        folds = analysis.deal(table)
        for number, change in enumerate(changes, start=done):
            moved = right[analysis.permuted_rows(table, number)] - right
            for fold in range(n_folds):
                change[fold] = left[folds == fold].T @ moved[folds == fold]
        return {"change": changes}

    def sends(self, analysis: "CrossValidatedCCA", widths: Widths) -> Declared:
        left, right, n_folds = widths.seen + widths.covariates, widths.second + widths.covariates, analysis.n_folds
        shape = (self._block(analysis, left, right), n_folds, left, right)
        return {"change": Sent(shape, "everybody", parts=n_folds, part_axes=(1,), matrices=())}

    def advance(self, analysis: "CrossValidatedCCA", total: Sums) -> State:
        correlations = _held_out_correlations(self, total["change"], analysis.n_components)
        return replace(self, null=np.concatenate([self.null, correlations])).concluded(analysis)

    def _block(self, analysis: "CrossValidatedCCA", left: int, right: int) -> int:
        """How many of the permutations that are left the next round sums, for views of so many columns."""
        most = max(1, analysis.message_floats // (analysis.n_folds * left * right))
        return min(most, analysis.permutations - len(self.null))

    def concluded(self, analysis: "CrossValidatedCCA") -> State:
        """The answer, once all permutations are done."""
        if len(self.null) < analysis.permutations:
            return self
        null = self.null
        # A permutation that changes nothing may differ in the last digit.
        as_large = null[:, 0] >= self.correlations[0] - 1e-12
        return AssociationResult(
            correlations=self.correlations,
            training_correlations=self.training_correlations,
            **of_null(null),
            p_value=float((1 + as_large.sum()) / (len(null) + 1)),
            n=self.n,
        )


@dataclass(frozen=True)
class AssociationResult(Answer):
    """Canonical correlations in participants who were left out, beside those of permuted pairs.

    Attributes
    ----------
    correlations : numpy.ndarray
        [k], mean over the folds of the correlation between the held-out scores of both views.
    training_correlations : numpy.ndarray
        [k], mean over the folds of the same in the training rows: too high, and the more so the more columns.
    null, null_mean, null_95 : numpy.ndarray
        [B, k] and [k], held-out correlations with the second view permuted within sites
        (`harmonization.probes.scoring.of_null`).
    p_value : float
        (1 + number of null values of the first correlation at least as large) / (B + 1).
    n : float
        Participants.
    """

    correlations: Array
    training_correlations: Array
    null: Array
    null_mean: Array
    null_95: Array
    p_value: float
    n: float


@register
@dataclass(frozen=True)
class CrossValidatedCCA(Analysis):
    """Canonical correlations fitted to some folds and tried on the one left out, with permutations within sites.

    The effects of the table's covariates within sites are first taken out of both views, with coefficients of the
    training rows (partial canonical correlation; Rao, Trabajos de Estadistica 1969). For the null, each site permutes
    the residuals of the second view among its own participants of one fold, with its private seed, and everything is
    fitted and tried again. Folds keep their people, so that only Sxy changes. Without covariates the p-value is exact;
    with them, it treats residuals as exchangeable.

    A round of permutations sums the change of each fold's cross-products of (x, c) and (y, c). These K matrices give
    all K training sets, by leaving one out of their sum.

    Parameters
    ----------
    n_components : int
        Pairs of scores, k.
    n_folds : int
        Folds, K, dealt within each site.
    permutations : int
        B.
    shrinkage : float
        From 0 to 1: weight of the spherical covariance in that of each view.
    within_sites : bool
        Whether each site's rows are centred by the means of its own training rows. Otherwise all sites are centred
        alike, and a shift of a site in both views adds to the correlations, to the null's too.
    message_floats : int
        Most numbers that a site sends in a round of permutations; it decides only how many rounds there are.
    """

    n_components: int = 3
    n_folds: int = 5
    permutations: int = 1000
    shrinkage: float = 0.0
    within_sites: bool = True
    message_floats: int = 4_000_000

    name: ClassVar[str] = "cross_validated_cca"
    references: ClassVar[tuple[str, ...]] = (
        "Hotelling H. Relations between two sets of variates. Biometrika 1936;28:321-377.",
    )
    first: ClassVar[Stage] = StudySums()
    states: ClassVar[tuple[type[State], ...]] = (StudyMeans, FoldFits, AssociationResult)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parameters(self.n_components, self.shrinkage)
        if self.n_folds < 2 or self.permutations < 0:
            raise HarmonizationError(
                f"n_folds and permutations are {self.n_folds} and {self.permutations}; expected at least 2 and 0."
            )

    def deal(self, table: SiteTable) -> NDArray[np.int64]:
        """Fold of each row, balanced within the site, from the site's own seed."""
        order = np.random.default_rng([table.seed, _FOLDS]).permutation(table.n)
        folds = np.empty(table.n, dtype=np.int64)
        folds[order] = np.arange(table.n) % self.n_folds
        return folds

    def permuted_rows(self, table: SiteTable, number: int) -> NDArray[np.int64]:
        """Row [n] whose second view each row is given in that permutation, one of the same fold."""
        rng, folds = np.random.default_rng([table.seed, _PERMUTATIONS, number]), self.deal(table)
        rows = np.empty(table.n, dtype=np.int64)
        for fold in range(self.n_folds):
            members = np.flatnonzero(folds == fold)
            rows[members] = rng.permutation(members)
        return rows

    def check_table(self, table: SiteTable) -> None:
        """Refuse tables that cannot be dealt, in every round: a coordinator could begin with a later one."""
        second_view_of(table)
        check_one_row_each(table)
        fewest = max(table.min_group, 2)  # a fold of one has nobody to change places with
        if table.n // self.n_folds < fewest:
            raise SmallGroupError(
                f"{table.n} participants in {self.n_folds} folds are fewer than {fewest} in each. Use fewer folds."
            )


def _rows(table: SiteTable, x_mean: Array, y_mean: Array, covariate_mean: Array) -> Array:
    """Both views and the covariates about the means given, side by side, [n, p + r + q]."""
    x = about(table.features, x_mean)
    x = x if table.loadings is None else x @ table.loadings
    return np.concatenate([x, about(second_view_of(table), y_mean), about(table.design, covariate_mean)], axis=1)


def _sums(name: str, rows: Array) -> Sums:
    """Number, sum [d] and cross-products [d, d] of rows."""
    return {f"{name}_n": np.array(float(len(rows))), f"{name}_sum": rows.sum(axis=0), f"{name}_products": rows.T @ rows}


def _products(total: Sums, name: str, fold: int) -> Array:
    """Cross-products [d, d] of one fold's rows about their mean."""
    summed: Array = total[f"{name}_sum"][fold]
    products: Array = total[f"{name}_products"][fold] - np.outer(summed, summed) / total[f"{name}_n"][fold]
    return products


def _residual_maker(coefficients: Array) -> Array:
    """[I; -B], which takes covariates [q] out of columns [m] that stand before them, as (y, c) @ [I; -B]."""
    return np.concatenate([np.eye(coefficients.shape[1]), -coefficients])


def _correlations(x_weights: Array, y_weights: Array, xx: Array, xy: Array, yy: Array) -> Array:
    """Correlations [..., k] of scores whose views have these cross-products; 0 where a score does not vary."""
    spread = diagonal_of(x_weights, xx, x_weights) * diagonal_of(y_weights, yy, y_weights)
    varies = spread > 0
    return np.where(varies, diagonal_of(x_weights, xy, y_weights), 0) / np.sqrt(np.where(varies, spread, 1))


def _held_out_correlations(fits: FoldFits, change: Array, n_components: int) -> Array:
    """Held-out correlations [b, k], averaged over folds, after a change [b, K, p + q, r + q] of the pairs."""
    p, total = len(fits.x_root[0]), change.sum(axis=1)
    folds = []
    for fold, (x_root, y_root) in enumerate(zip(fits.x_root, fits.y_root, strict=True)):
        x_without = _residual_maker(fits.coefficients[fold, :, :p])
        y_without = _residual_maker(fits.coefficients[fold, :, p:])
        training = fits.training[fold] + x_without.T @ (total - change[:, fold]) @ y_without
        weights = canonical_weights(x_root, y_root, training, n_components)
        held_out = fits.held_out[fold]
        xy = held_out[:p, p:] + x_without.T @ change[:, fold] @ y_without
        folds.append(_correlations(*weights, held_out[:p, :p], xy, held_out[p:, p:]))
    average: Array = np.mean(folds, axis=0)
    return average
