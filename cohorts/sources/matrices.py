"""Ready matrices: an .npz with one array a recording, or a folder of files with one each."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cohorts.atlas import Atlas
from cohorts.cohort import Scale
from cohorts.columns import match_columns
from cohorts.errors import CohortError, RecordingError
from cohorts.participants import bare_id
from cohorts.recording import check_identifier
from cohorts.signals import orient
from cohorts.sources.bids import RUN_LABELS
from cohorts.sources.cifti import read_ptseries
from cohorts.sources.formats import MATRIX_SUFFIXES, SEPARATORS, TEXT, UNREAD, first_unread, suffix_of, unread
from cohorts.sources.kinds import Reading, Run, check_given_t_r
from cohorts.sources.matrix_files import (
    BROKEN_ARCHIVE,
    Table,
    npz_keys,
    opened,
    read_mat,
    read_npy,
    read_npz,
    read_npz_file,
    read_table,
    to_float32,
)

_ENUMERATED = re.compile(r"(.*?)(\d+)")
_DERIVATIVE = re.compile(r"_rois_[a-z]+\d*$")
# Parts of a name that say which scan it is, as BIDS spells them and as others do: a number in them is nobody's id.
_ENTITIES = re.compile(r"_(?:ses|task|acq|ce|rec|dir|run|echo|part|space|res|den|atlas|seg|desc|stat)-[A-Za-z0-9]+")
_COUNTS = re.compile(r"(?:^|(?<=[-_ ]))(?:ses|session|run|scan|visit|wave)[-_ ]?\d+(?=$|[-_ ])", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9 ._-]+")


@dataclass(frozen=True)
class MatrixSource:
    """Ready matrices of one site, as a `cohorts.sources.kinds.Source`.

    A recording belongs to the participant that its name names: the key in an .npz, or the file's name without its
    suffix. ``sub-01_ses-2_run-1`` is run 1 of session 2 of ``sub-01``.
    """

    path: Path
    """An .npz file with one array [T, P] a recording, or a folder of `MATRIX_SUFFIXES`: matrices in .npy, .npz, .mat
    (version 5 to 7.3), .csv, .tsv or .1D, the last three also packed (.gz), and parcellated series of CIFTI."""
    atlas: Atlas
    """The atlas of the columns."""
    preprocessing: str = "unspecified"
    t_r: float | None = None
    orientation: str = "auto"
    columns: tuple[int, int] | None = None
    variable: str = ""
    scaling: Scale = "raw"
    """These as of `cohorts.settings.MatrixSettings`, columns as the first and the last, from 1. A table whose header
    names the parcels shows by itself how it lies."""
    participants: tuple[str, ...] | None = None
    """The ids that names are matched with, as the participants table spells them. A name matches an id also without
    ``sub-``, without leading zeros, and where it stands between other words: ``PITT_0050003_rois_aal`` is ``50003``.
    None to take each name's own word for it."""

    def __post_init__(self) -> None:
        check_given_t_r(self.t_r)
        if self.columns and not 1 <= self.columns[0] <= self.columns[1]:
            raise CohortError(
                f"columns {self.columns[0]}-{self.columns[1]}: expected the first and the last one, counted from 1. "
                "Correct them."
            )

    def runs(self) -> list[Run]:
        """List the recordings in order of their names. `participant` is empty where the name fits no known id."""
        names = self._names()
        if repeated := [name for name, count in Counter(name for name, _ in names).items() if count > 1]:
            raise CohortError(f"{self.path}: '{repeated[0]}' stands there twice. Leave one matrix a recording.")
        return [self._run(name, file) for name, file in sorted(names)]

    def read(self, run: Run) -> Reading:
        """Read one recording, oriented as frames by parcels; NaN and missing parcels stay as they are."""
        participant_of(run.name, self.participants)
        check_identifier(run.name, "recording id")
        path, t_r = run.files[0], math.nan if self.t_r is None else self.t_r
        columns = slice(self.columns[0] - 1, self.columns[1]) if self.columns else None
        table = self._table(path, run.part)
        named = _by_header(table, columns, path.name, self.atlas)
        if named is not None:
            return Reading(named[0], t_r, notices=named[1])
        return Reading(orient(table.matrix, run.part or path.name, self.atlas, self.orientation, columns), t_r)

    def _table(self, path: Path, part: str) -> Table:
        """Read a file's matrix, or one part of it, with the names of the columns where it has any."""
        suffix = suffix_of(path, MATRIX_SUFFIXES)
        if suffix in SEPARATORS:
            return _without_row_numbers(read_table(path, SEPARATORS[suffix]))
        if suffix == ".ptseries.nii":
            with opened(path):  # refuses what would be waited for
                names, values = read_ptseries(path)
            return Table(to_float32(values), tuple(names))
        if suffix == ".npy":
            return Table(read_npy(path))
        if suffix == ".npz":
            return Table(read_npz(path, part) if part else read_npz_file(path, self.variable))
        if suffix == ".mat":
            return Table(read_mat(path, self.variable))
        raise RecordingError("not-read", unread(path))

    def _names(self) -> list[tuple[str, Path]]:
        """Name of every recording, and the file that it lies in."""
        try:
            if self.path.is_dir():
                return self._files()
            if self.path.suffix.lower() == ".npz":
                return [(key, self.path) for key in npz_keys(self.path)]
            self.path.stat()
        except FileNotFoundError:
            raise CohortError(f"{self.path}: no such file or folder. Check the path.") from None
        except BROKEN_ARCHIVE:
            raise CohortError(
                f"{self.path}: is not a readable .npz file or folder. Check its permissions, or export it again."
            ) from None
        raise CohortError(f"{self.path}: expected an .npz file, or a folder of {', '.join(MATRIX_SUFFIXES)}. Name it.")

    def _files(self) -> list[tuple[str, Path]]:
        """Names and files of a folder's recordings; also of those of a kind that is not read, for `read` to say so."""
        files = [path for path in sorted(self.path.iterdir()) if not path.name.startswith((".", "participants."))]
        matrices = _named(files, MATRIX_SUFFIXES)
        if not matrices:
            said = first_unread(files) or "Name the folder of the matrices."
            raise CohortError(f"{self.path}: holds no file of {', '.join(MATRIX_SUFFIXES)}. {said}")
        known = {name for name, _ in matrices}
        # Text beside matrices tells about them; and what is there as a matrix, too, is not missed.
        others = _named(files, [suffix for suffix in UNREAD if suffix not in TEXT])
        return matrices + [(name, path) for name, path in others if name not in known]

    def _run(self, name: str, file: Path) -> Run:
        try:
            participant = participant_of(name, self.participants)
        except RecordingError:
            participant = ""
        labels = {key: _label(name, entity) for key, entity in RUN_LABELS.items()}
        return Run(name, participant, **labels, files=(file,), part=name if file == self.path else "")


