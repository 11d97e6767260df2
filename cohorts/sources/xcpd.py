"""XCP-D derivatives as a source: parcellated time series of all of its naming generations, censored or interpolated."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from cohorts.atlas import Atlas
from cohorts.cohort import Scale
from cohorts.columns import match_columns
from cohorts.errors import CohortError, RecordingError
from cohorts.sources.bids import BIDSName, Tree, generated_by, parse_name, repetition_time, run_of
from cohorts.sources.censoring import interpolate_censored
from cohorts.sources.cifti import read_ptseries
from cohorts.sources.kinds import Reading, Run, check_given_t_r
from cohorts.tables import read_numbers

Censoring = Literal["as-is", "interpolate", "drop"]


@dataclass(frozen=True)
class XCPDSource:
    """The parcellated time series of a tree that XCP-D wrote.

    Three generations of names are read: ``_space-X_atlas-Y_timeseries`` (to 0.6),
    ``_space-X_seg-Y_stat-mean_timeseries`` (0.7 to 0.14) and ``_space-X_atlas-Y_stat-mean_timeseries`` (26.0 on), as
    ``.tsv``, or as ``.ptseries.nii`` where there is no table. A concatenation of runs that stands beside them
    (``--combine-runs``) is left out. A tree without such series, or with several atlases or spaces of which none is
    named, is refused as a `CohortError`.
    """

    root: Path
    """The folder with ``dataset_description.json``."""
    atlas: Atlas
    """The parcels that a reading has. Every one of them must be in the tree's series, by name; series may have more."""
    atlas_name: str = ""
    space: str = ""
    """The tree's names, such as ``4S456Parcels`` and ``fsLR``; may be empty where it has one only."""
    tasks: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    censoring: Censoring = "as-is"
    """What to do about frames of high motion: leave it as XCP-D did, fill them where it dropped them, or drop them
    where it filled them."""
    min_parcel_coverage: float = 0.5
    t_r: float | None = None
    """The other settings as of `cohorts.settings.XCPDSettings`."""
    scaling: ClassVar[Scale] = "raw"

    def __post_init__(self) -> None:
        check_given_t_r(self.t_r)
        series = _all_series(Tree(self.root))
        if not series:
            raise CohortError(
                f"{self.root}: holds no time series of XCP-D; expected names such as sub-01_task-rest_space-X_seg-Y_"
                "stat-mean_timeseries.tsv. Name the folder that XCP-D wrote to, without --skip parcellation."
            )
        found = {_atlas_of(name) for name in series.values()}
        object.__setattr__(self, "atlas_name", _chosen("atlas", self.atlas_name, found, self.root))
        found = {_space_of(name) for name in series.values() if _atlas_of(name) == self.atlas_name}
        object.__setattr__(self, "space", _chosen("space", self.space, found, self.root))

    @cached_property
    def preprocessing(self) -> str:
        """Such as ``xcp_d-0.10.6_space-fsLR_atlas-4S456Parcels_censored``.

        The last word says what became of frames of high motion: ``censored``, ``interpolated`` by XCP-D before its
        filters, or ``refilled`` here after them. It is missing where no run tells.
        """
        maker = generated_by(self.root) or "xcp_d"
        return "_".join(filter(None, (maker, f"space-{self.space}", f"atlas-{self.atlas_name}", self._fate())))

    def runs(self) -> list[Run]:
        tree = Tree(self.root)
        chosen = {
            path: name
            for path, name in _all_series(tree).items()
            if (_atlas_of(name), _space_of(name)) == (self.atlas_name, self.space)
            and name.is_of(self.tasks, self.sessions)
        }
        if not chosen:
            raise CohortError(
                f"{self.root}: has no series of atlas {self.atlas_name} in space {self.space} of the tasks and "
                "sessions asked for. Correct their labels; write them without 'task-' and 'ses-'."
            )
        beside = defaultdict(list)
        for path, name in tree.files.items():
            beside[path.parent, name.run].append(path)
        runs = (
            run_of(path, name, self._companions(path, tree, beside[path.parent, name.run]))
            for path, name in _without_concatenated(_one_a_run(chosen)).items()
        )
        return sorted(runs, key=lambda run: run.name)

    def read(self, run: Run) -> Reading:
        series, *others = run.files
        sidecars = tuple(path for path in others if path.suffix == ".json")
        t_r = repetition_time(sidecars, series.name, given=self.t_r)
        names, values = _read_series(series)
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused as such
            columns = match_columns(names, self.atlas, series.name)
            signal = values[:, columns.places].astype(np.float32)
        coverage, motion, outliers = (_companion(others, role) for role in ("coverage", "motion", "outliers"))
        if coverage:
            signal[:, self._uncovered(coverage)] = np.nan
        displacement = _read_displacement(motion) if motion else np.empty(0, np.float32)
        # Without a threshold of displacement, XCP-D keeps every frame and writes no outliers.
        censored = _read_outliers(outliers) if outliers else np.zeros(len(displacement), bool)
        if motion and outliers and len(displacement) != len(censored):
            raise RecordingError(
                "frames-mismatch",
                f"{motion.name}: has {len(displacement)} rows, and {outliers.name} has {len(censored)}; expected one "
                "row a frame in both. Use the files of one run of XCP-D.",
            )
        if len(censored):
            signal = self._censor(signal, censored, series.name)
        return Reading(
            signal=signal,
            t_r=t_r,
            framewise_displacement=displacement,
            censored=censored if outliers else np.empty(0, bool),
            notices=columns.notices,
        )

    def _companions(self, path: Path, tree: Tree, beside: list[Path]) -> list[Path]:
        """Files of the same run that reading a series needs: coverage, motion, outliers, and at last the sidecars."""
        found: dict[str, Path] = {}
        sidecars = list(tree.sidecars(path))
        for other in beside:
            name = tree.files[other]
            role = _role(name)
            is_here = _space_of(name) == self.space
            if role == "coverage" and not (is_here and _atlas_of(name) == self.atlas_name):
                continue
            # Where displacement was written before and after a filter of motion, only the latter's name has desc.
            if role and (role not in found or "desc" not in name.entities):
                found[role] = other
            if name.matches("bold", ".json") and is_here and "stat" not in name.entities:
                sidecars += [sidecar for sidecar in tree.sidecars(other) if sidecar not in sidecars]
        return [*(found[role] for role in sorted(found)), *sidecars]

    def _uncovered(self, path: Path) -> np.ndarray:
        """Parcels [P] of which too little has data."""
        table = read_numbers(path, text=("Node",))
        if not {"Node", "coverage"} <= set(table.columns):
            raise RecordingError(
                "coverage",
                f"{path.name}: has columns {', '.join(table.columns)[:80]}; expected Node and coverage. Restore it.",
            )
        columns = match_columns([str(node) for node in table["Node"]], self.atlas, path.name)
        return ~(table["coverage"].to_numpy()[columns.places] >= self.min_parcel_coverage)

    def _censor(self, signal: np.ndarray, censored: np.ndarray, name: str) -> np.ndarray:
        """Fill or drop the frames of high motion as asked, if XCP-D has not; [frames, P]."""
        if _is_dropped(len(signal), censored, name):
            return interpolate_censored(signal, ~censored) if self.censoring == "interpolate" else signal
        if self.censoring != "drop":
            return signal
        if censored.all():
            raise RecordingError(
                "all-censored",
                f"{name}: each of its {len(censored)} frames is of high motion; expected some to keep. Leave it out, "
                "or let XCP-D tolerate more motion.",
            )
        return signal[~censored]

    def _fate(self) -> str:
        """What becomes of frames of high motion, told by the first run that has any."""
        if self.censoring == "drop":
            return "censored"
        for run in self.runs():
            outliers = _companion(run.files, "outliers")
            try:
                censored = _read_outliers(outliers) if outliers else np.empty(0, bool)
                if not censored.any():
                    continue
                if not _is_dropped(len(_read_series(run.files[0])[1]), censored, run.files[0].name):
                    return "interpolated"
            except RecordingError:
                continue  # reading it will say so
            return "refilled" if self.censoring == "interpolate" else "censored"
        return ""


