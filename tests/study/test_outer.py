import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from base.files import save_arrays
from exchange.messages import Arrays
from study.outer import outer_step, remembers
from study.sections import RoundsConfig

SHAPES = {"b.weight": (4, 3), "a.bias": (3,), "c": ()}
EVERY = [
    {"optimizer": "fedavg"},
    {"optimizer": "fedavgm"},
    {"optimizer": "fedavgm", "nesterov": False, "momentum": 0.5},
    {"optimizer": "fedadam"},
    {"optimizer": "fedyogi", "betas": (0.8, 0.95)},
]


def draw(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def run(
    config: RoundsConfig, weights: Arrays, rounds: range, memory: Arrays | None = None
) -> list[tuple[Arrays, Arrays]]:
    """Weights, and what is remembered, after each round; the sites' average is drawn."""
    after = []
    for number in rounds:
        weights, memory = outer_step(config, number, weights, draw(number), memory or {})
        after.append((weights, memory))
    return after


def assert_equal(first: Arrays, second: Arrays) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def torch_run(make, rounds: int) -> list[Arrays]:
    """The same with an optimizer of torch, whose gradient is the way from the average to the weights."""
    parameters = {name: torch.nn.Parameter(torch.from_numpy(values).clone()) for name, values in draw(0).items()}
    optimizer = make(parameters.values())
    after = []
    for number in range(1, rounds + 1):
        for name, parameter in parameters.items():
            parameter.grad = parameter.detach() - torch.from_numpy(draw(number)[name])
        optimizer.step()
        after.append({name: parameter.detach().numpy().copy() for name, parameter in parameters.items()})
    return after


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (
            {"optimizer": "fedavgm", "server_learning_rate": 0.3, "momentum": 0.8},
            lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.8, nesterov=True),
        ),
        (
            {"optimizer": "fedavgm", "server_learning_rate": 0.3, "momentum": 0.8, "nesterov": False},
            lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.8),
        ),
        (
            {"optimizer": "fedadam", "server_learning_rate": 0.05, "betas": (0.7, 0.9), "tau": 1e-8},
            lambda parameters: torch.optim.Adam(parameters, lr=0.05, betas=(0.7, 0.9)),
        ),
    ],
    ids=["nesterov", "momentum", "adam"],
)
def test_outer_steps_are_those_of_torch(settings, make):
    ours = run(RoundsConfig(**settings), draw(0), range(1, 7))

    for (mine, _), expected in zip(ours, torch_run(make, 6), strict=True):
        for name, values in expected.items():
            np.testing.assert_allclose(mine[name], values, atol=2e-6)
            assert mine[name].dtype == np.float32


def test_yogi_moves_its_second_moment_by_no_more_than_the_square():
    config = RoundsConfig(optimizer="fedyogi", betas=(0.0, 0.9), tau=0.1, server_learning_rate=0.5)
    weights, second = draw(0), dict.fromkeys(SHAPES, np.float32(0))

    for number, (after, _) in enumerate(run(config, draw(0), range(1, 5)), start=1):
        for name, old in weights.items():
            change = draw(number)[name] - old
            second[name] = second[name] - 0.1 * change**2 * np.sign(second[name] - change**2)
            step = 0.5 * change / (np.sqrt(second[name]) + 0.1)
            np.testing.assert_allclose(after[name], old + step, rtol=1e-4, atol=1e-6, err_msg=f"{name} {number}")
        weights = after


def test_no_momentum_and_a_rate_of_one_is_plain_averaging():
    plain = run(RoundsConfig(), draw(0), range(1, 4))
    still = run(RoundsConfig(optimizer="fedavgm", momentum=0.0, server_learning_rate=1.0), draw(0), range(1, 4))

    for number, ((first, _), (second, _)) in enumerate(zip(plain, still, strict=True), start=1):
        assert_equal(first, draw(number))
        assert_equal(first, second)


@pytest.mark.parametrize("settings", EVERY, ids=lambda settings: "-".join(map(str, settings.values())))
def test_what_is_remembered_is_all_that_a_step_needs(settings, tmp_path):
    config = RoundsConfig(**settings)
    whole = run(config, draw(0), range(1, 7))

    save_arrays(tmp_path / "outer", whole[2][1])
    resumed = run(config, whole[2][0], range(4, 7), load_file(tmp_path / "outer"))

    assert bool(whole[2][1]) == remembers(config) == (config.optimizer != "fedavg")
    for (ours, memory), (expected, _) in zip(resumed, whole[3:], strict=True):
        assert_equal(ours, expected)
        assert all(values.dtype == np.float32 for values in memory.values())
