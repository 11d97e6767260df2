"""How much of the distances between people lies between sites, by permutational analysis of variance."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from harmonization.combat import solve_within
from harmonization.crossvalidation import target_of
from harmonization.errors import DesignError, HarmonizationError, SmallGroupError, TableError
from harmonization.projection import Centre
from harmonization.protocol import Analysis, Array, SiteTable, State, Sums
from harmonization.site_metrics import seen_features

_DEALING = 7
"""Tells the random labels apart from a site's other random draws."""
_DETERMINED = 1e-9
"""Share of the participants below which covariates leave nothing of a difference between sites."""


@dataclass(frozen=True)
class PermanovaCentre(Centre):
    """Means of the features [p] and of the covariates [q], participants, and the share of each site in them [C]."""

    covariate_mean: Array
    shares: Array


@dataclass(frozen=True)
class PermanovaResult(State):
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

    done: ClassVar[bool] = True


@dataclass(frozen=True)
class Permanova(Analysis):
    """PERMANOVA on Euclidean distances (Anderson, Austral Ecology 2001), which needs no distance between two people.

    Distances are of features as they are, which are to have one unit.

    The sum of squared distances in a group of m is m times that about its mean, so for sites i of n_i and means m_i::

        SS_total = sum_ij ||y_ij - m||^2        SS_between = sum_i n_i ||m_i - m||^2
        R2 = SS_between / SS_total              F = [SS_between / (C - 1)] / [SS_within / (N - C)]

    With covariates c, everything is of what they leave of features and of labels: for R the residuals of y on c, S the
    sums of R over the sites, and L the residuals of the one-hot labels on c, SS_between is the trace of S' (L'L)^- S,
    the marginal sum of squares of McArdle & Anderson (Ecology 2001), and SS_total is that of R.

    The first round sums to means, the second to sums over each site, and over each class of permuted labelings. The
    table's target is the one-hot site [n, C]. For a permuted labeling each site shuffles its rows with its private
    seed, and gives blocks of at least `min_group` of them a label in the proportions of the sites: so no class's sum
    stands for fewer.

    Many permuted sums of more features than participants could be unmixed into these: look through components, of
    which there are fewer.

    Parameters
    ----------
    permutations : int
        Number of permuted labelings, B.
    partial : bool
        Whether the table's covariates, if it has some, are taken out of features and labels.
    """

    permutations: int = 100
    partial: bool = True

    name: ClassVar[str] = "permanova"
    states: ClassVar[tuple[type[State], ...]] = (PermanovaCentre, PermanovaResult)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.permutations < 0:
            raise HarmonizationError(f"permutations is {self.permutations}; expected 0 or more.")

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        features, covariates, classes = seen_features(table), self._covariates(table), _classes(table)
        if isinstance(state, PermanovaCentre):
            x, c = features - state.mean, covariates - state.covariate_mean
            labels = np.concatenate([classes.argmax(axis=1)[None], self._deal(table, state.shares)])
            return {
                "class_n": _sum_by_class(labels, classes.shape[1], np.ones((table.n, 1)))[:, :, 0],
                "class_sum": _sum_by_class(labels, classes.shape[1], x),
                "class_covariate_sum": _sum_by_class(labels, classes.shape[1], c),
                "W": c.T @ c,
                "V": c.T @ x,
                "squares": np.array((x**2).sum()),
            }
        return {
            "feature_sum": features.sum(axis=0),
            "covariate_sum": covariates.sum(axis=0),
            "class_n": classes.sum(axis=0),
        }

    def solve(self, total: Sums, state: State | None) -> State:
        if isinstance(state, PermanovaCentre):
            return self._result(total, state)
        n = float(total["class_n"].sum())
        return PermanovaCentre(total["feature_sum"] / n, n, total["covariate_sum"] / n, total["class_n"] / n)

    def _covariates(self, table: SiteTable) -> Array:
        return table.design if self.partial else np.empty((table.n, 0))

    def _deal(self, table: SiteTable, shares: Array) -> NDArray[np.int64]:
        """Permuted labels [B, n]: the same for blocks of random rows."""
        random = np.random.default_rng([table.seed, _DEALING])
        n_blocks = table.n // table.min_group
        block = np.arange(table.n) * n_blocks // table.n
        labels = random.choice(len(shares), size=(self.permutations, n_blocks), p=shares)[:, block]
        return random.permuted(labels, axis=1)

    def _result(self, total: Sums, state: PermanovaCentre) -> PermanovaResult:
        coefficients = solve_within(total["W"], total["V"], state.n, state.covariate_mean)
        spread = float(total["squares"] - (total["V"] * coefficients).sum())
        if spread <= state.n * ((1e-14 * state.mean) ** 2).sum():
            raise HarmonizationError("features are the same for everybody, so there are no distances. Leave them out.")
        between, freedom = _between(total, coefficients, state)
        present, q = int((total["class_n"][0] > 0).sum()), len(coefficients)
        within_freedom = state.n - 1 - q - freedom
        _require_freedom(int(freedom[0]), present, int(within_freedom[0]))
        within = np.maximum(spread - between, 0)
        pseudo_f = np.where(freedom > 0, between / np.maximum(freedom, 1), 0)
        with np.errstate(divide="ignore"):
            pseudo_f = pseudo_f / (within / within_freedom)
        # A labeling that chance made equal to the true one counts in spite of rounding.
        as_large = (pseudo_f[1:] >= pseudo_f[0] * (1 - 1e-10)).sum()
        return PermanovaResult(
            r2=float(between[0] / spread),
            r2_by_chance=float(freedom[0] / (state.n - 1 - q)),
            pseudo_f=float(pseudo_f[0]),
            p_value=float((1 + as_large) / (self.permutations + 1)),
            null=pseudo_f[1:],
        )


