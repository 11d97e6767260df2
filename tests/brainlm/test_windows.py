import pickle

import numpy as np
import pytest
import torch

from brainlm.config import ModelConfig, TrainingConfig, WindowConfig
from brainlm.embedding import embed
from brainlm.errors import BrainLMError
from brainlm.evaluation import evaluate
from brainlm.pretraining import initial_model, train_round
from brainlm.scaling import Scaling
from brainlm.windows import (
    WindowSet,
    kept_frames,
    lengths_of,
    prepare,
    resample,
    split_participants,
    usable_recordings,
)
from cohorts import Cohort, Recording
from cohorts.simulation import SimulatedSite, simulate_cohorts
from tests.support.cohorts import with_gaps


@pytest.mark.parametrize(("t_r", "new_t_r"), [(0.72, 2.0), (1.5, 2.0), (2.5, 2.0), (3.0, 2.0), (2.0, 2.0)])
def test_resampling_keeps_slow_waves_in_place(t_r, new_t_r):
    frames = int(400 / t_r)
    time, new_time = np.arange(frames) * t_r, np.arange(kept_frames(frames, t_r, WindowConfig(t_r=new_t_r))) * new_t_r
    wave = np.cos(2 * np.pi * 0.03 * time + 1)

    answer = resample(wave[:, None], t_r, new_t_r)[:, 0]

    assert len(answer) == len(new_time)
    middle = slice(10, -10)
    np.testing.assert_allclose(answer[middle], np.cos(2 * np.pi * 0.03 * new_time + 1)[middle], atol=0.02)


def test_resampling_does_not_alias():
    """0.5 Hz lies above what TR 2 s can carry (0.25 Hz): it must vanish, not fold back."""
    wave = np.sin(2 * np.pi * 0.45 * np.arange(1000) * 0.72)

    assert np.abs(resample(wave[:, None], 0.72, 2.0)[20:-20]).max() < 0.05


def test_zscore_scales_each_parcel_and_leaves_missing_ones_zero():
    signal = np.random.default_rng(0).normal(50, 7, size=(90, 5)).astype(np.float32)
    signal[:, 2] = 0
    recording = Recording("sub-1", signal, t_r=1.0)

    prepared = prepare(recording, WindowConfig(t_r=1.0))
    raw = prepare(recording, WindowConfig(t_r=1.0, scaling="none"))

    assert prepared.shape == (5, 90)
    assert prepared.dtype == np.float32
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose(prepared[kept].mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(prepared[kept].std(axis=1), 1, atol=1e-5)
    assert (prepared[2] == 0).all()
    np.testing.assert_array_equal(raw.T, signal)


def test_residue_of_rounding_is_not_scaled_to_a_signal():
    signal = np.random.default_rng(0).normal(50, 7, size=(90, 5)).astype(np.float32)
    signal[:, 2] = 1e-13 * (signal[:, 2] - 50)
    recording = Recording("sub-1", signal, t_r=1.5, coverage=np.ones(5, bool))

    assert (prepare(recording, WindowConfig(t_r=1.0))[2] == 0).all()
    assert recording.coverage.tolist() == [True, True, False, True, True]


def test_robust_scaling_is_minus_the_median_over_the_range():
    signal = np.random.default_rng(0).normal(50, 7, size=(90, 3)).astype(np.float32)
    signal[:, 1] = 0
    recording, window = Recording("sub-1", signal, t_r=1.0), WindowConfig(t_r=1.0, scaling="robust")
    scale = Scaling(np.array([48.0, 50.0, 52.0]), np.array([10.0, 9.0, 1.0]))

    prepared = prepare(recording, window, scale)

    np.testing.assert_allclose(prepared[0], (signal[:, 0] - 48) / 10, atol=1e-5)
    np.testing.assert_allclose(prepared[2], signal[:, 2] - 52, atol=1e-5)
    assert (prepared[1] == 0).all()
    with pytest.raises(BrainLMError, match="needs the medians and interquartile ranges"):
        prepare(recording, window)


def test_segments_are_every_whole_window_once(cohort, windows):
    batches = list(windows.segments(batch_size=7))

    assert sum(len(batch) for batch in batches) == windows.n_windows == 2 * len(cohort)
    first = prepare(cohort.read(windows.participants[0]), windows.window)
    np.testing.assert_array_equal(batches[0].signal[1].numpy(), first[:, 40:80])
    np.testing.assert_allclose(batches[0].coordinates[0].numpy(), cohort.atlas.coordinates, rtol=1e-6)


def test_samples_are_reproducible_windows_of_different_people(cohort, windows):
    first, again = (windows.sample(6, np.random.default_rng(3)) for _ in range(2))

    assert torch.equal(first.signal, again.signal)
    assert len(set(first.participants)) == 6
    for signal, participant in zip(first.signal.numpy(), first.participants, strict=True):
        whole = prepare(cohort.read(participant), windows.window)
        assert any(np.array_equal(whole[:, start : start + 40], signal) for start in range(whole.shape[1] - 39))


def test_a_sample_as_large_as_the_data_is_the_data(windows):
    batch = windows.sample(10_000, np.random.default_rng(0))

    assert torch.equal(batch.signal, next(windows.segments(10_000)).signal)


def test_short_recordings_drop_out_and_their_absence_is_an_error(cohort):
    long = WindowConfig(t_r=2.0, n_frames=100, patch_frames=10)

    assert usable_recordings(cohort, long) == {}
    with pytest.raises(BrainLMError, match="recordings are shorter than the window of 200 s"):
        WindowSet(cohort, long)


def test_what_is_too_short_is_counted(small_cohorts, tmp_path):
    window = WindowConfig(t_r=2.0, n_frames=60, patch_frames=10)
    cohort = Cohort.open(with_gaps(small_cohorts[0], tmp_path / "c", short=4, frames=30))
    ids = cohort.recordings["recording_id"].tolist()

    lengths = lengths_of(cohort, window)

    assert lengths.too_short == dict.fromkeys(ids[:4], 60.0)
    assert (len(lengths.usable), lengths.n_left_out) == (17, 4)
    assert lengths.said == (
        "cohort aalborg: 4 of 21 recordings are shorter than the window of 120 s (they have 60 s); 17 of 21 "
        "participants are left."
    )
    assert lengths_of(Cohort.open(small_cohorts[0]), window).too_short == {}


def test_windows_of_other_trs_have_the_model_s_length(tmp_path):
    sites = [SimulatedSite("fast", n_participants=2, t_r=0.8, n_frames=150)]
    cohort = Cohort.open(simulate_cohorts(tmp_path / "c", sites, atlas="schaefer100", seed=0)[0])

    windows = WindowSet(cohort, WindowConfig(t_r=2.0, n_frames=20, patch_frames=10))

    assert windows.n_windows == 2 * 3  # 150 frames of 0.8 s are 60 of 2 s
    assert next(windows.segments(6)).signal.shape == (6, 100, 20)


@pytest.mark.parametrize(
    ("n", "holdout", "expected"), [(10, 0.2, 2), (10, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0), (9, 0.0, 0)]
)
def test_participants_are_split_for_good(n, holdout, expected):
    people = [f"sub-{number:02d}" for number in range(n)]

    training, held_out = split_participants(people, holdout, seed=5)

    assert len(held_out) == expected
    assert sorted(training + held_out) == people
    assert (training, held_out) == split_participants(people, holdout, seed=5)


def test_a_batch_splits_into_its_windows(windows):
    batch = windows.sample(7, np.random.default_rng(3))

    parts = batch.split(3)

    assert [len(part) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part.signal for part in parts]), batch.signal)
    assert sum((part.participants for part in parts), ()) == batch.participants
    assert len(batch.split(100)) == 7


