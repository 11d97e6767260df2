"""Cells of a participants table: how numbers, ages and sexes are written, and what becomes of cells that are none.

A cell without a value costs its own row that value, and not the table. Whatever is not taken as it stands is said.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from cohorts.codes import says_missing, strength, suspects
from cohorts.errors import ParticipantsError

TopCoded = Literal["missing", "bound"]
"""What becomes of a number of which a bound alone is known, such as ``89+``."""
Ranges = Literal["missing", "midpoint"]
"""What becomes of a number that lies in a range, such as ``35-40``."""

LIMITS = {
    "age": (120.0, "years"),
    "mean_fd": (100.0, "millimetres"),
    "tsnr": (np.inf, "a ratio"),
    "t_r": (20.0, "seconds"),
}
"""Numbers that FedBrainLM knows: none is negative, and none above this, in this unit."""
PER_YEAR = {"years": 1.0, "months": 12.0, "weeks": 365.25 / 7, "days": 365.25}
"""How often a year has each unit of age: 365.25 days, 12 months."""

_FEW = 0.1
"""Of this share of a column's cells, or of one, it is believed that they alone cannot be read."""
_MOST_KINDS = 5
"""Numbers, at most, that may stand for kinds, as words may, and not for sizes."""
_LONGEST = 100
"""Letters of a cell, beyond which it is no number."""
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_BOUND = re.compile(
    rf"(?:[<>≤≥]=?|over|above|under|below|at least|at most|up to|(?:older|younger|more|less) than)\s*({_NUMBER})"
    rf"|({_NUMBER})\s*(?:\+|plus|(?:and|or) (?:above|over|older|more|up|below|under|younger|less))"
)
_RANGE = re.compile(rf"({_NUMBER})\s*(?:-|–|—|to|\.\.)\s*({_NUMBER})")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+")
_UNIT = r"(years?|yrs?|yo|y|a|months?|mos?|m|weeks?|wks?|w|days?|d)\.?(?: old| of age)?"
_PART = re.compile(rf"({_NUMBER})\s*{_UNIT}[\s,;]*")
_DURATION = re.compile(rf"p?(?:{_NUMBER}\s*{_UNIT}[\s,;]*)+")
_WITH_UNIT = re.compile(rf"(.*[\d+])\s*{_UNIT}")
_UNITS = {"y": "years", "a": "years", "m": "months", "w": "weeks", "d": "days"}

_SEXES = {"F": re.compile(r"f|.*\b(?:female|wom[ae]n|girl)s?\b.*"), "M": re.compile(r"m|.*\b(?:male|m[ae]n|boy)s?\b.*")}
_OTHER_SEX = re.compile(r"o|x|.*\b(?:others?|intersex|diverse?|non-?binary|third|trans\w*)\b.*")


@dataclass(frozen=True)
class TableRules:
    """What becomes of cells that are no plain value."""

    missing: tuple[tuple[str, str], ...] = ()
    """Values that stand for none; of every column where its name is empty. So do a column's ``MissingValues`` in
    ``participants.json``, and ``Levels`` that are said to be missing there."""
    top_coded: TopCoded | None = None
    ranges: Ranges | None = None
    """None for what a column's ``TopCoded`` and ``Ranges`` say in ``participants.json``; missing if these say
    nothing."""
    judge: bool = True
    """Whether to look for numbers that are codes for missing values."""


@dataclass(frozen=True)
class ColumnRules:
    """`TableRules` for one column, with what its description says."""

    missing: frozenset[str]
    """Cells that stand for no value."""
    levels: dict[str, str]
    """Code → what is said of it, of those that mean something."""
    top_coded: str
    ranges: str
    judge: bool

    @classmethod
    def of(cls, column: str, about: Mapping[str, Any], rules: TableRules) -> "ColumnRules":
        """Find the rules for a column; `about` is its description in ``participants.json``."""
        said = _meanings(about.get("Levels"))
        listed = about.get("MissingValues", [])
        missing = [str(value) for value in (listed if isinstance(listed, list) else [listed])]
        missing += [code for code, meaning in said.items() if says_missing(meaning)]
        missing += [value for of, value in rules.missing if of in ("", column)]
        codes = frozenset(map(_spelled, missing))
        return cls(
            missing=codes,
            levels={code: meaning for code, meaning in said.items() if _spelled(code) not in codes},
            top_coded=rules.top_coded or _rule(column, about, "TopCoded", ("missing", "bound")),
            ranges=rules.ranges or _rule(column, about, "Ranges", ("missing", "midpoint")),
            judge=rules.judge and "MissingValues" not in about,
        )


