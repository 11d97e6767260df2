"""BIDS derivatives: what names say, which files are in a tree, which belong together, and what their sidecars say."""

import math
import os
import re
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.files import read_json
from cohorts.errors import CohortError, RecordingError
from cohorts.sources.kinds import LONGEST_T_R, Run

_CONFOUNDS = ("timeseries", "regressors")
"""Suffixes of fMRIPrep's confounds, from 20.2 on and before."""
RUN_LABELS = {"session": "ses", "task": "task", "run": "run"}
"""Labels of a `Run` → entities."""
_ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+]+)")
_SUFFIX = re.compile(r"[A-Za-z0-9]+")
_RUN_ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part", "chunk")
_SKIPPED_FOLDERS = {"sourcedata", "logs", "figures"}


@dataclass(frozen=True)
class BIDSName:
    """What a file's name says."""

    entities: dict[str, str]
    """Key → value in the name's order: ``{"sub": "01", "task": "rest"}``."""
    suffix: str
    """The last part, such as ``bold``."""
    extension: str
    """From the first dot on: ``.nii.gz``, ``.ptseries.nii``; empty if there is none."""

    @property
    def run(self) -> str:
        """The acquisition that the file is of: ``sub-01_ses-1_task-rest_run-1``."""
        return "_".join(f"{key}-{self.entities[key]}" for key in _RUN_ENTITIES if key in self.entities)

    def is_of(self, tasks: Collection[str], sessions: Collection[str]) -> bool:
        """Whether the name is of one of these tasks and of these sessions; of any where none is given."""
        asked = (("task", tasks), ("ses", sessions))
        return all(not labels or self.entities.get(entity, "") in labels for entity, labels in asked)

    def matches(self, suffix: str, extension: str = "", **entities: str) -> bool:
        """Whether the name has this suffix, this extension (any if empty) and these entities, whatever else it has."""
        return (
            self.suffix == suffix
            and extension in ("", self.extension)
            and all(self.entities.get(key) == value for key, value in entities.items())
        )


def parse_name(path: str | Path) -> BIDSName | None:
    """Take a file's name apart; None if it is not ``key-value[_key-value…]_suffix.extension`` or repeats a key."""
    stem, dot, extension = os.path.basename(path).partition(".")
    *pairs, suffix = stem.split("_")
    matches = [_ENTITY.fullmatch(pair) for pair in pairs]
    entities = {match.group(1): match.group(2) for match in matches if match}
    if not pairs or len(entities) < len(pairs) or not _SUFFIX.fullmatch(suffix):
        return None
    return BIDSName(entities, suffix, dot + extension)


def walk(root: str | Path) -> Iterator[Path]:
    """Yield the files under `root` in the order of their paths.

    Symbolic links are followed, but not to folders around the tree, and each real folder is visited once, so that loops
    end. Left out are links that lead nowhere, hidden files and folders, and folders named sourcedata, logs or figures.
    A folder that cannot be listed is refused.
    """
    around = Path(os.path.realpath(root)).parents
    seen = {(status.st_dev, status.st_ino) for status in map(os.stat, filter(os.path.exists, around))}
    waiting = [Path(root)]
    while waiting:
        path = waiting.pop()
        try:
            status = path.stat()
        except OSError as error:
            if path == Path(root):
                raise CohortError(f"{root}: cannot be read ({error.strerror}). Check the path.") from None
            continue
        if stat.S_ISREG(status.st_mode):
            yield path
        elif stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            waiting += reversed(_listed(path))


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder and to be looked at, in order."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CohortError(
            f"{folder}: cannot be listed ({error.strerror}); expected a folder that you may read. Ask for access to it."
        ) from None
    return [folder / name for name in names if not name.startswith(".") and name not in _SKIPPED_FOLDERS]


class Tree:
    """The files of a folder of derivatives, that with ``dataset_description.json``, listed once.

    Attributes
    ----------
    paths : tuple of Path
        Every file, in order; see `walk`.
    files : dict
        Path → BIDSName of every file that has such a name, in order of the paths.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.paths = tuple(walk(root))
        self.files = {path: name for path in self.paths if (name := parse_name(path))}
        self._by_folder: dict[tuple[Path, str, str], list[Path]] = defaultdict(list)
        for path, name in self.files.items():
            self._by_folder[path.parent, name.suffix, name.extension].append(path)

    def select(self, suffix: str, extension: str = "", **entities: str) -> list[Path]:
        """Files with this suffix, this extension (any if empty) and these entities, whatever else their names say."""
        return [path for path, name in self.files.items() if name.matches(suffix, extension, **entities)]

    def beside(self, path: Path, suffix: str, extension: str, **entities: str) -> Path | None:
        """Find the file of the same folder whose name has the same entities but for `entities`, in any order.

        An entity that is given is changed to that value or added. None if there is no such file.
        """
        wanted = {**self.files[path].entities, **entities}
        found = self._speaking_of(wanted, path.parent, suffix, extension)
        return next((other for other in found if self.files[other].entities == wanted), None)

    def confounds(self, path: Path) -> Path | None:
        """Find fMRIPrep's confounds beside an image, those that name most of its entities; None if there are none."""
        entities = {**self.files[path].entities, "desc": "confounds"}
        found = [
            other
            for suffix in _CONFOUNDS
            for other in self._speaking_of(entities, path.parent, suffix, ".tsv")
            if "desc" in self.files[other].entities
        ]
        return max(found, key=lambda other: len(self.files[other].entities), default=None)

    def sidecars(self, path: Path) -> tuple[Path, ...]:
        """JSON files whose metadata hold for a file, after BIDS's inheritance: what a later one says counts.

        They are those of its suffix, in its folder or above it up to the root, that name no entity which it has not.
        """
        name = self.files[path]
        folders = [folder for folder in path.parents if folder == self.root or self.root in folder.parents]
        return tuple(
            sidecar
            for folder in reversed(folders)
            for sidecar in self._speaking_of(name.entities, folder, name.suffix, ".json")
        )

    def _speaking_of(self, entities: Mapping[str, str], folder: Path, suffix: str, extension: str) -> list[Path]:
        """Files of a folder that name no entity but these, those that name most of them last."""
        found = (
            path
            for path in self._by_folder.get((folder, suffix, extension), ())
            if self.files[path].entities.items() <= entities.items()
        )
        return sorted(found, key=lambda path: len(self.files[path].entities))


