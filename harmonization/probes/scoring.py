"""Scores of held-out participants, from sums that add over sites; intervals by bootstrap, nulls by permutation.

The bootstrap draws participants within each site. It is the uncertainty of the scores of the models that were fitted:
they are not fitted again to each draw. Draws and permutations come from a site's private seed: known ones would let
sums over them be solved for single participants.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from harmonization.core.declared import Sent, everybody, of_few, of_groups
from harmonization.core.errors import TableError
from harmonization.core.protocol import Array, SiteTable, Sums
from harmonization.probes.crossvalidation import people_of

_BOOTSTRAP, _PERMUTATION = 11, 12
"""Streams of a site's seed."""
_ROUNDING = 1e-12
"""Two scores closer than this are the same."""


def bootstrap_weights(table: SiteTable, n_draws: int) -> Array:
    """How often each row counts, [1 + R, n]: once, then as often as its participant is in each of R draws."""
    row, whose = people_of(table)
    chances = np.full(len(row), 1 / len(row))
    drawn = np.random.default_rng([table.seed, _BOOTSTRAP]).multinomial(len(row), chances, size=n_draws)
    return np.concatenate([np.ones((1, len(row))), drawn])[:, whose]


def permuted_rows(table: SiteTable, group: NDArray[np.int64], n_permutations: int) -> NDArray[np.int64]:
    """Whose target each row is given, [1 + B, n]: its own, then one of its group [n] in each of B permutations.

    These would part the rows of a participant who has several: such tables are refused.
    """
    if n_permutations and len(people_of(table)[0]) < table.n:
        raise TableError("a participant has several rows, which permutations would part. Give their mean.")
    rows = np.tile(np.arange(table.n), (1 + n_permutations, 1))
    rng = np.random.default_rng([table.seed, _PERMUTATION])
    for name in np.unique(group):
        members = np.flatnonzero(group == name)
        rows[1:, members] = rng.permuted(rows[1:, members], axis=1)
    return rows


