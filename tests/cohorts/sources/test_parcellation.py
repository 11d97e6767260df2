"""Parcel signals equal NiftiLabelsMasker's, keep every column of the atlas, and never show a censored frame."""

import gc
import warnings
from dataclasses import replace

import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker
from nilearn.signal import clean

from cohorts.errors import CohortError, RecordingError
from cohorts.sources.confounds import Confounds
from cohorts.sources.parcellation import Cleaning, clean_signals, extract_means, parcellate
from cohorts.sources.volumes import load_label_image
from tests.support.volumes import AFFINE, SHAPE, SPACE, block_labels, noise, paint, save_nifti, write_labels

N_FRAMES = 80
T_R = 2.0


@pytest.fixture(scope="module", autouse=True)
def _little_garbage():
    """NiftiLabelsMasker collects garbage at each look at an image; spare it what other tests imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def labels(tmp_path):
    image, table = write_labels(tmp_path)
    return load_label_image(image=image, labels=table)


@pytest.fixture
def noisy(tmp_path):
    """A run whose voxels all differ, on a grid that is not the label image's, and its brain mask."""
    rng = np.random.default_rng(0)
    affine = np.array([[3.0, 0.3, 0, -21], [-0.3, 3, 0, -23], [0, 0, 5, -18], [0, 0, 0, 1]])
    run = save_nifti(tmp_path / "run.nii.gz", rng.normal(1000, 20, (13, 15, 7, N_FRAMES)).astype(np.float32), affine)
    mask = save_nifti(tmp_path / "mask.nii.gz", (rng.random((13, 15, 7)) < 0.9).astype(np.uint8), affine)
    return run, mask


def by_nilearn(run, labels, mask=None, confounds=None, sample_mask=None, **options) -> np.ndarray:
    masker = NiftiLabelsMasker(
        labels.path, mask_img=mask, resampling_target="data", reports=False, **{"standardize": None, **options}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return masker.fit_transform(run, confounds=confounds, sample_mask=sample_mask)


def test_voxels_that_are_constant_but_for_rounding_do_not_cover_a_parcel(tmp_path, labels):
    signals = noise(N_FRAMES)
    signals[:, 2] = 1e-12 * (signals[:, 2] - 1000)
    signals[:, 5] = np.where(signals[:, 5] > 1000, np.float32(1000), np.nextafter(np.float32(1000), np.float32(0)))
    run = save_nifti(tmp_path / "run.nii.gz", paint(signals))

    assert extract_means(run, labels)[1].tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    assert np.isnan(parcellate(run, labels, t_r=T_R).signal).all(axis=0).tolist() == [n in (2, 5) for n in range(8)]


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("with_confounds", [False, True], ids=["no confounds", "confounds"])
@pytest.mark.parametrize("censored", [(), (0, 1), (5, 6, 30)], ids=["none censored", "start", "middle"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"standardize": "zscore_sample"},
        {"detrend": True},
        {"high_pass": 0.01},
        {"low_pass": 0.1, "high_pass": 0.01, "detrend": True, "standardize": "zscore_sample"},
    ],
    ids=lambda options: ",".join(options) or "means alone",
)
def test_signals_equal_those_of_nilearn(noisy, labels, masked, with_confounds, censored, options):
    """The censored frames lie where nilearn 0.13.1 interpolates before a filter as it says; see the next test."""
    run, mask = noisy[0], noisy[1] if masked else None
    rng = np.random.default_rng(1)
    confounds = rng.standard_normal((N_FRAMES, 6)).cumsum(axis=0) if with_confounds else None
    kept = np.setdiff1d(np.arange(N_FRAMES), censored)
    theirs = by_nilearn(
        run, labels, mask, confounds, kept if censored else None, t_r=T_R if "high_pass" in options else None, **options
    )
    ours = parcellate(
        run,
        labels,
        t_r=T_R,
        mask=mask,
        confounds=Confounds(
            np.empty((N_FRAMES, 0)) if confounds is None else confounds,
            ~np.isin(np.arange(N_FRAMES), kept),
        ),
        cleaning=Cleaning(censoring="drop", min_parcel_coverage=0.3, **options),
    )
    assert theirs.shape == ours.signal.shape
    assert ours.signal.dtype == np.float32
    assert np.abs(ours.signal / np.abs(theirs).max() - theirs / np.abs(theirs).max()).max() < 1e-6


