"""What a recording is worth: how it measures, the rules that judge it, and whether it can be used at all.

References
----------
Nichols TE (2013). Notes on creating a standardized version of DVARS. arXiv:1704.01469.
Parkes L, et al. (2018). An evaluation of the efficacy, reliability, and sensitivity of motion correction strategies
for resting-state functional MRI. NeuroImage 171:415-436.
Power JD, et al. (2012). Spurious but systematic correlations in functional connectivity MRI networks arise from
subject motion. NeuroImage 59:2142-2154.
Whitlow CT, et al. (2011). Effect of resting-state functional MR imaging duration on stability of graph theory metrics
of brain network connectivity. Radiology 259:516-524.
"""

import math
from collections.abc import Iterator

import numpy as np
from pydantic import Field
from threadpoolctl import threadpool_limits

from base.settings import Settings
from cohorts.atlas import Atlas
from cohorts.errors import RecordingError
from cohorts.recording import Quality, Recording
from cohorts.signals import LARGEST_VALUE, carries_signal, range_over_time

_LARGEST_R = 1 - 1e-6
"""Correlations are cut here before Fisher's z, which is infinite at 1."""
_FEWEST_FRAMES = 2
"""Without a change over time nothing can be measured."""
_LIMITED = {
    "mean_fd": ("high-motion", "max_mean_fd", "mean FD", "{:.3f} mm"),
    "fd_over": (
        "too-many-motion-frames",
        "max_fd_over",
        "the fraction of frames with FD above {0.fd_threshold:g} mm",
        "{:.1%}",
    ),
    "dvars_over": (
        "high-dvars",
        "max_dvars_over",
        "the fraction of frames with standardized DVARS above {0.dvars_threshold:g}",
        "{:.1%}",
    ),
    "tsnr": ("low-tsnr", "min_tsnr", "tSNR", "{:.1f}"),
    "mean_fc": ("high-connectivity", "max_mean_fc", "the mean correlation between parcels", "{:.3f}"),
}
"""Measure → code of its fault, its threshold among the rules, and how a message says both."""


class QualityRules(Settings):
    """Thresholds beyond which a recording is quarantined.

    As they stand, they ask only what the structure of a recording must fulfil. `published` adds what the literature
    asks for, and ``configs/quality.yaml`` holds the same values for a site to edit. A measure that is unknown (NaN) is
    never held against a recording.
    """

    min_frames: int = Field(40, ge=_FEWEST_FRAMES)
    """Shortest run, in frames: two patches of 20; a study may ask for more. What is dropped or interpolated does not
    count."""
    min_coverage: float = Field(0.8, ge=0, le=1)
    """Smallest fraction of parcels with signal."""
    min_seconds: float = Field(0.0, ge=0)
    """Shortest run, in seconds left after censoring. Graph measures of connectivity become stable within 90 to 120 s
    (Whitlow 2011)."""
    max_mean_fd: float | None = Field(None, gt=0)
    """Largest mean framewise displacement in mm: 0.55 is the lenient criterion of Parkes 2018, 0.25 part of their
    stringent one."""
    fd_threshold: float = Field(0.5, gt=0)
    """Framewise displacement above which a frame counts as one of motion, in mm (Power 2012)."""
    max_fd_over: float | None = Field(None, ge=0, le=1)
    """Largest fraction of frames of motion. Half is where Li J, et al. (2019), NeuroImage 196:126-141, remove a run."""
    dvars_threshold: float = Field(1.5, gt=0)
    """Standardized DVARS (Nichols 2013) above which a frame counts as a spike: that at which fMRIPrep marks a frame as
    an outlier."""
    max_dvars_over: float | None = Field(None, ge=0, le=1)
    """Largest fraction of spikes. No published value for parcels."""
    min_tsnr: float | None = Field(None, ge=0)
    """Smallest temporal signal-to-noise ratio. It grows with voxels and parcels, so no published value fits all."""
    max_mean_fc: float | None = Field(None, ge=-1, le=1)
    """Largest mean correlation over all pairs of parcels: near 1 one artefact drives the brain as a whole. No
    published value."""

    @classmethod
    def published(cls) -> "QualityRules":
        """Return the rules with the thresholds of the literature, as ``configs/quality.yaml`` has them."""
        return cls(min_seconds=120, max_mean_fd=0.55, max_fd_over=0.5)

    def faults(
        self, quality: Quality, n_frames: int, t_r: float, coverage: np.ndarray | float, name: str
    ) -> list[RecordingError]:
        """List what the rules hold against a recording, structure first; empty if it is good.

        The codes are ``too-short``, ``low-coverage``, ``too-short-after-censoring`` and those of measures.

        Parameters
        ----------
        quality : Quality
            As `measure` returns it for the same rules.
        n_frames : int
            Frames of the stored signal.
        t_r : float
            Repetition time in seconds; NaN if unknown.
        coverage : numpy.ndarray or float
            [P] bool, or the fraction of parcels with signal.
        name : str
            Begins every message.
        """
        left = min(n_frames, quality.n_acquired - quality.n_censored)
        found = [self._too_short(name, n_frames), self._low_coverage(name, float(np.mean(coverage)))]
        if found[0] is None:
            found.append(self._too_short_after_censoring(name, quality, left, t_r))
        found += self._measured_faults(name, quality)
        return [fault for fault in found if fault]

    def _too_short(self, name: str, n_frames: int) -> RecordingError | None:
        if n_frames >= self.min_frames:
            return None
        frames = f"{n_frames} frame" if n_frames == 1 else f"{n_frames} frames"
        remedy = "Leave it out, or lower min_frames." if n_frames >= _FEWEST_FRAMES else "Leave it out."
        return RecordingError("too-short", f"{name}: has {frames}; expected at least {self.min_frames}. {remedy}")

    def _low_coverage(self, name: str, covered: float) -> RecordingError | None:
        if covered >= self.min_coverage:
            return None
        return RecordingError(
            "low-coverage",
            f"{name}: {covered:.1%} of the parcels have a signal, the others are NaN or constant but for rounding; "
            f"expected at least {self.min_coverage:.0%}. Check its field of view and atlas, or lower min_coverage.",
        )

    def _too_short_after_censoring(self, name: str, quality: Quality, left: int, t_r: float) -> RecordingError | None:
        if left >= self.min_frames and not left * t_r < self.min_seconds:
            return None
        needed = f"at least {self.min_frames} frames" + (f" and {self.min_seconds:g} s" if self.min_seconds else "")
        frames = f"{left} frames" if math.isnan(t_r) else f"{left} frames ({left * t_r:.0f} s)"
        if quality.n_censored == 0:
            return RecordingError(
                "too-short", f"{name}: has {frames}; expected {needed}. Leave it out, or lower min_seconds."
            )
        return RecordingError(
            "too-short-after-censoring",
            f"{name}: {frames} of {quality.n_acquired} are left after censoring; expected {needed}. Leave it out, "
            "censor less, or lower min_frames or min_seconds.",
        )

    def _measured_faults(self, name: str, quality: Quality) -> Iterator[RecordingError]:
        """One fault for each measure beyond its threshold."""
        for measure, (code, rule, what, style) in _LIMITED.items():
            value, threshold = getattr(quality, measure), getattr(self, rule)
            largest = rule.startswith("max")
            if threshold is not None and (value > threshold if largest else value < threshold):
                least, change = ("most", "raise") if largest else ("least", "lower")
                yield RecordingError(
                    code,
                    f"{name}: {what.format(self)} is {style.format(value)}; expected at {least} "
                    f"{style.format(threshold)}. Leave it out, or {change} {rule}.",
                )