def _classes(table: SiteTable) -> Array:
    """One-hot site of each row [n, C], after checking that sums by site stand for enough rows."""
    classes = target_of(table)
    if not (np.isin(classes, (0, 1)).all() and (classes.sum(axis=1) == 1).all()):
        raise TableError("the target of PERMANOVA is no one-hot site. Give one column for every site, of 0 and 1.")
    counts = classes.sum(axis=0)
    if (smallest := int(counts[counts > 0].min())) < table.min_group:
        raise SmallGroupError(
            f"a site has {smallest} participants; its sums must stand for {table.min_group}. Leave it out."
        )
    return classes


def _sum_by_class(labels: NDArray[np.int64], n_classes: int, values: Array) -> Array:
    """Sum of the values [n, m] of each class of each labeling [B, n]: [B, C, m]."""
    n_labelings, n = labels.shape
    group = labels + n_classes * np.arange(n_labelings)[:, None]
    row = np.broadcast_to(np.arange(n), labels.shape)
    indicator = csr_array((np.ones(labels.size), (group.ravel(), row.ravel())), shape=(n_labelings * n_classes, n))
    summed: Array = (indicator @ values).reshape(n_labelings, n_classes, values.shape[1])
    return summed


def _between(total: Sums, coefficients: Array, state: PermanovaCentre) -> tuple[Array, Array]:
    """Sum of squares between the classes of each labeling [1 + B], and its degrees of freedom."""
    counts = total["class_n"]
    # Means are rounded. What that adds to the sums of large classes would show beside those of small ones.
    share = counts[:, :, None] / state.n
    class_sum, by_class = (
        total[name] - share * total[name].sum(axis=1, keepdims=True) for name in ("class_sum", "class_covariate_sum")
    )
    residual_sum = class_sum - by_class @ coefficients
    flat = by_class.reshape(counts.size, -1)
    effects = solve_within(total["W"], flat.T, state.n, state.covariate_mean).T.reshape(by_class.shape)
    explained = by_class @ effects.transpose(0, 2, 1)
    labels = counts[:, :, None] * (np.eye(counts.shape[1]) - share.transpose(0, 2, 1)) - explained
    values, vectors = np.linalg.eigh(labels)
    known = values > _DETERMINED * state.n
    rotated = vectors.transpose(0, 2, 1) @ residual_sum
    between = ((rotated**2).sum(axis=2) * known / np.where(known, values, 1)).sum(axis=1)
    return between, known.sum(axis=1)


def _require_freedom(between: int, present: int, within: int) -> None:
    if present < 2:
        raise HarmonizationError("there is one site only, and nothing to compare it with. Use two or more.")
    if between < present - 1:
        raise DesignError(
            "covariates are nearly constant inside the sites, so they cannot be told from the site. Leave them out."
        )
    if within < 1:
        raise HarmonizationError("there are too few participants for so many sites and covariates. Leave some out.")
