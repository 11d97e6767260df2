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


def test_training_lowers_the_loss_on_held_out_people(config, cohort):
    people = sorted(cohort.recordings["participant_id"])
    training, held_out = (WindowSet(cohort, config.window, part) for part in (people[:-3], people[-3:]))
    model = initial_model(config, 1)
    before = evaluate(model, held_out, seed=0)
    losses = [train_round(model, training, FAST, round_number=number, rounds=6, seed=3).loss for number in range(1, 7)]

    assert losses[-1] < 0.95 * losses[0]
    assert evaluate(model, held_out, seed=0).masked_r2 > before.masked_r2


def test_the_same_seed_gives_the_same_weights(config, cohort):
    windows = WindowSet(cohort, config.window)

    def trained(seed: int, round_number: int = 1) -> torch.Tensor:
        torch.manual_seed(np.random.default_rng().integers(1000))  # the caller's random numbers do not matter
        model = initial_model(config, 1)
        train_round(model, windows, FAST, round_number=round_number, rounds=4, seed=seed)
        return weights(model)

    assert torch.equal(trained(3), trained(3))
    assert not torch.equal(trained(3), trained(4))
    assert not torch.equal(trained(3), trained(3, round_number=2))


def test_one_step_at_every_site_and_their_average_equal_one_pooled_step(config, cohort):
    """Plain gradient descent: the average weighted by windows is the gradient of the pooled mean loss."""
    sgd = TrainingConfig(
        optimizer="sgd",
        learning_rate=0.5,
        warmup_steps=0,
        clip_norm=None,
        batch_size=1000,
        steps_per_round=1,
        precision="float32",
    )
    people = sorted(cohort.recordings["participant_id"])
    sites = [WindowSet(cohort, config.window, part) for part in (people[:2], people[2:5], people[5:])]
    updates, sizes = [], []
    for number, site in enumerate(sites):
        model = initial_model(config, 1)
        outcome = train_round(model, site, sgd, round_number=1, rounds=1, seed=number)
        updates.append(weights(model).double())
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


def test_a_loss_that_is_not_finite_stops_the_round(config, cohort):
    model = initial_model(config, 1)
    with torch.no_grad():
        model.predict.bias.fill_(torch.inf)

    with pytest.raises(DivergenceError, match="round 2, step 1: the loss is not finite"):
        train_round(model, WindowSet(cohort, config.window), FAST, round_number=2, rounds=4, seed=0)


def test_gradients_are_clipped(config, cohort):
    def step_length(clip_norm: float | None) -> float:
        model = initial_model(config, 1)
        start = weights(model)
        settings = FAST.model_copy(
            update={
                "optimizer": "sgd",
                "learning_rate": 1.0,
                "warmup_steps": 0,
                "steps_per_round": 1,
                "clip_norm": clip_norm,
            }
        )
        train_round(model, WindowSet(cohort, config.window), settings, round_number=1, rounds=1, seed=0)
        return float((weights(model) - start).norm())

    assert step_length(0.01) == pytest.approx(0.01, rel=1e-3)
    assert step_length(None) > 0.02


def test_a_batch_in_parts_takes_the_step_of_the_whole(config, cohort):
    windows = WindowSet(cohort, config.window)
    settings = FAST.model_copy(update={"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 7, "steps_per_round": 3})

    def trained(accumulation: int) -> tuple[torch.Tensor, float]:
        model = initial_model(config, 1)
        in_parts = settings.model_copy(update={"accumulation": accumulation})
        loss = train_round(model, windows, in_parts, round_number=1, rounds=1, seed=3).loss
        return weights(model), loss

    whole, loss = trained(1)
    for accumulation in (3, 100):
        parts, loss_of_parts = trained(accumulation)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
        assert loss_of_parts == pytest.approx(loss, rel=1e-6)


def test_checkpointing_keeps_less_and_changes_nothing(config, cohort):
    windows = WindowSet(cohort, config.window)

    def trained(checkpointing: bool) -> tuple[torch.Tensor, int]:
        model, kept = initial_model(config, 1), []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.nbytes)
            return tensor

        settings = FAST.model_copy(update={"checkpointing": checkpointing, "steps_per_round": 2})
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            train_round(model, windows, settings, round_number=1, rounds=1, seed=3)
        assert all("forward" not in vars(block) for block in [*model.encoder.blocks, *model.decoder.blocks])
        return weights(model), sum(kept)

    (plain, bytes_plain), (checkpointed, bytes_checkpointed) = trained(False), trained(True)
    assert torch.equal(plain, checkpointed)
    assert bytes_checkpointed < bytes_plain / 2


def test_workers_read_the_same_windows(config, cohort):
    windows = WindowSet(cohort, config.window)

    def trained(workers: int) -> torch.Tensor:
        model = initial_model(config, 1)
        before = torch.get_rng_state()
        train_round(model, windows, FAST.model_copy(update={"workers": workers}), round_number=1, rounds=1, seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        return weights(model)

    assert torch.equal(trained(0), trained(2))


@pytest.mark.slow
def test_two_processes_with_half_of_each_batch_equal_one_with_the_whole(config, cohort):
    windows = WindowSet(cohort, config.window)
    settings = FAST.model_copy(update={"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 5, "accumulation": 2})

    def trained(devices: int) -> tuple[torch.Tensor, float]:
        model = initial_model(config, 1)
        outcome = train_round(model, windows, settings, round_number=1, rounds=1, seed=3, devices=devices)
        return weights(model), outcome.loss

    (one, loss), (two, loss_of_two) = trained(1), trained(2)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    assert loss_of_two == pytest.approx(loss, rel=1e-6)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_processes(config, cohort):
    model = initial_model(config, 1)
    with torch.no_grad():
        model.predict.bias.fill_(torch.inf)

    with pytest.raises(DivergenceError, match="round 2, step 1: the loss is not finite"):
        train_round(model, WindowSet(cohort, config.window), FAST, round_number=2, rounds=4, seed=0, devices=2)


def test_the_linear_path_is_never_told_of_the_participant(config, cohort):
    """Whoever is in a batch is left out of the covariance of their own windows, however the batch is cut."""
    asked = []

    class Spy(LinearPath):
        def without(self, participants):
            recordings = list(participants)
            asked.extend(len(of_one) for of_one in recordings)
            return super().without(recordings)

    def trained(accumulation: int) -> torch.Tensor:
        model = initial_model(config.model_copy(update={"residual": "gaussian"}), 1)
        model.prior = Spy(np.eye(100), 0.8 ** np.arange(10), np.full((100, 100), 1e4))
        changes = {"accumulation": accumulation, "steps_per_round": 2}
        train_round(model, windows, FAST.model_copy(update=changes), round_number=1, rounds=1, seed=3)
        return weights(model)

    windows = WindowSet(cohort, config.window)
    whole, parts = trained(1), trained(2)

    assert len(asked) == 2 * 2 * FAST.batch_size  # a participant a window, at each of two steps, twice
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
