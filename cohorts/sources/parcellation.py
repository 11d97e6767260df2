"""One NIfTI run into parcel signals: means over voxels, coverage, confounds, filters and censored frames.

The results equal those of nilearn's ``NiftiLabelsMasker``; what differs is that a run is read volume by volume, so that
memory does not grow with its length, and that every parcel of the atlas keeps its column.
"""

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nilearn.image import resample_img
from nilearn.image.resampling import BoundingBoxError
from nilearn.signal import clean

from cohorts.atlas import Atlas
from cohorts.cohort import Scale
from cohorts.errors import CohortError, RecordingError
from cohorts.quality import temporal_snr
from cohorts.signals import carries_signal
from cohorts.sources.bids import header_notices, repetition_time
from cohorts.sources.censoring import interpolate_censored
from cohorts.sources.confounds import Confounds
from cohorts.sources.formats import IMAGES
from cohorts.sources.images import (
    affine_of,
    header_repetition_time,
    read_frames,
    read_header,
    read_volume,
    require_frames,
)
from cohorts.sources.kinds import Reading, Run, check_given_t_r
from cohorts.sources.volumes import LabelImage, read_labels

Censoring = Literal["interpolate", "drop", "none"]
_SAME_GRID = 1e-5
"""Largest difference of two affines, mm, that are one grid."""


@dataclass(frozen=True)
class Cleaning:
    """How the parcels' signals are cleaned, by ``nilearn.signal.clean``."""

    detrend: bool = False
    """Remove a line over time."""
    high_pass: float | None = None
    low_pass: float | None = None
    """Cutoffs in Hz of a Butterworth filter, fifth order, forwards and backwards."""
    standardize: Literal["zscore_sample"] | None = None
    """None keeps units and mean; else each parcel gets mean 0 and standard deviation 1 over the kept frames."""
    censoring: Censoring = "interpolate"
    """What becomes of frames that the confounds' strategy censors. None of them takes part in the fit, except with
    ``none``. ``interpolate`` then fills them from their neighbours by a cubic spline, and holds the ends, so that
    frames stay evenly spaced; ``drop`` removes them; ``none`` treats them as the others."""
    min_parcel_coverage: float = 0.5
    """Least fraction of a parcel's voxels with signal in the brain mask; below it the parcel is missing. 0.5 is XCP-D's
    default."""

    def __post_init__(self) -> None:
        cutoffs = [cutoff for cutoff in (self.high_pass, self.low_pass) if cutoff is not None]
        if not all(math.isfinite(cutoff) and cutoff > 0 for cutoff in cutoffs) or cutoffs != sorted(set(cutoffs)):
            raise CohortError(
                f"Filters of {self.high_pass} to {self.low_pass} Hz: expected a high-pass cutoff above 0 and a "
                "low-pass cutoff above it. Correct them."
            )
        if not 0 < self.min_parcel_coverage <= 1:
            raise CohortError(f"Parcel coverage of {self.min_parcel_coverage}: expected a fraction above 0, up to 1.")
        if self.censoring not in get_args(Censoring):
            raise CohortError(f"Censoring '{self.censoring}': expected interpolate, drop or none.")

    @property
    def filtered(self) -> bool:
        return self.high_pass is not None or self.low_pass is not None

    @property
    def id(self) -> str:
        """A short name of the filters and the scale, such as ``highpass-0.01_lowpass-0.1_zscore``; empty if none."""
        cutoffs = {"highpass": self.high_pass, "lowpass": self.low_pass}
        filters = [f"{name}-{cutoff:g}" for name, cutoff in cutoffs.items() if cutoff is not None]
        return "_".join(["detrend"] * self.detrend + filters + ["zscore"] * bool(self.standardize))


