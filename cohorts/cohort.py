"""The cohort store: one folder a site, one safetensors file a recording.

::

    <cohort>/
      cohort.yaml          name, atlas and its hash, preprocessing, scaling
      atlas.json           the atlas table itself
      participants.tsv     one row a participant, after BIDS; participants.json describes the columns
      recordings.parquet   one row a recording; an index, made again from the recordings whenever it is behind
      quarantine.jsonl     one line a recording that was refused, with the reason
      recordings/          <recording_id>.safetensors: signal [T, P] float32, coverage [P] bool
"""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from safetensors import SafetensorError, safe_open

from cohorts.atlas import Atlas, load_atlas
from cohorts.errors import CohortError, RecordingError
from cohorts.files import HEADER, atomic_path, save_arrays, write_text
from cohorts.participants import read_participants, write_participants
from cohorts.settings import Settings, read_settings

FORMAT = 1
Scale = Literal["raw", "zscore"]
"""Whether recordings have kept their units, or were z-scored parcel by parcel before they came."""
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_INDEX_COLUMNS = {
    "recording_id": "str",
    "participant_id": "str",
    "n_frames": "int64",
    "t_r": "float64",
    "n_missing_parcels": "int64",
    "mean_fd": "float64",
    "tsnr": "float64",
}


@dataclass(frozen=True)
class Recording:
    """One run of one participant: the mean BOLD signal of every parcel over time.

    Attributes
    ----------
    participant_id : str
        As in ``participants.tsv``.
    signal : numpy.ndarray
        [T, P] float32, frames by parcels, in the order of the cohort's atlas.
    t_r : float
        Repetition time in seconds.
    recording_id : str
        Unique in the cohort; the participant's id where a participant has one recording.
    coverage : numpy.ndarray
        [P] bool, False where a parcel carries no signal. Derived from the signal if not given.
    mean_fd : float
        Mean framewise displacement in millimetres, NaN if unknown.
    tsnr : float
        Median over parcels of mean/sd over time, NaN where the signal has lost its mean.
    """

    participant_id: str
    signal: np.ndarray
    t_r: float
    recording_id: str = ""
    coverage: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    mean_fd: float = math.nan
    tsnr: float = math.nan

    def __post_init__(self) -> None:
        if not self.recording_id:
            object.__setattr__(self, "recording_id", self.participant_id)
        if self.coverage.size == 0:
            object.__setattr__(self, "coverage", np.ptp(self.signal, axis=0) > 0)


class _About(Settings):
    """Content of ``cohort.yaml``."""

    format: int
    name: str
    atlas: str
    atlas_sha256: str
    preprocessing: str
    scaling: Scale = "raw"
    software: dict[str, str]


