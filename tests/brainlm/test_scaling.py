import numpy as np
import pytest

from brainlm import BrainLMError, Scaling, load_checkpoint, save_checkpoint
from brainlm.errors import CheckpointError
from brainlm.pretraining import initial_model


def test_quartiles_give_median_and_range_and_1_where_nothing_varies():
    quartiles = np.array([[1.0, 5.0, np.nan], [2.0, 5.0, np.nan], [4.5, 5.0, np.nan]])

    scale = Scaling.from_quartiles(quartiles)

    np.testing.assert_array_equal(scale.median, [2.0, 5.0, 0.0])
    np.testing.assert_array_equal(scale.iqr, [3.5, 1.0, np.inf])
    np.testing.assert_array_equal(scale.apply(np.full((1, 3), 9.0)), [[2.0, 4.0, 0.0]])


def test_scaled_columns_have_median_0_and_range_1():
    signal = np.random.default_rng(0).gamma(2.0, 30.0, size=(401, 4))

    scaled = Scaling.from_quartiles(np.quantile(signal, [0.25, 0.5, 0.75], axis=0)).apply(signal)

    np.testing.assert_allclose(np.quantile(scaled, 0.5, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.subtract(*np.quantile(scaled, [0.75, 0.25], axis=0)), 1)


def test_a_scaling_of_another_atlas_is_an_error():
    with pytest.raises(BrainLMError, match="for 3 parcels, the signal has 2"):
        Scaling(np.zeros(3), np.ones(3)).apply(np.zeros((5, 2)))


def test_a_checkpoint_carries_its_scaling(tmp_path, config):
    scale = Scaling(np.array([0.1, 1 / 3]), np.array([np.inf, 1e-9]))
    about = {"scaling": {"pair": {name: values.tolist() for name, values in scale.to_arrays().items()}}}
    save_checkpoint(tmp_path / "m.safetensors", initial_model(config, 0).state_dict(), config, about)

    _, read = load_checkpoint(tmp_path / "m.safetensors")
    back = Scaling.from_checkpoint(read, "pair")

    assert read == about
    np.testing.assert_array_equal(back.median, scale.median)
    np.testing.assert_array_equal(back.iqr, scale.iqr)
    with pytest.raises(CheckpointError, match="no scaling for atlas aal116; it has pair"):
        Scaling.from_checkpoint(read, "aal116")
