"""How much of the distances between people lies between sites, by permutational analysis of variance."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from harmonization.core.declared import Declared, Widths, by_part, everybody, in_parts, named, of_groups
from harmonization.core.errors import HarmonizationError, SmallGroupError
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.methods.combat import solve_within
from harmonization.probes.crossvalidation import CrossValidation, Folded
from harmonization.site_effects.spread import require_sites, seen_features

_DEALING = 7
"""Tells the random labels apart from a site's other random draws."""
_DETERMINED = 1e-9
"""Share of the participants below which covariates leave nothing of a difference between labels."""


class PermanovaSums(Stage):
    """First round: sums of each part."""

    def part(self, analysis: Any, table: SiteTable) -> Sums:
        rows = analysis.rows_of(table)
        return {
            "n": rows.by_part(np.ones((table.n, 1)))[:, 0],
            "feature_sum": rows.by_part(rows.features),
            "covariate_sum": rows.by_part(rows.covariates),
        }

    def sends(self, analysis: Any, widths: Widths) -> Declared:
        n_parts = analysis.n_parts
        sums = {"n": everybody(), "feature_sum": everybody(widths.seen), "covariate_sum": everybody(analysis.q(widths))}
        return {name: by_part(sent, n_parts, n_parts) for name, sent in sums.items()}

    def advance(self, analysis: Any, total: Sums) -> State:
        n = np.maximum(total["n"], 1)[:, None]
        return PermanovaCentre(total["feature_sum"] / n, total["covariate_sum"] / n, total["n"])


@dataclass(frozen=True)
class PermanovaCentre(Stage):
    """Means of the features [K, p] and of the covariates [K, q], and participants [K], of each part; all else."""

    mean: Array
    covariate_mean: Array
    n: Array

    def part(self, analysis: Any, table: SiteTable) -> Sums:
        rows = analysis.rows_of(table)
        x, c = rows.features - self.mean[rows.parts], rows.covariates - self.covariate_mean[rows.parts]
        counts = np.maximum(rows.by_part(np.ones((table.n, 1))), 1)
        own_x, own_c = (values - (rows.by_part(values) / counts)[rows.parts] for values in (x, c))
        sums = {
            "sites": np.array(1.0),
            "W": c.T @ c,
            "V": c.T @ x,
            "squares": np.array((x**2).sum()),
            "within_W": own_c.T @ own_c,
            "within_V": own_c.T @ own_x,
            "within_squares": np.array((own_x**2).sum()),
        }
        if not analysis.permutations:
            return sums
        n_labels = len(analysis.sizes)
        labels = rows.deal(table, analysis.permutations, analysis.sizes) + n_labels * rows.parts
        of_labels = {"n": np.ones((table.n, 1)), "sum": x, "covariate_sum": c}
        summed = {name: _sum_by_group(labels, rows.n_parts * n_labels, v) for name, v in of_labels.items()}
        summed["n"] = summed["n"][:, :, 0]
        return {**sums, **{f"label_{name}": values for name, values in summed.items()}}

    def sends(self, analysis: Any, widths: Widths) -> Declared:
        k, q, permutations = widths.seen, analysis.q(widths), analysis.permutations
        moments = {"W": everybody(q, q), "V": everybody(q, k), "squares": everybody()}
        declared = {"sites": everybody(), **moments, **named("within_", moments)}
        if permutations:
            groups = analysis.n_parts * len(analysis.sizes)
            sums = {
                "label_n": everybody(permutations, groups),
                "label_sum": everybody(permutations, groups, k),
                "label_covariate_sum": everybody(permutations, groups, q),
            }
            declared |= {name: of_groups(in_parts(sent, analysis.n_parts)) for name, sent in sums.items()}
        return declared

    def advance(self, analysis: Any, total: Sums) -> "PermanovaResult":
        n, n_parts, q = float(self.n.sum()), len(self.n), self.covariate_mean.shape[1]
        sites, size = require_sites(total["sites"]), np.abs(self.covariate_mean).max(axis=0)
        coefficients = solve_within(total["W"], total["V"], n, size)
        spread = float(total["squares"] - (total["V"] * coefficients).sum())
        if spread <= (self.n[:, None] * (1e-14 * self.mean) ** 2).sum():
            raise HarmonizationError("features are the same for everybody, so there are no distances. Leave them out.")
        freedom = n_parts * (sites - 1), n - n_parts * sites - q
        if freedom[1] < 1:
            raise HarmonizationError("there are too few participants for so many sites and covariates. Leave some out.")
        own = solve_within(total["within_W"], total["within_V"], n, size)
        within = max(float(total["within_squares"] - (total["within_V"] * own).sum()), 0.0)
        between = max(spread - within, 0.0)
        pseudo_f = float(_ratio(between / freedom[0], within / freedom[1]))
        null = _null(total, coefficients, spread, self) if "label_n" in total else np.empty(0)
        # A labeling that chance made equal to the true one counts in spite of rounding.
        as_large = (null >= pseudo_f * (1 - 1e-10)).sum()
        return PermanovaResult(
            r2=between / spread,
            r2_by_chance=float(freedom[0] / (n - n_parts - q)),
            pseudo_f=pseudo_f,
            p_value=float((1 + as_large) / (len(null) + 1)),
            null=null,
        )


