"""Codes for missing values: numbers such as -9999 or 99 that stand for no value, and would be averaged with others."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

_REPEATED = re.compile(r"-?(9+|8+|7+)")
_BESIDE_NINES = re.compile(r"-?9+[678]")
"""Such as 97 and 98 beside 99, where it matters why there is no value."""
_ENDS_OF_TYPES = (-(2**15), -(2**31), 2**31 - 1, -(2**63), 2**63)
"""What programs write for no value: the ends of what an integer of some width holds."""
_FEWEST_OTHERS = 5
"""Different values that the others must have before a plain number that lies far from them is worth a word."""
_SAYS_MISSING = re.compile(
    r"(?:missing|unknown|unk|unavailable|unspecified|undisclosed|invalid|refused|declined|skipped|none|null|nan|tbd"
    r"|no (?:data|value|answer|response|information)|n\.?/?a\.?|n\.?d\.?|-+|\?+|\.|missing by design"
    r"|not (?:available|applicable|known|collected|reported|recorded|assessed|measured|done|administered|answered"
    r"|stated|disclosed|determined|tested|provided|given|specified|obtained|asked)"
    r"|(?:don'?t|do(?:es)? not|did not) (?:know|answer|respond|say)"
    r"|(?:prefers? not|refused|declined) to (?:say|answer|respond|disclose))(?: data| values?| code)?"
)


def says_missing(words: str) -> bool:
    """Whether a cell, or what is said of a code, means that there is no value."""
    return _SAYS_MISSING.fullmatch(re.sub(r"[\s_]+", " ", words.strip()).lower()) is not None


def strength(value: float) -> int:
    """How many digits of a code a number has: of 9, 8 or 7 alone, or the end of a type; 0 if it has another form.

    A last digit of 6, 7 or 8 after nines is one, too, of a whole number.

    A small negative whole number has 1.
    """
    if value in _ENDS_OF_TYPES:
        return 9
    text = f"{value:.10g}"
    if _BESIDE_NINES.fullmatch(text):
        return len(text.lstrip("-"))
    if _REPEATED.fullmatch(digits := text.replace(".", "")):
        length = len(digits.lstrip("-"))
        return length if "." not in text or length > 2 else 0
    return int(-9 <= value < 0 and value == round(value))


@dataclass(frozen=True)
class Suspect:
    """A number of a column that may stand for a missing value."""

    value: float
    """The number."""
    count: int
    """How many rows have it."""
    certain: bool
    """Whether it can hardly be anything else."""
    others: tuple[float, float] | None
    """Least and largest of the values that look like none; None if there are none."""


def suspects(values: np.ndarray[Any, Any], described: Collection[float] = ()) -> list[Suspect]:
    """Find the numbers of a column that may stand for missing values, least first.

    A number that has the form of a code, and lies beyond the others, is one for certain if it lies further from them
    than they from each other and from 0, of two digits five times as far. Else it is doubtful, as are 0 where it lies
    further from all others than these from each other, and any number that does three times as far.

    Parameters
    ----------
    values : numpy.ndarray
        [n], NaN where missing.
    described : collection of float
        Numbers that are known to mean something.
    """
    known, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    forms = _forms(known.tolist(), described)
    others = _others(forms)
    verdicts = {value: _is_certain(value, forms[value], others) for value in forms.keys() - set(others)}
    verdicts |= {value: False for value in _far_off(others) if value not in described}
    times = dict(zip(known.tolist(), counts.tolist(), strict=True))
    rest = [value for value in others if value not in verdicts]
    return [
        Suspect(value, times[value], certain, (rest[0], rest[-1]) if rest else None)
        for value, certain in sorted(verdicts.items())
        if certain is not None
    ]


def _forms(values: list[float], described: Collection[float]) -> dict[float, int]:
    """`strength` of sorted values; 0 of those that mean something, and of 96 to 98 below another value."""
    forms = {value: 0 if value in described else strength(value) for value in values}
    largest = max((value for value, form in forms.items() if not form), default=-np.inf)
    return {value: 0 if 96 <= value <= 98 and value < largest else form for value, form in forms.items()}


def _others(forms: dict[float, int]) -> list[float]:
    """Sorted values that have no form of a code, or one digit of one that says nothing here."""
    others = [value for value, form in forms.items() if not form]
    above = [value for value, form in forms.items() if form == 1 and value > 0]
    below = [value for value, form in forms.items() if form == 1 and value < 0]
    if above and not (len(others) > 1 and above[0] - others[-1] >= others[-1] - others[0]):
        others = sorted(others + above)
    return sorted(others + below) if others and others[0] < 0 else others


def _is_certain(value: float, digits: int, others: list[float]) -> bool | None:
    """Whether a number that has the form of a code is one for certain; None if it may well be a value."""
    if not others:
        return value < 0 if digits > 2 else None
    least, most = others[0], others[-1]
    gap, apart = max(least - value, value - most), most - least
    if gap <= 0:
        return None
    impossible, far = value < 0 <= least, max(apart, abs(least), abs(most))
    if digits > 1 and gap > (far if digits > 2 or impossible else 5 * far):
        return True
    if impossible or digits == 1:
        return False if apart > 0 else None
    return False if gap >= apart / (10 if digits > 2 else 4) else None


def _far_off(others: list[float]) -> list[float]:
    """The ends of sorted values that lie further from all others than these from each other; 0, or by three times."""
    if len(others) <= _FEWEST_OTHERS:
        return []
    ends = ((others[0], others[1] - others[0], others[1:]), (others[-1], others[-1] - others[-2], others[:-1]))
    return [end for end, gap, rest in ends if gap >= (rest[-1] - rest[0]) * (1 if end == 0 else 3)]
