"""Whose an id is: people whose ids name a visit, too, which would make several people of each.

They would be trained on and held out at once, and count more than once for privacy.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from cohorts.errors import CohortError, ParticipantsError

_DATE = r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:[0-2]\d|3[01])"
_TOKEN = re.compile(rf"(?<!\d){_DATE}(?!\d)|[A-Za-z]+\d*|\d+")
_VISIT = re.compile(
    rf"(?:ses|sess|session|visit|vis|wave|timepoint|tp|run|scan|mr|fu|followup|baseline|bl|pre|post|retest|screening"
    rf"|year|yr|month|week|day|repeat|rescan)\d{{0,3}}|test|first|second|third|{_DATE}",
    re.IGNORECASE,
)
"""What says which visit it is."""
_LETTERED = re.compile(r"[vtswmdyrb]\d{1,2}", re.IGNORECASE)
_MAYBE_VISIT = re.compile(rf"{_LETTERED.pattern}|\d{{1,2}}|[a-d]", re.IGNORECASE)
"""What may say so at the end of an id, and may be the number of a person."""
_GROUP = re.compile(
    r"(?:site|center|centre|ctr|scanner|hospital|clinic|group|grp|cohort|batch|study|fam|family|pair|dyad|arm)\d*",
    re.IGNORECASE,
)
"""What people may be numbered within."""
_MOST_VISITS = 10
"""Different visits, at most, of those that only may be such."""


@dataclass(frozen=True)
class PersonPattern:
    """A regular expression that finds the person in an id or a name, and perhaps the visit.

    A CohortError says if it is none, or has no group.
    """

    text: str
    """Group ``person``, or the first one, is who it is; group ``session``, or the second one, which visit. It is
    searched for in names without ``sub-``."""

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.text).groups
        except re.error as error:
            raise CohortError(
                f"--participant-pattern {self.text}: is no regular expression ({error}). Correct it."
            ) from None
        if not groups:
            raise CohortError(
                f"--participant-pattern {self.text}: has no group; expected one around the person, such as "
                r"'(P\d+)_V\d+'. Add parentheses."
            )

    def find(self, name: str) -> tuple[str, str] | None:
        """Return the person, with ``sub-`` if the name has it, and the visit, empty if none is named; or None."""
        bare = name.removeprefix("sub-")
        found = re.search(self.text, bare)
        if found is None:
            return None
        named = found.groupdict()
        plain = [group for number, group in enumerate(found.groups(), 1) if number not in found.re.groupindex.values()]
        person = named["person"] if "person" in named else (plain.pop(0) if plain else None)
        session = named["session"] if "session" in named else (plain.pop(0) if plain else None)
        if not person:
            return None
        return name[: len(name) - len(bare)] + person, (session or "").removeprefix("ses-")


Scans = dict[str, tuple[str, str]]
"""Id that names a visit, too → participant and session, empty where no session is named."""


def by_person(table: pd.DataFrame, pattern: PersonPattern | None, column: str) -> tuple[pd.DataFrame, Scans]:
    """Call the rows of a participants table by person, and tell their visits apart in column session_id.

    Parameters
    ----------
    table : pandas.DataFrame
        Its index counts the rows.
    pattern : PersonPattern or None
        Finds person and session in the ids. Where it fits none of them, they are the people's own.
    column : str
        Column that holds the person, which is dropped; empty for none. The visits of a person are numbered in order.
    """
    ids = table["participant_id"]
    if column:
        people, sessions = _of_column(table, column)
    else:
        found = ids.map(lambda one: pattern.find(one) if pattern else None)
        if found.isna().all():
            return table, {}
        if found.isna().any():
            row = found.isna().idxmax()
            raise ParticipantsError(
                f"row {row} has the id '{ids[row]}', which --participant-pattern does not fit. Widen the pattern, or "
                "correct the id."
            )
        people, sessions = found.str[0], found.str[1]
    named = table.drop(columns=column or []).assign(participant_id=people)
    if "session_id" not in table and (sessions != "").any():
        named.insert(1, "session_id", sessions.where(sessions != ""))
    labels = named.get("session_id", sessions).fillna("")
    return named, dict(zip(ids, zip(people, labels, strict=True), strict=True))


def _of_column(table: pd.DataFrame, column: str) -> tuple[pd.Series, pd.Series]:
    """Person and number of the visit of each row."""
    if column not in table or column in ("participant_id", "session_id"):
        raise ParticipantsError(
            f"--participant-column {column}: is no column that names people beside the ids (columns: "
            f"{', '.join(table.columns)}). Correct it."
        )
    people = table[column]
    if people.isna().any():
        raise ParticipantsError(f"row {people.isna().idxmax()} has no {column}, which names the person. Fill it in.")
    return people, (people.groupby(people).cumcount() + 1).astype("str")


@dataclass(frozen=True)
class Visits:
    """Ids that look like visits of the same people."""

    n_ids: int
    n_people: int
    """How many people the ids would be of."""
    names: tuple[str, ...]
    """What they differ in. Dates are not told."""
    pattern: str
    """A `PersonPattern` that would find the people; empty if none is at hand."""

    def __str__(self) -> str:
        shown = ", ".join(self.names[:4]) + (", …" if len(self.names) > 4 else "")
        example = f" '{self.pattern}'" if self.pattern else ""
        return (
            f"participant_id: {self.n_ids} ids look like visits of {self.n_people} people, as they differ in {shown} "
            "alone. Each counts as a person now: one who is trained on may also be held out, and counts more than once "
            f"for epsilon. If they are visits, prepare a new cohort with --participant-pattern{example}, or with "
            "--participant-column and the column that names the person."
        )


def look_like_visits(ids: Iterable[str]) -> Visits | None:
    """Find out whether ids look like visits of the same people; None if they do not.

    They do if those of a person differ in a word for a visit or in a date alone, as ``P01_baseline`` and ``P01_ses2``;
    or those of several people at their end in a number or a letter, as ``P01_1`` and ``P01_2``, with more people than
    visits, and if most ids do so or all end in such a letter and number. The first visit may have none of these.
    """
    bare = sorted({one.removeprefix("sub-") for one in ids if one})
    by_length: dict[int, list[str]] = defaultdict(list)
    for one in bare:
        by_length[len(_TOKEN.findall(one))].append(one)
    places = [(place, alike) for n_tokens, alike in by_length.items() for place in range(n_tokens)]
    looked = [*(_differing_at(place, alike, len(bare)) for place, alike in places), _added(bare)]
    found = [visits for visits in looked if visits is not None]
    return max(found, key=lambda visits: visits.n_ids, default=None)


def _differing_at(place: int, ids: list[str], n_ids: int) -> Visits | None:
    """Visits that the token at a place of ids with as many tokens names; None if it does not look so."""
    split = {one: _TOKEN.findall(one) for one in ids}
    people: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for one, tokens in split.items():
        people[tuple(token.lower() for k, token in enumerate(tokens) if k != place)].append(one)
    several = [visits for visits in people.values() if len(visits) > 1]
    visits = [one for some in several for one in some]
    names = sorted({split[one][place] for one in visits})
    own = [k for k in range(len(split[ids[0]])) if k != place and len({split[one][k].lower() for one in ids}) > 1]
    grouped = all(_GROUP.fullmatch(split[one][k]) for one in ids for k in own)
    if not several or grouped:
        return None
    numbered = all(any(re.search(r"\d", split[one][k]) for k in own) for one in ids)
    lettered = all(_LETTERED.fullmatch(split[one][place]) for one in ids)
    many = len(several) >= len(names)
    after_word = place > 0 and all(_VISIT.fullmatch(split[one][place - 1]) for one in ids)
    if after_word or all(map(_VISIT.fullmatch, names)):
        sure = numbered or many
    else:
        last = place > max(own)
        most = numbered and len(visits) >= n_ids / 2
        sure = len(several) > 1 and last and many and _may_be_visits(names) and (most or lettered)
    if not sure:
        return None
    told = ("their dates",) if any(re.fullmatch(_DATE, name) for name in names) else tuple(map(repr, names))
    return Visits(len(visits), len(several), told, _pattern(place, visits, names, len(several)))


def _added(ids: list[str]) -> Visits | None:
    """Visits that a further token at the end names, beside ids without one, which would be the first visits."""
    known, again = set(ids), {}
    for one in ids:
        tokens = list(_TOKEN.finditer(one))
        word = len(tokens) > 1 and tokens[-1].group().isdigit() and _VISIT.fullmatch(tokens[-2].group())
        start = tokens[-2 if word else -1].start() if tokens else 0
        if (first := one[:start].rstrip("-_. ")) in known:
            again[one] = first, re.sub(r"[^A-Za-z0-9]", "", one[start:])
    names, people = sorted({name for _, name in again.values()}), {first for first, _ in again.values()}
    numbered = all(re.search(r"\d", first) for first in people)
    maybe = len(people) > 1 and len(people) >= len(names) and _may_be_visits(names)
    if not again or not numbered or not (maybe or all(map(_VISIT.fullmatch, names))):
        return None
    return Visits(len(people | set(again)), len(people), tuple(map(repr, names)), "")


def _may_be_visits(names: list[str]) -> bool:
    return len(names) <= _MOST_VISITS and all(_VISIT.fullmatch(name) or _MAYBE_VISIT.fullmatch(name) for name in names)


def _pattern(place: int, ids: list[str], names: list[str], n_people: int) -> str:
    """Make a `PersonPattern` of ids that differ in the token at a place; empty if none tells the people."""
    words = {re.sub(r"\d+$", "", name) for name in names}
    if any(re.fullmatch(_DATE, name) for name in names):
        session = r"[-_.\d]+"
    elif len(words) == 1 and all(name[-1].isdigit() for name in names):
        session = rf"{words.pop()}\d+"
    else:
        session = "|".join(names)
    *before, this = list(_TOKEN.finditer(ids[0]))[: place + 1]
    after = re.escape(ids[0][this.end() :])
    if before:
        between = re.escape(ids[0][before[-1].end() : this.start()])
        pattern = rf"(?P<person>.+){between}(?P<session>{session}){after}"
    else:
        gap = re.match(r"[^A-Za-z0-9]*", ids[0][this.end() :])
        pattern = rf"(?P<session>{session}){re.escape(gap.group() if gap else '')}(?P<person>.+)"
    found = [PersonPattern(pattern).find(one) for one in ids]
    fits = None not in found and len({one[0] for one in found if one}) == n_people and len(set(found)) == len(ids)
    return pattern if fits else ""
