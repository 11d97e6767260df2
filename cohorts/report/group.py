"""What the recordings of a cohort have in common, and which to look at first. Memory does not grow with them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist, squareform

from cohorts.atlas import Atlas
from cohorts.quality import QualityRules, connectivity, fisher_z
from cohorts.recording import Recording
from cohorts.report.page import Shown

MOST_READ = 1000
"""Recordings that are read for the group's figures; of a larger cohort, a sample of its participants is."""
FEWEST_FOR_QC_FC = 10
"""Participants with known framewise displacement, below which correlations with it say nothing."""


@dataclass(frozen=True)
class Measure:
    """One column of the table of recordings, as people read it."""

    column: str
    title: str
    """What it is called."""
    unit: str
    decimals: int
    """Digits that mean something."""
    worse: str
    """Which end is the bad one."""
    worst: str
    """What is said of the recording at that end."""
    rule: str = ""
    """The threshold among `QualityRules`, in units of the column times `rule_scale`; empty where there is none."""
    scale: float = 1.0
    """What the column is multiplied by to be in `unit`."""
    rule_scale: float = 1.0

    def limit(self, rules: QualityRules) -> float | None:
        """Threshold in the measure's unit; None if the rules have none."""
        value = getattr(rules, self.rule) if self.rule else None
        if value is None or (value == 0 and self.worse == "low"):
            return None
        return float(value * self.scale * self.rule_scale)

    def is_beyond(self, values: pd.Series, rules: QualityRules) -> pd.Series:
        """Whether values of the column are beyond the threshold; unknown ones are not."""
        limit = self.limit(rules)
        if limit is None:
            return pd.Series(False, index=values.index)
        return values * self.scale > limit if self.worse == "high" else values * self.scale < limit

    def shown(self, value: float) -> Shown:
        """Value of the column in the measure's unit, and its text without the unit."""
        if math.isnan(value):
            return Shown(None, "not known")
        return Shown(value * self.scale, f"{value * self.scale:.{self.decimals}f}".replace("-", "−"))

    def text(self, value: float) -> str:
        """Value of the column with its unit."""
        unit = "" if math.isnan(value) else f"{'' if self.unit in ('', '%') else ' '}{self.unit}"
        return f"{self.shown(value).text}{unit}"