def test_what_a_gpu_fetches_shares_no_memory_between_windows(windows, monkeypatch):
    """A pinned copy is made of numbers that lie one by one; coordinates are one memory for all windows."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    batch = windows.sample(4, np.random.default_rng(0))

    copy = batch.pin_memory()

    assert len(pinned) == 3
    assert all(tensor.is_contiguous() for tensor in pinned)
    assert torch.equal(copy.coordinates, batch.coordinates)


def test_windows_travel_without_what_they_prepared(windows):
    batch = windows.sample(6, np.random.default_rng(3))

    sent = pickle.dumps(windows)

    assert len(sent) < batch.signal.nbytes
    assert torch.equal(pickle.loads(sent).sample(6, np.random.default_rng(3)).signal, batch.signal)


@pytest.fixture
def two_trs(tmp_path) -> Cohort:
    """Six people with a TR of 2 s and three with 0.8 s."""
    cohort = Cohort.create(tmp_path / "two", atlas="schaefer100")
    rng = np.random.default_rng(0)
    for number in range(9):
        t_r, n_frames = (2.0, 90) if number < 6 else (0.8, 225)
        cohort.add(Recording(f"p{number}", rng.normal(size=(n_frames, 100)).astype(np.float32), t_r))
    cohort.save()
    return cohort


ADAPTIVE = WindowConfig(t_r=2.0, n_frames=40, patch_frames=10, temporal="adaptive")


def test_adaptive_windows_keep_their_frames_and_last_as_long(two_trs):
    """10 frames of 2 s are 20 s, as 25 frames of 0.8 s are."""
    windows = WindowSet(two_trs, ADAPTIVE)
    batches = list(windows.segments(4))

    assert [batch.signal.shape for batch in batches] == [(4, 100, 40)] * 3 + [(4, 100, 100), (2, 100, 100)]
    assert sum(len(batch) for batch in batches) == windows.n_windows == 18
    fast = two_trs.read("p6").signal
    expected = ((fast - fast.mean(axis=0)) / fast.std(axis=0)).T[:, 100:200]
    np.testing.assert_allclose(batches[3].signal[1].numpy(), expected, atol=1e-5)


def test_a_batch_has_windows_of_one_length_as_often_as_people_have_it(two_trs):
    windows, rng = WindowSet(two_trs, ADAPTIVE), np.random.default_rng(0)
    lengths = [windows.sample(4, rng).signal.shape for _ in range(300)]

    assert set(lengths) == {(4, 100, 40), (4, 100, 100)}
    assert np.mean([shape[2] == 100 for shape in lengths]) == pytest.approx(1 / 3, abs=0.08)
    assert windows.sample(1000, rng).signal.shape[0] == 18


def test_one_model_trains_on_two_trs(two_trs):
    config = ModelConfig(window=ADAPTIVE, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1)
    model = initial_model(config, 0)
    training = TrainingConfig(batch_size=3, steps_per_round=6, warmup_steps=1, precision="float32")

    train_round(model, WindowSet(two_trs, ADAPTIVE), training, round_number=1, rounds=1, seed=0)

    assert embed(model, two_trs).shape == (9, 17)
    assert evaluate(model, WindowSet(two_trs, ADAPTIVE), seed=0).overall["mse"] < 2