def run_of(path: Path, name: BIDSName, files: Iterable[Path] = ()) -> Run:
    """Describe the run that `path` is of; `files` are the others that reading it needs."""
    labels = {key: name.entities.get(entity, "") for key, entity in RUN_LABELS.items()}
    return Run(name.run, f"sub-{name.entities.get('sub', '')}", **labels, files=(path, *files))


def repetition_time(
    sidecars: Sequence[Path], name: str, *, header: float | None = None, given: float | None = None
) -> float:
    """Repetition time of a run in seconds, as its sidecars say it or as `given`; it is never guessed.

    Parameters
    ----------
    sidecars : sequence of Path
        As `Tree.sidecars` gives them: what a later one says counts.
    name : str
        The run's file.
    header : float, optional
        What the header of an image says, in seconds; NaN if nothing. It does not tell: software that does not know the
        time writes one, too, most often 1. See `header_notices`.
    given : float, optional
        What the user says.

    Raises
    ------
    RecordingError
        With code ``sidecar`` if one is no JSON object; ``no-tr`` if neither a sidecar nor the user says a time;
        ``tr-milliseconds`` if a sidecar says it in milliseconds, but as seconds; ``tr-contradicts`` if a sidecar and
        `given` differ by more than 1 %.
    """
    source, stated = _stated_time(sidecars)
    if stated is None:
        if given is None:
            raise RecordingError(
                "no-tr",
                f"{name}: no sidecar states its RepetitionTime{_untrusted(header)}; expected the seconds between two "
                "volumes, which are never guessed. Give --tr SECONDS, or add it to the JSON sidecar of the run.",
            )
        return float(given)
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not 0 < stated < 1e9:
        raise RecordingError(
            "no-tr", f"{source}: states {stated!r:.20} as RepetitionTime; expected seconds, above 0. Correct it."
        )
    t_r = float(stated)
    if t_r > LONGEST_T_R:
        raise RecordingError(
            "tr-milliseconds",
            f"{source}: says a repetition time of {t_r:g} s; expected seconds, at most {LONGEST_T_R:g}. If these are "
            f"milliseconds, write {t_r / 1000:g}.",
        )
    if given is not None and not _agree(t_r, given):
        raise RecordingError(
            "tr-contradicts",
            f"{name}: {source} says {t_r:g} s, and {given:g} s are given (--tr); expected the same repetition time. "
            "Find out which holds, and correct it.",
        )
    return t_r


def header_notices(header: float, t_r: float) -> tuple[str, ...]:
    """Notice (`cohorts.notices`) of a header that says another repetition time than the one that counts; both in s."""
    return ("header-tr",) if math.isfinite(header) and not _agree(t_r, header) else ()


def generated_by(root: str | Path) -> str:
    """Software that made a tree of derivatives, such as ``fmriprep-24.1.1``; empty if the tree does not say."""
    path = Path(root) / "dataset_description.json"
    if not path.is_file():
        return ""
    try:
        described = read_json(path)
    except (OSError, ValueError):
        raise CohortError(f"{path}: is not readable; expected a JSON object in UTF-8. Restore it.") from None
    # Before BIDS 1.4 it was called PipelineDescription, and was a single one.
    makers = described.get("GeneratedBy") or described.get("PipelineDescription")
    maker = makers[0] if isinstance(makers, list) and makers else makers
    if not isinstance(maker, dict):
        return ""
    stated = [str(maker[key]) for key in ("Name", "Version") if maker.get(key)]
    # It goes with every result, so no path or sentence may come along.
    return "-".join(re.sub(r"[^a-z0-9.+_-]", "", text.lower())[:40] for text in stated)


def _stated_time(sidecars: Sequence[Path]) -> tuple[str, Any]:
    """Name of the sidecar whose repetition time counts, and what it states; None if none states any."""
    source, stated = "", None
    for path in sidecars:
        try:
            content = read_json(path)
        except (OSError, ValueError):
            raise RecordingError(
                "sidecar", f"{path.name}: is not readable; expected a JSON object in UTF-8. Restore the sidecar."
            ) from None
        if content.get("RepetitionTime") is not None:
            source, stated = path.name, content["RepetitionTime"]
    return source, stated


def _untrusted(header: float | None) -> str:
    """Say what an image's header is worth."""
    if header is None:
        return ""
    if math.isnan(header):
        return ", nor does its header"
    return f", and the {header:g} s of its header are not to be trusted: software that does not know it writes one, too"


def _agree(first: float, second: float) -> bool:
    return abs(first - second) <= 0.01 * second