def participant_of(name: str, known: tuple[str, ...] | None) -> str:
    """Id of the participant that a recording's name names; refuse one that names none of the known, or several.

    Parameters
    ----------
    known : tuple of str or None
        The ids to choose from. None to take the name's own word: its ``sub-`` entity, or else what is left of it
        without the parts that say which scan it is.
    """
    entity = re.match(r"sub-[A-Za-z0-9]+", name)
    own = entity.group() if entity else _ENTITIES.sub("", _DERIVATIVE.sub("", name))
    if known is None:
        return own
    bare = own.removeprefix("sub-")
    exact, loose = _spellings(known)
    words = {bare_id(bare)}
    if not entity and _PLAIN.fullmatch(bare):
        words |= {bare_id(word) for word in re.split("[ ._-]+", _COUNTS.sub("", bare)) if word}
    fitting = exact.get(bare) or [one for word in words for one in loose.get(word, ())]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise RecordingError(
            "ambiguous-participant",
            f"{name}: fits {len(fitting)} participants of the table; expected one. "
            "Name it after its participant, such as sub-01_ses-1.",
        )
    raise RecordingError(
        "unknown-participant",
        f"{name}: no participant of that name is in the participants table. Add the row, or rename it.",
    )


@lru_cache(maxsize=1)
def _spellings(known: tuple[str, ...]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Ids by what they are without ``sub-``, and by what they are without leading zeros, too."""
    exact, loose = defaultdict(list), defaultdict(list)
    for participant in known:
        exact[participant.removeprefix("sub-")].append(participant)
        loose[bare_id(participant)].append(participant)
    return exact, loose


def _named(files: list[Path], suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """Files with one of these suffixes, and their names without it."""
    found = [(path, suffix_of(path, suffixes)) for path in files]
    return [(path.name[: -len(suffix)], path) for path, suffix in found if suffix]


def _label(name: str, entity: str) -> str:
    found = re.search(rf"(?:^|_){entity}-([A-Za-z0-9]+)", name)
    return found.group(1) if found else ""


def _by_header(
    table: Table, columns: slice | None, name: str, atlas: Atlas
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Order the columns by the parcels that the header names, with notices; None if it names none, or only counts."""
    if table.header is None or (columns and columns.stop > len(table.header)):
        return None
    labels, values = list(table.header), table.matrix
    if columns:
        labels, values = labels[columns], values[:, columns]
    counted = [match for label in labels if (match := _ENUMERATED.fullmatch(label))]
    only_counts = len(counted) == len(labels) and len({match.group(1) for match in counted}) == 1
    if only_counts and len(set(labels)) == len(labels) and set(labels) != set(atlas.labels):
        _check_order(labels, [int(match.group(2)) for match in counted], name)
        return None
    found = match_columns(labels, atlas, name)
    return np.ascontiguousarray(values[:, found.places]), found.notices


def _check_order(labels: list[str], counts: list[int], name: str) -> None:
    """Refuse columns that were sorted as text: ``roi_1``, ``roi_10``, ``roi_2``."""
    steps = np.flatnonzero(np.diff(counts) <= 0)
    if steps.size:
        raise RecordingError(
            "wrong-order",
            f"{name}: its header counts the columns out of order ('{labels[steps[0] + 1]}' after "
            f"'{labels[steps[0]]}'); expected the order of the atlas. Put them in order, or name the parcels.",
        )


def _without_row_numbers(table: Table) -> Table:
    """Leave out a first column that has no name and only counts the rows, as pandas writes it."""
    if table.header is None or table.header[0] or table.matrix.shape[1] < 2:
        return table
    first = table.matrix[:, 0]
    if not np.array_equal(first - first[:1], np.arange(len(first))):
        return table
    return Table(table.matrix[:, 1:], table.header[1:])
