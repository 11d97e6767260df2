"""Disclosure control: what sums could say about a single participant, whatever the policy names.

Each check stops an attack that works; tests/client/test_disclosure.py carries out every one of them.

- A level of a category that one participant has: that participant's row is the row of X'Y that belongs to it, and a sum
  of one. `permit_categories`.
- Covariates that tell nearly every participant apart, or that the caller defines: with as many columns as rows, sums
  solve for the rows. `read_design` reads codings of the cohort's columns alone, `Policy.permit_columns` names them and
  `Policy.permit_covariates` counts them.
- A matrix of as many columns as there are participants, without a secure sum: it shows the space that the participants'
  rows span, and who knows a part of a row can complete it. `permit_in_clear`.
- The same sums before and after a few people joined, or among all sites and all but one. `client.ledger`.
"""

from collections.abc import Iterator, Mapping
from math import isqrt, prod
from typing import Any

import numpy as np
import pandas as pd

from client.policy import Policy
from client.site import Site
from cohorts.participants import as_levels
from exchange.refusals import Refusal, RefusalCode
from harmonization import Analysis, Categorical, Design
from harmonization.protocol import Array

_TRIANGLES = frozenset({"XX", "hessian"})
"""Names of sums whose last axis may be the triangle of a symmetric matrix (`harmonization.symmetric`)."""
_NETWORKS = frozenset({"weights", "gradient", "gradients"})
"""Names of sums whose last axis may hold the matrices of a network, one after the other (`harmonization.neural`)."""


def read_design(content: Any) -> Design:
    """Read the covariates of a request, whatever it holds.

    A design can only rescale a column or part it into its values: nothing else that a caller could define is read.

    Raises
    ------
    Refusal
        If it is not a design, or scales a column by nothing or by no number.
    """
    try:
        design = Design.from_json(content)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise Refusal(RefusalCode.PROTOCOL, "the covariates of a request are no design.") from None
    for covariate in design.covariates:
        if isinstance(covariate, Categorical):
            usable = bool(covariate.levels)
        else:
            usable = bool(np.isfinite([covariate.center, covariate.scale]).all()) and covariate.scale != 0
        if not usable:
            raise Refusal(RefusalCode.PROTOCOL, f"covariate '{covariate.name}' of a request has no usable coding.")
    return design


def permit_categories(site: Site, participants: list[str], covariate: Categorical) -> None:
    """Refuse a category with a level that has few of these participants: sums over it would stand for those few."""
    values = as_levels(pd.Series(site.covariates_of(participants)[covariate.name]).dropna())
    for level, n in values.value_counts().items():
        site.policy.permit_group(int(n), f"{covariate.name} = {level}")


def permit_in_clear(policy: Policy, analysis: Analysis, sums: Mapping[str, Array], n_participants: int) -> None:
    """Refuse sums over participants that would leave without a secure sum and show the space of their rows.

    Second moments, cross-products, sketches, gradients and sums over permuted rows are all products X'W of the rows X
    [n, p] with some W [n, m]. With m and p of at least n they show the space, of n dimensions, that the rows span: each
    row up to n numbers, which follow from any n entries of it that are known otherwise. So the rule is about shapes
    alone, and whatever has two sides of at least n is refused: two axes of an array, one axis and all others together,
    the sides of a packed triangle, or those of a network's matrix among its weights. Entries that are zero, such as a
    place for every other site, do not count. Where an analysis parts the participants, n is the size of a part.

    Not refused, and not safe by that: many small matrices, round after round, at weights that the coordinator chooses
    (`Policy.max_releases` counts them), and a matrix a little smaller than n. Refused though harmless: sums of full
    shape and low rank. Frames of recordings are not looked at: they are many more than parcels.

    Parameters
    ----------
    analysis : Analysis
        What made the sums.
    n_participants : int
        Rows behind them.

    Raises
    ------
    Refusal
        Naming the array.
    """
    if analysis.rows == "frames":
        return
    n_parts = 1 if getattr(analysis, "sites", ()) else int(getattr(analysis, "n_folds", 1))
    axis = len(getattr(analysis, "sites", ())) or n_parts
    for name, values in sums.items():
        part, _, short = name.rpartition("/")  # 0/moment: that of the people outside of part 0
        for n_columns, others, parted in _sides(short, np.asarray(values), axis):
            n_behind = max(n_participants // n_parts if parted or part else n_participants, 2)
            if min(n_columns, others) >= n_behind:
                policy.permit_gram(n_behind, name)


def _sides(name: str, values: Array, n_parts: int) -> Iterator[tuple[int, int, bool]]:
    """Both sides of each matrix that an array can be read as, and whether its rows may be those of one part alone."""
    if values.ndim and name in _TRIANGLES and (side := _side_of_triangle(values.shape[-1])):
        yield side, side, True
    if values.ndim and name in _NETWORKS:
        side = isqrt(values.shape[-1])
        yield side, side, True
    sizes = _filled(values)
    parts = _axes_of_parts(values.shape, n_parts)
    for axis, size in enumerate(sizes):
        others = prod(other for place, other in enumerate(sizes) if place != axis and place not in parts)
        if axis not in parts and values.ndim > 1:
            yield size, others, bool(parts)


def _axes_of_parts(shape: tuple[int, ...], n_parts: int) -> set[int]:
    """Axes with an entry a part: each entry sums over other people, so that they make no matrix of the same people."""
    square = len(shape) > 2 and shape[-1] == shape[-2]
    last = len(shape) - (2 if square else 1)
    return {axis for axis in range(last) if n_parts > 1 and shape[axis] == n_parts}


def _filled(values: Array) -> list[int]:
    """How many entries of each axis are not zero throughout."""
    held = values != 0
    return [
        int(held.any(axis=tuple(other for other in range(values.ndim) if other != axis)).sum())
        for axis in range(values.ndim)
    ]


def _side_of_triangle(size: int) -> int:
    """Columns k of a symmetric matrix whose triangle has so many entries; 0 if none has."""
    side = (isqrt(8 * size + 1) - 1) // 2
    return side if side * (side + 1) // 2 == size else 0
