import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from base.settings import read_settings
from cohorts import Recording, RecordingError, load_atlas
from cohorts.atlas import Atlas
from cohorts.quality import QualityRules, check_signal, connectivity, fisher_z, measure, standardized_dvars
from cohorts.recording import Quality, check_recording
from cohorts.signals import carries_signal

ATLAS = load_atlas("schaefer100")
SMALL = Atlas("small", ("a", "b", "c", "d"), np.array([[0, 0, 0], [30, 0, 0], [0, 40, 0], [0, 0, 90.0]]))
GOOD = Quality(
    n_acquired=200, n_censored=0, mean_fd=0.1, fd_over=0.02, tsnr=80, dvars=1, dvars_over=0.01, mean_fc=0.2,
    fc_distance_slope=-0.3, fd_threshold=0.5, dvars_threshold=1.5,
)  # fmt: skip


def measured(signal: np.ndarray, atlas: Atlas = ATLAS, rules: QualityRules | None = None, **known: object) -> Quality:
    return measure(Recording("sub-01", signal, 2.0, **known), atlas, rules or QualityRules())


def autoregressive(n_frames: int, memory: np.ndarray, seed: int = 0) -> np.ndarray:
    """Stationary AR(1) series [T, P] of unit variance."""
    noise = np.random.default_rng(seed).normal(size=(n_frames, memory.size))
    series = noise.copy()
    for frame in range(1, n_frames):
        series[frame] = memory * series[frame - 1] + np.sqrt(1 - memory**2) * noise[frame]
    return series


def test_dvars_of_a_stationary_signal_is_one_whatever_its_memory_and_units():
    memory = np.linspace(-0.5, 0.95, 100)
    units = np.geomspace(1e-3, 1e6, 100)
    dvars = standardized_dvars(autoregressive(20_000, memory) * units + 10 * units)

    assert dvars.shape == (19_999,)
    np.testing.assert_allclose(np.sqrt((dvars**2).mean()), 1, rtol=0.02)
    assert dvars.std() < 0.1


def test_a_spike_shows_in_dvars_at_both_of_its_edges():
    signal = autoregressive(400, np.full(100, 0.6))
    signal[200] += 5
    dvars = standardized_dvars(signal)

    assert np.flatnonzero(dvars > 1.5).tolist() == [199, 200]
    expected = 5 / math.sqrt(2 * (1 - 0.6))
    np.testing.assert_allclose(dvars[[199, 200]], expected, rtol=0.15)
    assert measured(signal.astype(np.float32)).dvars_over == pytest.approx(2 / 399)
    assert measured(signal.astype(np.float32), rules=QualityRules(dvars_threshold=9)).dvars_over == 0


@pytest.mark.parametrize("dropped", [True, False])
def test_dvars_counts_no_change_to_or_from_a_censored_frame(dropped):
    signal = autoregressive(400, np.full(100, 0.6)).astype(np.float32)
    signal[200] += 5
    censored = np.arange(400) == 200
    signal[201:] += 3  # the level shifts in the gap
    given = signal[~censored] if dropped else signal

    assert measured(given).dvars_over > 0
    assert measured(given, censored=censored).dvars_over == 0


def test_mean_and_distance_slope_of_connectivity():
    distance = np.linalg.norm(SMALL.coordinates[:, None] - SMALL.coordinates[None], axis=-1)
    wanted = np.tanh(0.8 - 0.5 * distance / 100)
    np.fill_diagonal(wanted, 1)
    noise = np.random.default_rng(0).normal(size=(50, 4))
    basis, _ = np.linalg.qr(np.column_stack([np.ones(50), noise]))  # the others are orthogonal to the mean
    signal = (basis[:, 1:] @ np.linalg.cholesky(wanted).T * 100 + 1000).astype(np.float32)

    quality = measured(signal, SMALL)

    assert quality.fc_distance_slope == pytest.approx(-0.5, abs=1e-4)
    assert quality.mean_fc == pytest.approx(wanted[np.triu_indices(4, 1)].mean(), abs=1e-5)
    np.testing.assert_allclose(connectivity(signal), wanted, atol=1e-5)


def test_parcels_without_signal_change_nothing():
    signal = (1000 + autoregressive(100, np.linspace(0, 0.9, 100))).astype(np.float32)
    covered = np.arange(100) % 7 > 0
    empty = signal.copy()
    empty[:, ~covered] = np.nan
    zero = signal.copy()
    zero[:, ~covered] = 0
    few = Atlas("few", tuple(np.array(ATLAS.labels)[covered]), ATLAS.coordinates[covered])

    assert measured(empty) == measured(zero) == measured(signal[:, covered], few)


def test_motion_counts_over_the_frames_as_acquired():
    signal = autoregressive(8, np.zeros(100)).astype(np.float32)
    trace = np.array([np.nan, 0.1, 0.1, 0.7, 0.9, 0.1, 0.1, 0.1, 0.4, 0.5], np.float32)
    censored = trace > 0.6

    quality = measured(signal, framewise_displacement=trace, censored=censored, mean_fd=9)

    assert (quality.n_acquired, quality.n_censored) == (10, 2)
    assert quality.mean_fd == pytest.approx(3.0 / 9)
    assert quality.fd_over == pytest.approx(0.2)