def _all_series(tree: Tree) -> dict[Path, BIDSName]:
    """Parcellated time series of a tree, in order of their paths."""
    return {
        path: name
        for path, name in tree.files.items()
        if name.suffix == "timeseries"
        and name.extension in (".tsv", ".ptseries.nii")
        and "sub" in name.entities
        and _atlas_of(name)
        and name.entities.get("stat", "mean") == "mean"
        and "desc" not in name.entities
    }


def _atlas_of(name: BIDSName) -> str:
    return name.entities.get("atlas") or name.entities.get("seg", "")


def _space_of(name: BIDSName) -> str:
    return name.entities.get("space", "")


def _chosen(what: str, asked: str, found: Iterable[str], root: Path) -> str:
    """Return the label that was asked for, or the only one that is there."""
    found = sorted(found)
    if asked in found:
        return asked
    if asked:
        raise CohortError(f"{root}: has no series of {what} '{asked}'; it has {', '.join(found)}. Name one of them.")
    if len(found) > 1:
        raise CohortError(f"{root}: has series of more than one {what}: {', '.join(found)}. Name the one to take.")
    return found[0]


def _one_a_run(series: dict[Path, BIDSName]) -> dict[Path, BIDSName]:
    """Take the table where a run has a CIFTI file too."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, name in series.items():
        groups[name.run].append(path)
    chosen = {}
    for run, group in groups.items():
        tables = [path for path in group if path.suffix == ".tsv"] or group
        if len(tables) > 1:
            raise CohortError(
                f"{tables[0]}: stands beside {tables[1].name}, and both are of {run}; expected one series a run. Move "
                "what another version or setting of XCP-D wrote into a folder of its own."
            )
        chosen[tables[0]] = series[tables[0]]
    return chosen


def _without_concatenated(series: dict[Path, BIDSName]) -> dict[Path, BIDSName]:
    """Leave out what XCP-D concatenated of several runs: it drops ``run-`` and ``dir-`` from the name."""
    parts: dict[str, int] = defaultdict(int)
    for name in series.values():
        whole = {key: value for key, value in name.entities.items() if key not in ("run", "dir")}
        if len(whole) < len(name.entities):
            parts[replace(name, entities=whole).run] += 1
    return {path: name for path, name in series.items() if parts[name.run] < 2}


def _role(name: BIDSName | None) -> str:
    """What a table that lies beside a series tells: outliers, motion, coverage, or nothing."""
    if name is None or name.extension != ".tsv":
        return ""
    if name.matches("bold", stat="coverage"):
        return "coverage"
    return name.suffix if name.suffix in ("outliers", "motion", "coverage") else ""


def _companion(files: Iterable[Path], role: str) -> Path | None:
    return next((path for path in files if _role(parse_name(path)) == role), None)


def _read_series(path: Path) -> tuple[list[str], np.ndarray]:
    """Read the names of the columns and the values [T, columns]."""
    if path.suffix == ".nii":
        return read_ptseries(path)
    table = read_numbers(path)
    return list(table.columns), table.to_numpy()


def _column(path: Path, code: str) -> np.ndarray:
    """Read the column of framewise displacement of a table; its name may end in a hash of XCP-D's options."""
    table = read_numbers(path)
    named = [name for name in table.columns if name.split("_hash-")[0] == "framewise_displacement"]
    if len(named) != 1:
        raise RecordingError(
            code,
            f"{path.name}: has columns {', '.join(table.columns)[:80]}; expected one named framewise_displacement. "
            "Restore what XCP-D wrote.",
        )
    return table[named[0]].to_numpy()


