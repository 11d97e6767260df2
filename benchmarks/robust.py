"""Measure robust averaging: `python benchmarks/robust.py [--steps 40]`.

Eight simulated hospitals train the tiny model for a round from common weights; the first is then made to answer
wrongly. Printed is how far each rule's centre lies from the mean of the seven others, in units of that mean's own step.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import machine, markdown
from flwr.supercore.task_identity import TaskIdentity

from base.seeding import derive_seed
from brainlm.config import TrainingConfig, load_model_config
from brainlm.pretraining import initial_model, train_round
from brainlm.windows import WindowSet
from cohorts import Cohort
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from exchange.messages import Arrays
from server.robust import robust_centre
from study.sections import RoundsConfig

RULES = ("none", "median", "trimmed_mean", "krum", "multi_krum", "bulyan")
SEED = 1
MODEL = Path(__file__).parents[1] / "configs/models/tiny.yaml"
Poison = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From the weights before, the others' steps (sites × weights) and the site's own, to the step that it states."""
POISONS: dict[str, Poison] = {
    "nobody is wrong": lambda start, others, own: own,
    "step × -100": lambda start, others, own: -100 * own,
    "step × -1": lambda start, others, own: -own,
    "all weights 1": lambda start, others, own: 1 - start,
    "noise of sd 1": lambda start, others, own: np.random.default_rng(SEED).normal(size=own.shape),
    "1.5 sd off the mean": lambda start, others, own: others.mean(0) - 1.5 * others.std(0),  # Baruch et al. 2019
}


def train_sites(folder: Path, steps: int) -> tuple[Arrays, dict[str, Arrays]]:
    """Weights before and after a round at each of eight hospitals, of 14 to 26 people."""
    cohorts = simulate_cohorts(folder, simulated_hospitals(8, 20, minutes=5.0), atlas="schaefer100", seed=SEED)
    config = load_model_config(MODEL)
    training = TrainingConfig(steps_per_round=steps, precision="float32")
    before, after = {}, {}
    for path in cohorts:
        model = initial_model(config, SEED)
        before = {name: values.numpy().copy() for name, values in model.state_dict().items()}
        windows = WindowSet(Cohort.open(path), config.window)
        train_round(model, windows, training, round_number=1, rounds=5, seed=derive_seed(SEED, path.name))
        after[path.name] = {name: values.numpy().copy() for name, values in model.state_dict().items()}
    return before, after


def flat(weights: Arrays) -> np.ndarray:
    return np.concatenate([weights[name].ravel() for name in sorted(weights)]).astype(np.float64)


def error(rule: str, start: np.ndarray, steps: np.ndarray) -> float:
    """Distance of a rule's centre from the mean of all but the first, over the length of that mean's step."""
    if rule == "none":
        centre = steps.mean(axis=0)
    else:
        replies = {f"site-{place}": {"w": np.float32(start + step)} for place, step in enumerate(steps)}
        centre = robust_centre(RoundsConfig(robust=rule, quorum=7), 1, replies)["w"] - start
    honest = steps[1:].mean(axis=0)
    return float(np.linalg.norm(centre - honest) / np.linalg.norm(honest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="of a round")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0  # messages need a run
    with tempfile.TemporaryDirectory() as folder:
        before, after = train_sites(Path(folder) / "cohorts", arguments.steps)
    start = flat(before)
    steps = np.stack([flat(after[site]) - start for site in sorted(after)])
    rows = []
    for rule in RULES:
        found = []
        for poison in POISONS.values():
            stated = np.stack([poison(start, steps[1:], steps[0]), *steps[1:]])
            found.append(f"{error(rule, start, stated):.2f}")
        rows.append([rule, *found])
    print(markdown(["rule", *POISONS], rows))
    print(f"\n{len(start):,} weights, {arguments.steps} steps; {machine()}.")


if __name__ == "__main__":
    main()