@dataclass(frozen=True)
class PermanovaResult(Answer):
    """Share of the squared distances that lies between sites.

    Attributes
    ----------
    r2 : float
        SS_between / SS_total; of what the covariates leave, where there are some.
    r2_by_chance : float
        Its expectation where sites do not differ.
    pseudo_f : float
        Ratio of the mean squares between and within sites; infinite where there is nothing within.
    p_value : float
        (1 + number of null values at least as large) / (B + 1).
    null : numpy.ndarray
        [B], pseudo-F with permuted labels.
    """

    r2: float
    r2_by_chance: float
    pseudo_f: float
    p_value: float
    null: Array


@register
@dataclass(frozen=True)
class Permanova(Analysis):
    """PERMANOVA on Euclidean distances (Anderson, Austral Ecology 2001), which needs no distance between two people.

    Distances are of features as they are, which are to have one unit. The sum of squared distances in a group of m is m
    times that about its mean. So for C sites of means m_i, of n_i
    participants each::

        SS_total = sum_ij ||y_ij - m||^2        SS_within = sum_ij ||y_ij - m_i||^2
        R2 = SS_between / SS_total              F = [SS_between / (C - 1)] / [SS_within / (N - C)]

    and SS_between is what lies between the two: each site adds n_i ||m_i - m||^2 to it, and no sum has a place for one
    site's mean. With covariates c, SS_total and SS_within are the sums of squares that regressions on c leave, about
    the common mean and about the sites' own; their difference is the marginal sum of squares of McArdle & Anderson
    (Ecology 2001).

    For a permuted labeling each site shuffles its rows with its private seed, and gives blocks of at least `min_group`
    of them a label in the proportions of the sites: so no label's sum stands for fewer. With L the residuals of the
    one-hot labels on c, R those of the features and S the sums of R over labels, its SS_between is the trace of
    S' (L'L)^- S.

    The first round sums to means, the second to all else. Many permuted sums of more features than participants could
    be unmixed into these: look through components, of which there are fewer.

    After a harmonization that was fitted to the same people, the site is always gone: `CrossValidatedPermanova`.

    Parameters
    ----------
    permutations : int
        Number of permuted labelings, B.
    sizes : tuple of int
        How many participants each site says that it has, in any order: the proportions of permuted labels. Needed with
        permutations.
    partial : bool
        Whether the table's covariates, if it has some, are taken out of features and labels.
    """

    permutations: int = 0
    sizes: tuple[int, ...] = ()
    partial: bool = True

    name: ClassVar[str] = "permanova"
    n_parts: ClassVar[int] = 1
    first: ClassVar[Stage] = PermanovaSums()
    states: ClassVar[tuple[type[State], ...]] = (PermanovaCentre, PermanovaResult)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_permutations(self.permutations, self.sizes)

    def q(self, widths: Widths) -> int:
        """Columns of the covariates that are taken out."""
        return widths.covariates if self.partial else 0

    def rows_of(self, table: SiteTable) -> "_Rows":
        """The rows that are compared."""
        covariates = table.design if self.partial else np.empty((table.n, 0))
        return _Rows(seen_features(table), covariates, np.zeros(table.n, dtype=np.int64), 1)


@register
@dataclass(frozen=True)
class CrossValidatedPermanova(CrossValidation):
    """The same for people who were held out: each fold's rows, as the others' harmonization makes them alike.

    Harmonized by their own fit, sites differ by less than chance allows. And so do the out-of-fold rows of all folds
    together, whose site means cancel: m_k less the mean of the other m_j adds to nothing over k. So sites are compared
    within each of K folds, with the covariates' effects in common::

        F = [SS_between / (K (C - 1))] / [SS_within / (N - K C - q)]

    where SS_total is about each fold's mean and SS_within about each site's in each fold. That harmonization was
    learned from finitely many people is in it, as it is for every new person.

    Parameters
    ----------
    permutations, sizes
        As of `Permanova`; labels are permuted within the folds.
    """

    permutations: int = 0
    sizes: tuple[int, ...] = ()

    name: ClassVar[str] = "cross_validated_permanova"
    references: ClassVar[tuple[str, ...]] = (
        "Anderson MJ. A new method for non-parametric multivariate analysis of variance. Austral Ecology "
        "2001;26:32-46.",
    )
    first: ClassVar[Stage] = PermanovaSums()
    states: ClassVar[tuple[type[State], ...]] = (PermanovaCentre, PermanovaResult)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_permutations(self.permutations, self.sizes)
        if self.sites:
            raise HarmonizationError("a site that is left out as a whole is compared with no other. Leave out folds.")

    def q(self, widths: Widths) -> int:
        """Columns of the covariates, all of which are taken out."""
        return widths.covariates

    def rows_of(self, table: Folded) -> "_Rows":
        """The rows that are compared: those of each fold as the others' harmonization has them."""
        parts = self.deal(table)
        features = np.empty_like(table.folds[0].features)
        for part, fold in enumerate(table.folds):
            features[parts == part] = fold.features[parts == part]
        return _Rows(features, table.design, parts, self.n_folds)


