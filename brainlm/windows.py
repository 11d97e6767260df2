"""Windows: recordings resampled to the model's TR, scaled, and cut or sampled.

Shapes: B windows, P parcels, T frames of the model.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from base.seeding import derive_seed
from brainlm.config import WindowConfig
from brainlm.errors import BrainLMError
from brainlm.scaling import Scaling
from cohorts import Cohort, Recording

_CACHE_BYTES = 2 * 1024**3

Place = tuple[str, str, int]
"""Where a window lies: participant, recording, first frame."""


@dataclass(frozen=True)
class Batch:
    """Windows for the model."""

    signal: Tensor
    """[B, P, T] float32, scaled; zero where a parcel is missing. In memory, frames come before parcels."""
    coordinates: Tensor
    """[B, P, 3] in millimetres."""
    valid: Tensor
    """[B, P] bool, False for missing parcels."""
    participants: tuple[str, ...]
    """Whose window each is."""

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to `device`; from pinned memory to a GPU, without waiting for it."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def pin_memory(self) -> "Batch":
        """Copy the tensors to memory that a GPU can fetch from by itself."""
        return self._each(lambda tensor: tensor.contiguous().pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(change(self.signal), change(self.coordinates), change(self.valid), self.participants)

    def split(self, n: int) -> list["Batch"]:
        """Cut into `n` batches of about equal size, fewer where there are fewer windows."""
        n = min(n, len(self))
        bounds = [number * len(self) // n for number in range(n + 1)]
        return [
            Batch(self.signal[a:b], self.coordinates[a:b], self.valid[a:b], self.participants[a:b])
            for a, b in pairwise(bounds)
        ]

    def __len__(self) -> int:
        return len(self.participants)


def _ratio(t_r: float, new_t_r: float) -> Fraction:
    return Fraction(t_r / new_t_r).limit_denominator(100)


def resample(signal: np.ndarray, t_r: float, new_t_r: float) -> np.ndarray:
    """Resample [T, P] from one TR to another, band-limited (polyphase filter, no aliasing).

    Parameters
    ----------
    signal : numpy.ndarray
        [T, P].
    t_r, new_t_r : float
        Seconds a frame. Their ratio is taken as a fraction with a denominator of at most 100.
    """
    ratio = _ratio(t_r, new_t_r)
    if ratio == 1:
        return signal
    return resample_poly(signal, ratio.numerator, ratio.denominator, axis=0, padtype="line")


def prepare(recording: Recording, window: WindowConfig, scale: Scaling | None = None) -> np.ndarray:
    """Resample a recording, unless the window adapts to it, and scale it.

    Parameters
    ----------
    scale : Scaling, optional
        What ``robust`` scaling needs: medians and interquartile ranges of the recording's atlas.

    Returns
    -------
    numpy.ndarray
        [P, T'] float32; rows of missing parcels are zero.

    Raises
    ------
    BrainLMError
        If the scaling is robust, and `scale` is not given or of another number of parcels.
    """
    signal = recording.signal.astype(np.float64)
    if window.temporal == "resample":
        signal = resample(signal, recording.t_r, window.t_r)
    if window.scaling == "zscore":
        signal = signal - signal.mean(axis=0)
        deviation = signal.std(axis=0)
        signal = signal / np.where(deviation > 0, deviation, 1)
    elif window.scaling == "robust":
        if scale is None:
            raise BrainLMError(
                "robust scaling needs the medians and interquartile ranges that the model was trained with. Give "
                "'scale': Scaling.from_checkpoint(about, atlas)."
            )
        signal = scale.apply(signal)
    return np.ascontiguousarray(np.where(recording.coverage, signal, 0).T, dtype=np.float32)


def kept_frames(n_frames: int, t_r: float, window: WindowConfig) -> int:
    """Count the frames that `prepare` makes of a recording."""
    return n_frames if window.temporal == "adaptive" else math.ceil(n_frames * _ratio(t_r, window.t_r))


def usable_recordings(cohort: Cohort, window: WindowConfig) -> dict[str, list[str]]:
    """Recordings that are at least a window long: participant → recording ids, both in order."""
    usable: dict[str, list[str]] = {}
    for row in cohort.recordings.itertuples():
        if kept_frames(row.n_frames, row.t_r, window) >= window.frames_of(row.t_r):
            usable.setdefault(row.participant_id, []).append(row.recording_id)
    return {participant: usable[participant] for participant in sorted(usable)}


@dataclass(frozen=True)
class Lengths:
    """How many of a cohort's recordings are at least a window long."""

    usable: dict[str, list[str]]
    """As of `usable_recordings`."""
    too_short: dict[str, float]
    """Recording → seconds, of those that are not."""
    n_left_out: int
    """Participants all of whose recordings are too short."""
    said: str
    """All this in a sentence."""


def lengths_of(cohort: Cohort, window: WindowConfig) -> Lengths:
    """Count the recordings of a cohort that are at least a window long, and those that are not."""
    usable, index = usable_recordings(cohort, window), cohort.recordings
    long_enough = {recording for recordings in usable.values() for recording in recordings}
    seconds = (index["n_frames"] * index["t_r"]).set_axis(index["recording_id"])
    too_short = {recording: length for recording, length in seconds.items() if recording not in long_enough}
    people = index["participant_id"].nunique()
    if not too_short:
        said = f"cohort {cohort.name}: all {len(index)} recordings are as long as the window of {window.seconds:g} s."
        return Lengths(usable, {}, 0, said)
    ends = dict.fromkeys(f"{end:g}" for end in (min(too_short.values()), max(too_short.values())))
    said = (
        f"cohort {cohort.name}: {len(too_short)} of {len(index)} recordings are shorter than the window of "
        f"{window.seconds:g} s (they have {' to '.join(ends)} s); {len(usable)} of {people} participants are left."
    )
    return Lengths(usable, too_short, people - len(usable), said)


def split_participants(participants: list[str], holdout: float, seed: int) -> tuple[list[str], list[str]]:
    """Split participants into training and held-out ones, at random but the same for the same seed.

    At least one is held out if `holdout` is above 0 and there are two or more.
    """
    n_held_out = min(max(1, round(holdout * len(participants))), len(participants) - 1) if holdout else 0
    order = np.random.default_rng(derive_seed(seed, "holdout")).permutation(len(participants))
    held_out = {participants[index] for index in order[:n_held_out]}
    return [p for p in participants if p not in held_out], [p for p in participants if p in held_out]


class WindowSet(Dataset[Batch]):
    """The windows of some participants of a cohort.

    Parameters
    ----------
    participants : list of str, optional
        Whose windows; everybody's if not given. Those without a recording of a window's length drop out.
    scale : Scaling, optional
        Of the cohort's atlas, for robust scaling.

    Raises
    ------
    BrainLMError
        If no recording is long enough.
    """

    def __init__(
        self,
        cohort: Cohort,
        window: WindowConfig,
        participants: list[str] | None = None,
        scale: Scaling | None = None,
    ) -> None:
        usable = usable_recordings(cohort, window)
        self._recordings = {p: usable[p] for p in usable if participants is None or p in set(participants)}
        if not self._recordings:
            raise BrainLMError(f"{lengths_of(cohort, window).said} Use a shorter window or longer recordings.")
        self.cohort = cohort
        self.window = window
        self.scale = scale
        self._coordinates = torch.tensor(cohort.atlas.coordinates, dtype=torch.float32)
        self._prepared: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        index = cohort.recordings.set_index("recording_id")
        self._n_frames: dict[str, int] = {}
        self._length: dict[str, int] = {}  # frames of a window
        groups: dict[int, dict[str, list[str]]] = {}
        for participant, recordings in self._recordings.items():
            for recording in recordings:
                t_r = float(index.at[recording, "t_r"])
                self._n_frames[recording] = kept_frames(int(index.at[recording, "n_frames"]), t_r, window)
                self._length[recording] = window.frames_of(t_r)
                groups.setdefault(self._length[recording], {}).setdefault(participant, []).append(recording)
        self._by_length = [groups[length] for length in sorted(groups)]
        self._n_windows = {recording: n // self._length[recording] for recording, n in self._n_frames.items()}

    @property
    def participants(self) -> list[str]:
        return list(self._recordings)

    def of(self, participants: list[str]) -> "WindowSet":
        """The windows of some of the participants, which share with these what is prepared."""
        part = WindowSet(self.cohort, self.window, participants, self.scale)
        part._prepared = self._prepared
        return part

    @property
    def n_windows(self) -> int:
        """Windows that do not overlap, over all recordings."""
        return sum(self._n_windows.values())

    def sample(self, n: int, rng: np.random.Generator) -> Batch:
        """Draw `n` windows: a participant, one of the recordings, a start, each uniformly.

        Participants differ within a batch as long as there are enough. When `n` is at least `n_windows`, the
        batch is every non-overlapping window once. Where windows have different numbers of frames, those of a batch
        have the same, drawn as often as participants have it.
        """
        return self[self.draw(n, rng)]

    def draw(self, n: int, rng: np.random.Generator) -> list[Place]:
        """Draw the places of `n` windows as `sample` does, without reading them."""
        of_participants = self._by_length[0]
        if len(self._by_length) > 1:
            n, sizes = min(n, self.n_windows), np.array([len(group) for group in self._by_length])
            of_participants = self._by_length[rng.choice(len(sizes), p=sizes / sizes.sum())]
        elif n >= self.n_windows:
            return self._places()
        participants = list(of_participants)
        chosen = rng.choice(len(participants), size=n, replace=n > len(participants))
        return [self._draw_of(participants[index], of_participants[participants[index]], rng) for index in chosen]

    def draw_one(self, participant: str, rng: np.random.Generator) -> Place:
        """Draw the place of one window of a participant: one of the recordings, a start, each uniformly."""
        return self._draw_of(participant, self._recordings[participant], rng)

    def _draw_of(self, participant: str, recordings: list[str], rng: np.random.Generator) -> Place:
        recording = recordings[rng.integers(len(recordings))]
        last = self._n_frames[recording] - self._length[recording]
        return participant, recording, int(rng.integers(last + 1))

    def in_parts(self, places: list[Place], n: int) -> Iterator[list[Place]]:
        """Cut places into lists of at most `n`, each of windows of the same number of frames, the shortest first."""
        for _, group in groupby(sorted(places, key=self._length_at), key=self._length_at):
            same = list(group)
            for start in range(0, len(same), n):
                yield same[start : start + n]

    def __getstate__(self) -> dict[str, Any]:
        """Travel to other processes without what is prepared: each of them prepares what it reads."""
        return {**self.__dict__, "_prepared": OrderedDict()}

    def recordings_of(self, participant: str) -> list[str]:
        """Ids of the participant's recordings, those that are long enough."""
        return self._recordings[participant]

    def frames_of(self, participant: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Prepared frames [T', P] and coverage [P] of each of the participant's recordings."""
        return [self._read(recording) for recording in self._recordings[participant]]

    def segments(self, batch_size: int, recording_id: str | None = None) -> Iterator[Batch]:
        """Iterate over every non-overlapping window once, of all recordings or of one, `batch_size` or fewer at a time.

        They come in order of length, participant, recording and time.
        """
        for part in self.in_parts(self._places(recording_id), batch_size):
            yield self[part]

    def _places(self, recording_id: str | None = None) -> list[Place]:
        """Where every non-overlapping window lies, of all recordings or of one."""
        return [
            (participant, recording, number * self._length[recording])
            for participant, recordings in self._recordings.items()
            for recording in recordings
            for number in range(self._n_windows[recording])
            if recording_id in (None, recording)
        ]

    def _length_at(self, place: Place) -> int:
        return self._length[place[1]]

    def __getitem__(self, places: list[Place]) -> Batch:
        """Read the windows at `places`."""
        signals, valid = [], []
        for _, recording, start in places:
            signal, coverage = self._read(recording)
            signals.append(signal[start : start + self._length[recording]])
            valid.append(coverage)
        return Batch(
            torch.from_numpy(np.stack(signals)).transpose(1, 2),
            self._coordinates.expand(len(places), -1, -1),
            torch.from_numpy(np.stack(valid)),
            tuple(participant for participant, _, _ in places),
        )

    def _read(self, recording_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Prepared signal [T', P] and coverage [P], kept in memory up to a bound.

        Frames come first, as in the store: a window is then one piece of memory, and copying it takes half the time of
        copying a piece of every parcel.
        """
        if recording_id in self._prepared:
            self._prepared.move_to_end(recording_id)
        else:
            self.hold(self.cohort.read(recording_id))
        return self._prepared[recording_id]

    def hold(self, recording: Recording) -> None:
        """Prepare a recording that was read, for the next who asks for its windows."""
        prepared = np.ascontiguousarray(prepare(recording, self.window, self.scale).T)
        self._prepared[recording.recording_id] = prepared, recording.coverage
        worker = get_worker_info()  # workers share the bound
        excess = sum(signal.nbytes for signal, _ in self._prepared.values())
        excess -= _CACHE_BYTES // (worker.num_workers if worker else 1)
        while excess > 0 and len(self._prepared) > 1:
            _, (dropped, _) = self._prepared.popitem(last=False)
            excess -= dropped.nbytes