@dataclass(frozen=True)
class ImageSource(ABC):
    """What sources of images have in common, as `cohorts.sources.kinds.Source`."""

    root: Path
    """The folder."""
    label_image: LabelImage
    """The parcels."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    """Filters, standardization, and what becomes of censored frames; a plain table of confounds censors none."""
    space: str = ""
    """Space of the images, such as ``MNI152NLin6Asym`` or ``MNIInfant:cohort-1``: of a tree's the one to take, the
    label image's if empty; of plain images where their names (``space-``) do not say it."""
    allow_space: str = ""
    """A space other than the label image's that is accepted; see `check_space`."""
    t_r: float | None = None
    """Repetition time in seconds, where no sidecar says it; must agree with those that do. Headers do not count."""

    def __post_init__(self) -> None:
        check_given_t_r(self.t_r)

    @property
    def atlas(self) -> Atlas:
        return self.label_image.atlas

    @property
    def scaling(self) -> Scale:
        return "zscore" if self.cleaning.standardize else "raw"

    def read(self, run: Run) -> Reading:
        """Read one run, of whose files the first is the image; the others tell by their endings what they are."""
        bold, *others = run.files
        header = read_header(bold)
        n_frames = require_frames(header, bold)
        declared = header_repetition_time(header)
        sidecars = [path for path in others if path.suffix == ".json" and "_desc-confounds_" not in path.name]
        t_r = repetition_time(sidecars, bold.name, header=declared, given=self.t_r)
        table = next((path for path in others if not path.name.endswith((*IMAGES, ".json"))), None)
        return parcellate(
            bold,
            self.label_image,
            t_r=t_r,
            confounds=self._load_confounds(bold, table, n_frames) if table else None,
            mask=next((path for path in others if path.name.endswith(IMAGES)), None),
            cleaning=self.cleaning,
            notices=header_notices(declared, t_r),
        )

    @abstractmethod
    def _load_confounds(self, bold: Path, table: Path, n_frames: int) -> Confounds:
        """Load the confounds of an image of so many frames."""

    def _in_words(self, maker: str, *confounds: str) -> str:
        """Id of the preprocessing."""
        space = f"space-{self.space or self.label_image.space}".replace(":", "_")
        return "_".join(filter(None, (maker, space, *confounds, self.cleaning.id)))


def parcellate(
    bold: Path,
    label_image: LabelImage,
    *,
    t_r: float,
    confounds: Confounds | None = None,
    mask: Path | None = None,
    cleaning: Cleaning | None = None,
    notices: tuple[str, ...] = (),
) -> Reading:
    """Read one run as signals of parcels.

    Parameters
    ----------
    bold : Path
        4D NIfTI in the space of `label_image`, of any grid: labels are resampled to it with nearest neighbours.
    t_r : float
        Repetition time in seconds; NaN if unknown, which filters refuse.
    confounds : Confounds, optional
        Regressors and censored frames.
    mask : Path, optional
        Brain mask of the run: voxels outside it are left out of the means.
    notices : tuple of str
        What the reading is to say.

    Raises
    ------
    RecordingError
        If a file is broken, the parcels lie outside the image, or too few frames are left.
    """
    cleaning = cleaning or Cleaning()
    means, coverage = extract_means(bold, label_image, mask=mask)
    covered = coverage >= cleaning.min_parcel_coverage
    if not covered.any():
        raise RecordingError(
            "no-coverage",
            f"{bold.name}: no parcel of {label_image.atlas.name} has {cleaning.min_parcel_coverage:.0%} of its voxels "
            "with signal; expected a run and a brain mask that cover the brain. Check its space, orientation and mask.",
        )
    confounds = confounds or Confounds(np.empty((len(means), 0)))
    moved = np.empty(0, bool) if cleaning.censoring == "none" else confounds.censored
    censored = moved if moved.size else np.zeros(len(means), bool)
    signals = np.asfortranarray(means[:, covered])
    cleaned = clean_signals(signals, censored, cleaning, name=bold.name, t_r=t_r, regressors=confounds.regressors)
    full = np.full((len(cleaned), label_image.atlas.n_parcels), np.nan, np.float32)
    full[:, covered] = cleaned
    return Reading(
        signal=full,
        t_r=t_r,
        tsnr=temporal_snr(signals[~censored]),
        framewise_displacement=confounds.framewise_displacement,
        censored=moved,
        notices=notices,
    )


