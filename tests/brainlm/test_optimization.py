import pytest
import torch
from safetensors.torch import load_file, save_file

from brainlm.config import TrainingConfig
from brainlm.errors import CheckpointError
from brainlm.optimization import make_optimizer, restore_optimizer, save_optimizer
from brainlm.pretraining import initial_model, train_round

FAST = TrainingConfig(learning_rate=2e-3, warmup_steps=4, batch_size=4, steps_per_round=5, precision="float32")


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_an_optimizer_from_the_disk_goes_on_as_if_it_had_stayed_in_memory(config, windows, tmp_path):
    """One site's average is its own model, so two rounds with a kept optimizer are one uninterrupted training."""
    uninterrupted = initial_model(config, 1)
    optimizer = make_optimizer(uninterrupted, FAST)
    for number in (1, 2):
        train_round(uninterrupted, windows, FAST, round_number=number, rounds=2, seed=3, optimizer=optimizer)

    state = initial_model(config, 1).state_dict()
    for number in (1, 2):
        model = initial_model(config, number)  # every round begins in a new process, with the averaged weights
        model.load_state_dict(state)
        kept = make_optimizer(model, FAST)
        if number > 1:
            restore_optimizer(tmp_path, kept, model, round_number=number)
        train_round(model, windows, FAST, round_number=number, rounds=2, seed=3, optimizer=kept)
        save_optimizer(tmp_path, kept, model, round_number=number)
        state = model.state_dict()

    assert torch.equal(weights(model), weights(uninterrupted))
    fresh = initial_model(config, 1)
    for number in (1, 2):
        train_round(fresh, windows, FAST, round_number=number, rounds=2, seed=3)
    assert not torch.equal(weights(fresh), weights(uninterrupted))


def test_a_state_that_does_not_belong_here_is_refused_and_changes_nothing(config, windows, tmp_path):
    path = tmp_path / "optimizer-0002.safetensors"
    model = initial_model(config, 1)
    optimizer = make_optimizer(model, FAST)
    train_round(model, windows, FAST, round_number=2, rounds=4, seed=3, optimizer=optimizer)
    save_optimizer(tmp_path, optimizer, model, round_number=2)
    wider, deeper = (initial_model(config.model_copy(update=more), 1) for more in ({"width": 48}, {"depth": 3}))
    sgd = FAST.model_copy(update={"optimizer": "sgd"})

    def refused(model: torch.nn.Module, settings: TrainingConfig, reason: str, number: int = 3, run: str = "") -> None:
        fresh = make_optimizer(model, settings)
        with pytest.raises(CheckpointError, match=reason):
            restore_optimizer(tmp_path, fresh, model, round_number=number, run=run)
        assert not fresh.state

    refused(wider, FAST, "is of a model with other weights")
    refused(deeper, FAST, "is of a model with other weights")
    refused(model, sgd, "is of AdamW, not of SGD")
    refused(model, FAST, "holds no optimizer of a round before 2", number=2)
    refused(model, FAST, "is of another run", run="another")
    path.write_bytes(path.read_bytes()[:-100])
    refused(model, FAST, "is damaged")
    save_file({"w": torch.zeros(2)}, path)
    refused(model, FAST, "is of None, not of AdamW")


def test_the_round_before_is_kept_so_that_a_round_can_be_done_again(config, tmp_path):
    model = initial_model(config, 1)
    optimizer = make_optimizer(model, FAST)

    def kept_after(round_number: int) -> list[str]:
        save_optimizer(tmp_path, optimizer, model, round_number=round_number)
        return sorted(path.stem.removeprefix("optimizer-") for path in tmp_path.iterdir())

    assert [kept_after(number) for number in (1, 2, 5, 5)] == [
        ["0001"],
        ["0001", "0002"],
        ["0002", "0005"],  # the site was away in between
        ["0002", "0005"],
    ]
    assert kept_after(1) == ["0001"]  # a new run of the study


def test_equal_states_have_equal_bytes_and_every_weight_has_its_moments(config, windows, tmp_path):
    for name in ("a", "b"):
        model = initial_model(config, 1)
        optimizer = make_optimizer(model, FAST)
        train_round(model, windows, FAST, round_number=1, rounds=1, seed=3, optimizer=optimizer)
        save_optimizer(tmp_path / name, optimizer, model, round_number=1)

    a, b = (tmp_path / name / "optimizer-0001.safetensors" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()
    names = {name for name, _ in model.named_parameters()}
    stored = load_file(a)
    assert set(stored) == {f"{name}/{moment}" for name in names for moment in ("exp_avg", "exp_avg_sq", "step")}
