"""One recording, and its file: safetensors with signal [T, P] and coverage [P], and a header of facts."""

import hashlib
import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from base.files import read_arrays, save_arrays
from cohorts.errors import CohortError, RecordingError
from cohorts.signals import LARGEST_VALUE, carries_signal, range_over_time

_LABELS = ("recording_id", "participant_id", "session", "task", "run")
_ARRAYS = {"signal": np.float32, "coverage": bool, "framewise_displacement": np.float32, "censored": bool}
"""Arrays of a recording's file, in their order there."""
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Recording:
    """One run of one participant: the mean BOLD signal of every parcel over time."""

    participant_id: str
    """As in ``participants.tsv``."""
    signal: np.ndarray
    """[T, P] float32, frames by parcels, in the order of the cohort's atlas."""
    t_r: float
    """Repetition time in seconds."""
    recording_id: str = ""
    """Unique in the cohort; the participant's id where a participant has one recording."""
    coverage: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    """[P] bool, False where a parcel carries no signal: where the signal shows none, or where it is given so."""
    mean_fd: float = math.nan
    """Mean framewise displacement in millimetres, NaN if unknown."""
    tsnr: float = math.nan
    """Median over parcels of mean/sd over time, NaN where the signal has lost its mean."""
    session: str = ""
    task: str = ""
    run: str = ""
    """Labels after BIDS, as `session` and `task`; empty where there are none."""
    framewise_displacement: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """[A] float32 in millimetres, over the frames as acquired, the first NaN; empty if unknown."""
    censored: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    """[A] bool, True for frames that were dropped from the signal or interpolated in it; empty if none were judged."""
    notices: tuple[str, ...] = ()
    """Codes of `cohorts.notices`: what is to be known of it, though it is good."""

    def __post_init__(self) -> None:
        if not self.recording_id:
            object.__setattr__(self, "recording_id", self.participant_id)
        carries = carries_signal(*range_over_time(self.signal))
        if self.coverage.size == 0:
            object.__setattr__(self, "coverage", carries)
        elif self.coverage.shape == carries.shape:
            object.__setattr__(self, "coverage", self.coverage & carries)


@dataclass(frozen=True)
class Quality:
    """Quality of one recording; NaN where a measure cannot be known from what the source gives."""

    n_acquired: int
    """Frames as acquired."""
    n_censored: int
    """How many of them were dropped or interpolated."""
    mean_fd: float
    """Mean framewise displacement over the acquired frames, mm."""
    fd_over: float
    """Fraction of the acquired frames whose framewise displacement is above `fd_threshold`."""
    tsnr: float
    """Median over parcels of mean/sd over time."""
    dvars: float
    """Mean of the standardized DVARS over parcels. Changes to or from censored frames do not count."""
    dvars_over: float
    """Fraction of the frames whose standardized DVARS is above `dvars_threshold`, counted likewise."""
    mean_fc: float
    """Mean correlation over all pairs of covered parcels."""
    fc_distance_slope: float
    """Slope of Fisher z of the correlation over the distance of the centroids, per 100 mm."""
    fd_threshold: float
    """Of the rules that it was measured by, mm."""
    dvars_threshold: float
    """Of the same rules."""


def is_identifier(text: str) -> bool:
    """Whether `text` is safe as a file name: letters, digits, ``.``, ``_`` and ``-``, and not too long."""
    return _IDENTIFIER.fullmatch(text) is not None


def check_identifier(text: str, what: str) -> str:
    """Return `text` if `is_identifier`; a RecordingError, ``bad-id``, calls it `what` if not."""
    if not is_identifier(text):
        raise RecordingError(
            "bad-id",
            f"{what} {text!r}: expected letters, digits, '.', '_' or '-', starting with a letter or digit. Rename it.",
        )
    return text


def check_recording(recording: Recording, n_parcels: int, atlas: str) -> None:
    """Check that a recording can be stored in a cohort of that atlas.

    If not, a RecordingError has code ``bad-id``, ``wrong-shape``, ``not-finite`` or ``bad-tr``.
    """
    name = check_identifier(recording.recording_id, "recording id")
    check_identifier(recording.participant_id, "participant id")
    signal = recording.signal
    if signal.ndim != 2 or signal.shape[1] != n_parcels or recording.coverage.shape != (n_parcels,):
        raise RecordingError(
            "wrong-shape", f"{name}: has shape {signal.shape}; expected [frames, {n_parcels}] for atlas {atlas}."
        )
    if not (np.abs(signal) <= LARGEST_VALUE).all():
        raise RecordingError(
            "not-finite", f"{name}: holds values that are NaN, infinite or beyond {LARGEST_VALUE:.0e}. Clean it first."
        )
    if not 0 < recording.t_r < math.inf:
        raise RecordingError("bad-tr", f"{name}: TR is {recording.t_r}; expected seconds above 0.")


def save_recording(path: Path, recording: Recording, quality: Quality, source: str = "") -> dict[str, Any]:
    """Write a recording's file, whole or not at all; return its facts, as `read_facts` would.

    `source` is the fingerprint of the files that it was made from.
    """
    facts = {
        **{name: getattr(recording, name) for name in _LABELS},
        "n_frames": recording.signal.shape[0],
        "t_r": float(recording.t_r),
        "n_missing_parcels": int((~recording.coverage).sum()),
        **asdict(quality),
        "notices": " ".join(recording.notices),
        "source": source,
    }
    arrays = {name: np.asarray(getattr(recording, name), kind) for name, kind in _ARRAYS.items()}
    facts["digest"] = digest_of(recording)
    save_arrays(path, {name: array for name, array in arrays.items() if array.size}, facts)
    return facts


def digest_of(recording: Recording) -> str:
    """Return a checksum (BLAKE2b) of a recording's signal and coverage, by which a change on the disk is seen."""
    digest = hashlib.blake2b(np.ascontiguousarray(recording.signal, np.float32).tobytes(), digest_size=8)
    digest.update(np.ascontiguousarray(recording.coverage, bool).tobytes())
    return digest.hexdigest()


def read_facts(path: Path) -> dict[str, Any]:
    """Read a recording's facts (ids, length, TR, quality) without its signal."""
    return _read(path, ())[1]


def read_coverage(path: Path) -> np.ndarray:
    """Read which parcels [P] a recording has, without its signal."""
    return _read(path, ("coverage",))[0]["coverage"]


def load_recording(path: Path) -> Recording:
    """Read a recording."""
    arrays, facts = _read(path)
    known: dict[str, Any] = {name: facts[name] for name in (*_LABELS, "t_r", "mean_fd", "tsnr")}
    return Recording(**{**known, **arrays}, notices=tuple(facts["notices"].split()))


def _read(path: Path, names: Collection[str] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read arrays and facts; of a damaged file a CohortError says so."""
    remedy = "Restore the file, or prepare the cohort again."
    arrays, facts = read_arrays(path, names, error=CohortError, remedy=remedy)
    if not isinstance(facts, dict):
        raise CohortError(f"{path}: is no recording of a cohort. {remedy}")
    return arrays, {"notices": "", **facts}  # which earlier versions did not know
