"""Whether what people give is numbers at all, and of the kind that is expected."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from harmonization.core.errors import HarmonizationError, TableError

_LARGEST, _SMALLEST = 1e60, 1e-60
"""Sizes beyond which fourth powers, which some sums hold, overflow or vanish."""
_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool, np.bool_), "true or false"),
    int: ((Integral,), "a whole number"),
    float: ((Real,), "a number"),
    str: ((str,), "text"),
}
"""Kinds of parameters: what they may be, and how that is called."""


def as_numbers(values: Any, name: str) -> NDArray[np.float64]:
    """Return an array of numbers; those that are numbers already are not copied.

    Text is refused even where it spells a number: it may as well be the code of a category.
    """
    try:
        array = np.asarray(values)
        spelled = array.dtype.kind == "O" and any(isinstance(value, str) for value in array.flat)
        if array.dtype.kind in "biufO" and not spelled:
            return array.astype(np.float64, copy=False)
    except (TypeError, ValueError):
        pass
    raise TableError(
        f"{name} holds values that are no numbers. Give numbers; categories of covariates go in named columns."
    )


def as_whole_numbers(values: Any, name: str) -> NDArray[np.int64]:
    """Return whole numbers [n], after refusing anything else."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TableError(f"{name} must be whole numbers, one a row. Number them.")
    return array.astype(np.int64, copy=False)


def check_width(values: NDArray[np.float64], width: int, name: str = "features") -> None:
    """Refuse `values` [n, width] of another width than a model was fitted on."""
    if values.ndim != 2 or values.shape[1] != width:
        raise TableError(
            f"{name} of shape {values.shape} do not suit this model, which was fitted on {width} columns. Use the same "
            "ones, in the same order."
        )


def check_sizes(values: NDArray[np.float64], name: str) -> None:
    """Refuse columns of `values` [n] or [n, p] that are so large, or so small, that their powers leave all range."""
    largest = np.atleast_1d(np.fmax.reduce(np.abs(values), axis=0, initial=0.0))
    beyond = (largest > _LARGEST) | ((largest > 0) & (largest < _SMALLEST))
    if beyond.any():
        column = int(beyond.argmax())
        raise TableError(
            f"column {column + 1} of the {name} holds values as large as {largest[column]:.1g}; expected sizes between "
            f"{_SMALLEST:g} and {_LARGEST:g}. Give it in other units."
        )


def check_parameters(analysis: Any) -> None:
    """Refuse, by name, parameters of an analysis, a dataclass, that are not of the annotated kind."""
    for name, (is_of, called) in _kinds_of(cast(Hashable, type(analysis))).items():
        value = getattr(analysis, name)
        if not is_of(value):
            raise HarmonizationError(f"{name} of '{analysis.name}' is {value!r}. Give {called}.")


_Kind = tuple[Callable[[Any], bool], str]
"""Whether a value is of a kind, and what that is called."""


@cache
def _kinds_of(analysis: Any) -> dict[str, _Kind]:
    """Annotated kinds of a class's parameters, by name: thousands of one class are made in a study."""
    hints = get_type_hints(analysis)
    return {field.name: _understood(hints[field.name]) for field in fields(analysis)}


def _understood(kind: Any) -> _Kind:
    origin, parts = get_origin(kind), get_args(kind)
    if kind in _KINDS:
        types, called = _KINDS[kind]
        return (
            lambda value: isinstance(value, types) and (bool in types or not isinstance(value, bool | np.bool_)),
            called,
        )
    if kind is type(None):
        return lambda value: value is None, "nothing"
    if origin is dict:
        return lambda value: isinstance(value, Mapping), "names with values"
    if all(isinstance(part, str) for part in parts):  # one of several words, which the analysis knows
        return lambda value: isinstance(value, str), "text"
    understood = [_understood(part) for part in parts if part is not Ellipsis]
    names = [called for _, called in understood]
    if origin is not tuple:
        return lambda value: any(is_of(value) for is_of, _ in understood), " or ".join(names)
    if parts[-1] is Ellipsis:  # a list once it came over the wire, as below
        return lambda value: isinstance(value, list | tuple) and all(map(understood[0][0], value)), (
            f"a list, each entry {names[0]}"
        )
    return (
        lambda value: (
            isinstance(value, list | tuple)
            and len(value) == len(understood)
            and all(is_of(entry) for (is_of, _), entry in zip(understood, value, strict=True))
        ),
        f"[{', '.join(names)}]",
    )