def read_column(column: pd.Series, rules: ColumnRules, unit: str = "years") -> tuple[pd.Series, list[str]]:
    """Read the cells of a column: sex, a number that FedBrainLM knows, or whatever else they hold.

    Parameters
    ----------
    column : pandas.Series
        Text, stripped, NaN where missing. Its index counts the rows of the table.
    unit : str
        What age is in, one of `PER_YEAR`.

    Returns
    -------
    values : pandas.Series
        F or M, numbers (age in years), or text; NaN where missing.
    notices : list of str
        What was not taken as it stands, a sentence each.

    Raises
    ------
    ParticipantsError
        If many cells cannot be read, or a number shows that the column has another unit; with the row.
    """
    named = column.map(lambda cell: _spelled(cell) in rules.missing, na_action="ignore").eq(True)
    notices = _said_of(named, column, "named as missing.")
    column = column.mask(named)
    if column.name == "sex":
        values, more = _read_sex(column, rules)
    elif column.name in LIMITS:
        values, more = _read_known_number(column, rules, unit)
    else:
        values, more = _read_other(column, rules)
    return values, [f"{column.name}: {notice}" for notice in [*notices, *more]]


@dataclass(frozen=True)
class _Numbers:
    """Numbers of a column, as far as its cells are such."""

    number: pd.Series
    """Float, in the column's unit; NaN where there is none."""
    kind: pd.Series
    """``number``, ``word`` for a missing value, ``infinite``, ``unit``, ``bound``, ``range`` or ``unread``; or NaN."""
    notices: list[str]


def _read_numbers(column: pd.Series, rules: ColumnRules, unit: str | None = None) -> _Numbers:
    """Read what can be read of cells as numbers; `unit` is that of age, whose cells may state another."""
    text, commas = _with_points(column, only_if_most=column.name not in LIMITS)
    values = pd.to_numeric(text, errors="coerce").astype(float)
    kinds = pd.Series("number", index=text.index, dtype="object").where(text.notna())
    kinds[np.isinf(values)] = "infinite"
    for row, cell in text[values.isna() & text.notna()].items():
        kinds[row], values[row] = _special(cell.lower(), unit)
    taken = {"bound": rules.top_coded == "bound", "range": rules.ranges == "midpoint"}
    values[kinds.isin(["infinite", *(kind for kind, keep in taken.items() if not keep)])] = np.nan
    said = _SAID | {kind: _SAID_IF_TAKEN[kind] for kind, keep in taken.items() if keep}
    notices = [f"{_rows(commas)} a decimal comma, and was read so."] if commas.any() else []
    for kind, what in said.items():
        notices += _said_of(kinds == kind, column, what)
    return _Numbers(values, kinds, notices)


_SAID = {
    "word": "a missing value.",
    "infinite": "no number to reckon with, read as missing.",
    "unit": "read in the unit that is stated.",
    "bound": "a bound alone, read as missing. --top-coded bound takes the bound.",
    "range": "a range alone, read as missing. --ranges midpoint takes its middle.",
}
"""What is said of each kind of cell that is read and is no plain number."""
_SAID_IF_TAKEN = {"bound": "a bound alone, which was taken.", "range": "a range alone, whose middle was taken."}


def _special(cell: str, unit: str | None) -> tuple[str, float]:
    """Kind of a cell that is no plain number, and its number in the unit."""
    if len(cell) > _LONGEST:
        return "unread", np.nan
    if says_missing(cell):
        return "word", np.nan
    per_unit = 1.0
    if unit is not None:
        if _DURATION.fullmatch(cell):
            years = sum(float(number) / _per_year(stated) for number, stated in _PART.findall(cell))
            return "unit", years * PER_YEAR[unit]
        if stated := _WITH_UNIT.fullmatch(cell):
            cell, per_unit = stated[1], PER_YEAR[unit] / _per_year(stated[2])
    if bound := _BOUND.fullmatch(cell):
        return "bound", float(bound[1] or bound[2]) * per_unit
    if (ends := _RANGE.fullmatch(cell)) and float(ends[1]) < float(ends[2]):
        return "range", (float(ends[1]) + float(ends[2])) / 2 * per_unit
    return "unread", np.nan