@dataclass(frozen=True)
class _Rows:
    """Features [n, p] and covariates [n, q] of a site's rows, in K parts [n] that are compared apart."""

    features: Array
    covariates: Array
    parts: NDArray[np.int64]
    n_parts: int

    def by_part(self, values: Array) -> Array:
        """Sum of values [n, m] over each part: [K, m]."""
        summed: Array = _sum_by_group(self.parts[None], self.n_parts, values)[0]
        return summed

    def deal(self, table: SiteTable, permutations: int, sizes: tuple[int, ...]) -> NDArray[np.int64]:
        """Permuted labels [B, n]: within a part the same for blocks of random rows."""
        random = np.random.default_rng([table.seed, _DEALING])
        shares, labels = np.array(sizes) / sum(sizes), np.empty((permutations, table.n), dtype=np.int64)
        for part in np.unique(self.parts):
            rows = np.flatnonzero(self.parts == part)
            if len(rows) < table.min_group:
                raise SmallGroupError(
                    f"a site has {len(rows)} participants; its sums must stand for {table.min_group}. Leave it out."
                )
            n_blocks = len(rows) // table.min_group
            block = np.arange(len(rows)) * n_blocks // len(rows)
            dealt = random.choice(len(shares), size=(permutations, n_blocks), p=shares)[:, block]
            labels[:, rows] = random.permuted(dealt, axis=1)
        return labels


def _check_permutations(permutations: int, sizes: tuple[int, ...]) -> None:
    if permutations < 0:
        raise HarmonizationError(f"permutations is {permutations}; expected 0 or more.")
    if permutations and (len(sizes) < 2 or min(sizes) < 1):
        raise HarmonizationError(
            f"sizes are {list(sizes)}; expected the participants of two or more sites, in whose proportions labels are "
            "permuted. Give them, or no permutations."
        )


def _null(total: Sums, coefficients: Array, spread: float, state: PermanovaCentre) -> Array:
    """Pseudo-F [B] of the permuted labelings."""
    between, freedom = _between_labels(total, coefficients, state)
    left = state.n.sum() - len(state.n) - len(coefficients) - freedom
    within = np.maximum(spread - between, 0) / left
    return np.where(freedom > 0, _ratio(between / np.maximum(freedom, 1), within), 0)


def _ratio(between: Array | float, within: Array | float) -> Array:
    with np.errstate(divide="ignore"):
        ratio: Array = np.divide(between, within)
    return ratio


def _sum_by_group(groups: NDArray[np.int64], n_groups: int, values: Array) -> Array:
    """Sum of the values [n, m] of each group of each grouping [B, n]: [B, G, m]."""
    n_groupings, n = groups.shape
    place = groups + n_groups * np.arange(n_groupings)[:, None]
    row = np.broadcast_to(np.arange(n), groups.shape)
    indicator = csr_array((np.ones(groups.size), (place.ravel(), row.ravel())), shape=(n_groupings * n_groups, n))
    summed: Array = (indicator @ values).reshape(n_groupings, n_groups, values.shape[1])
    return summed


def _between_labels(total: Sums, coefficients: Array, state: PermanovaCentre) -> tuple[Array, Array]:
    """Sum of squares between the labels of each labeling [B], within the parts, and its degrees of freedom."""
    counts, n_parts = total["label_n"], len(state.n)
    n_labelings, n_groups = counts.shape
    by_part = (n_labelings, n_parts, n_groups // n_parts, -1)
    share = counts.reshape(by_part) / np.maximum(state.n, 1)[:, None, None]

    def centred(sums: Array) -> Array:
        """Take out what rounded means of the parts add, which would show beside sums of small groups."""
        parted = sums.reshape(by_part)
        centred_sums: Array = (parted - share * parted.sum(axis=2, keepdims=True)).reshape(sums.shape)
        return centred_sums

    label_sum, by_label = centred(total["label_sum"]), centred(total["label_covariate_sum"])
    residual_sum = label_sum - by_label @ coefficients
    effects = solve_within(
        total["W"], by_label.reshape(counts.size, -1).T, float(state.n.sum()), np.abs(state.covariate_mean).max(axis=0)
    ).T.reshape(by_label.shape)
    same_part = np.kron(np.eye(n_parts), np.ones((n_groups // n_parts,) * 2))
    of_part = share.reshape(n_labelings, 1, n_groups) * same_part
    products = counts[:, :, None] * (np.eye(n_groups) - of_part) - by_label @ effects.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(products)
    known = values > _DETERMINED * state.n.sum()
    rotated = vectors.transpose(0, 2, 1) @ residual_sum
    between = ((rotated**2).sum(axis=2) * known / np.where(known, values, 1)).sum(axis=1)
    return between, known.sum(axis=1)
