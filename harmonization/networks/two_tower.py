"""Contrastive alignment of two views of the same people, trained without pooling.

Each view has a linear projector; scores are normalised to length 1. In a batch of one site's participants, with
similarities S[i, j] = u[i] v[j]' / temperature, the loss is the symmetric InfoNCE (van den Oord, Li & Vinyals 2018; in
this form Radford et al., ICML 2021)::

    loss = -1/2n sum_i (log softmax_j S[i, j] at j = i  +  log softmax_i S[i, j] at i = j)

All others of a batch are of the same site, so that what a site does to both views tells nobody from another.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from harmonization.association.canonical_correlation import check_one_row_each, second_view_of
from harmonization.core.checks import check_width
from harmonization.core.declared import Declared, Widths, everybody, of_groups
from harmonization.core.errors import HarmonizationError, SmallGroupError
from harmonization.core.protocol import Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.networks.neural import Layout, Leaves, Losses, evaluate, tensor, unpack
from harmonization.networks.training import FederatedTraining, InputCentre, Standard, Training
from harmonization.probes.scoring import of_null

if TYPE_CHECKING:
    from torch import Tensor

METRICS = ("top_1", "top_5", "mean_reciprocal_rank")
"""How well held-out partners are found, in the order of the scores."""
_HELD_OUT, _PAIRINGS = 42, 43
"""Streams of a site's private seed."""