def test_frames_that_moved_do_not_ring_through_a_filter(labels):
    """A spike in a censored frame changes nothing, wherever it lies; nilearn 0.13.1 alone lets some through."""
    signals = noise(N_FRAMES) - 1000
    options = {"low_pass": 0.1, "high_pass": 0.01, "detrend": True}
    for censored in ([20], [60], [20, 59], [0, 1, 40], [78, 79], [0, 30, 79]):
        spiked = signals.copy()
        spiked[censored] = 10_000
        bad = np.isin(np.arange(N_FRAMES), censored)
        arguments = {"name": "run", "t_r": T_R}
        cleaned = clean_signals(spiked, bad, Cleaning(censoring="drop", **options), **arguments)
        assert cleaned == pytest.approx(clean_signals(signals, bad, Cleaning(censoring="drop", **options), **arguments))
        assert np.abs(cleaned).max() < 50
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spiked[:] = signals
        spiked[[20, 59]] = 10_000
        kept = np.setdiff1d(np.arange(N_FRAMES), [20, 59])
        theirs = clean(spiked, sample_mask=kept, standardize=None, t_r=T_R, **options)
    assert np.abs(theirs).max() > 500


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_means_are_nilearn_s_to_the_last_bit(tmp_path, labels, dtype):
    rng = np.random.default_rng(2)
    run = save_nifti(tmp_path / "run.nii.gz", rng.normal(1000, 20, (*SHAPE, 10)).astype(dtype))
    means, coverage = extract_means(run, labels)
    assert np.array_equal(means, by_nilearn(run, labels))
    assert coverage == pytest.approx(np.ones(8))


def test_known_signals_come_back_in_the_atlas_s_order(tmp_path, labels):
    """Label values that are not 1 to P, and a table in another order than the values."""
    table = tmp_path / "labels.tsv"
    values = [70, 3, 50, 41, 12, 6, 90, 8]
    table.write_text("index\tname\n" + "".join(f"{value}\tbrick-{n}\n" for n, value in enumerate(values, start=1)))
    image = save_nifti(tmp_path / "own.nii.gz", np.array([0, *values], np.int16)[block_labels()])
    own = load_label_image(image=image, labels=table, space=SPACE)
    signals = noise(50)
    reading = parcellate(save_nifti(tmp_path / "run.nii.gz", paint(signals)), own, t_r=T_R)
    assert reading.signal == pytest.approx(signals, rel=1e-6)
    assert reading.tsnr == pytest.approx(np.median(signals.mean(axis=0) / signals.std(axis=0)), rel=1e-4)
    assert reading.t_r == T_R
    assert reading.censored.size == reading.framewise_displacement.size == 0


def test_every_parcel_keeps_its_column_and_lost_ones_are_nan(tmp_path, labels):
    """Half of a run's field of view is cut off, another parcel is outside the mask, and a third one has no signal."""
    signals = noise(50)
    signals[:, 1] = 0
    run = paint(signals)
    mask = np.ones(SHAPE, np.uint8)
    mask[block_labels() == 3] = 0
    cut = AFFINE.copy()
    cut[:3, 3] = AFFINE[:3, :3] @ [0, 0, 3] + AFFINE[:3, 3]
    whole = save_nifti(tmp_path / "whole.nii.gz", run)
    half = save_nifti(tmp_path / "half.nii.gz", run[:, :, 3:], cut)
    mask = save_nifti(tmp_path / "mask.nii.gz", mask)

    def lost(reading) -> list[int]:
        missing = np.isnan(reading.signal)
        assert (missing.all(axis=0) == missing.any(axis=0)).all()
        return list(np.flatnonzero(missing.all(axis=0)) + 1)

    assert lost(parcellate(whole, labels, t_r=T_R)) == [2]
    assert lost(parcellate(whole, labels, t_r=T_R, mask=mask)) == [2, 3]
    assert lost(parcellate(half, labels, t_r=T_R, mask=mask)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("threshold", "is_lost"), [(2 / 3, False), (0.67, True)])
def test_coverage_counts_what_the_field_of_view_cuts_off(tmp_path, labels, threshold, is_lost):
    """Of each brick of the lower layer the run has two slices of three."""
    cut = AFFINE.copy()
    cut[:3, 3] = AFFINE[:3, :3] @ [0, 0, 1] + AFFINE[:3, 3]
    run = save_nifti(tmp_path / "run.nii.gz", paint(noise(50))[:, :, 1:], cut)
    assert extract_means(run, labels)[1] == pytest.approx([2 / 3] * 6 + [1] * 2)
    reading = parcellate(run, labels, t_r=T_R, cleaning=Cleaning(min_parcel_coverage=threshold))
    assert np.isnan(reading.signal[:, 0]).all() == is_lost


def test_a_parcel_that_vanishes_on_a_coarse_grid_is_nan(tmp_path):
    numbers = block_labels()
    numbers[numbers == 8] = 0
    numbers[9, 11, 7] = 8  # one voxel, as A424's label 405 has
    image = save_nifti(tmp_path / "sparse.nii.gz", numbers)
    _, table = write_labels(tmp_path)
    own = load_label_image(image=image, labels=table, space=SPACE)
    coarse = np.array([[8.0, 0, 0, -20], [0, 8, 0, -24], [0, 0, 8, -16], [0, 0, 0, 1]])
    run = save_nifti(tmp_path / "run.nii.gz", noise(50, 5 * 6 * 4).T.reshape(5, 6, 4, 50).astype(np.float32), coarse)
    reading = parcellate(run, own, t_r=T_R)
    assert reading.signal.shape == (50, 8)
    assert list(np.flatnonzero(np.isnan(reading.signal).all(axis=0))) == [7]


