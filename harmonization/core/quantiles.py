"""Quantiles of every parcel over the frames of all sites, from counts alone.

Every value has an address: its place on a public grid that is linear around 0 and logarithmic beyond, so that neither
units nor range need to be known, nor anybody's extreme be asked for. An address has three digits of base 256. A round
counts the next digit of the values that share a quantile's digits so far, and so narrows its bracket 256-fold.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from harmonization.core.declared import Declared, Widths, everybody, of_groups
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register

Counts = NDArray[np.int64]

BASE = 256
"""Bins that a round splits a bracket into."""
DIGITS = 3
"""Rounds."""
SMALLEST = 1e-3
"""The grid is linear below this size, logarithmic above."""
LARGEST = 1e9
"""The grid's ends. Values beyond count as at the end."""

_SPAN = float(np.arcsinh(LARGEST / SMALLEST))
_CELLS = BASE**DIGITS


class FirstDigits(Stage):
    """First round: counts of the first digit of all values, [1, p, 256]."""

    def part(self, analysis: "Quantiles", table: SiteTable) -> Sums:
        address, present = _addresses(table.features)
        return {"counts": _count(address // BASE ** (DIGITS - 1), present)[None]}

    def sends(self, analysis: "Quantiles", widths: Widths) -> Declared:
        return _counts_of(1, widths)

    def advance(self, analysis: "Quantiles", total: Sums) -> State:
        counts = total["counts"].astype(np.int64)
        n = counts[0].sum(axis=-1)
        rank = np.ceil(np.multiply.outer(np.asarray(analysis.probabilities), n) - 1).astype(np.int64) + 1
        counts = np.broadcast_to(counts, (len(rank), *counts.shape[1:]))
        _require_within(counts, rank)
        return Brackets(np.zeros_like(rank), rank, n.astype(np.float64), 0).narrowed(counts)


@dataclass(frozen=True)
class Brackets(Stage):
    """Where the quantiles lie so far; counts of the next digit in each, [n_q, p, 256].

    `prefix` [n_q, p] int64 has the first digits of each quantile's address as one number, `rank` [n_q, p] int64 the
    quantile's place among the values with that prefix, counted from 1, `n` [p] the values that are not missing, and
    `digits` says how many are known.
    """

    prefix: Counts
    rank: Counts
    n: Array
    digits: int

    def part(self, analysis: "Quantiles", table: SiteTable) -> Sums:
        address, present = _addresses(table.features)
        head, digit = np.divmod(address // BASE ** (DIGITS - 1 - self.digits), BASE)
        return {"counts": np.stack([_count(digit, present & (head == prefix)) for prefix in self.prefix])}

    def sends(self, analysis: "Quantiles", widths: Widths) -> Declared:
        return _counts_of(len(self.prefix), widths)

    def advance(self, analysis: "Quantiles", total: Sums) -> State:
        return self.narrowed(total["counts"].astype(np.int64))

    def narrowed(self, counts: Counts) -> State:
        """The brackets with another digit known, or, when all are, the quantiles."""
        digit, rank = _descend(counts, self.rank)
        prefix = self.prefix * BASE + digit
        if self.digits + 1 < DIGITS:
            return Brackets(prefix, rank, self.n, self.digits + 1)
        low, high = _edge(prefix), _edge(prefix + 1)
        return QuantileModel(np.where(self.n > 0, (low + high) / 2, np.nan), (high - low) / 2, self.n)


@dataclass(frozen=True)
class QuantileModel(Answer):
    """Quantiles of every column.

    Attributes
    ----------
    quantiles : numpy.ndarray
        [n_q, p]: middles of the grid's finest cells. Equal values give equal quantiles. NaN where no site has a value.
    resolution : numpy.ndarray
        [n_q, p]: a quantile of the pooled values is at most this far away.
    n : numpy.ndarray
        Values that are not missing, [p].
    """

    quantiles: Array
    resolution: Array
    n: Array


@register
@dataclass(frozen=True)
class Quantiles(Analysis):
    """Quantiles by inversion of the distribution function: the smallest value x with F(x) >= q.

    That is definition 1 of Hyndman & Fan (The American Statistician 1996), numpy's ``inverted_cdf``. Reached in three
    rounds to 2e-6 of the value (2e-9 near 0).

    Parameters
    ----------
    probabilities : sequence of float
        The q, each between 0 and 1.
    """

    probabilities: tuple[float, ...]

    name: ClassVar[str] = "quantiles"
    first: ClassVar[Stage] = FirstDigits()
    states: ClassVar[tuple[type[State], ...]] = (Brackets, QuantileModel)
    rows: ClassVar[Literal["participants", "frames"]] = "frames"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.probabilities or not all(0 < q < 1 for q in self.probabilities):
            raise HarmonizationError(f"probabilities are {list(self.probabilities)}; expected some between 0 and 1.")


def _counts_of(brackets: int, widths: Widths) -> Declared:
    """Declare counts of frames, of which each of those who have the parcel has many."""
    return {"counts": of_groups(everybody(brackets, widths.features, BASE))}


def _addresses(values: Array) -> tuple[Counts, NDArray[np.bool_]]:
    """Cell of every value [T, p] on the finest grid, and whether there is a value at all."""
    present = ~np.isnan(values)
    within = np.clip(np.where(present, values, 0).astype(np.float64), -LARGEST, LARGEST)
    place = (np.arcsinh(within / SMALLEST) / _SPAN + 1) / 2
    return np.clip(np.floor(place * _CELLS).astype(np.int64), 0, _CELLS - 1), present


def _edge(cell: Counts) -> Array:
    """Lower edge of a cell of the finest grid."""
    edge: Array = SMALLEST * np.sinh(_SPAN * (2 * cell / _CELLS - 1))
    return edge


def _count(digit: Counts, wanted: NDArray[np.bool_]) -> Array:
    """Count the digits of the wanted values, column by column: [T, p] → [p, 256]."""
    p = digit.shape[1]
    places = (digit + BASE * np.arange(p))[wanted]
    return np.bincount(places, minlength=p * BASE).reshape(p, BASE).astype(np.float64)


def _descend(counts: Counts, rank: Counts) -> tuple[Counts, Counts]:
    """Find the bin [n_q, p] that holds the value of each rank, and its rank inside that bin."""
    cumulative = counts.cumsum(axis=-1)
    digit = np.minimum((cumulative < rank[..., None]).sum(axis=-1), BASE - 1)
    before = np.take_along_axis(cumulative - counts, digit[..., None], axis=-1)[..., 0]
    return digit, rank - before


def _require_within(counts: Counts, rank: Counts) -> None:
    """Refuse quantiles in the outermost bins, where values beyond the grid are counted, too."""
    digit, _ = _descend(counts, rank)
    if ((rank > 0) & ((digit == 0) | (digit == BASE - 1))).any():
        raise HarmonizationError(
            f"a quantile is about as large as {LARGEST:g}. Import the recordings in units that make them smaller."
        )
