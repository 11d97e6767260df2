"""What an analysis sends: the shape of each of its sums, of whom a number in it tells, and which matrices it holds.

A site lets out only what is declared so, and a coordinator reads only that. Nothing has a default: whoever adds a sum
says what it is.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Shape = tuple[int, ...]
People = Literal["everybody", "group", "few"]
"""Of whom a number tells, by itself or by subtraction from others of its answer: of everybody of a site, or of a part
of it; of a group in there, such as a class, which the analysis itself keeps at the site's `min_group` or above; or of
however few, down to one, such as a count in a bin of a histogram."""


@dataclass(frozen=True)
class Widths:
    """Columns of the tables of an analysis; the same at every site.

    Attributes
    ----------
    features : int
        p.
    seen : int
        Columns of the features as they are seen through loadings, k; p where there are none.
    covariates : int
        Columns of the design, q.
    target : tuple of int or None
        () for one number a row, (m,) for m columns, None without a target.
    second : int
        Columns of the second view, r.
    """

    features: int
    seen: int
    covariates: int
    target: Shape | None
    second: int

    @property
    def classes(self) -> int:
        """Columns of the target; 1 for one number a row, 0 without one."""
        return 0 if self.target is None else math.prod(self.target)

    @classmethod
    def of_frames(cls, n_parcels: int) -> "Widths":
        """Columns of a recording's frames: its parcels, and nothing beside them."""
        return cls(features=n_parcels, seen=n_parcels, covariates=0, target=None, second=0)


@dataclass(frozen=True)
class Sent:
    """One array that leaves a site.

    Attributes
    ----------
    shape : tuple of int
        Sizes of its axes.
    people : People
        Of whom a number in it tells.
    parts : int
        Parts of equal size into which the site's participants are dealt; 1 where they are not.
    part_axes : tuple of int
        Axes that have an entry a part: each entry sums over other people.
    matrices : tuple of (int, int)
        Sides of the matrices that lie packed along the last axis, such as a triangle, or the layers of a network.
        Matrices that lie open, along two axes, need no mention.
    """

    shape: Shape
    people: People
    parts: int
    part_axes: tuple[int, ...]
    matrices: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


Declared = Mapping[str, Sent]


def everybody(*shape: int) -> Sent:
    """Sums over all participants of the site."""
    return Sent(shape, "everybody", 1, (), ())


def triangle(side: int, *leading: int) -> Sent:
    """Packed triangles of symmetric matrices [side, side], sums over all participants."""
    return Sent((*leading, side * (side + 1) // 2), "everybody", 1, (), ((side, side),))


def network(layout: Mapping[str, Shape], *leading: int) -> Sent:
    """Weights of networks, or their gradients, packed in the order of a layout; sums over all participants."""
    size = sum(math.prod(shape) for shape in layout.values())
    matrices = tuple((shape[0], shape[1]) for shape in layout.values() if len(shape) == 2)
    return Sent((*leading, size), "everybody", 1, (), matrices)


def in_parts(sent: Sent, parts: int) -> Sent:
    """The same of participants who are dealt into parts, of one of which it may tell; nothing else changes."""
    return replace(sent, parts=sent.parts * parts)


def by_part(sent: Sent, parts: int, *axes: int) -> Sent:
    """The same, of participants in so many parts, stacked along leading axes of these sizes with an entry a part."""
    stacked = in_parts(sent, parts)
    return replace(
        stacked,
        shape=(*axes, *sent.shape),
        part_axes=(*range(len(axes)), *(axis + len(axes) for axis in sent.part_axes)),
    )


def of_groups(sent: Sent) -> Sent:
    """The same, of groups of participants that the analysis keeps at `min_group` or above."""
    return replace(sent, people="group")


def of_few(sent: Sent) -> Sent:
    """The same, of however few participants."""
    return replace(sent, people="few")


def named(prefix: str, declared: Declared) -> dict[str, Sent]:
    """Put a prefix before all names."""
    return {f"{prefix}{name}": sent for name, sent in declared.items()}


def numbers_in(declared: Iterable[Sent]) -> int:
    """How many numbers are sent in all."""
    return sum(sent.size for sent in declared)