def test_voxels_without_numbers_count_as_not_covered(tmp_path, labels):
    data = paint(noise(50))
    data[block_labels() == 4] = np.nan
    reading = parcellate(save_nifti(tmp_path / "run.nii.gz", data), labels, t_r=T_R)
    assert list(np.flatnonzero(np.isnan(reading.signal).all(axis=0))) == [3]
    data[0, 0, 0, 7] = np.inf
    with pytest.raises(RecordingError, match=r"^run.nii.gz: 1 voxels of parcels are NaN") as refused:
        parcellate(save_nifti(tmp_path / "run.nii.gz", data), labels, t_r=T_R)
    assert refused.value.code == "nan-voxels"


def test_censored_frames_are_dropped_interpolated_or_kept(tmp_path, labels):
    """Signals that are cubic in time come back where frames are interpolated, and the ends are held."""
    time = np.linspace(-1, 1, 50)[:, None]
    signals = 1000 + 10 * (time**3 - time) + np.arange(1, 9)
    spoilt = signals.copy()
    censored = np.isin(np.arange(50), [0, 1, 20, 21, 22, 49])
    spoilt[censored] = 5000
    run = save_nifti(tmp_path / "run.nii.gz", paint(spoilt))
    confounds = Confounds(np.empty((50, 0)), censored, np.arange(50, dtype=np.float32))
    filled = parcellate(run, labels, t_r=T_R, confounds=confounds)
    assert filled.signal[2:49] == pytest.approx(signals[2:49], abs=2e-3)
    assert filled.signal[[0, 1, 49]] == pytest.approx(signals[[2, 2, 48]], abs=2e-3)
    assert (filled.censored == censored).all()
    assert filled.framewise_displacement[3] == 3
    dropped = parcellate(run, labels, t_r=T_R, confounds=confounds, cleaning=Cleaning(censoring="drop"))
    assert dropped.signal == pytest.approx(signals[~censored], rel=1e-6)
    assert (dropped.censored == censored).all()
    kept = parcellate(run, labels, t_r=T_R, confounds=confounds, cleaning=Cleaning(censoring="none"))
    assert kept.signal == pytest.approx(spoilt, rel=1e-6)
    assert kept.censored.size == 0


@pytest.mark.parametrize(
    ("code", "n_censored", "n_confounds", "options", "t_r"),
    [
        ("too-few-frames", 30, 20, {}, T_R),
        ("too-few-frames", 20, 0, {"high_pass": 0.01}, T_R),
        ("no-tr", 0, 0, {"high_pass": 0.01}, np.nan),
    ],
)
def test_a_run_that_cannot_be_cleaned_is_refused(tmp_path, labels, code, n_censored, n_confounds, options, t_r):
    run = save_nifti(tmp_path / "run.nii.gz", paint(noise(50)))
    confounds = Confounds(np.random.default_rng(0).random((50, n_confounds)), np.arange(50) < n_censored)
    with pytest.raises(RecordingError, match=r"^run.nii.gz: ", check=lambda fault: fault.code == code):
        parcellate(run, labels, t_r=t_r, confounds=confounds, cleaning=Cleaning(**options))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"high_pass": 0.1, "low_pass": 0.01}, "expected a high-pass cutoff above 0 and a low-pass cutoff above it"),
        ({"low_pass": 0}, "expected a high-pass cutoff above 0 and a low-pass cutoff above it"),
        ({"min_parcel_coverage": 0}, "Parcel coverage of 0"),
        ({"censoring": "scrub"}, "Censoring 'scrub'"),
    ],
)
def test_cleaning_that_makes_no_sense_is_refused(wrong, says):
    with pytest.raises(CohortError, match=says):
        replace(Cleaning(), **wrong)


def test_a_real_atlas_on_a_coarse_grid_keeps_all_parcels(tmp_path, real_data):
    """A424 at 2 mm on a grid of 4 mm: nilearn has 423 columns, since label 405 has one voxel."""
    a424 = load_label_image("a424", image=real_data / "atlases" / "A424_res-2mm.nii.gz")
    affine = np.array([[-4.0, 0, 0, 90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])
    data = np.random.default_rng(0).normal(1000, 10, (46, 55, 46, 10)).astype(np.float32)
    run = save_nifti(tmp_path / "run.nii.gz", data, affine)
    reading, theirs = parcellate(run, a424, t_r=T_R), by_nilearn(run, a424)
    missing = np.isnan(reading.signal).all(axis=0)
    assert reading.signal.shape[1] == 424
    assert theirs.shape[1] == 424 - missing.sum()
    assert np.array_equal(reading.signal[:, ~missing], theirs)