MEASURES = (
    Measure("mean_fd", "mean FD", "mm", 2, "high", "highest mean FD", "max_mean_fd"),
    Measure("fd_over", "frames of motion", "%", 1, "high", "most frames of motion", "max_fd_over", scale=100),
    Measure(
        "minutes", "length after censoring", "min", 1, "low", "shortest after censoring", "min_seconds",
        rule_scale=1 / 60,
    ),
    Measure("dvars", "mean DVARS", "", 2, "high", "highest mean DVARS"),
    Measure("dvars_over", "spikes of DVARS", "%", 1, "high", "most spikes of DVARS", "max_dvars_over", scale=100),
    Measure("tsnr", "temporal SNR", "", 0, "low", "lowest temporal SNR", "min_tsnr"),
    Measure("coverage", "parcels with signal", "%", 1, "low", "fewest parcels with signal", "min_coverage", scale=100),
    Measure("mean_fc", "mean connectivity", "", 2, "high", "highest mean connectivity", "max_mean_fc"),
    Measure("fc_distance_slope", "distance slope", "z / 100 mm", 2, "low", "steepest fall with distance"),
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Sums over the recordings that were read."""

    n_recordings: int
    n_participants: int
    """Whose recordings they are."""
    coverage: np.ndarray
    """[P], fraction of recordings in which a parcel has a signal."""
    connectivity: np.ndarray
    """[P, P], mean over participants in Fisher's z, as a correlation; NaN where no recording covers both."""
    distance: np.ndarray
    """[E] in mm between the centroids, E = P (P - 1) / 2 pairs."""
    qc_fc: np.ndarray
    """[E], correlation over participants of a pair's connectivity with mean FD; empty where too few know it."""
    n_qc_fc: int
    """Participants behind `qc_fc`."""


def with_lengths(table: pd.DataFrame, n_parcels: int) -> pd.DataFrame:
    """Add coverage (fraction) and minutes left after censoring to the table of recordings."""
    left = np.minimum(table["n_frames"], table["n_acquired"] - table["n_censored"])
    return table.assign(coverage=1 - table["n_missing_parcels"] / n_parcels, minutes=left * table["t_r"] / 60)


def read_group(table: pd.DataFrame, read: Callable[[str], Recording], atlas: Atlas, most: int = MOST_READ) -> Group:
    """Read the recordings of a table by their ids, participant by participant, until they are `most` or more."""
    upper = np.triu_indices(atlas.n_parcels, 1)
    covered, n_read, n_people = np.zeros(atlas.n_parcels), 0, 0
    moments, motion = _Moments(upper[0].size), _Moments(upper[0].size)
    middle = np.nan_to_num(table["mean_fd"].mean())  # so that sums of squares lose no digits
    people = list(table.groupby("participant_id", sort=True))
    for number in np.random.default_rng(0).permutation(len(people)):
        if n_read >= most:
            break
        runs = people[number][1]
        z = _Moments(upper[0].size)
        for recording_id in runs["recording_id"]:
            recording = read(recording_id)
            covered += recording.coverage
            signal = np.where(recording.coverage, recording.signal, 0)
            z.add(fisher_z(connectivity(signal)[upper]))
        n_read, n_people = n_read + len(runs), n_people + 1
        moments.add(z.mean())
        if math.isfinite(mean_fd := runs["mean_fd"].mean()):
            motion.add(z.mean(), mean_fd - middle)
    mean = squareform(np.tanh(moments.mean()))
    np.fill_diagonal(mean, 1)
    enough = motion.largest >= FEWEST_FOR_QC_FC
    return Group(
        n_recordings=n_read,
        n_participants=n_people,
        coverage=covered / max(n_read, 1),
        connectivity=mean,
        distance=pdist(atlas.coordinates),
        qc_fc=motion.correlation() if enough else np.empty(0),
        n_qc_fc=motion.largest,
    )


class _Moments:
    """Running sums over vectors [E] with gaps, and over a number beside each."""

    def __init__(self, size: int) -> None:
        self._n, self._x, self._xx, self._y, self._yy, self._xy = np.zeros((6, size))

    @property
    def largest(self) -> int:
        """Vectors in which the least absent element was known."""
        return int(self._n.max(initial=0))

    def add(self, x: np.ndarray, y: float = 0.0) -> None:
        known = np.isfinite(x)
        x = np.where(known, x, 0)
        self._n += known
        self._x += x
        self._xx += x * x
        self._y += known * y
        self._yy += known * y * y
        self._xy += x * y

    def mean(self) -> np.ndarray:
        return np.divide(self._x, self._n, out=np.full(self._n.size, np.nan), where=self._n > 0)

    def correlation(self) -> np.ndarray:
        """Pearson's r [E], NaN where there are too few or nothing varies."""
        n = np.maximum(self._n, 1)
        spread = (self._xx - self._x**2 / n) * (self._yy - self._y**2 / n)
        usable = (self._n >= FEWEST_FOR_QC_FC) & (spread > 1e-12 * self._xx * self._yy)
        shared = self._xy - self._x * self._y / n
        return np.divide(shared, np.sqrt(np.where(usable, spread, 1)), out=np.full(n.size, np.nan), where=usable)


def worth_a_look(table: pd.DataFrame, most: int) -> dict[str, list[str]]:
    """Recordings that are worst by some measure, and by which: the worst of each, then the second worst of each.

    Returns reasons, such as ``highest mean FD``, by recording_id, of at most `most` recordings. Only what is worse than
    the median counts.
    """
    order = {
        measure: table.loc[_is_worse(table[measure.column], measure.worse)].sort_values(
            [measure.column, "recording_id"], ascending=[measure.worse == "low", True]
        )["recording_id"]
        for measure in MEASURES
    }
    found: dict[str, list[str]] = {}
    for rank in range(most):
        place = ("", "second ", "third ")[rank] if rank < 3 else f"{rank + 1}th "
        for measure, ids in order.items():
            if rank >= len(ids):
                continue
            recording_id = ids.iloc[rank]
            said_before = recording_id in found
            if (rank < 3 and said_before) or (not said_before and len(found) < most):
                found.setdefault(recording_id, []).append(place + measure.worst)
    return found


def _is_worse(column: pd.Series, worse: str) -> pd.Series:
    return column > column.median() if worse == "high" else column < column.median()