def measure(recording: Recording, atlas: Atlas, rules: QualityRules) -> Quality:
    """Measure a recording that `check_signal` let pass. Every measure is finite or NaN.

    The recording's mean FD counts where it has no trace of it, and its tSNR, which is that before cleaning, before that
    of its signal. The thresholds of `rules` decide which frames are of motion, and which are spikes.
    """
    trace, censored = recording.framewise_displacement.astype(np.float64), recording.censored
    moved = trace[np.isfinite(trace)]
    n_frames, coverage = len(recording.signal), recording.coverage
    values = recording.signal[:, coverage].astype(np.float64)
    dvars = standardized_dvars(values)
    dvars = dvars[_both_kept(n_frames, censored)] if dvars.size else dvars
    with threadpool_limits(1):  # products of matrices by several threads differ in their last digits
        correlations = _pairs(connectivity(values))
        slope = _slope(distances(atlas.coordinates[coverage]) / 100, fisher_z(correlations))
    known = dvars.size > 0
    return Quality(
        n_acquired=max(trace.size, censored.size) or n_frames,
        n_censored=int(censored.sum()),
        mean_fd=float(moved.mean()) if moved.size else _finite(recording.mean_fd),
        fd_over=float((moved > rules.fd_threshold).sum() / trace.size) if moved.size else math.nan,
        tsnr=_finite(recording.tsnr if math.isfinite(recording.tsnr) else temporal_snr(values)),
        dvars=_finite(dvars.mean()) if known else math.nan,
        dvars_over=float((dvars > rules.dvars_threshold).mean()) if known else math.nan,
        mean_fc=float(correlations.mean()) if correlations.size else math.nan,
        fc_distance_slope=slope,
        fd_threshold=rules.fd_threshold,
        dvars_threshold=rules.dvars_threshold,
    )


def standardized_dvars(signal: np.ndarray) -> np.ndarray:
    """Root mean square [T - 1] over parcels of the change of a signal [T, P], each in units of what is expected of it.

    A parcel of robust standard deviation s (interquartile range / 1.349) and first autocorrelation r is expected to
    change by s sqrt(2 (1 - r)) (Nichols 2013), so that a stationary signal has values about 1, whatever its units and
    filter. Parcels with an interquartile range of 0 are left out; empty if no parcel can be measured.
    """
    values = signal - signal.mean(axis=0, dtype=np.float64)
    low, high = np.percentile(values, [25, 75], axis=0, method="lower")
    values = values[:, high > low]
    if values.shape[1] == 0:
        return np.empty(0)
    spread = (high - low)[high > low] / 1.349
    values = values / spread
    autocorrelation = (values[1:] * values[:-1]).sum(axis=0) / (values**2).sum(axis=0)
    change = np.diff(values, axis=0) ** 2 / (2 * (1 - autocorrelation))
    return np.sqrt(change.mean(axis=1))


