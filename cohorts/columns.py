"""Columns of a table into an atlas's order, by the parcels' names."""

import re
from collections.abc import Sequence

import numpy as np

from cohorts.atlas import Atlas
from cohorts.errors import RecordingError

_SEVENTEEN = re.compile(
    r"^17networks_|_(viscent|visperi|sommot[ab]|dorsattn[ab]|salventattn[ab]|limbic_?[ab]|cont[abc]|default[abc]|temppar)_"
)
"""What only names in the 17-network order of Schaefer's atlas have, in lower case."""


def match_columns(names: Sequence[str], atlas: Atlas, file: str) -> np.ndarray:
    """Find the atlas's parcels among a file's columns, by name.

    Case, ``-`` against ``_``, and whether a prefix ``7Networks_`` or ``17Networks_`` is there do not matter. Other
    columns are left out if they are of other structures, as the subcortical ones of XCP-D's 4S atlases. They are
    refused if they only count on where the atlas stops, as ``LH_Vis_10`` after ``LH_Vis_9``: 99 of the 100 names of
    Schaefer-100 stand among those of Schaefer-200, for other places.

    Returns
    -------
    numpy.ndarray
        [P] int, the column of each parcel.

    Raises
    ------
    RecordingError
        With code ``repeated-parcel`` or ``wrong-atlas``.
    """
    plain = [_plain(name) for name in names]
    columns = {name: number for number, name in enumerate(plain)}
    if len(columns) < len(names):
        twice = next(name for number, name in enumerate(names) if columns[plain[number]] != number)
        raise RecordingError(
            "repeated-parcel", f"{file}: names '{twice}' twice; expected one column a parcel. Export it again."
        )
    wanted = [_plain(label) for label in atlas.labels]
    missing = [label for label, name in zip(atlas.labels, wanted, strict=True) if name not in columns]
    if _is_seventeen(names) and not _is_seventeen(atlas.labels):
        raise RecordingError(
            "wrong-atlas",
            f"{file}: names parcels in the 17-network order of Schaefer's atlas; expected {atlas.name}, which has "
            "other names and another order. Name the atlas table of the 17-network order.",
        )
    if missing:
        raise RecordingError(
            "wrong-atlas",
            f"{file}: has {len(names)} columns, and {len(missing)} of the {atlas.n_parcels} parcels of {atlas.name} "
            f"are not among them, such as '{missing[0]}'. Name the atlas that these series were made with; a parcel "
            "without data keeps its column, of n/a.",
        )
    families = {_family(name) for name in wanted}
    known = set(wanted)
    for name in names:
        if _plain(name) not in known and _family(_plain(name)) in families:
            raise RecordingError(
                "wrong-atlas",
                f"{file}: also names '{name}', which {atlas.name} has not; expected no further parcels of its kind. It "
                "seems to be of another resolution, where equal names are other places: name that atlas.",
            )
    return np.array([columns[name] for name in wanted])


def _plain(name: str) -> str:
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
