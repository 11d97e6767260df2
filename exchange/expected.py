"""What an answer may hold: names, kinds, ranks and sizes of its arrays, as they follow from what was asked.

A site may send anything. Whatever reads an answer, adds it or makes files of it, sees it only once every array is one
that was asked for, in the clear or under masks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exchange.messages import Arrays, MessageError, SumReply, SumRequest
from exchange.ring import bits_of
from exchange.secure_sum import Field, Layout, SecureSumError

SHOWN = "shown/"
"""How the names of arrays begin that a site shows of itself: they are neither masked nor added."""
_DTYPES = {"count": "iu", "sum": "f", "update": "f", "weights": "fiu"}


@dataclass(frozen=True)
class Expected:
    """What one array must be.

    Attributes
    ----------
    shape : tuple of int or None
        Sizes of its axes; None where any number of rows will do.
    kind : {"sum", "count", "update", "weights"}
        What it is added as (`exchange.ring.Kind`); ``weights`` and what is shown are not added.
    dtype : str
        What it must be stored as, where that matters; empty for any of its kind.
    optional : bool
        Whether it may be absent.
    """

    shape: tuple[int | None, ...]
    kind: Literal["sum", "count", "update", "weights"] = "sum"
    dtype: str = ""
    optional: bool = False

    def fits(self, values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> bool:
        """Whether an array is as it must be, and its numbers finite."""
        sizes = len(values.shape) == len(self.shape) and all(
            wanted in (None, size) for wanted, size in zip(self.shape, values.shape, strict=True)
        )
        kind = values.dtype.kind in _DTYPES[self.kind] and self.dtype in ("", str(values.dtype))
        return sizes and kind and bool(np.isfinite(values).all())


def check_reply(reply: SumReply, request: SumRequest, site: str, expected: Mapping[str, Expected]) -> None:
    """Refuse an answer with an array that was not asked for, or that is not as it was asked for.

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
    shown = {name: values for name, values in reply.arrays.items() if name.startswith(SHOWN)}
    others = {name: values for name, values in reply.arrays.items() if name not in shown}
    _check(shown, {name: of for name, of in expected.items() if name.startswith(SHOWN)})
    wanted = {
        name: of for name, of in expected.items() if not name.startswith(SHOWN) and request.sites_of(name, [site])
    }
    if request.secure is None:
        if reply.sealed:
            raise MessageError("an answer in the clear was asked for, and it is masked.")
        _check(others, wanted)
    else:
        _check_sealed(reply, others, request, request.secure.sites, wanted)


def _check(arrays: Arrays, expected: Mapping[str, Expected]) -> None:
    for name, values in arrays.items():
        if name not in expected:
            raise MessageError(f"'{name[:80]}' was not asked for.")
        if not expected[name].fits(values):
            raise MessageError(f"'{name}' of shape {values.shape} and kind {values.dtype} is not what was asked for.")
    for name, of in expected.items():
        if name not in arrays and not of.optional:
            raise MessageError(f"'{name}' is missing.")


def _check_sealed(
    reply: SumReply, arrays: Arrays, request: SumRequest, sites: Sequence[str], wanted: Mapping[str, Expected]
) -> None:
    """Check that the layouts of a masked answer are of what was asked for, and its words as many as they say."""
    groups: dict[tuple[str, ...], dict[str, Expected]] = {}
    for name, of in wanted.items():
        groups.setdefault(tuple(request.sites_of(name, sites)), {})[name] = of
    sealed = [tuple(group.sites) for group in reply.sealed]
    if len(set(sealed)) < len(sealed) or not set(sealed) <= groups.keys():
        raise MessageError("an answer is masked among other sites than it was asked among.")
    words: dict[str, tuple[int, str]] = {}
    for number, group in enumerate(reply.sealed):
        try:
            layout = Layout.from_json(group.layout)
        except SecureSumError as error:
            raise MessageError(str(error)) from None
        _check_layout(layout, groups[tuple(group.sites)])
        for bits in (32, 64):
            if n_words := layout.n_words(bits):
                words[f"sealed/{number}/{bits}"] = (n_words, f"uint{bits}")
    missing = [name for among, named in groups.items() if among not in sealed for name in named]
    if any(not wanted[name].optional for name in missing):
        raise MessageError(f"'{missing[0]}' is missing.")
    if {name: (math.prod(values.shape), str(values.dtype)) for name, values in arrays.items()} != words:
        raise MessageError("the words of a masked answer are not those that it says.")


def _check_layout(layout: Layout, expected: Mapping[str, Expected]) -> None:
    named = {field.name: field for field in layout.fields}
    for name, field in named.items():
        if name not in expected:
            raise MessageError(f"'{name[:80]}' was not asked for.")
        if not _is(field, expected[name]):
            raise MessageError(f"'{name}' of shape {field.shape} and kind {field.kind} is not what was asked for.")
    for name, of in expected.items():
        if name not in named and not of.optional:
            raise MessageError(f"'{name}' is missing.")


def _is(field: Field, expected: Expected) -> bool:
    same = len(field.shape) == len(expected.shape) and all(
        wanted in (None, size) for wanted, size in zip(expected.shape, field.shape, strict=True)
    )
    return same and field.kind == expected.kind and bits_of(field.kind) in (32, 64)
