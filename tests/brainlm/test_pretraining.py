from itertools import pairwise

import numpy as np
import pytest
import torch

from base.seeding import derive_seed
from brainlm.config import TrainingConfig
from brainlm.errors import DivergenceError
from brainlm.evaluation import evaluate
from brainlm.linear_path import LinearPath
from brainlm.pretraining import initial_model, learning_rate, train_round
from brainlm.windows import WindowSet

FAST = TrainingConfig(learning_rate=2e-3, warmup_steps=4, batch_size=4, steps_per_round=10, precision="float32")


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture
def trained(config, windows):
    """Train a fresh model for a round, with other settings than `FAST`; return its weights and the outcome."""

    def train(*, model=None, windows=windows, round_number=1, rounds=1, seed=3, devices=1, **changes):
        model, settings = model or initial_model(config, 1), FAST.model_copy(update=changes)
        how = {"round_number": round_number, "rounds": rounds, "seed": seed, "devices": devices}
        outcome = train_round(model, windows, settings, **how)
        return weights(model), outcome

    return train


def test_training_lowers_the_loss_on_held_out_people(config, cohort, trained):
    people = sorted(cohort.recordings["participant_id"])
    training, held_out = (WindowSet(cohort, config.window, part) for part in (people[:-3], people[-3:]))
    model = initial_model(config, 1)
    before = evaluate(model, held_out, seed=0)
    outcomes = [trained(model=model, windows=training, round_number=number, rounds=6)[1] for number in range(1, 7)]

    assert outcomes[-1].loss < 0.95 * outcomes[0].loss
    assert evaluate(model, held_out, seed=0).masked_r2 > before.masked_r2


def test_the_same_seed_gives_the_same_weights(trained):
    found = []
    for number, how in enumerate(({}, {}, {"seed": 4}, {"round_number": 2})):
        torch.manual_seed(number)  # the caller's random numbers do not matter
        found.append(trained(rounds=4, **how)[0])

    first, again, other, later = found
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, later)


def test_one_step_at_every_site_and_their_average_equal_one_pooled_step(config, cohort, trained):
    """Plain gradient descent: the average weighted by windows is the gradient of the pooled mean loss."""
    sgd = {"optimizer": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "clip_norm": None}
    people = sorted(cohort.recordings["participant_id"])
    sites = [WindowSet(cohort, config.window, part) for part in (people[:2], people[2:5], people[5:])]
    updates, sizes = [], []
    for number, site in enumerate(sites):
        update, outcome = trained(windows=site, seed=number, batch_size=1000, steps_per_round=1, **sgd)
        updates.append(update.double())
        sizes.append(outcome.n_windows)
    average = sum(size * update for size, update in zip(sizes, updates, strict=True)) / sum(sizes)

    pooled = initial_model(config, 1)
    loss = 0.0
    for number, site in enumerate(sites):
        batch = next(site.segments(1000))
        generator = torch.Generator().manual_seed(derive_seed(number, 1, "masks"))
        noise = torch.rand(len(batch), 100 * config.window.n_patches, generator=generator)
        loss = loss + pooled(batch.signal, batch.coordinates, noise, batch.valid).loss.sum()
    (loss / sum(sizes)).backward()
    expected = weights(pooled) - 0.5 * torch.cat([p.grad.flatten() for p in pooled.parameters()])

    assert len(set(sizes)) > 1
    torch.testing.assert_close(average.float(), expected, rtol=0, atol=1e-6)


def test_the_schedule_counts_steps_over_all_rounds():
    schedule = TrainingConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1, steps_per_round=25)
    rates = [learning_rate(schedule, step, 100) for step in range(100)]

    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1.0
    assert all(earlier >= later for earlier, later in pairwise(rates[10:]))
    assert learning_rate(schedule, 100, 100) == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55, abs=0.01)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_stops_the_round(config, trained, devices):
    model = initial_model(config, 1)
    with torch.no_grad():
        model.predict.bias.fill_(torch.inf)

    with pytest.raises(DivergenceError, match="round 2, step 1: the loss is not finite"):
        trained(model=model, round_number=2, rounds=4, devices=devices)


def test_gradients_are_clipped(config, trained):
    start = weights(initial_model(config, 1))
    one_step = {"optimizer": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "steps_per_round": 1}

    clipped, free = (float((trained(**one_step, clip_norm=norm)[0] - start).norm()) for norm in (0.01, None))

    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert free > 0.02


@pytest.mark.parametrize(("accumulation", "devices"), [(3, 1), (100, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_a_batch_in_parts_or_shared_by_processes_takes_the_step_of_the_whole(trained, accumulation, devices):
    settings = {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 7, "steps_per_round": 3}
    whole, expected = trained(**settings)

    parts, outcome = trained(**settings, accumulation=accumulation, devices=devices)

    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert outcome.loss == pytest.approx(expected.loss, rel=1e-6)


def test_checkpointing_keeps_less_and_changes_nothing(config, trained):
    found, kept = [], []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    for checkpointing in (False, True):
        model = initial_model(config, 1)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found.append(trained(model=model, checkpointing=checkpointing, steps_per_round=2)[0])
        assert all("forward" not in vars(block) for block in [*model.encoder.blocks, *model.decoder.blocks])

    assert torch.equal(*found)
    assert kept[1] < kept[0] / 2


def test_workers_read_the_same_windows_and_draw_none_of_the_numbers_of_dropout(trained):
    found, states = [], []
    for workers in (0, 2):
        found.append(trained(workers=workers)[0])
        states.append(torch.get_rng_state())

    assert torch.equal(*found)
    torch.manual_seed(derive_seed(3, 1, "dropout"))
    assert all(torch.equal(state, torch.get_rng_state()) for state in states)


def test_the_linear_path_is_never_told_of_the_participant(config, trained):
    """Whoever is in a batch is left out of the covariance of their own windows, however the batch is cut."""
    asked = []

    class Spy(LinearPath):
        def without(self, participants):
            recordings = list(participants)
            asked.extend(len(of_one) for of_one in recordings)
            return super().without(recordings)

    found = []
    for accumulation in (1, 2):
        model = initial_model(config.model_copy(update={"residual": "gaussian"}), 1)
        model.prior = Spy(np.eye(100), 0.8 ** np.arange(10), np.full((100, 100), 1e4))
        found.append(trained(model=model, accumulation=accumulation, steps_per_round=2)[0])

    assert len(asked) == 2 * 2 * FAST.batch_size  # a participant a window, at each of two steps, twice
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
