"""Attacks on a model update, measured: what works on one site's, and less on a sum or a private one.

The attacker is a coordinator that follows the protocol and looks closely at what it gets. These are the small versions
of benchmarks/attacks.py; they assert the order, and the benchmark has the numbers.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def attacks() -> ModuleType:
    """The benchmark, from its file: an installed package goes by the name of its folder."""
    path = Path(__file__).parents[2] / "benchmarks" / "attacks.py"
    spec = importlib.util.spec_from_file_location("benchmarked_attacks", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cohorts(attacks, tmp_path_factory) -> list:
    return attacks.simulate(tmp_path_factory.mktemp("attacks") / "cohorts", 10, n_sites=3)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_members_are_known_by_their_loss_but_less_in_a_sum_and_not_under_privacy(attacks, cohorts, tmp_path):
    people = attacks.people_of(cohorts[0])[:8]
    plain = attacks.train_on_halves(cohorts[0], people, 150, 2)
    rest = [attacks.train(other, attacks.people_of(other), 50) for other in cohorts[1:]]
    summed = [attacks.Trained(attacks.average([one.weights, *rest]), one.members) for one in plain]
    private = attacks.train_on_halves(cohorts[0], people, 30, 2, epsilon=1.0, folder=tmp_path)

    alone, together, noisy = (attacks.loss_attack(cohorts[0], people, seen).auc for seen in (plain, summed, private))
    assert alone > 0.7
    assert together < alone - 0.05
    assert noisy < alone - 0.1


def test_a_step_of_one_window_gives_the_window_and_a_sum_or_noise_does_not(attacks, cohorts):
    model, windows = attacks.initial_model(attacks.MODEL, 1), [attacks.one_window(c, 0) for c in cohorts]
    steps = [attacks.gradient(model, window) for window in windows]
    mean = [torch.stack(same).mean(dim=0) for same in zip(*steps, strict=True)]
    seen = {"plain": steps[0], "summed": mean, "private": attacks.noisy(steps[0], 0.5, 0)}

    found = {
        name: attacks.likeness(attacks.invert(model, gradient, windows[0], 80), windows[0], model)[0]
        for name, gradient in seen.items()
    }
    assert found["plain"] > 0.6
    assert found["summed"] < found["plain"] - 0.3
    assert found["private"] < 0.2