def interval(draws: Array) -> tuple[float, float]:
    """Bounds that 95 % of the draws lie between; NaN where there are none. Draws without a score do not count."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def with_interval(name: str, values: Array) -> dict[str, float]:
    """A score of that name, the first of its values [1 + R], and the bounds ``_low`` and ``_high`` of its draws."""
    low, high = interval(values[1:])
    return {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}


def of_null(null: Array) -> dict[str, Any]:
    """A null [B] or [B, k], its mean and its 95th percentile; these are NaN without permutations."""
    unknown = np.full(null.shape[1:], np.nan)[()]
    mean, percentile = (null.mean(axis=0), np.quantile(null, 0.95, axis=0)) if len(null) else (unknown, unknown)
    return {"null": null, "null_mean": mean, "null_95": percentile}


def beside_null(score: float, null: Array) -> dict[str, Any]:
    """`of_null`, and the p-value (1 + number at least as large) / (B + 1); NaN without permutations."""
    at_least = (null >= score - _ROUNDING).sum()
    return {**of_null(null), "p_value": float((1 + at_least) / (len(null) + 1)) if len(null) else float("nan")}


# --- numbers ---------------------------------------------------------------------------------------------------------


def regression_sums(target: Array, predicted: Array, weights: Array) -> Array:
    """Sums [W, 8] from which `regression_scores` come, of rows that count as weights [W, n] say.

    They are about zero, so the target [n] and its prediction [n] come less some public number near their mean.
    """
    error = target - predicted
    one = np.ones_like(error)
    quantities = (one, error**2, np.abs(error), target, target**2, predicted, predicted**2, target * predicted)
    sums: Array = weights @ np.column_stack(quantities)
    return sums


N_SCORED = 8
"""Columns of `regression_sums`."""


def regression_scores(sums: Array) -> Sums:
    """Scores [W] of sums [W, 8]: r2 about the mean of all, mean absolute and root mean squared error, correlation."""
    n, squared_error, absolute_error, y, yy, z, zz, yz = sums.T
    spread, predicted_spread, together = yy - y**2 / n, zz - z**2 / n, yz - y * z / n
    return {
        "r2": 1 - _divide(squared_error, spread),
        "mean_absolute_error": absolute_error / n,
        "root_mean_squared_error": np.sqrt(squared_error / n),
        "correlation": _divide(together, np.sqrt(np.maximum(spread, 0) * np.maximum(predicted_spread, 0))),
    }


# --- classes ---------------------------------------------------------------------------------------------------------


def classification_sums(one_hot: Array, probability: Array, loss: Array, weights: Array, bins: int) -> Sums:
    """Sums from which `classification_scores` come, of one-hot classes and probabilities [n, C] and losses [n].

    Rows count as weights [W, n] say. Losses are minus the log probability of each row's own class; probabilities are
    counted in `bins` equal parts of 0 to 1. The sums are class_n and right [W, C], log_loss [W], and histogram [W, D,
    2, bins]: how many outside and inside a class have such a probability of it. D is C; of two classes the second alone
    is counted.
    """
    right = one_hot * np.eye(one_hot.shape[1])[probability.argmax(axis=1)]
    counted = range(1, 2) if one_hot.shape[1] == 2 else range(one_hot.shape[1])
    histograms = []
    for label in counted:
        place = np.minimum((probability[:, label] * bins).astype(np.int64), bins - 1)
        place += bins * one_hot[:, label].astype(np.int64)
        in_place = csr_array((np.ones(len(place)), (place, np.arange(len(place)))), shape=(2 * bins, len(place)))
        histograms.append((in_place @ weights.T).T.reshape(-1, 2, bins))
    return {
        "class_n": weights @ one_hot,
        "right": weights @ right,
        "log_loss": weights @ loss,
        "histogram": np.stack(histograms, axis=1),
    }


def counts_of_classes(n_draws: int, n_classes: int, bins: int) -> dict[str, Sent]:
    """Declare what `classification_sums` returns, of classes that have participants enough."""
    counted = 1 if n_classes == 2 else n_classes
    return {
        "class_n": of_groups(everybody(n_draws, n_classes)),
        "right": of_groups(everybody(n_draws, n_classes)),
        "log_loss": of_groups(everybody(n_draws)),
        "histogram": of_few(everybody(n_draws, counted, 2, bins)),
    }


def classification_scores(total: Sums) -> Sums:
    """Scores [W] of `classification_sums`: accuracy, balanced_accuracy, log_loss, auroc and auroc_error.

    A class that no row of a draw has does not count in its balanced accuracy, and leaves the AUROC unknown, NaN.
    """
    class_n, n = total["class_n"], total["class_n"].sum(axis=1)
    present = class_n > 0
    recall = np.where(present, total["right"], 0) / np.where(present, class_n, 1)
    area, error = auroc(total["histogram"][:, :, 1], total["histogram"][:, :, 0])
    return {
        "accuracy": total["right"].sum(axis=1) / n,
        "balanced_accuracy": recall.sum(axis=1) / present.sum(axis=1),
        "log_loss": total["log_loss"] / n,
        "auroc": area.mean(axis=1),
        "auroc_error": error.mean(axis=1),
    }


def auroc(positive: Array, negative: Array) -> tuple[Array, Array]:
    """Area under the ROC curve from histograms [..., bins] of scores, and its largest possible error.

    Pairs in one bin count half. In truth each counts between none and one: the area is wrong by at most half of their
    share of all pairs, and not at all where each bin holds one score, or scores of one class.
    """
    pairs = positive.sum(axis=-1) * negative.sum(axis=-1)
    below = negative.cumsum(axis=-1) - negative
    tied = (positive * negative).sum(axis=-1) / 2
    return _divide((positive * below).sum(axis=-1) + tied, pairs), _divide(tied, pairs)


def _divide(numerator: Array, denominator: Array) -> Array:
    """Divide, with NaN where the denominator is not positive."""
    unknown = np.full(np.shape(numerator), np.nan)
    divided: Array = np.divide(numerator, denominator, out=unknown, where=denominator > 0)
    return divided
