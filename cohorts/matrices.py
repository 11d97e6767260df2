"""Ready matrices into a cohort: an .npz with one array a recording, or a folder of .npy, .tsv or .csv files."""

import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cohorts.atlas import Atlas, load_atlas
from cohorts.cohort import Cohort, Recording, Scale, check_identifier
from cohorts.errors import CohortError, ParticipantsError, RecordingError
from cohorts.files import atomic_folder
from cohorts.participants import read_participants
from cohorts.quality import QualityRules, check_signal, orient, temporal_snr

_SUFFIXES = (".npy", ".tsv", ".csv")
_ENUMERATED = re.compile(r"(.*?)(\d+)")

#: A recording's name, and a function that reads it into an array [rows, columns].
Source = tuple[str, Callable[[Atlas], np.ndarray]]


@dataclass(frozen=True)
class MatrixOptions:
    """How to read the matrices of one site.

    Attributes
    ----------
    t_r : float or None
        Repetition time in seconds of every recording; None to take column ``t_r`` of the participants table.
    select : dict
        Column → value: take only the participants that have it, such as ``{"site": "PITT"}``.
    orientation : {"auto", "frames-first", "parcels-first"}
        How the matrices lie.
    columns : tuple of int or None
        First and last column to take, counted from 1, where the matrices have more than the atlas's parcels.
    rules : QualityRules
        Thresholds of the quarantine.
    preprocessing : str
        Id of the preprocessing, recorded with every result.
    scaling : {"raw", "zscore"}
        Whether the matrices have kept their units, or were z-scored parcel by parcel before.
    """

    t_r: float | None = None
    select: tuple[tuple[str, str], ...] = ()
    orientation: str = "auto"
    columns: tuple[int, int] | None = None
    rules: QualityRules = field(default_factory=QualityRules)
    preprocessing: str = "unspecified"
    scaling: Scale = "raw"


@dataclass(frozen=True)
class ImportReport:
    """What `import_matrices` did."""

    path: Path
    n_recordings: int
    n_participants: int
    quarantined: pd.DataFrame
    n_not_selected: int


