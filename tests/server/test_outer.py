import numpy as np
import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

from exchange.messages import Arrays, TrainReply, TrainRequest, join
from server.answers import Answers
from server.averaging import average
from server.errors import ServerError
from server.outer import OuterOptimizer
from study.settings import RoundsConfig

SHAPES = {"b.weight": (4, 3), "a.bias": (3,), "c": ()}
EVERY = [
    {"optimizer": "fedavg"},
    {"optimizer": "fedavgm"},
    {"optimizer": "fedavgm", "nesterov": False, "momentum": 0.5},
    {"optimizer": "fedadam"},
    {"optimizer": "fedyogi", "betas": (0.8, 0.95)},
]


@pytest.fixture(autouse=True)
def identity():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0


def draw(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def stepped(outer: OuterOptimizer, round_number: int) -> Arrays:
    """What an outer optimizer makes of a round's replies."""
    replies = {
        site: TrainReply(arrays=join(weights=draw(100 * round_number + n), tally={"n_windows": np.array(n)}))
        for n, site in enumerate(("b", "a", "c"), start=1)
    }
    settings = {"model": {}, "training": {}, "rounds": 9, "seed": 0}
    request = TrainRequest(study="s", round_number=round_number, **settings)
    return average(RoundsConfig(), outer.strategy, request, Answers(replies, {}, masked=False))


def averages(rounds: int) -> list[Arrays]:
    """What plain averaging makes of each round's replies."""
    return [stepped(OuterOptimizer(RoundsConfig()), n) for n in range(1, rounds + 1)]


def run(outer: OuterOptimizer, weights: Arrays, rounds: range) -> list[Arrays]:
    after = []
    for number in rounds:
        outer.begin(weights)
        weights = stepped(outer, number)
        after.append(weights)
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
    for averaged in averages(rounds):
        for name, parameter in parameters.items():
            parameter.grad = parameter.detach() - torch.from_numpy(averaged[name])
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
    ours = run(OuterOptimizer(RoundsConfig(**settings)), draw(0), range(1, 7))

    for mine, expected in zip(ours, torch_run(make, 6), strict=True):
        for name, values in expected.items():
            np.testing.assert_allclose(mine[name], values, atol=2e-6)
            assert mine[name].dtype == np.float32


def test_yogi_moves_its_second_moment_by_no_more_than_the_square():
    outer = OuterOptimizer(RoundsConfig(optimizer="fedyogi", betas=(0.0, 0.9), tau=0.1, server_learning_rate=0.5))
    start, second = draw(0), dict.fromkeys(SHAPES, np.float32(0))

    weights = start
    for number, (after, averaged) in enumerate(zip(run(outer, start, range(1, 5)), averages(4), strict=True)):
        for name, old in weights.items():
            square = (averaged[name] - old) ** 2
            second[name] = second[name] - 0.1 * square * np.sign(second[name] - square)
            step = 0.5 * (averaged[name] - old) / (np.sqrt(second[name]) + 0.1)
            np.testing.assert_allclose(after[name], old + step, rtol=1e-4, atol=1e-6, err_msg=f"{name} {number}")
        weights = after


def test_no_momentum_and_a_rate_of_one_is_plain_averaging():
    plain = run(OuterOptimizer(RoundsConfig()), draw(0), range(1, 4))
    still = OuterOptimizer(RoundsConfig(optimizer="fedavgm", momentum=0.0, server_learning_rate=1.0))

    for first, second in zip(plain, run(still, draw(0), range(1, 4)), strict=True):
        assert_equal(first, second)


@pytest.mark.parametrize("settings", EVERY, ids=lambda settings: "-".join(map(str, settings.values())))
def test_interrupted_and_restored_is_uninterrupted(settings, tmp_path):
    config = RoundsConfig(**settings)
    uninterrupted = run(OuterOptimizer(config), draw(0), range(1, 7))

    first = OuterOptimizer(config)
    weights = run(first, draw(0), range(1, 4))[-1]
    first.save(tmp_path / "outer")
    second = OuterOptimizer(config)
    second.load(tmp_path / "outer")
    resumed = run(second, weights, range(4, 7))

    assert (tmp_path / "outer").exists() == (config.optimizer != "fedavg")
    for ours, expected in zip(resumed, uninterrupted[3:], strict=True):
        assert_equal(ours, expected)
    assert all(values.dtype == np.float32 for values in second.state_dict().values())


def test_moments_of_something_else_are_refused(tmp_path):
    outer = OuterOptimizer(RoundsConfig(optimizer="fedavgm"))
    with pytest.raises(ServerError, match="is absent or damaged"):
        outer.load(tmp_path / "outer")
    run(outer, draw(0), range(1, 2))
    outer.save(tmp_path / "outer")

    with pytest.raises(ServerError, match="is not of fedadam"):
        OuterOptimizer(RoundsConfig(optimizer="fedadam")).load(tmp_path / "outer")