def _read_outliers(path: Path) -> np.ndarray:
    """Read which frames [A] XCP-D judged to be of high motion."""
    flags = _column(path, "outliers")
    if not np.isin(flags, (0, 1)).all():
        raise RecordingError(
            "outliers",
            f"{path.name}: holds other values than 0 and 1; expected 1 for frames of high motion. Restore it.",
        )
    return flags.astype(bool)


def _read_displacement(path: Path) -> np.ndarray:
    """Read the framewise displacement [A] in millimetres; that of the first frame, which XCP-D calls 0, is NaN."""
    displacement = _column(path, "motion").astype(np.float32)
    displacement[0] = np.nan
    if (displacement < 0).any() or np.isinf(displacement).any():
        raise RecordingError(
            "motion",
            f"{path.name}: holds displacements that are negative or infinite; expected millimetres. Restore it.",
        )
    return displacement


def _is_dropped(n_frames: int, censored: np.ndarray, name: str) -> bool:
    """Whether frames of high motion are not in a series of `n_frames`, rather than interpolated in it."""
    n_acquired, n_kept = len(censored), int((~censored).sum())
    if n_frames not in (n_acquired, n_kept):
        raise RecordingError(
            "frames-mismatch",
            f"{name}: has {n_frames} frames; expected {n_acquired}, as the tables of motion and outliers beside it, or "
            f"the {n_kept} that those keep. Use the files of one run of XCP-D.",
        )
    return n_frames < n_acquired