def _per_year(unit: str) -> float:
    return PER_YEAR[_UNITS[unit[0]]]


def _read_known_number(column: pd.Series, rules: ColumnRules, unit: str) -> tuple[pd.Series, list[str]]:
    """Read a column of `LIMITS`, and refuse it where a number may show that it has another unit."""
    most, of = LIMITS[str(column.name)]
    per = PER_YEAR[unit] if column.name == "age" else 1.0
    expected = f"a number in {unit if column.name == 'age' else of} from 0 to {most * per:g}, or n/a"
    cells = _read_numbers(column, rules, unit if column.name == "age" else None)
    numbers = cells.number
    coded = ((numbers < 0) | (numbers > most * per)) & numbers.map(strength).gt(0)
    unread = (cells.kind == "unread") | ((numbers < 0) & ~coded)
    notices = cells.notices + _said_of(coded, column, "a code, which cannot be a value; missing.")
    notices += _set_aside(column, unread, expected, "Write the number alone.")
    numbers = numbers.mask(coded | unread)
    if (beyond := numbers > most * per).any():  # were it months, those below would be wrong without a trace
        row, cell = next(column[beyond].items())
        raise ParticipantsError(
            f"row {row} has {column.name} '{cell}'; expected {expected}. {_remedy(str(column.name), str(cell))}"
        )
    numbers, doubts = _without_codes(cells, numbers, rules)
    return numbers / per, notices + doubts


def _remedy(column: str, cell: str) -> str:
    if column != "age":
        return "Correct it."
    return (
        f"Correct it, or name it as missing with --missing-value age={cell}; if ages are in months, say so in a .json "
        'beside it: {"age": {"Units": "month"}}.'
    )


def _read_sex(column: pd.Series, rules: ColumnRules) -> tuple[pd.Series, list[str]]:
    """Sex as F or M, by its own words or by what the levels say of its codes."""
    levels = {_spelled(code.lower()): meaning for code, meaning in rules.levels.items()}
    kinds = column.str.lower().map(
        lambda cell: _sex_of(levels.get(_spelled(cell), "")) or _sex_of(cell), na_action="ignore"
    )
    other = "neither F nor M, read as missing. Analyses that need sex leave these people out."
    notices = _said_of(kinds == "missing", column, "a missing value.") + _said_of(kinds == "other", column, other)
    remedy = "Recode it, or give its Levels in a .json beside it: which code means which sex cannot be guessed."
    notices += _set_aside(column, kinds == "", "F, M, O or n/a", remedy)
    return kinds.where(kinds.isin(["F", "M"])).astype("str"), notices


def _sex_of(words: str) -> str:
    """F, M, ``other`` or ``missing``; empty where words say none of them."""
    words = words.strip().lower()[:_LONGEST]
    if words == "u" or says_missing(words) or ((number := _plain(words)) is not None and strength(number)):
        return "missing"
    if _OTHER_SEX.fullmatch(words):
        return "other"
    return next((sex for sex, said in _SEXES.items() if said.fullmatch(words)), "")


def _read_other(column: pd.Series, rules: ColumnRules) -> tuple[pd.Series, list[str]]:
    """Numbers where all cells are such, but for a few that are none; else text."""
    cells = _read_numbers(column, rules)
    n_known, n_numbers = column.notna().sum(), (cells.kind == "number").sum()
    unread = cells.kind == "unread"
    if n_numbers < n_known / 2 or (unread.any() and not _are_slips(unread, cells)):
        return _codes_among_words(column, cells.number, rules)
    slips = _set_aside(column, unread, "a number, or n/a", "Correct it.")
    numbers, doubts = _without_codes(cells, cells.number, rules)
    whole = numbers.notna().all() and column.str.fullmatch(r"[-+]?\d{1,15}").all()
    return numbers.astype("int64") if whole else numbers, cells.notices + slips + doubts


def _are_slips(unread: pd.Series, cells: _Numbers) -> bool:
    """Whether a few cells are no numbers in a column of numbers, and not one more of the words for a few kinds."""
    numbers = cells.number[cells.kind == "number"]
    return bool(unread.sum() <= max(1, _FEW * cells.kind.notna().sum()) and numbers.nunique() > _MOST_KINDS)