def acquired_frames(n_frames: int, censored: np.ndarray) -> np.ndarray:
    """Place [T] of a signal's frames among those as acquired: with gaps, if the `censored` [A] were dropped."""
    kept = np.flatnonzero(~censored)
    return kept if kept.size == n_frames else np.arange(n_frames)


def connectivity(signal: np.ndarray) -> np.ndarray:
    """Pearson correlation [P, P] of the parcels of a signal [T, P]; NaN where a parcel does not change."""
    values = signal - signal.mean(axis=0, dtype=np.float64)
    length = np.sqrt((values**2).sum(axis=0))
    values = np.divide(values, length, out=np.full_like(values, np.nan), where=length > 0)
    return np.clip(values.T @ values, -1, 1)


def fisher_z(correlation: np.ndarray) -> np.ndarray:
    """Fisher's z of correlations, finite at 1."""
    return np.arctanh(np.clip(correlation, -_LARGEST_R, _LARGEST_R))


def _both_kept(n_frames: int, censored: np.ndarray) -> np.ndarray:
    """Which changes [T - 1] lead from one frame to the very next, neither of them interpolated."""
    interpolated = censored if censored.size == n_frames else np.zeros(n_frames, bool)
    neighbours = np.diff(acquired_frames(n_frames, censored)) == 1
    return neighbours & ~interpolated[1:] & ~interpolated[:-1]


def distances(places: np.ndarray) -> np.ndarray:
    """Euclidean distance of every pair of places [P, 3], in the order of `_pairs`."""
    first, second = np.triu_indices(len(places), 1)
    return np.linalg.norm(places[first] - places[second], axis=1)


def _pairs(matrix: np.ndarray) -> np.ndarray:
    """Every pair of a symmetric matrix once."""
    return matrix[np.triu_indices(len(matrix), 1)]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least-squares slope of y over x; NaN where x does not vary."""
    if x.size < 2 or np.ptp(x) == 0:
        return math.nan
    away = x - x.mean()
    return float(away @ y / (away @ away))


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def temporal_snr(signal: np.ndarray) -> float:
    """Median over parcels of mean/sd over time, of a signal [T, P] with its own mean.

    NaN where the means are gone (demeaned, filtered or standardized series), since the ratio then says nothing.
    """
    deviation = signal.std(axis=0, dtype=np.float64)
    kept = deviation > 0
    if not kept.any():
        return math.nan
    ratio = float(np.median(signal.mean(axis=0, dtype=np.float64)[kept] / deviation[kept]))
    return ratio if ratio > 3 else math.nan


def check_signal(signal: np.ndarray, name: str, atlas: Atlas, rules: QualityRules) -> np.ndarray:
    """Check one recording [T, P] against its atlas and `rules`.

    Returns
    -------
    numpy.ndarray
        Coverage [P], False where a parcel is missing: NaN throughout, or constant but for rounding.

    Raises
    ------
    RecordingError
        With code ``wrong-parcels``, ``too-short``, ``constant``, ``nan``, ``infinite``, ``out-of-range`` or
        ``low-coverage``.
    """
    n_frames, n_parcels = signal.shape
    if n_parcels != atlas.n_parcels:
        raise RecordingError(
            "wrong-parcels",
            f"{name}: has {n_parcels} columns; expected the {atlas.n_parcels} parcels of {atlas.name}. "
            "Name the right atlas, or pick columns with --columns.",
        )
    if fault := rules._too_short(name, n_frames):
        raise fault
    if np.isinf(signal).any():
        raise RecordingError("infinite", f"{name}: holds infinite values; expected finite ones. Clean it first.")
    largest = float(np.nanmax(np.abs(signal), initial=0))
    if largest > LARGEST_VALUE:
        raise RecordingError(
            "out-of-range",
            f"{name}: holds values of {largest:.0e}; expected at most {LARGEST_VALUE:.0e}, whose squares float32 can "
            "still add up. Find out which step made them, and clean it first.",
        )
    nan = np.isnan(signal)
    missing = nan.all(axis=0)
    if nan[:, ~missing].any():
        frames, parcels = np.nonzero(nan & ~missing)
        raise RecordingError(
            "nan",
            f"{name}: has NaN in {np.unique(frames).size} frames of {np.unique(parcels).size} parcels; expected "
            "numbers, or NaN in a whole parcel that is missing. Interpolate or drop those frames first.",
        )
    coverage = carries_signal(*range_over_time(signal))
    if not coverage.any():
        raise RecordingError(
            "constant",
            f"{name}: no parcel changes over time by more than rounding does; expected BOLD signals. Check how it was "
            "extracted.",
        )
    if fault := rules._low_coverage(name, float(coverage.mean())):
        raise fault
    return coverage