@pytest.mark.parametrize("trace", [np.empty(0, np.float32), np.full(12, np.nan, np.float32)])
def test_the_stated_mean_counts_where_there_is_no_trace(trace):
    signal = autoregressive(12, np.zeros(100)).astype(np.float32)
    quality = measured(signal, framewise_displacement=trace, mean_fd=0.3)

    assert (quality.n_acquired, quality.n_censored, quality.mean_fd) == (12, 0, 0.3)
    assert math.isnan(quality.fd_over)
    assert math.isnan(measured(signal, mean_fd=math.inf).mean_fd)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
COLUMNS = st.one_of(
    arrays.arrays(np.float32, st.tuples(st.integers(2, 30), st.just(4)), elements=FLOATS),
    arrays.arrays(np.float32, st.tuples(st.integers(2, 30), st.just(4)), elements=st.sampled_from([0, 1, np.nan])),
)
TRACES = arrays.arrays(np.float32, st.integers(0, 30), elements=st.floats(width=32))


@settings(max_examples=300, deadline=None)
@given(signal=COLUMNS, trace=TRACES, seed=st.integers(0, 9), given_mean=st.floats(), given_tsnr=st.floats())
def test_measures_are_finite_or_unknown_and_never_warn(signal, trace, seed, given_mean, given_tsnr):
    rules = QualityRules(min_frames=2, min_coverage=0)
    try:
        coverage = check_signal(signal, "sub-01", SMALL, rules)
    except RecordingError:
        return
    censored = np.random.default_rng(seed).random(trace.size) < seed / 9
    known = {"framewise_displacement": trace, "censored": censored, "mean_fd": given_mean, "tsnr": given_tsnr}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quality = measured(signal, SMALL, rules, **known)
        rules.faults(quality, len(signal), 2.0, coverage, "sub-01")

    values = np.array(list(vars(quality).values()), float)
    assert (np.isfinite(values) | np.isnan(values)).all()
    assert math.isnan(quality.mean_fc) or -1 <= quality.mean_fc <= 1


def spike(height: float) -> np.ndarray:
    return np.where(np.arange(200) == 70, height, 0.0)


def flicker(level: float, seed: int = 0) -> np.ndarray:
    """A level that moves by one unit in float32's last place, now and then."""
    above = np.nextafter(np.float32(level), np.float32(np.inf))
    return np.where(np.random.default_rng(seed).random(200) < 0.5, np.float32(level), above)


RESIDUE = {
    "zero": np.zeros(200),
    "constant": np.full(200, 7.3),
    "what float64 leaves of a regression": 1e-13 * np.random.default_rng(1).normal(size=200),
    "what float32 leaves of a regression": 3e-6 * np.random.default_rng(1).normal(size=200),
    "one unit in the last place": flicker(1000.0),
    "one unit in the last place of a large level": flicker(3e6),
    "one spike of residue": spike(1e-12),
    "denormal": 1e-40 * np.random.default_rng(1).normal(size=200),
}


@pytest.mark.parametrize("residue", RESIDUE)
@pytest.mark.parametrize("level", [0, 1000], ids=["demeaned", "raw"])
@pytest.mark.parametrize("n_residue", [1, 30, 70])
def test_residue_of_rounding_is_no_signal(residue, level, n_residue):
    signal = (level + autoregressive(200, np.full(100, 0.4))).astype(np.float32)
    signal[:, :n_residue] = RESIDUE[residue][:, None]

    covered = check_signal(signal, "sub-01", ATLAS, QualityRules(min_coverage=0))

    np.testing.assert_array_equal(covered, np.arange(100) >= n_residue)
    np.testing.assert_array_equal(Recording("sub-01", signal, 2.0).coverage, covered)
    everything = Recording("sub-01", signal, 2.0, coverage=np.ones(100, bool))
    np.testing.assert_array_equal(everything.coverage, covered)


@pytest.mark.parametrize("residue", sorted(set(RESIDUE) - {"what float32 leaves of a regression"}))
def test_a_recording_of_residue_alone_is_refused(residue):
    signal = np.tile(RESIDUE[residue][:, None], (1, 100)).astype(np.float32)
    with pytest.raises(RecordingError, match="no parcel changes over time by more than rounding") as caught:
        check_signal(signal, "sub-01", ATLAS, QualityRules())
    assert caught.value.code == "constant"


@given(
    units=st.floats(1e-6, 1e6),
    level=st.sampled_from([0, 100]),
    weak=st.floats(0.01, 1),
    artefact=st.sampled_from([1, 1000]),
)
@settings(max_examples=30)
def test_signals_in_any_units_are_signals_weak_ones_beside_artefacts_too(units, level, weak, artefact):
    signal = autoregressive(100, np.full(100, 0.4))
    signal[:, :5] *= weak
    signal[:, -5:] *= artefact
    found = ((level + signal) * units).astype(np.float32)

    assert check_signal(found, "sub-01", ATLAS, QualityRules()).all()


@pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-8, 1e-12])
def test_what_is_judged_again_without_its_residue_is_judged_the_same(smallest):
    signal = (autoregressive(60, np.zeros(100)) * np.geomspace(smallest, 1, 100)).astype(np.float32)
    covered = carries_signal(signal.min(axis=0), signal.max(axis=0))
    stored = np.where(covered, signal, 0)

    assert covered.all() == (smallest == 1e-3)
    np.testing.assert_array_equal(carries_signal(stored.min(axis=0), stored.max(axis=0)), covered)


@pytest.mark.parametrize("spike", [1e-12, 1e-3, 1.0, -1e4])
@pytest.mark.parametrize("frame", [0, 50, 99])
def test_a_parcel_that_is_constant_but_for_one_frame_is_not_covered(spike, frame):
    """Scaled, it would be a frame of full size and nothing else."""
    signal = 1000 + autoregressive(100, np.full(100, 0.4))
    signal[:, 3] = 1000.0 * (abs(spike) > 1)
    signal[frame, 3] += spike
    found = signal.astype(np.float32)

    covered = check_signal(found, "sub-01", ATLAS, QualityRules())

    assert np.flatnonzero(~covered).tolist() == [3]
    np.testing.assert_array_equal(Recording("sub-01", found, 2.0).coverage, covered)


@pytest.mark.parametrize("value", [1e16, -1e30, 3e38])
def test_what_float32_cannot_square_is_refused(value):
    signal = autoregressive(100, np.full(100, 0.4)).astype(np.float32)
    signal[5, 3] = value
    with pytest.raises(RecordingError, match=re.escape(f"sub-01: holds values of {abs(value):.0e};")) as caught:
        check_signal(signal, "sub-01", ATLAS, QualityRules())
    assert caught.value.code == "out-of-range"
    with pytest.raises(RecordingError, match="beyond 1e"):
        check_recording(Recording("sub-01", signal, 2.0), 100, "schaefer100")


def test_fisher_z_is_finite_at_one():
    np.testing.assert_allclose(fisher_z(np.array([-1, 0, 0.5, 1])), [-7.25433, 0, 0.549306, 7.25433], atol=1e-5)


def changed(**fields: object) -> Quality:
    return Quality(**{**vars(GOOD), **fields})


@pytest.mark.parametrize(
    ("quality", "n_frames", "coverage", "code", "said"),
    [
        (GOOD, 39, 1.0, "too-short", "has 39 frames; expected at least 40"),
        (changed(n_acquired=50), 50, 1.0, "too-short", "50 frames (100 s); expected at least 40 frames and 120 s"),
        (GOOD, 200, 0.5, "low-coverage", "50.0% of the parcels"),
        (changed(n_censored=141), 59, 1.0, "too-short-after-censoring", "59 frames (118 s) of 200 are left"),
        (changed(n_censored=141), 200, 1.0, "too-short-after-censoring", "59 frames (118 s) of 200 are left"),
        (changed(n_censored=200), 200, 1.0, "too-short-after-censoring", "0 frames (0 s) of 200 are left"),
        (changed(mean_fd=0.6), 200, 1.0, "high-motion", "mean FD is 0.600 mm; expected at most 0.550 mm"),
        (changed(fd_over=0.51), 200, 1.0, "too-many-motion-frames", "FD above 0.5 mm is 51.0%; expected at most 50.0%"),
    ],
)
def test_a_fault_names_value_threshold_and_remedy(quality, n_frames, coverage, code, said):
    covered = np.arange(100) < 100 * coverage
    (fault,) = QualityRules.published().faults(quality, n_frames, 2.0, covered, "sub-01_bold.nii.gz")

    assert fault.code == code
    assert str(fault).startswith("sub-01_bold.nii.gz: ")
    assert said in str(fault)
    assert "Leave it out" in str(fault) or "Check" in str(fault)


def test_every_threshold_can_be_set_and_all_faults_are_named():
    rules = QualityRules(max_mean_fd=0.05, max_fd_over=0, max_dvars_over=0, min_tsnr=100, max_mean_fc=0.1)
    codes = [fault.code for fault in rules.faults(GOOD, 200, 2.0, 1.0, "x")]

    assert codes == ["high-motion", "too-many-motion-frames", "high-dvars", "low-tsnr", "high-connectivity"]
    assert QualityRules().faults(GOOD, 200, 2.0, 1.0, "x") == []


def test_what_is_unknown_is_not_held_against_a_recording():
    unknown = changed(**dict.fromkeys(("mean_fd", "fd_over", "tsnr", "dvars", "dvars_over", "mean_fc"), math.nan))
    strictest = QualityRules(
        max_mean_fd=0.01, max_fd_over=0, max_dvars_over=0, min_tsnr=1000, max_mean_fc=-1, min_seconds=9999
    )

    assert strictest.faults(unknown, 200, math.nan, 1.0, "x") == []


def test_the_file_holds_the_published_rules_field_by_field():
    settings = read_settings(Path(__file__).parents[2] / "configs" / "quality.yaml", QualityRules)

    assert settings == QualityRules.published()
    assert settings.model_fields_set == set(QualityRules.model_fields)
