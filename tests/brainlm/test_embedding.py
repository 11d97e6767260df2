from dataclasses import replace

import numpy as np
import pytest
import torch

import brainlm.windows
from brainlm import BrainLMError, Scaling, embed, functional_connectivity
from brainlm.embedding import CONNECTIVITY, EMBEDDING, UNTRAINED, embed_each, find_recipe
from brainlm.pretraining import initial_model
from brainlm.windows import WindowSet, prepare
from cohorts import Cohort, Recording
from tests.support.cohorts import read_recordings


@pytest.fixture
def repeats(tmp_path) -> Cohort:
    """Two people: one with two recordings of unequal length, one with a missing parcel."""
    rng = np.random.default_rng(0)
    cohort = Cohort.create(tmp_path / "c", atlas="schaefer100")
    for participant, run, frames in (("sub-1", "1", 130), ("sub-1", "2", 45), ("sub-2", "1", 90)):
        signal = rng.normal(size=(frames, 100)).cumsum(axis=0).astype(np.float32)
        if participant == "sub-2":
            signal[:, 11] *= 1e-13  # what arithmetic leaves of a parcel that is missing
        cohort.add(Recording(participant, signal, t_r=2.0, recording_id=f"{participant}_run-{run}"))
    return cohort


def test_robust_scaling_reaches_the_encoder(config, repeats):
    """Median 0 and range 1 leave the signal as it is, so the answer is that without scaling."""
    same = Scaling(np.zeros(100), np.ones(100))
    models = {
        scaling: initial_model(
            config.model_copy(update={"window": config.window.model_copy(update={"scaling": scaling})}), 0
        )
        for scaling in ("robust", "none")
    }

    expected = embed(models["none"], repeats)

    assert embed(models["robust"], repeats, scale=same).equals(expected)
    assert not embed(models["robust"], repeats, scale=Scaling(np.ones(100), np.ones(100))).equals(expected)
    with pytest.raises(BrainLMError, match=r"Give 'scale'"):
        embed(models["robust"], repeats)


def test_the_recipe_averages_tokens_then_segments_then_recordings(config, repeats):
    model = initial_model(config, 0)
    coordinates = torch.tensor(repeats.atlas.coordinates, dtype=torch.float32)[None]

    def vector(recording: str) -> np.ndarray:
        prepared = prepare(repeats.read(recording), config.window)
        segments = [prepared[:, start : start + 40] for start in range(0, prepared.shape[1] - 39, 40)]
        with torch.no_grad():
            return np.mean(
                [model.encode(torch.tensor(part)[None], coordinates)[0].numpy() for part in segments], axis=0
            )

    table = embed(model, repeats)

    assert table.columns.tolist() == ["participant_id", *(f"e{index}" for index in range(32))]
    assert table["participant_id"].tolist() == ["sub-1", "sub-2"]
    expected = (vector("sub-1_run-1") + vector("sub-1_run-2")) / 2
    np.testing.assert_allclose(table.iloc[0, 1:].to_numpy(float), expected, atol=1e-5)


def test_recipes_have_an_id():
    recipe = find_recipe("rsfmri_brainlm_segments_v1")

    assert recipe.components == 512
    assert recipe.residualize == ("age", "sex", "site", "mean_fd", "tsnr")
    with pytest.raises(BrainLMError, match="expected one of rsfmri_brainlm_segments_v1"):
        find_recipe("mine")


def test_all_features_come_of_one_reading_and_are_those_of_each_alone(config, repeats, monkeypatch):
    repeats.add(replace(repeats.read("sub-1_run-1"), recording_id="sub-1_short", signal=np.ones((9, 100), np.float32)))
    models = {EMBEDDING: initial_model(config, 0), UNTRAINED: initial_model(config, 1)}
    alone = {name: embed(model, repeats) for name, model in models.items()}
    alone[CONNECTIVITY] = functional_connectivity(repeats)
    read = read_recordings(monkeypatch)
    monkeypatch.setattr(brainlm.windows, "_CACHE_BYTES", 0)  # one prepared recording at a time
    windows = WindowSet(repeats, config.window)

    together = embed_each(models, windows, "rsfmri_brainlm_segments_v1", connectivity=True)

    assert read == ["sub-1_run-1", "sub-1_run-2", "sub-1_short", "sub-2_run-1"]
    for name, table in alone.items():
        assert together[name].tobytes() == table.drop(columns="participant_id").to_numpy().tobytes()
    assert len(windows._prepared) == 1


def test_connectivity_is_fisher_z_of_correlations(repeats):
    table = functional_connectivity(repeats)

    runs = [np.corrcoef(repeats.read(f"sub-1_run-{run}").signal.T.astype(float)) for run in (1, 2)]
    expected = np.mean([np.arctanh(run[np.triu_indices(100, 1)]) for run in runs], axis=0)
    np.testing.assert_allclose(table.iloc[0, 1:].to_numpy(float), expected, atol=1e-6)
    # No number takes the place of pairs with the missing parcel.
    pairs = np.array(np.triu_indices(100, 1)) == 11
    np.testing.assert_array_equal(np.isnan(table.iloc[1, 1:].to_numpy(float)), pairs.any(axis=0))


def test_a_pair_is_known_from_the_recordings_that_have_it(repeats):
    whole, partial = (repeats.read(f"sub-1_run-{run}") for run in (1, 2))
    signal = partial.signal.copy()
    signal[:, 30] = 0
    repeats.add(replace(partial, participant_id="sub-3", recording_id="a", signal=signal, coverage=np.empty(0, bool)))
    repeats.add(replace(whole, participant_id="sub-3", recording_id="b"))

    table = functional_connectivity(repeats, ["sub-3"])

    correlations = [np.corrcoef(values.T.astype(float)) for values in (whole.signal, partial.signal)]
    first, second = (np.arctanh(values[np.triu_indices(100, 1)]) for values in correlations)
    pairs = (np.array(np.triu_indices(100, 1)) == 30).any(axis=0)
    expected = np.where(pairs, first, (first + second) / 2)
    np.testing.assert_allclose(table.iloc[0, 1:].to_numpy(float), expected, atol=1e-6)