@dataclass(frozen=True)
class Aligned(Standard, Stage):
    """The projectors after the last round of training, as in `TwoTowerModel`, not yet tried on held-out people."""

    weights: Array
    loss: Array

    def embed(self, features: Array, second: Array) -> tuple[Array, Array]:
        """Normalised scores [n, width] of features [n, p], and of the second view [n, r]."""
        p = self.width(0)
        check_width(features, p)
        check_width(second, self.width(1), "second views")
        weights = unpack(self.weights, _layout(self, len(self.weights) // int(self.widths.sum())))
        x, y = np.split(self.standardized(np.concatenate([features, second], axis=1)), [p], axis=1)
        return evaluate(partial(_project, "features"), weights, x), evaluate(partial(_project, "second"), weights, y)

    def part(self, analysis: "TwoTower", table: SiteTable) -> Sums:
        """How often the partner is found among a site's held-out people, for the true and for permuted pairs."""
        table = table.take(analysis.checked(table))
        of_features, of_second = self.embed(table.features, second_view_of(table))
        similarity = of_features @ of_second.T
        of_pairs = 0.5 * (_metrics(similarity, axis=1) + _metrics(similarity, axis=0))
        n, rng = table.n, np.random.default_rng([table.seed, _PAIRINGS])
        pairings = [np.arange(n), *(rng.permutation(n) for _ in range(analysis.permutations))]
        return {
            "n": np.array(float(n)),
            "found": np.stack([of_pairs[np.arange(n), pairing].sum(axis=0) for pairing in pairings]),
            "chance": np.array([1.0, min(5, n), (1 / np.arange(1, n + 1)).sum()]),
        }

    def sends(self, analysis: "TwoTower", widths: Widths) -> Declared:
        found = everybody(1 + analysis.permutations, len(METRICS))
        return {"n": everybody(), "found": found, "chance": everybody(len(METRICS))}

    def advance(self, analysis: "TwoTower", total: Sums) -> "TwoTowerModel":
        found = total["found"] / total["n"]
        scores, null = found[0], found[1:]
        return self.become(
            TwoTowerModel,
            scores=scores,
            chance=total["chance"] / total["n"],
            **of_null(null),
            # Sums of one pairing in another order may differ in the last digit.
            p_value=(1 + (null >= scores - 1e-12).sum(axis=0)) / (len(null) + 1),
            n_held_out=float(total["n"]),
        )


@dataclass(frozen=True)
class TwoTowerModel(Answer, Aligned):
    """Projectors of both views, and how well they find the partner of people who were left out.

    Attributes
    ----------
    weights : numpy.ndarray
        [(p + r) width], the projectors [p, width] and [r, width], one behind the other.
    loss : numpy.ndarray
        [rounds], mean loss of each round.
    scores : numpy.ndarray
        [3], of `METRICS`: share of people whose partner in the other view is the most similar, is among the five most
        similar, and mean of 1 / rank of the partner, among the held-out people of the same site; mean of both
        directions.
    chance : numpy.ndarray
        [3], what guessing would reach.
    null, null_mean, null_95 : numpy.ndarray
        [B, 3] and [3], of held-out pairs that were permuted within sites (`harmonization.probes.scoring.of_null`).
    p_value : numpy.ndarray
        [3], (1 + number of null values at least as large) / (B + 1).
    n_held_out : float
        People who were left out; `n` were trained on.
    """

    scores: Array
    chance: Array
    null: Array
    null_mean: Array
    null_95: Array
    p_value: Array
    n_held_out: float


@register
@dataclass(frozen=True)
class TwoTower(FederatedTraining):
    """Aligns features and the second view by federated averaging, and finds held-out partners by similarity.

    Each site leaves some of its people out of everything that is learned, by its private seed. With 1 local step, the
    whole site is one batch, and the answer still depends on who is at which site.

    A few hundred people are soon learned by heart: where the loss falls towards 0 and the scores do not rise, fewer
    rounds or a higher temperature help.

    Parameters
    ----------
    width : int
        Dimensions of the common space, or as many as the smaller view has.
    temperature : float
        What similarities are divided by.
    held_out : float
        Share of each site's people who are left out.
    permutations : int
        Number of permuted held-out pairings, B.
    """

    rounds: int = 10
    batch_size: int = 64
    width: int = 256
    temperature: float = 0.3
    held_out: float = 0.2
    permutations: int = 1000

    name: ClassVar[str] = "two_tower"
    inputs: ClassVar[tuple[str, ...]] = ("features", "second")
    trained: ClassVar[type[State]] = Aligned
    states: ClassVar[tuple[type[State], ...]] = (InputCentre, Training, Aligned, TwoTowerModel)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1 or not self.temperature > 0 or not 0 < self.held_out < 1 or self.permutations < 0:
            raise HarmonizationError(
                f"width, temperature, held_out and permutations are {self.width}, {self.temperature}, {self.held_out} "
                f"and {self.permutations}; expected at least 1, above 0, between 0 and 1, and at least 0."
            )

    def is_held_out(self, table: SiteTable) -> NDArray[np.bool_]:
        """Which rows [n] are left out, from the site's own seed."""
        left_out = np.zeros(table.n, dtype=bool)
        order = np.random.default_rng([table.seed, _HELD_OUT]).permutation(table.n)
        left_out[order[: round(self.held_out * table.n)]] = True
        return left_out

    def layout(self, standard: Standard) -> Layout:
        return _layout(standard, min(self.width, *(int(width) for width in standard.widths)))

    def losses(self, weights: Leaves, rows: SiteTable, training: Training) -> Losses:
        u = _project("features", weights, tensor(rows.features))
        v = _project("second", weights, tensor(second_view_of(rows)))
        similarity = u @ v.T / self.temperature
        by_row, by_column = similarity.log_softmax(1), similarity.log_softmax(0)
        return (-0.5 * (by_row.diagonal() + by_column.diagonal()).mean(),)

    def sends(self, widths: Widths, state: State | None) -> Declared:
        return {name: of_groups(sent) for name, sent in super().sends(widths, state).items()}

    def training_rows(self, table: SiteTable) -> SiteTable:
        return super().training_rows(table.take(~self.checked(table)))

    def checked(self, table: SiteTable) -> NDArray[np.bool_]:
        """`is_held_out`, after refusing tables that cannot be parted so."""
        check_one_row_each(table)
        held_out = self.is_held_out(table)
        fewest = max(table.min_group, 2)  # one alone cannot be taken for another
        if min(held_out.sum(), (~held_out).sum()) < fewest:
            raise SmallGroupError(
                f"{held_out.sum()} of {table.n} participants would be held out; expected at least {fewest} of "
                "them, and as many to train on. Change held_out, or leave the site out."
            )
        return held_out


def _layout(standard: Standard, width: int) -> Layout:
    return {"features": (standard.width(0), width), "second": (standard.width(1), width)}


def _project(view: str, weights: Leaves, rows: "Tensor") -> "Tensor":
    """Scores [n, width] of a view's rows, of length 1; 0 stays 0."""
    scores = rows @ weights[view]
    squares = (scores**2).sum(1, keepdim=True)
    return scores / squares.where(squares > 0, squares.new_ones(())).sqrt()


def _metrics(similarity: Array, axis: int) -> Array:
    """`METRICS` [n, n, 3] of each pair if it were the true one; ties count against it."""
    rank = rankdata(-similarity, method="max", axis=axis)
    return np.stack([rank <= 1, rank <= 5, 1 / rank], axis=-1)