class Cohort:
    """A site's recordings on disk. Make one with `create` or `open`."""

    def __init__(self, path: Path, about: _About, atlas: Atlas) -> None:
        self.path = path
        self.atlas = atlas
        self._about = about
        self._rows: dict[str, dict[str, Any]] = {}
        self._participants = pd.DataFrame({"participant_id": pd.Series(dtype="str")})

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        atlas: Atlas | str,
        name: str | None = None,
        participants: pd.DataFrame | None = None,
        preprocessing: str = "unspecified",
        scaling: Scale = "raw",
    ) -> "Cohort":
        """Make an empty cohort in a folder that is new or empty.

        Parameters
        ----------
        path : path
            Folder of the cohort.
        atlas : Atlas or str
            The atlas of every recording, or its name.
        name : str, optional
            Name of the site's cohort; the folder's name if not given.
        participants : pandas.DataFrame, optional
            As `cohorts.participants.read_participants` returns it.
        preprocessing : str
            Id of the preprocessing, recorded with every result.
        scaling : {"raw", "zscore"}
            Whether the recordings have kept their units, or were z-scored parcel by parcel before.

        Raises
        ------
        CohortError
            If the folder holds files already.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise CohortError(f"{path}: exists already; expected a new or empty folder. Choose another.")
        atlas = load_atlas(atlas) if isinstance(atlas, str) else atlas
        about = _About(
            format=FORMAT,
            name=check_identifier(name or path.name, "cohort name"),
            atlas=atlas.name,
            atlas_sha256=atlas.content_hash,
            preprocessing=preprocessing,
            scaling=scaling,
            software={"fedbrainlm": version("fedbrainlm")},
        )
        (path / "recordings").mkdir(parents=True, exist_ok=True)
        write_text(path / "atlas.json", atlas.to_json())
        write_text(path / "cohort.yaml", yaml.safe_dump(about.model_dump(), sort_keys=False))
        cohort = cls(path, about, atlas)
        if participants is not None:
            cohort._participants = participants.reset_index(drop=True)
        cohort.save()
        return cohort

    @classmethod
    def open(cls, path: str | Path) -> "Cohort":
        """Open a cohort, bringing its index up to date with its recordings.

        Raises
        ------
        CohortError
            If the folder is no cohort, or lost a recording that its index names.
        """
        path = Path(path)
        if not (path / "cohort.yaml").is_file():
            raise CohortError(
                f"{path}: is not a cohort; expected a folder with cohort.yaml. "
                "Make one with 'fedbrainlm cohort import' or 'fedbrainlm cohort simulate'."
            )
        about = read_settings(path / "cohort.yaml", _About)
        if about.format != FORMAT:
            raise CohortError(
                f"{path}: has format {about.format}, this version reads format {FORMAT}. Import the data again."
            )
        atlas = load_atlas(path / "atlas.json")
        if atlas.content_hash != about.atlas_sha256:
            raise CohortError(f"{path}/atlas.json: differs from cohort.yaml. Restore it, or import again.")
        cohort = cls(path, about, atlas)
        if (path / "participants.tsv").is_file():
            cohort._participants = read_participants(path / "participants.tsv")
        cohort._load_index()
        return cohort

    @property
    def name(self) -> str:
        return self._about.name

    @property
    def preprocessing(self) -> str:
        return self._about.preprocessing

    @property
    def scaling(self) -> Scale:
        return self._about.scaling

    @property
    def recordings(self) -> pd.DataFrame:
        """One row a recording, in order of recording_id.

        Columns recording_id, participant_id, n_frames, t_r (s), n_missing_parcels, mean_fd (mm), tsnr.
        """
        rows = [self._rows[key] for key in sorted(self._rows)]
        return pd.DataFrame(rows, columns=list(_INDEX_COLUMNS)).astype(_INDEX_COLUMNS)

    @property
    def participants(self) -> pd.DataFrame:
        """One row a participant: participant_id and whatever ``participants.tsv`` holds."""
        return self._participants.copy()

    @property
    def quarantined(self) -> pd.DataFrame:
        """One row a refused recording: recording_id, code, message."""
        path = self.path / "quarantine.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return pd.DataFrame([json.loads(line) for line in lines], columns=["recording_id", "code", "message"])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Recording]:
        for recording_id in sorted(self._rows):
            yield self.read(recording_id)

    def covariates(self) -> pd.DataFrame:
        """One row for each participant with a recording, in order of participant_id.

        The columns of ``participants.tsv``, with mean_fd and tsnr averaged over the participant's recordings
        where those know them.
        """
        measured = self.recordings.groupby("participant_id")[["mean_fd", "tsnr"]].mean()
        table = self._participants.set_index("participant_id").reindex(measured.index)
        for column in measured:
            table[column] = measured[column].fillna(table.get(column, math.nan))
        return table.reset_index()

    def add(self, recording: Recording) -> None:
        """Store a recording. It survives a crash from here on, with or without `save`.

        Raises
        ------
        RecordingError
            If its shape, ids, TR or values do not fit the cohort.
        """
        self._check(recording)
        header = {
            "participant_id": recording.participant_id,
            "t_r": float(recording.t_r),
            "mean_fd": float(recording.mean_fd),
            "tsnr": float(recording.tsnr),
        }
        tensors = {
            "signal": recording.signal.astype(np.float32, copy=False),
            "coverage": recording.coverage.astype(bool, copy=False),
        }
        save_arrays(self._file(recording.recording_id), tensors, header)
        self._index(recording.recording_id)

    def quarantine(self, recording_id: str, code: str, message: str) -> None:
        """Note that a recording was refused, and why."""
        line = json.dumps({"recording_id": recording_id, "code": code, "message": message})
        with (self.path / "quarantine.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, recording_id: str) -> Recording:
        """Read one recording.

        Raises
        ------
        CohortError
            If the cohort has no such recording, or its file is damaged.
        """
        row = self._rows.get(recording_id)
        if row is None:
            raise CohortError(f"{self.path}: has no recording '{recording_id}'. See 'fedbrainlm cohort show'.")
        with self._opened(recording_id) as file:
            return Recording(
                participant_id=row["participant_id"],
                recording_id=recording_id,
                signal=file.get_tensor("signal"),
                coverage=file.get_tensor("coverage"),
                t_r=float(row["t_r"]),
                mean_fd=float(row["mean_fd"]),
                tsnr=float(row["tsnr"]),
            )

    def save(self) -> None:
        """Write the index and the participants table."""
        with atomic_path(self.path / "recordings.parquet") as temporary:
            self.recordings.to_parquet(temporary, index=False)
        write_participants(self._participants, self.path)

    def _check(self, recording: Recording) -> None:
        name = check_identifier(recording.recording_id, "recording id")
        check_identifier(recording.participant_id, "participant id")
        signal, n_parcels = recording.signal, self.atlas.n_parcels
        if signal.ndim != 2 or signal.shape[1] != n_parcels or recording.coverage.shape != (n_parcels,):
            raise RecordingError(
                "wrong-shape",
                f"{name}: has shape {signal.shape}; expected [frames, {n_parcels}] for atlas {self.atlas.name}.",
            )
        if not np.isfinite(signal).all():
            raise RecordingError("not-finite", f"{name}: holds NaN or infinite values. Clean it first.")
        if not 0 < recording.t_r < math.inf:
            raise RecordingError("bad-tr", f"{name}: TR is {recording.t_r}; expected seconds above 0.")
        if name in self._rows:
            raise RecordingError("duplicate", f"{name}: is in the cohort already. Give each run its own id.")

    def _file(self, recording_id: str) -> Path:
        return self.path / "recordings" / f"{recording_id}.safetensors"

    def _opened(self, recording_id: str) -> safe_open:
        try:
            return safe_open(self._file(recording_id), framework="numpy")
        except (SafetensorError, OSError):
            raise CohortError(
                f"{self._file(recording_id)}: cannot be read. Restore the file, or import again."
            ) from None

    def _index(self, recording_id: str) -> None:
        """Enter a stored recording into the index, from its own header."""
        with self._opened(recording_id) as file:
            header = json.loads(file.metadata()[HEADER])
            coverage = file.get_tensor("coverage")
            n_frames = file.get_slice("signal").get_shape()[0]
        participant = header.pop("participant_id")
        self._rows[recording_id] = {
            "recording_id": recording_id,
            "participant_id": participant,
            "n_frames": n_frames,
            "n_missing_parcels": int((~coverage).sum()),
            **header,
        }
        if participant not in set(self._participants["participant_id"]):
            row = pd.DataFrame({"participant_id": [participant]})
            self._participants = pd.concat([self._participants, row], ignore_index=True)

    def _load_index(self) -> None:
        stored = {path.stem for path in (self.path / "recordings").glob("*.safetensors")}
        index = self.path / "recordings.parquet"
        if index.is_file():
            for row in pd.read_parquet(index).to_dict("records"):
                self._rows[str(row["recording_id"])] = {str(key): value for key, value in row.items()}
        lost = sorted(self._rows.keys() - stored)
        if lost:
            raise CohortError(f"{self._file(lost[0])}: is gone ({len(lost)} such). Restore it, or import again.")
        for recording_id in sorted(stored - self._rows.keys()):
            self._index(recording_id)


def check_identifier(text: str, what: str) -> str:
    """Return `text` if it is safe as a file name.

    Raises
    ------
    RecordingError
        If it holds anything but letters, digits, ``.``, ``_`` and ``-``.
    """
    if not _IDENTIFIER.fullmatch(text):
        raise RecordingError(
            "bad-id",
            f"{what} {text!r}: expected letters, digits, '.', '_' or '-', starting with a letter or digit. Rename it.",
        )
    return text
