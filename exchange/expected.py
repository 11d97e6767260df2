"""What an answer may hold: names, kinds and shapes of its arrays, as they follow from what was asked.

A site may send anything. Whatever reads an answer, adds it or makes files of it, sees it only once every array is one
that was asked for, in the clear or under masks. So answers to one question fit each other, whoever wrote them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exchange.messages import Arrays, DescribeRequest, MessageError, Reply, SumRequest
from exchange.secure_sum import SecureSumError, SumLayout

_DTYPES = {"count": ("int64",), "sum": ("float64",), "shown": ("float64", "int64", "bool")}
_MOST = 10**15
_LARGEST = 1e60
"""Of sums: their squares, and what is solved from those, stay finite. Under masks there is room for less."""


@dataclass(frozen=True)
class Expected:
    """What one array must be."""

    kind: Literal["count", "sum", "update", "weights", "shown"]
    """The first three are what it is added as (`exchange.ring.Encoding`). A change of weights is asked for under masks
    alone, and the weights themselves in the clear alone. What a site shows of itself is neither masked nor added, and
    may be absent."""
    shape: tuple[int | None, ...] = ()
    """Sizes of its axes; None where any number of rows will do, which is so of what is shown alone."""
    dtype: str = ""
    """Of weights: what they were sent as."""
    most: int = _MOST
    """Of counts: the largest."""

    def fits(self, values: NDArray[Any]) -> bool:
        """Whether an array is as it must be, with numbers to reckon with; of what is shown some may be missing."""
        if not _same(values.shape, self.shape) or str(values.dtype) not in _DTYPES.get(self.kind, (self.dtype,)):
            return False
        if self.kind == "count":
            return bool(((values >= 0) & (values <= self.most)).all())
        if self.kind == "sum":
            return bool((np.abs(values) <= _LARGEST).all())
        return self.kind == "shown" or bool(np.isfinite(values).all())


def check_reply(
    reply: Reply, request: DescribeRequest | SumRequest, site: str, expected: Mapping[str, Expected]
) -> None:
    """Refuse an answer with an array that was not asked for, that is not as it was asked for, or that is missing.

    Parameters
    ----------
    site : str
        Who answers.
    expected : mapping
        Name → what the array must be, of all that any site may send.

    Raises
    ------
    MessageError
        Naming the array.
    """
    shown = {name: of for name, of in expected.items() if of.kind == "shown"}
    other_way = "update" if request.secure is None else "weights"
    wanted = {
        name: of
        for name, of in expected.items()
        if name not in shown and of.kind != other_way and request.sites_of(name, [site])
    }
    if request.secure is None:
        if reply.sealed:
            raise MessageError("an answer in the clear was asked for, and this one is masked.")
        _check(reply.arrays, wanted | {name: shown[name] for name in shown.keys() & reply.arrays.keys()})
    else:
        open_to_all = {name: values for name, values in reply.arrays.items() if name in shown}
        _check(open_to_all, {name: shown[name] for name in open_to_all})
        sealed = {name: values for name, values in reply.arrays.items() if name not in shown}
        _check_sealed(reply, sealed, request, wanted)


def _check(arrays: Arrays, wanted: Mapping[str, Expected]) -> None:
    _require_names(arrays, wanted)
    for name, values in arrays.items():
        if not wanted[name].fits(values):
            raise MessageError(f"'{name}' of shape {values.shape} and kind {values.dtype} is not what was asked for.")


def _require_names(found: Collection[str], wanted: Collection[str]) -> None:
    for name in found:
        if name not in wanted:
            raise MessageError(f"{name[:80]!r} was not asked for.")
    for name in wanted:
        if name not in found:
            raise MessageError(f"'{name}' is missing.")


def _check_sealed(reply: Reply, arrays: Arrays, request: SumRequest, wanted: Mapping[str, Expected]) -> None:
    """Check that the layouts of a masked answer are of what was asked for, and its words as many as they say."""
    assert request.secure is not None
    groups = request.by_sites(wanted)
    among = [tuple(group.sites) for group in reply.sealed]
    if sorted(among) != sorted(groups):
        raise MessageError("an answer is masked among other sites than it was asked among.")
    words: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number, group in enumerate(reply.sealed):
        try:
            layout = SumLayout.from_json(group.layout)
        except SecureSumError as error:
            raise MessageError(str(error)) from None
        if layout.bound != (bound := request.secure.bound):
            raise MessageError(f"updates are masked within {layout.bound:g}; within {bound:g} was asked for.")
        _check_layout(layout, groups[tuple(group.sites)])
        for bits in (32, 64):
            if n_words := layout.n_words(bits):
                words[f"sealed/{number}/{bits}"] = (f"uint{bits}", (n_words,))
    _require_names(arrays, words)
    for name, values in arrays.items():
        if (str(values.dtype), values.shape) != words[name]:
            raise MessageError(f"'{name}' of shape {values.shape} and kind {values.dtype} is not what its layout says.")


def _check_layout(layout: SumLayout, wanted: Mapping[str, Expected]) -> None:
    _require_names({field.name for field in layout.fields}, wanted)
    for field in layout.fields:
        of = wanted[field.name]
        if field.kind != of.kind or not _same(field.shape, of.shape):
            raise MessageError(
                f"'{field.name}' of shape {field.shape} and kind {field.kind} is not what was asked for."
            )


def _same(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, size) for want, size in zip(wanted, shape, strict=True))
