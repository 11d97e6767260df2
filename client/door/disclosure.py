"""Disclosure control: what sums could say about a single participant, whatever the policy names.

Each check stops an attack that works; tests/client/door/test_disclosure.py carries out every one of them.

- A level of a category that one participant has: that participant's row is the row of X'Y that belongs to it, and a sum
  of one. `permit_categories`.
- Covariates that tell nearly every participant apart, or that the caller defines: with as many columns as rows, sums
  solve for the rows. `read_design` reads codings of the cohort's columns alone, `Policy.permit_columns` names them and
  `Policy.permit_covariates` counts them.
- A matrix of as many columns as there are participants, without a secure sum: it shows the space that the participants'
  rows span, and who knows a part of a row can complete it. `permit_sums`, which lets nothing leave that an analysis did
  not declare, with its shape, the people of whom it tells, and the matrices in it (`harmonization.core.declared`).
- The same sums before and after a few people joined, or among all sites and all but one. `client.door.ledger`.

A `Refusal` names the covariate, the array or the limit.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import pandas as pd

from client.door.policy import Policy
from client.site import Site
from cohorts.participants import as_levels
from exchange.refusals import Refusal, RefusalCode
from harmonization import Analysis, Categorical, Design
from harmonization.core.declared import Declared, Sent, numbers_in
from harmonization.core.protocol import Array


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


def permit_table(site: Site, participants: list[str], design: Design, predicted: Design) -> None:
    """Refuse covariates, or a target, that have too few of these participants behind a level or a column."""
    q, n = len(design.columns), len(participants)
    for covariate in (*design.covariates, *predicted.covariates):
        if isinstance(covariate, Categorical):
            permit_categories(site, participants, covariate)
    if q:
        site.policy.permit_covariates(q, n)
        site.policy.permit_group(n // q, f"each of {q} columns of covariates")


def permit_declared(policy: Policy, analysis: Analysis, declared: Declared, n_participants: int) -> None:
    """Refuse, before anything is summed, sums that would tell of too few people or take too much memory.

    Parameters
    ----------
    declared : mapping
        What the analysis says that it sends in this round (`Analysis.sends`).
    n_participants : int
        People behind it.
    """
    policy.permit_size("memory_gb", 8 * numbers_in(declared.values()) / 1e9, f"GB of sums of '{analysis.name}'")
    for name, sent in declared.items():
        if sent.people == "everybody":
            policy.permit_group(n_participants // sent.parts, f"'{name}' of '{analysis.name}'")


def permit_sums(
    policy: Policy,
    analysis: Analysis,
    declared: Declared,
    sums: Mapping[str, Array],
    n_participants: int,
    *,
    clear: bool,
) -> None:
    """Refuse sums that are not those declared, and in the clear such as would show the space of people's rows.

    Second moments, cross-products, sketches, gradients and sums over permuted rows are all products X'W of the rows X
    [n, p] with some W [n, m]. With m and p of at least n they show the space, of n dimensions, that the rows span: each
    row up to n numbers, which follow from any n entries of it that are known otherwise. So the rule is about shapes
    alone, and whatever has two sides of at least n is refused: two axes of an array, one axis and all others together,
    and the sides of matrices that are declared to lie packed in it. Entries that are zero, such as a place for every
    other site, do not count. Where an analysis parts the participants, n is the size of a part. What is declared to be
    of few is refused whatever its shape.

    Not refused, and not safe by that: many small matrices, round after round, at weights that the coordinator chooses
    (`Policy.max_releases` counts them), and a matrix a little smaller than n. Refused though harmless: sums of full
    shape and low rank. Frames of recordings are not looked at: they are many more than parcels.

    Parameters
    ----------
    declared, n_participants
        As of `permit_declared`.
    clear : bool
        Whether the sums would leave without a secure sum.
    """
    for name, values in sums.items():
        if name not in declared or np.shape(values) != declared[name].shape:
            raise Refusal(
                RefusalCode.INTERNAL,
                f"'{analysis.name}' made '{name}' of shape {np.shape(values)}, undeclared; nothing leaves that is not "
                "declared.",
            )
    if not clear or analysis.rows == "frames":
        return
    for name, values in sums.items():
        n_behind = max(n_participants // declared[name].parts, 2)
        if declared[name].people == "few" or any(
            min(side) >= n_behind for side in _sides(declared[name], np.asarray(values))
        ):
            policy.permit_gram(n_behind, name)


def _sides(sent: Sent, values: Array) -> Iterator[tuple[int, int]]:
    """Both sides of each matrix over the same people that an array can be read as."""
    sizes = _filled(values)
    together = [axis for axis in range(values.ndim) if axis not in sent.part_axes]
    for axis in together:
        others = [sizes[other] for other in together if other != axis]
        if others:
            yield sizes[axis], prod(others)
    packed = prod(sizes[axis] for axis in together[:-1])
    for rows, columns in sent.matrices:
        yield rows, columns * packed
        yield rows * packed, columns


def _filled(values: Array) -> list[int]:
    """How many entries of each axis are not zero throughout."""
    held = values != 0
    return [
        int(held.any(axis=tuple(other for other in range(values.ndim) if other != axis)).sum())
        for axis in range(values.ndim)
    ]