def import_matrices(
    source: str | Path,
    out: str | Path,
    *,
    atlas: Atlas | str,
    participants: str | Path | None = None,
    name: str | None = None,
    options: MatrixOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportReport:
    """Import the matrices of `source` into a new cohort at `out`.

    A recording that is not usable is quarantined with its reason; the others go in. The cohort appears whole, or
    not at all.

    Parameters
    ----------
    source : path
        An .npz file with one array [T, P] a recording, or a folder of .npy, .tsv or .csv matrices. A recording
        belongs to the participant that its name names: ``sub-01``, or ``sub-01_ses-2_run-1``.
    out : path
        Folder of the new cohort.
    atlas : Atlas or str
        The atlas of the columns, or its name.
    participants : path, optional
        The participants table.
    name : str, optional
        Name of the cohort; the folder's name if not given.
    options : MatrixOptions, optional
        How to read the matrices.
    progress : callable
        Called with the recordings done and their total.

    Raises
    ------
    CohortError
        If the source, the table or an option is unusable, or if no recording is left.
    """
    options = options or MatrixOptions()
    out = Path(out)
    atlas = load_atlas(atlas) if isinstance(atlas, str) else atlas
    table = read_participants(Path(participants)) if participants else None
    _check_t_r(options, table)
    selected = _select(table, options.select)
    try:
        with atomic_folder(out) as partial:
            cohort = Cohort.create(
                partial,
                atlas=atlas,
                name=name or out.name,
                participants=selected,
                preprocessing=options.preprocessing,
                scaling=options.scaling,
            )
            skipped = _add_all(cohort, list(_sources(Path(source))), table, selected, options, progress)
            _require_some(cohort, source, skipped)
            cohort.save()
    except FileExistsError:
        raise CohortError(f"{out}: exists already; expected a new folder. Choose another, or remove it.") from None
    cohort = Cohort.open(out)
    return ImportReport(out, len(cohort), cohort.recordings["participant_id"].nunique(), cohort.quarantined, skipped)


def _add_all(
    cohort: Cohort,
    sources: list[Source],
    table: pd.DataFrame | None,
    selected: pd.DataFrame | None,
    options: MatrixOptions,
    progress: Callable[[int, int], None],
) -> int:
    """Add or quarantine every recording; return how many belong to participants that were not selected."""
    wanted = None if selected is None else set(selected["participant_id"])
    skipped = 0
    for done, (recording_id, read) in enumerate(sources, start=1):
        try:
            participant = _participant_of(recording_id, table)
            if wanted is not None and participant not in wanted:
                skipped += 1
            else:
                cohort.add(_recording(recording_id, participant, read, cohort, options))
        except RecordingError as fault:
            cohort.quarantine(recording_id, fault.code, str(fault))
        progress(done, len(sources))
    return skipped


def _recording(
    recording_id: str,
    participant: str,
    read: Callable[[Atlas], np.ndarray],
    cohort: Cohort,
    options: MatrixOptions,
) -> Recording:
    """Read and check one recording, with what the participants table says of it."""
    check_identifier(recording_id, "recording id")
    columns = slice(options.columns[0] - 1, options.columns[1]) if options.columns else None
    signal = orient(read(cohort.atlas), recording_id, cohort.atlas, options.orientation, columns)
    coverage = check_signal(signal, recording_id, cohort.atlas, options.rules)
    table = cohort.participants.set_index("participant_id")
    stated = table.loc[participant].to_dict() if participant in table.index else {}
    t_r = options.t_r if options.t_r is not None else float(stated.get("t_r", np.nan))
    if not t_r > 0:
        raise RecordingError(
            "no-tr",
            f"{recording_id}: its repetition time is unknown. Give --tr SECONDS, or fill in column t_r of the "
            "participants table.",
        )
    tsnr = float(stated.get("tsnr", np.nan))
    return Recording(
        participant_id=participant,
        recording_id=recording_id,
        signal=np.where(coverage, signal, np.float32(0)),
        coverage=coverage,
        t_r=t_r,
        mean_fd=float(stated.get("mean_fd", np.nan)),
        tsnr=tsnr if np.isfinite(tsnr) else temporal_snr(signal[:, coverage]),
    )


def _check_t_r(options: MatrixOptions, table: pd.DataFrame | None) -> None:
    stated = table["t_r"].dropna() if table is not None and "t_r" in table else pd.Series(dtype=float)
    if (stated <= 0).any():
        raise CohortError(f"column t_r of the participants table holds {stated.min():g}; expected seconds. Correct it.")
    if options.t_r is None and stated.empty:
        raise CohortError(
            "The repetition time is missing; it is never guessed. Give --tr SECONDS, or a column t_r in the "
            "participants table."
        )
    if options.t_r is not None and not 0 < options.t_r <= 20:
        raise CohortError(
            f"--tr {options.t_r:g}: expected seconds, above 0 and at most 20. "
            + (f"If it is in milliseconds, give {options.t_r / 1000:g}." if options.t_r > 20 else "Correct it.")
        )
    if options.t_r is not None and (stated != options.t_r).any():
        raise CohortError(
            f"--tr {options.t_r:g} contradicts column t_r of the participants table ({stated.iloc[0]:g}). "
            "Give only one of them."
        )


def _select(table: pd.DataFrame | None, conditions: tuple[tuple[str, str], ...]) -> pd.DataFrame | None:
    """Rows of `table` that meet every condition."""
    if table is None:
        if conditions:
            raise CohortError("--select needs a participants table. Give --participants FILE.")
        return None
    for column, value in conditions:
        if column not in table:
            raise ParticipantsError(
                f"--select {column}={value}: the participants table has no column '{column}' "
                f"(columns: {', '.join(table.columns)}). Correct the name."
            )
        kept = table[table[column].astype("str") == value]
        if kept.empty:
            found = ", ".join(sorted(table[column].dropna().astype("str").unique())[:8])
            raise ParticipantsError(f"--select {column}={value}: no participant has it (found: {found}).")
        table = kept
    return table.reset_index(drop=True)


def _participant_of(recording_id: str, table: pd.DataFrame | None) -> str:
    """Participant that a recording's name names."""
    entity = re.match(r"sub-[A-Za-z0-9]+", recording_id)
    candidates = [recording_id, entity.group() if entity else recording_id, f"sub-{recording_id}"]
    if table is None:
        return candidates[1]
    known = set(table["participant_id"])
    for candidate in candidates:
        if candidate in known:
            return candidate
    raise RecordingError(
        "unknown-participant",
        f"{recording_id}: no participant of that name is in the participants table. Add the row, or rename it.",
    )


def _require_some(cohort: Cohort, source: str | Path, skipped: int) -> None:
    if len(cohort):
        return
    refused = cohort.quarantined
    if refused.empty:
        if not skipped:
            raise CohortError(f"{source}: holds no recordings; expected one matrix each. Name another file or folder.")
        raise CohortError(
            f"{source}: none of its {skipped} recordings belongs to a selected participant. Correct --select."
        )
    raise CohortError(
        f"{source}: none of its {len(refused)} recordings is usable. The first: {refused['message'].iloc[0]}"
    )


def _sources(source: Path) -> Iterator[Source]:
    """List the recordings of an .npz or of a folder, without reading them."""
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
        if not files:
            raise CohortError(f"{source}: holds no .npy, .tsv or .csv file. Name the folder of the matrices.")
        repeated = {path.stem for path in files if sum(other.stem == path.stem for other in files) > 1}
        if repeated:
            raise CohortError(
                f"{source}: '{sorted(repeated)[0]}' stands there in two formats. Leave one file a recording."
            )
        for path in files:
            yield path.stem, lambda atlas, path=path: _read_file(path, atlas)
    elif source.suffix.lower() == ".npz":
        try:
            archive = np.load(source, allow_pickle=False)
        except FileNotFoundError:
            raise CohortError(f"{source}: no such file. Check the path.") from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            raise CohortError(f"{source}: is not a readable .npz file. Export it again.") from None
        for key in archive.files:
            yield key, lambda atlas, key=key: _read_key(archive, key)
    elif source.exists():
        raise CohortError(f"{source}: expected an .npz file, or a folder of .npy, .tsv or .csv matrices.")
    else:
        raise CohortError(f"{source}: no such file or folder. Check the path.")


def _read_key(archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return archive[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise RecordingError("unreadable", f"{key}: cannot be read as an array of numbers. Export it again.") from None


def _read_file(path: Path, atlas: Atlas) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False)
        table = pd.read_csv(
            path,
            sep="\t" if path.suffix.lower() == ".tsv" else ",",
            header=None,
            encoding="utf-8-sig",
            low_memory=False,
        )
    except (OSError, ValueError, EOFError, UnicodeDecodeError):
        raise RecordingError(
            "unreadable", f"{path.name}: cannot be read as a matrix of numbers. Export it again."
        ) from None
    first = pd.to_numeric(table.iloc[0], errors="coerce")
    if first.notna().all() or table.iloc[0].isna().all():
        return _numeric(table, path)
    return _by_header(_numeric(table.iloc[1:], path), [str(label).strip() for label in table.iloc[0]], path, atlas)


def _numeric(table: pd.DataFrame, path: Path) -> np.ndarray:
    """Turn text cells into numbers; n/a is NaN, anything else that is no number refuses the recording."""
    values = table.replace({"n/a": np.nan}).apply(pd.to_numeric, errors="coerce")
    if (values.isna() & table.notna() & ~table.isin(["n/a", "nan", "NaN"])).to_numpy().any():
        raise RecordingError(
            "text",
            f"{path.name}: holds text between its numbers; expected numbers and n/a. Check its separator and header.",
        )
    return values.to_numpy(np.float32)


def _by_header(matrix: np.ndarray, labels: list[str], path: Path, atlas: Atlas) -> np.ndarray:
    """Order the columns by the parcels that the header names; a header that only counts is taken in order."""
    if set(labels) == set(atlas.labels) and len(labels) == atlas.n_parcels:
        return matrix[:, [labels.index(label) for label in atlas.labels]]
    counted = [_ENUMERATED.fullmatch(label) for label in labels]
    if all(counted) and len({match.group(1) for match in counted if match}) == 1:
        return matrix
    strange = next((label for label in labels if label not in atlas.labels), labels[0])
    raise RecordingError(
        "wrong-atlas",
        f"{path.name}: its header names '{strange}', which is no parcel of {atlas.name}, or leaves parcels out. "
        "Name the atlas that these matrices were made with.",
    )
