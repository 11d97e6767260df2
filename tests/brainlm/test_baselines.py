import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainlm.baselines import (
    AR1,
    VAR1,
    ParcelMean,
    TimeInterpolation,
    ar_coefficients,
    baseline_names,
    make_baselines,
    var_coefficients,
)
from brainlm.config import MaskConfig, ModelConfig, WindowConfig
from brainlm.errors import ShapeError
from brainlm.evaluation import compare
from brainlm.pretraining import initial_model
from brainlm.windows import WindowSet, split_participants
from cli.evaluate import measure_moments
from cohorts import Cohort, load_atlas
from cohorts.preparation import prepare_cohort
from cohorts.sources.matrices import MatrixSource


def windows(seed: int, shape: tuple[int, int, int] = (2, 3, 15), fraction: float = 0.4) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    visible = torch.from_numpy(rng.random(shape) < fraction)
    return torch.from_numpy(rng.normal(size=shape)), visible, torch.ones(shape[:2], dtype=torch.bool)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_interpolation_is_numpy_s(seed, fraction):
    signal, visible, valid = windows(seed, fraction=fraction)

    predicted = TimeInterpolation().predict(signal, visible, valid)

    frames = np.arange(signal.shape[2])
    for place in np.ndindex(*signal.shape[:2]):
        seen = visible[place].numpy()
        expected = np.interp(frames, frames[seen], signal[place].numpy()[seen]) if seen.any() else 0 * frames
        np.testing.assert_allclose(predicted[place], expected, atol=1e-12)


def test_the_mean_is_that_of_visible_values():
    signal, visible, valid = windows(0)
    visible[1, 2] = False

    predicted = ParcelMean().predict(signal, visible, valid)

    assert predicted[0, 1, 4] == pytest.approx(float(signal[0, 1][visible[0, 1]].mean()))
    assert not predicted[1, 2].any()


def test_forecasts_continue_from_the_last_visible_frame():
    signal, _, valid = windows(1)
    visible = (torch.arange(15) < 9).expand(signal.shape)
    matrix = np.array([[0.5, 0.2, 0.0], [0.0, 0.9, -0.3], [0.1, 0.0, 0.4]])

    stay = AR1(1.0).predict(signal, visible, valid)
    fade = AR1(np.array([0.5, 0.9, -0.3])).predict(signal, visible, valid)
    turn = VAR1(matrix).predict(signal, visible, valid)

    last = signal[:, :, 8].numpy()
    np.testing.assert_allclose(stay[:, :, 14], last)
    np.testing.assert_allclose(fade[:, :, 11], last * np.array([0.5, 0.9, -0.3]) ** 3)
    np.testing.assert_allclose(turn[:, :, 11], last @ np.linalg.matrix_power(matrix, 3).T)
    assert not AR1(1.0).predict(signal, ~visible, valid)[:, :, :9].any()  # nothing came before


def test_coefficients_of_simulated_processes_are_recovered():
    rng = np.random.default_rng(2)
    matrix = np.array([[0.6, 0.2], [-0.3, 0.5]])
    values = np.zeros((2, 40_000))
    for frame in range(1, values.shape[1]):
        values[:, frame] = matrix @ values[:, frame - 1] + rng.normal(size=2)
    moment0 = values @ values.T / values.shape[1]
    moment1 = values[:, 1:] @ values[:, :-1].T / (values.shape[1] - 1)

    np.testing.assert_allclose(var_coefficients(moment0, moment1, ridge=0), matrix, atol=0.02)
    alone = np.zeros(40_000)
    for frame in range(1, len(alone)):
        alone[frame] = 0.7 * alone[frame - 1] + rng.normal()
    found = ar_coefficients(np.array([np.mean(alone**2), 0.0]), np.array([np.mean(alone[1:] * alone[:-1]), 0.0]))
    np.testing.assert_allclose(found, [0.7, 0], atol=0.02)


def test_what_needs_moments_is_left_out_without_them():
    moments = {"covariance": np.eye(4), "autocovariance": np.array([1.0, 0.5]), "following": 0.5 * np.eye(4)}
    random, future = MaskConfig(), MaskConfig(kind="future", ratio=0.1)

    assert set(make_baselines(random, 4)) == {"parcel_mean", "time_interpolation"}
    assert set(make_baselines(future, 4)) == {"parcel_mean", "time_interpolation", "persistence"}
    assert {"gaussian", "gaussian_space_time"} <= set(make_baselines(random, 4, moments))
    assert {"persistence", "ar1", "var1"} <= set(make_baselines(future, 4, moments))
    signal, visible, valid = windows(0, (1, 4, 15))
    for mask in (random, future):
        for names in ({}, moments, {"autocovariance": moments["autocovariance"]}):
            assert baseline_names(mask, names) == list(make_baselines(mask, 4, names))
    shared = make_baselines(future, 4, {"autocovariance": moments["autocovariance"]})["ar1"]
    own = make_baselines(future, 4, moments)["ar1"]
    torch.testing.assert_close(shared.predict(signal, visible, valid), own.predict(signal, visible, valid))
    with pytest.raises(ShapeError, match=r"covariance has shape \[4, 4\]; expected \[5, 5\]"):
        make_baselines(random, 5, moments)


@pytest.mark.parametrize("kind", ["random", "parcel", "time", "future", "mixed"])
def test_masks_are_the_model_s(config, cohort, kind):
    weights = {"random": 1, "future": 1} if kind == "mixed" else {}
    config = config.model_copy(update={"mask": MaskConfig(kind=kind, ratio=0.5, weights=weights)})
    windows_, baselines = WindowSet(cohort, config.window), make_baselines(config.mask, 100)

    beside = compare(initial_model(config, 0), baselines, windows_, seed=3)

    assert beside["model"].parcels[0].all()
    for name in baselines:  # the count, sum and squares of what is hidden, by parcel and by horizon
        np.testing.assert_array_equal(beside[name].parcels[:3], beside["model"].parcels[:3])
        np.testing.assert_array_equal(beside[name].horizons[:3], beside["model"].horizons[:3])


def test_real_recordings_give_the_known_scores(real_data, tmp_path):
    path = real_data / "real" / "stages_fep_ses1_schaefer400aseg19.npz"
    source = MatrixSource(path, load_atlas("schaefer400"), t_r=2.0, columns=(1, 400))
    cohort = Cohort.open(prepare_cohort(source, tmp_path / "fep").path)
    window = WindowConfig(t_r=2.0, n_frames=200, patch_frames=20)
    train, held_out = split_participants(sorted(set(cohort.recordings["participant_id"])), 0.2, 0)
    config = ModelConfig(
        window=window, mask=MaskConfig(ratio=0.75), width=32, depth=1, decoder_width=32, decoder_depth=1
    )
    baselines = make_baselines(config.mask, 400, measure_moments(window, [(cohort, train)]).to_arrays())

    found = compare(initial_model(config, 0), baselines, WindowSet(cohort, window, held_out), seed=0)

    r2 = {name: sums.masked_r2 for name, sums in found.items()}
    assert 0.52 < r2["gaussian"] < 0.54
    assert 0.555 < r2["gaussian_space_time"] < 0.575
    assert r2["time_interpolation"] < r2["parcel_mean"] < 0  # gaps of 40 s and more are too long for a straight line
