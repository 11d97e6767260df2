import numpy as np
import pytest
import torch

from brainlm.evaluation import ReconstructionSums, evaluate
from brainlm.masking import draw_noise
from brainlm.pretraining import initial_model
from brainlm.windows import WindowSet
from cohorts.seeding import derive_seed


def test_r2_is_over_all_hidden_values_and_may_be_negative(config, cohort):
    model, windows = initial_model(config, 0), WindowSet(cohort, config.window)

    sums = evaluate(model, windows, seed=4, batch_size=1000)

    batch = next(windows.segments(1000))
    generator = torch.Generator().manual_seed(derive_seed(4, "evaluation"))
    noise = draw_noise(config.mask, (len(batch), 100, 4), generator)
    with torch.no_grad():
        output = model(batch.signal, batch.coordinates, noise, batch.valid)
    hidden = output.mask.bool()
    truth, answer = batch.signal[hidden].double(), output.reconstruction[hidden].double()
    expected = 1 - ((truth - answer) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    assert sums.masked_r2 == pytest.approx(float(expected), abs=1e-6)
    assert sums.masked_r2 < 0  # an untrained model is worse than the mean
    assert sums.count.sum() == hidden.sum()
    parcel = hidden[:, 7]
    truth, answer = batch.signal[:, 7][parcel].double(), output.reconstruction[:, 7][parcel].double()
    expected = 1 - ((truth - answer) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    assert sums.masked_r2_by_parcel[7] == pytest.approx(float(expected), abs=1e-6)


def test_sums_of_sites_add_to_the_pooled_sums(config, cohort):
    model = initial_model(config, 0)
    people = sorted(cohort.recordings["participant_id"])

    parts = [evaluate(model, WindowSet(cohort, config.window, [person]), seed=4) for person in people]
    added = sum(parts, ReconstructionSums.zeros(100))

    values = [float(np.sum(part.errors)) for part in parts]
    assert float(added.errors.sum()) == pytest.approx(sum(values))
    assert added.count.sum() == sum(part.count.sum() for part in parts)


def test_masks_do_not_change_between_rounds(config, cohort):
    model, windows = initial_model(config, 0), WindowSet(cohort, config.window)

    first, second, other = (evaluate(model, windows, seed=seed) for seed in (4, 4, 5))

    np.testing.assert_array_equal(first.errors, second.errors)
    assert not np.array_equal(first.errors, other.errors)


def test_nothing_hidden_has_no_r2():
    assert np.isnan(ReconstructionSums.zeros(3).masked_r2)
    assert np.isnan(ReconstructionSums.zeros(3).masked_r2_by_parcel).all()
