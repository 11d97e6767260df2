"""Covariates with smooth effects: cubic B-splines on public, equally spaced knots, and a penalty on their bends.

P-splines (Eilers & Marx, Statistical Science 1996): many splines, and a penalty on the second differences of their
neighbouring coefficients, which leaves straight lines free.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.linalg import block_diag

from harmonization.core.errors import DesignError, HarmonizationError
from harmonization.core.protocol import Array

_DEGREE = 3
"""Of every spline: cubic."""


def spline_basis(values: Array, lower: float, upper: float, n_splines: int) -> Array:
    """Cubic B-splines [n, K] at `values` [n], at least 4; each row sums to 1.

    The first and the last of their K - 2 equally spaced knots lie at `lower` and `upper`. Beyond these every spline
    goes on along its tangent, and with it the effect: as a straight line.
    """
    last = n_splines - _DEGREE
    position = (values - lower) / (upper - lower) * last  # in units of the distance between knots
    inside = np.clip(position, 0, last)
    splines = BSpline(np.arange(-_DEGREE, n_splines + 1, dtype=np.float64), np.eye(n_splines), _DEGREE)
    basis: Array = splines(inside) + (position - inside)[:, None] * splines.derivative()(inside)
    return basis


@dataclass(frozen=True)
class SmoothDesign:
    """A design matrix in which splines take the place of some columns.

    The first spline of each column is left out: all K sum to 1, and a constant belongs to the sites. The others keep
    every curve, up to a constant, with the same second differences.

    Parameters
    ----------
    smooth : tuple of (int, float, float)
        Column, counted from 0, and lower and upper bound of its knots.
    n_splines : int
        K, for each of these columns.
    """

    smooth: tuple[tuple[int, float, float], ...]
    n_splines: int

    def __post_init__(self) -> None:
        if self.n_splines < _DEGREE + 1:
            raise HarmonizationError(f"n_splines is {self.n_splines}; cubic splines need at least {_DEGREE + 1}.")
        if not self.smooth:
            raise DesignError("no covariate is smooth. Name one in smooth, or use ComBat.")
        columns = [column for column, _, _ in self.smooth]
        if len(set(columns)) < len(columns) or min(columns) < 0:
            raise DesignError(f"smooth names columns {columns}; expected different ones, counted from 0.")
        for column, lower, upper in self.smooth:
            if not (np.isfinite([lower, upper]).all() and lower < upper):
                raise DesignError(f"bounds of column {column} are {lower} and {upper}; expected a lower and an upper.")

    @classmethod
    def read(cls, smooth: Any, n_splines: int) -> Self:
        """Read smooth columns from whatever the wire made of them, which must be rows of three numbers."""
        try:
            rows = tuple((float(column), float(lower), float(upper)) for column, lower, upper in smooth)
        except (TypeError, ValueError):
            rows = ((np.nan, 0.0, 0.0),)
        if not all(column.is_integer() for column, _, _ in rows):
            raise DesignError("smooth must give a column, a lower and an upper bound for each smooth covariate.")
        return cls(tuple((int(column), lower, upper) for column, lower, upper in rows), n_splines)

    def width(self, n_columns: int) -> int:
        """Columns of the expanded design, C, for `n_columns` covariate columns."""
        return n_columns + len(self.smooth) * (self.n_splines - 2)

    def expand(self, covariates: Array) -> Array:
        """Expanded design [n, C] of covariates [n, q], which must have all smooth columns."""
        bounds = self._bounds(covariates.shape[1])
        blocks = [
            spline_basis(values, *bounds[column], self.n_splines)[:, 1:] if column in bounds else values[:, None]
            for column, values in enumerate(covariates.T)
        ]
        return np.concatenate(blocks, axis=1)

    def shared(self, covariates: Array, min_group: int) -> NDArray[np.bool_]:
        """Tell which rows [n] of covariates [n, q] may enter sums over splines: under each lie `min_group`, or none.

        A spline that differs from 0 for a few rows alone would tell of those: they lie at ages, say, that hardly
        anybody has. Without them the next spline may have few, and so on.
        """
        bounds = self._bounds(covariates.shape[1])
        under = np.concatenate(
            [spline_basis(covariates[:, column], *edges, self.n_splines) != 0 for column, edges in bounds.items()],
            axis=1,
        )
        shared = np.ones(len(covariates), dtype=bool)
        while True:
            rows = under[shared].sum(axis=0)
            few = (rows > 0) & (rows < min_group)
            if not few.any():
                return shared
            shared &= ~under[:, few].any(axis=1)

    def lines(self, n_columns: int) -> Array:
        """Matrix [C, q] of the coefficients for which each column's effect is a straight line."""
        bounds = self._bounds(n_columns)
        # Coefficients that rise by 1 from each spline to the next make a line that rises by 1 from knot to knot.
        steps = np.arange(1.0, self.n_splines)[:, None]
        lines: Array = block_diag(*(steps if column in bounds else np.eye(1) for column in range(n_columns)))
        return lines

    def penalty(self, n_columns: int) -> Array:
        """Matrix S [C, C]: b'Sb is the sum of squared second differences of the splines' coefficients b."""
        bounds = self._bounds(n_columns)
        differences = np.diff(np.eye(self.n_splines), n=2, axis=0)[:, 1:]
        bends = differences.T @ differences
        penalty: Array = block_diag(*(bends if column in bounds else np.zeros((1, 1)) for column in range(n_columns)))
        return penalty

    def _bounds(self, n_columns: int) -> dict[int, tuple[float, float]]:
        beyond = [column for column, _, _ in self.smooth if column >= n_columns]
        if beyond:
            raise DesignError(
                f"smooth names column {beyond[0]}, counted from 0; there are {n_columns} columns of covariates. "
                "Name one of these."
            )
        return {column: (lower, upper) for column, lower, upper in self.smooth}
