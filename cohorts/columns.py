"""Columns of a table into an atlas's order, by the parcels' names."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from cohorts.atlas import Atlas
from cohorts.errors import RecordingError

_SEVENTEEN = re.compile(
    r"^17networks_|_(viscent|visperi|sommot[ab]|dorsattn[ab]|salventattn[ab]|limbic_?[ab]|cont[abc]|default[abc]|temppar)_"
)
"""What only names in the 17-network order of Schaefer's atlas have, in lower case."""


@dataclass(frozen=True)
class Columns:
    """Where an atlas's parcels stand among a file's columns."""

    places: np.ndarray
    """[P] int, the column of each parcel."""
    notices: tuple[str, ...]
    """Codes of `cohorts.notices`: ``former-names``, ``further-columns``."""


def match_columns(names: Sequence[str], atlas: Atlas, file: str) -> Columns:
    """Find the atlas's parcels among a file's columns, by name.

    Case, ``-`` against ``_``, and whether a prefix ``7Networks_`` or ``17Networks_`` is there do not matter. The names
    are today's, or all of them the former ones. Other columns are left out if they are of other structures, as the
    subcortical ones of XCP-D's 4S atlases. They are refused if they only count on where the atlas stops, as
    ``LH_Vis_10`` after ``LH_Vis_9``: 99 of the 100 names of Schaefer-100 stand among those of Schaefer-200, for other
    places. The RecordingError has code ``repeated-parcel`` or ``wrong-atlas``.
    """
    plain = [plain_name(name) for name in names]
    columns = {name: number for number, name in enumerate(plain)}
    if len(columns) < len(names):
        twice = next(name for number, name in enumerate(names) if columns[plain[number]] != number)
        raise RecordingError(
            "repeated-parcel", f"{file}: names '{twice}' twice; expected one column a parcel. Export it again."
        )
    if _is_seventeen(names) and not _is_seventeen(atlas.labels):
        raise RecordingError(
            "wrong-atlas",
            f"{file}: names parcels in the 17-network order of Schaefer's atlas; expected {atlas.name}, which has "
            "other names and another order. Name the atlas table of the 17-network order.",
        )
    labels = generation(atlas, columns)
    wanted = [plain_name(label) for label in labels]
    missing = [label for label, name in zip(labels, wanted, strict=True) if name not in columns]
    if missing:
        raise RecordingError(
            "wrong-atlas",
            f"{file}: has {len(names)} columns, and {len(missing)} of the {atlas.n_parcels} parcels of {atlas.name} "
            f"are not among them, such as '{missing[0]}'. Name the atlas that these series were made with; a parcel "
            "without data keeps its column, of n/a.",
        )
    _refuse_counting_on(names, wanted, atlas, file)
    notices = ("former-names",) * (labels is not atlas.labels) + ("further-columns",) * (len(names) > len(labels))
    return Columns(np.array([columns[name] for name in wanted]), notices)


def generation(atlas: Atlas, names: Collection[str]) -> tuple[str, ...]:
    """Return the atlas's labels of which most are among these plain names: today's, or the former ones."""
    generations = [atlas.labels, atlas.former_labels or atlas.labels]
    return max(generations, key=lambda labels: sum(plain_name(label) in names for label in labels))


def _refuse_counting_on(names: Sequence[str], wanted: Collection[str], atlas: Atlas, file: str) -> None:
    """Refuse columns that go on counting where the atlas stops: those of another resolution, for other places."""
    known, families = set(wanted), {_family(name) for name in wanted}
    for name in names:
        if plain_name(name) not in known and _family(plain_name(name)) in families:
            raise RecordingError(
                "wrong-atlas",
                f"{file}: also names '{name}', which {atlas.name} has not; expected no further parcels of its kind. It "
                "seems to be of another resolution, where equal names are other places: name that atlas.",
            )


def plain_name(name: str) -> str:
    """Return a name without what different software adds to it or writes differently."""
    plain = re.sub(r"[-_\s]+", "_", name.strip().lower())
    # With --output-layout multiverse, XCP-D ends every name in a hash of its options.
    return re.sub(r"_hash_[0-9a-z]+$", "", plain.removeprefix("7networks_").removeprefix("17networks_"))


def _is_seventeen(names: Sequence[str]) -> bool:
    return any(_SEVENTEEN.search(name.strip().lower().replace("-", "_")) for name in names)


def _family(name: str) -> str | None:
    """Return what a counted name counts: ``lh_vis`` of ``lh_vis_9``; None of a name without a number at its end."""
    counted = re.fullmatch(r"(.*?)_?\d+", name)
    return counted.group(1) if counted else None