def extract_means(bold: Path, label_image: LabelImage, *, mask: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Average the voxels of each parcel in each volume, as ``NiftiLabelsMasker`` does with the same mask.

    Voxels that are NaN or infinite throughout count as zero, and as without signal. Errors as `parcellate`.

    Returns
    -------
    means : numpy.ndarray
        [A, P], before any cleaning; float32 where the file holds float32 and float64 elsewhere, as nilearn has it.
    coverage : numpy.ndarray
        [P] fraction of each parcel's voxels that lie in the field of view and the brain mask and carry a signal, as
        `carries_signal` judges.
    """
    header = read_header(bold)
    n_frames = require_frames(header, bold)
    shape, affine = header.get_data_shape()[:3], affine_of(header, bold)
    regions = _place(label_image.path, _stamp(label_image.path), label_image.values, shape, affine.tobytes())
    within = np.ones(regions.voxels.size, bool) if mask is None else _read_mask(mask, shape, affine)[regions.voxels]
    voxels, parcels = regions.voxels[within], regions.parcels[within]
    n_parcels = label_image.atlas.n_parcels
    counts = np.bincount(parcels, minlength=n_parcels)
    signals = np.empty((n_frames, n_parcels), np.float32 if header.get_data_dtype() == np.float32 else np.float64)
    lowest, highest = np.full(voxels.size, np.inf), np.full(voxels.size, -np.inf)
    unusable = np.zeros(voxels.size, np.int64)
    for number, frame in enumerate(read_frames(bold, header)):
        values = frame.ravel(order="F")[voxels]
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            if not finite.all():
                unusable += ~finite
                values = np.where(finite, values, 0)
        np.minimum(lowest, values, out=lowest)
        np.maximum(highest, values, out=highest)
        with np.errstate(invalid="ignore"):
            signals[number] = np.bincount(parcels, weights=values, minlength=n_parcels) / counts
    broken = (unusable > 0) & (unusable < n_frames)
    if broken.any():
        raise RecordingError(
            "nan-voxels",
            f"{bold.name}: {int(broken.sum())} voxels of parcels are NaN or infinite in some volumes and not in "
            "others; expected finite numbers. Find out which step of the preprocessing made them.",
        )
    with_signal = np.bincount(parcels[carries_signal(lowest, highest)], minlength=n_parcels)
    coverage = regions.in_view * with_signal / np.maximum(regions.sizes, 1)
    return signals, coverage


def clean_signals(
    signals: np.ndarray,
    censored: np.ndarray,
    cleaning: Cleaning,
    *,
    name: str,
    t_r: float = math.nan,
    regressors: np.ndarray | None = None,
) -> np.ndarray:
    """Clean signals [A, P] by ``nilearn.signal.clean``, and drop or interpolate their censored frames.

    Parameters
    ----------
    censored : numpy.ndarray
        [A] bool.
    name : str
        The run's file name, for messages.
    regressors : numpy.ndarray, optional
        [A, C] confounds, one row a frame as acquired.

    Returns
    -------
    numpy.ndarray
        [A, P] with censored frames interpolated, or [A - censored, P] with them dropped.
    """
    regressors = np.empty((len(signals), 0)) if regressors is None else regressors
    _check_frames(signals, censored, cleaning, name, t_r, regressors)
    kept = ~censored
    with warnings.catch_warnings(action="ignore"):  # what they are about is checked above
        if cleaning.filtered:
            signals, regressors = (_filtered(values, kept, cleaning, t_r) for values in (signals, regressors))
        else:
            signals, regressors = signals[kept], regressors[kept]
        cleaned = clean(
            signals,
            detrend=cleaning.detrend and not cleaning.filtered,
            standardize=cleaning.standardize,
            confounds=regressors if regressors.size else None,
        )
    if cleaning.censoring == "drop":
        return cleaned
    return interpolate_censored(cleaned, kept) if censored.any() else cleaned


def _filtered(values: np.ndarray, kept: np.ndarray, cleaning: Cleaning, t_r: float) -> np.ndarray:
    """Detrend and filter signals or regressors, and return their kept frames.

    Censored frames are interpolated before the filter, and censored ends left out of it, so that they do not ring into
    their neighbours (Lindquist et al. 2019, https://doi.org/10.1002/hbm.24528). ``clean`` says that it does so too,
    given a ``sample_mask``, but in nilearn 0.13.1 it indexes the frames to fill from the wrong end and leaves most
    censored frames as they were.
    """
    if not values.size:
        return values[kept]
    span = slice(kept.argmax(), len(kept) - kept[::-1].argmax())
    return clean(
        interpolate_censored(values[kept], kept[span]),
        detrend=cleaning.detrend,
        standardize=None,
        low_pass=cleaning.low_pass,
        high_pass=cleaning.high_pass,
        t_r=t_r,
    )[kept[span]]


def _check_frames(
    signals: np.ndarray, censored: np.ndarray, cleaning: Cleaning, name: str, t_r: float, regressors: np.ndarray
) -> None:
    """Refuse what cannot be cleaned, before it is tried."""
    for what, given in (("confounds", regressors), ("censored frames", censored)):
        if len(given) != len(signals):
            raise RecordingError(
                "confounds-length",
                f"{name}: has {len(signals)} volumes, but its {what} {len(given)} rows; "
                "expected as many, from the same run. Find the confounds of this run.",
            )
    n_kept = int((~censored).sum())
    if n_kept == 0:
        raise RecordingError(
            "all-censored",
            f"{name}: all of its {len(signals)} frames are censored for motion; expected some to be left. "
            "Leave it out, or raise the thresholds.",
        )
    n_regressors = regressors.shape[1]
    # scipy's sosfiltfilt pads a fifth-order band pass by 33 frames at each end, and needs more than those.
    needed = max(n_regressors + 2, 34 if cleaning.filtered else 2)
    if n_kept < needed:
        raise RecordingError(
            "too-few-frames",
            f"{name}: {n_kept} of {len(signals)} frames are left after censoring; expected at least {needed} for "
            f"{n_regressors} confounds. Leave it out, raise the thresholds, or take a strategy with fewer confounds.",
        )
    if cleaning.filtered and not math.isfinite(t_r):
        raise RecordingError("no-tr", f"{name}: its repetition time is not known, and filters need it. Name it.")
    highest = max(cleaning.low_pass or 0, cleaning.high_pass or 0)
    if cleaning.filtered and highest >= 0.5 / t_r:
        raise RecordingError(
            "filter",
            f"{name}: a cutoff of {highest:g} Hz needs more than {2 * highest:g} volumes a second; expected a cutoff "
            f"below {0.5 / t_r:.3g} Hz at a repetition time of {t_r:g} s. Lower it.",
        )


@dataclass(frozen=True)
class _Regions:
    """Where the parcels lie on one grid: flat numbers of their voxels in Fortran order, listed in C order.

    nilearn sums voxels in C order, and the same order gives the same rounding.
    """

    voxels: np.ndarray
    parcels: np.ndarray
    sizes: np.ndarray
    in_view: np.ndarray
    """[P] fraction of each parcel that lies in the field of view."""


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with the content of a file; nothing where it is gone, which reading it tells."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=2)
def _place(
    path: Path, _stamp: tuple[int, ...], values: tuple[int, ...], shape: tuple[int, ...], affine_bytes: bytes
) -> _Regions:
    """Resample a label image to a grid. Runs of one site share their grid, so it is kept."""
    affine = np.frombuffer(affine_bytes).reshape(4, 4)
    numbers, own_affine = read_labels(path)
    known = np.array(values)
    order = np.argsort(known)
    voxels_of_image = np.argwhere(numbers > 0)
    column = order[np.searchsorted(known[order], numbers[numbers > 0])]
    places = apply_affine(np.linalg.inv(affine) @ own_affine, voxels_of_image)
    visible = ((places > -0.5) & (places < np.array(shape) - 0.5)).all(axis=1)
    in_view = np.bincount(column[visible], minlength=len(known)) / np.bincount(column, minlength=len(known))
    on_grid = _to_grid(numbers, own_affine, shape, affine)
    where = np.nonzero(on_grid)
    parcels = order[np.searchsorted(known[order], on_grid[where])]
    voxels = np.ravel_multi_index(where, shape, order="F")
    return _Regions(voxels, parcels, np.bincount(parcels, minlength=len(known)), in_view)


def _read_mask(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Read a brain mask on the run's grid, flat in Fortran order."""
    header = read_header(path)
    inside = np.nan_to_num(read_volume(path, header)) != 0
    return _to_grid(inside.astype(np.int8), affine_of(header, path), shape, affine).ravel(order="F") != 0


def _to_grid(numbers: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """Resample labels to a grid with nearest neighbours, by nilearn."""
    if numbers.shape == tuple(shape) and np.abs(affine - target).max() < _SAME_GRID:
        return numbers
    try:
        with warnings.catch_warnings(action="ignore"):  # meant for nilearn's own developers
            image = resample_img(nib.Nifti1Image(numbers, affine), target, shape, interpolation="nearest")
    except BoundingBoxError:  # the grid lies beside all of it
        return np.zeros(shape, numbers.dtype)
    return np.asanyarray(image.dataobj)