def _codes_among_words(column: pd.Series, numbers: pd.Series, rules: ColumnRules) -> tuple[pd.Series, list[str]]:
    """Text, without numbers that have the form of a code where all other cells are words."""
    coded = numbers.notna() & ~column.isin(list(rules.levels))
    forms = numbers[coded].map(lambda number: strength(number) + (number < 0) > 1)
    words = column[~coded].dropna()
    if not rules.judge or not coded.any() or not forms.all() or words.empty or words.str.contains(r"\d").any():
        return column, []
    return column.mask(coded), _said_of(coded, column, "a number among words, read as missing.")


def _without_codes(cells: _Numbers, numbers: pd.Series, rules: ColumnRules) -> tuple[pd.Series, list[str]]:
    """Take numbers out that can only be codes for missing values, and speak of those that may be."""
    if not rules.judge:
        return numbers, []
    meant = [number for code in rules.levels if (number := _plain(code)) is not None]
    meant += numbers[cells.kind.isin(["bound", "range"])].dropna().tolist()
    notices = []
    for suspect in suspects(numbers.to_numpy(float), meant):
        of_it = numbers == suspect.value
        others = f" (the others: {suspect.others[0]:g} to {suspect.others[1]:g})" if suspect.others else ""
        what, value = f"{_rows(of_it)} {suspect.value:.10g}{others}", 'say so in a .json beside it: "MissingValues": []'
        if suspect.certain:
            numbers = numbers.mask(of_it)
            notices.append(f"{what}: taken for a code, and read as missing. If it is a value, {value}.")
        else:
            name = f"--missing-value {numbers.name}={suspect.value:.10g}"
            notices.append(f"{what}: kept. If it stands for a missing value, give {name}; else {value}.")
    return numbers, notices


def _set_aside(column: pd.Series, unread: pd.Series, expected: str, remedy: str) -> list[str]:
    """Say which cells cannot be read, and refuse a column that has too many for slips."""
    if not unread.any():
        return []
    row, cell = next(column[unread].items())
    n_known = column.notna().sum()
    if unread.sum() > max(1, _FEW * n_known) or unread.sum() == n_known:
        raise ParticipantsError(f"row {row} has {column.name} '{str(cell)[:_LONGEST]}'; expected {expected}. {remedy}")
    return [f"{_rows(unread)} what cannot be read (first row {row}): read as missing; expected {expected}."]


def _with_points(column: pd.Series, *, only_if_most: bool) -> tuple[pd.Series, pd.Series]:
    """Write decimal commas as points, if the column has them, and tell which cells had one.

    ``1,234`` may be a thousand and more: commas are decimal ones where one of them cannot be of thousands.
    """
    commas = column.str.fullmatch(_DECIMAL_COMMA).eq(True)
    decimal = commas.any() and not column[commas].str.fullmatch(_THOUSANDS).all()
    if not decimal or (only_if_most and commas.sum() < column.notna().sum() / 2):
        return column, commas & False
    return column.mask(commas, column.str.replace(",", ".")), commas


def _meanings(levels: Any) -> dict[str, str]:
    """What is said of each level, as text or under its Description."""
    if not isinstance(levels, dict):
        return {}
    said = (
        (code, about.get("Description", "") if isinstance(about, dict) else about) for code, about in levels.items()
    )
    return {str(code).strip(): str(meaning).strip() for code, meaning in said}


def _rule(column: str, about: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str:
    rule = about.get(key, known[0])
    if rule not in known:
        raise ParticipantsError(
            f"the .json beside it: {key} of {column} is '{rule}'; expected {' or '.join(known)}. Correct it."
        )
    return str(rule)


def _plain(text: str) -> float | None:
    """Return the number that a text is; None if it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def _spelled(cell: str) -> str:
    """Write a cell so that -9999 and -9999.0 are one."""
    number = _plain(cell)
    return cell.strip() if number is None else f"{number:.15g}"


def _rows(which: pd.Series) -> str:
    """Say in how many rows something stands."""
    return f"{which.sum()} of {len(which)} rows {'has' if which.sum() == 1 else 'have'}"


def _said_of(which: pd.Series, column: pd.Series, what: str) -> list[str]:
    """Say what some cells are, if there are any, and show three of them at most."""
    distinct = list(dict.fromkeys(column[which]))
    shown = ", ".join(f"'{cell}'" for cell in distinct[:3]) + (", …" if len(distinct) > 3 else "")
    return [f"{_rows(which)} {shown}: {what}"] if distinct else []
