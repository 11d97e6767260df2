import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from base.seeding import derive_seed
from brainlm.baselines import ParcelMean, make_baselines
from brainlm.errors import BrainLMError
from brainlm.evaluation import MODEL, ReconstructionSums, compare, evaluate, frames_to_visible, scores
from brainlm.masking import draw_noise
from brainlm.pretraining import initial_model
from brainlm.windows import WindowSet
from cohorts import Cohort, Recording


def expected_scores(truth: torch.Tensor, answer: torch.Tensor) -> dict[str, float]:
    x, y = truth.double().numpy(), answer.double().numpy()
    return {
        "masked_r2": r2_score(x, y),
        "mse": mean_squared_error(x, y),
        "mae": mean_absolute_error(x, y),
        "pearson_r": pearsonr(x, y).statistic,
    }


def test_scores_are_those_of_the_pooled_hidden_values(config, cohort, windows):
    model = initial_model(config, 0)

    sums = evaluate(model, windows, seed=4, batch_size=1000)

    batch = next(windows.segments(1000))
    generator = torch.Generator().manual_seed(derive_seed(4, "evaluation"))
    noise = draw_noise(config.mask, (len(batch), 100, 4), generator)
    with torch.no_grad():
        output = model(batch.signal, batch.coordinates, noise, batch.valid)
    hidden, truth, answer = output.mask.bool(), batch.signal, output.reconstruction
    assert sums.overall == pytest.approx(expected_scores(truth[hidden], answer[hidden]), rel=1e-6)
    assert sums.masked_r2 < 0  # an untrained model is worse than the mean
    of_parcel = hidden[:, 7]
    expected = expected_scores(truth[:, 7][of_parcel], answer[:, 7][of_parcel])
    assert sums.masked_r2_by_parcel[7] == pytest.approx(expected["masked_r2"], rel=1e-6)
    networks = cohort.atlas.networks
    inside = hidden & torch.tensor([network == "Vis" for network in networks])[:, None]
    found = scores(sums.by_network(networks)["Vis"])
    assert found == pytest.approx(expected_scores(truth[inside], answer[inside]), rel=1e-6)
    far = hidden & (frames_to_visible(~hidden & batch.valid[..., None]) == 3)
    found = scores(sums.by_horizon()[3])
    assert found == pytest.approx(expected_scores(truth[far], answer[far]), rel=1e-6)


def test_horizons_count_frames_to_the_nearest_visible_one():
    rows = ["1000010", "0000000", "0110000", "1111111"]
    visible = torch.tensor([[[digit == "1" for digit in row] for row in rows]])

    counted = frames_to_visible(visible)[0].tolist()

    assert counted == [[0, 1, 2, 2, 1, 0, 1], [0] * 7, [1, 0, 0, 1, 2, 3, 4], [0] * 7]
    past = (torch.arange(9) < 4).expand(1, 2, 9)
    assert frames_to_visible(past)[0, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5]  # the future: since the last visible


def test_sums_of_sites_add_to_the_pooled_sums(config, cohort):
    model, people = initial_model(config, 0), sorted(cohort.recordings["participant_id"])
    baselines = make_baselines(config.mask, 100)

    parts = [compare(model, baselines, WindowSet(cohort, config.window, [person]), seed=4) for person in people]

    assert list(parts[0]) == [MODEL, "parcel_mean", "time_interpolation"]
    for name in parts[0]:
        added = sum((part[name] for part in parts), ReconstructionSums.zeros(100))
        np.testing.assert_allclose(added.parcels.sum(axis=1), added.horizons.sum(axis=1))
        assert added.over_parcels().overall == pytest.approx(added.overall)
        assert len({part[name].masked_r2 for part in parts}) == len(parts)


@pytest.mark.parametrize("n_sites", [2, 3])
def test_federated_scores_are_pooled_scores(n_sites):
    rng = np.random.default_rng(n_sites)
    signal, prediction = torch.from_numpy(rng.normal(size=(2, 12, 5, 30)))
    visible = torch.from_numpy(rng.random((12, 5, 30)) < 0.3)

    pooled = ReconstructionSums.of(signal, prediction, ~visible, visible)
    sites = [
        ReconstructionSums.of(signal[rows], prediction[rows], ~visible[rows], visible[rows])
        for rows in torch.arange(12).tensor_split(n_sites)
    ]

    added = sum(sites, ReconstructionSums.zeros(5))
    np.testing.assert_allclose(added.parcels, pooled.parcels, rtol=1e-12)
    np.testing.assert_allclose(added.horizons, pooled.horizons, rtol=1e-12)


def test_masks_do_not_change_between_rounds(config, windows):
    first, second, other = (evaluate(initial_model(config, 0), windows, seed=seed) for seed in (4, 4, 5))

    np.testing.assert_array_equal(first.parcels, second.parcels)
    assert not np.array_equal(first.parcels, other.parcels)


def test_nothing_hidden_has_no_r2():
    assert np.isnan(ReconstructionSums.zeros(3).masked_r2)
    assert np.isnan(ReconstructionSums.zeros(3).masked_r2_by_parcel).all()


def test_a_constant_prediction_has_no_correlation():
    signal, hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, 8).bool()

    found = ReconstructionSums.of(signal, torch.full_like(signal, 0.1), hidden, ~hidden).overall

    assert np.isnan(found["pearson_r"])
    assert found["mse"] > 0


def test_sums_of_few_people_stay_away(config, tmp_path):
    """Parcel 0 of two people, all others of five."""
    rng, cohort = np.random.default_rng(0), Cohort.create(tmp_path / "few", atlas="schaefer100")
    for number in range(5):
        signal = rng.normal(size=(90, 100)).astype(np.float32)
        signal[:, 0] = signal[:, 0] if number < 2 else 0.0
        cohort.add(Recording(f"p{number}", signal, 2.0))
    cohort.save()
    model, windows = initial_model(config, 0), WindowSet(cohort, config.window)

    everything, guarded = (compare(model, {"mean": ParcelMean()}, windows, seed=0, least=n) for n in (1, 3))

    for name in ("model", "mean"):
        assert everything[name].parcels[:, 0].any()
        assert not guarded[name].parcels[:, 0].any()
        np.testing.assert_array_equal(guarded[name].parcels[:, 1:], everything[name].parcels[:, 1:])
        few = everything[name].horizons[:, (guarded[name].horizons != everything[name].horizons).any(axis=0)]
        assert (guarded[name].horizons.sum() != everything[name].horizons.sum()) == bool(few.size)


def test_a_model_that_lacks_its_linear_prediction_is_not_evaluated(config, cohort):
    model = initial_model(config.model_copy(update={"residual": "gaussian"}), 0)
    with pytest.raises(BrainLMError, match=r"has none\. Set its 'prior'"):
        evaluate(model, WindowSet(cohort, config.window), seed=0)
