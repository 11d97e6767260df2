"""Compare every way of making sites alike: on simulated features whose truth is known, and on three real sites.

``python benchmarks/methods.py [--abide RECORDINGS.npz PARTICIPANTS.tsv]``. Each method is fitted on training folds and
applied to the people who were left out, by the same code as in a federation. The recordings are never part of the
project: docs/real-data.md says what the two files hold.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import fedbrainlm, machine, markdown

from brainlm.embedding import functional_connectivity
from cohorts import Cohort
from harmonization import (
    CrossValidatedRidge,
    Design,
    Projection,
    SiteClassification,
    SiteTable,
    harmonizers,
    make_harmonizer,
    run_pooled,
)
from harmonization.core.design import KNOWN

COMPARED = [method for method in harmonizers() if method != "combat_longitudinal"]  # nobody comes twice
AGE_BOUNDS = (-2.5, 2.5)
"""Public bounds of age as coded, for the method that gives it a curve."""
SIZES = (70, 50, 90, 60)
N_FEATURES = 48
FOLDS, PERMUTATIONS = 5, 40


@dataclass(frozen=True)
class World:
    """Features as the scanners saw them, as they would be without scanners, and whose they are."""

    seen: np.ndarray
    truth: np.ndarray
    covariates: np.ndarray  # age as coded, and sex
    site: np.ndarray


def scenario(name: str, seed: int) -> World:
    """Draw people of four sites with latent traits, age and sex; then let the scanners distort them."""
    rng = np.random.default_rng(seed)
    site = np.repeat(np.arange(len(SIZES)), SIZES)
    n = len(site)
    age = np.clip(rng.normal(np.array([-0.8, 0.1, 0.3, 0.9])[site], 0.6), *AGE_BOUNDS)
    sex = (rng.random(n) < 0.5).astype(float)
    bent = age**2 if name == "curved age" else np.zeros(n)
    traits = rng.normal(size=(n, 6)) @ rng.normal(size=(6, N_FEATURES)) / 2
    effects = rng.normal(size=(3, N_FEATURES)) * np.array([[0.5], [0.3], [0.5]])
    truth = np.column_stack([age, sex, bent]) @ effects + traits + rng.normal(size=(n, N_FEATURES)) * 0.7
    shift = 0.8 * rng.normal(size=(len(SIZES), N_FEATURES))[site]
    scale = np.exp(0.25 * rng.normal(size=(len(SIZES), N_FEATURES)))[site]
    seen = shift + scale * truth
    if name == "covariance":  # each scanner mixes features in its own way, means and scales aside
        mixing = np.eye(N_FEATURES) + 0.12 * rng.normal(size=(len(SIZES), N_FEATURES, N_FEATURES))
        seen = shift + np.einsum("np,npq->nq", scale * truth, mixing[site])
    if name == "warp":  # saturation, stronger at some scanners
        strength = np.array([0.0, 0.2, 0.4, 0.6])[site][:, None]
        seen = shift + scale * ((1 - strength) * truth + strength * 2 * np.tanh(truth))
    return World(seen, truth, np.column_stack([age, sex]), site)


def tables_of(world: World) -> list[SiteTable]:
    names = [f"site-{number}" for number in range(world.site.max() + 1)]
    return [
        SiteTable(world.seen[rows], world.covariates[rows], world.covariates[rows, 0], site=name, seed=number)
        for number, name in enumerate(names)
        for rows in [world.site == number]
    ]


def options_of(method: str, sites: Sequence[str]) -> dict[str, object]:
    if method == "combat_gam":
        return {"smooth": [[0, *AGE_BOUNDS]]}
    return {"sites": list(sites)} if method == "site_adversarial" else {}


def recognised(tables: list[SiteTable], method: str, options: dict[str, object]) -> tuple[float, float]:
    """Balanced accuracy of the site in held-out people, beyond age and sex, and its mean by chance."""
    one_hot = np.eye(len(tables))
    labelled = [replace(t, target=np.tile(one_hot[number], (t.n, 1))) for number, t in enumerate(tables)]
    analysis = SiteClassification(n_folds=FOLDS, method=method, options=options, permutations=PERMUTATIONS)
    result = run_pooled(analysis, labelled)
    return result.balanced_accuracy, result.null_mean


def age_r2(tables: list[SiteTable], method: str, options: dict[str, object]) -> float:
    return run_pooled(CrossValidatedRidge(n_folds=FOLDS, method=method, options=options), tables).r2


def undone(world: World, tables: list[SiteTable], method: str, options: dict[str, object]) -> float:
    """Share of the scanners' distortion that is undone in held-out people; a shift common to all does not count."""
    harmonizer = make_harmonizer(method, options)
    folds = [CrossValidatedRidge(n_folds=FOLDS).deal(table) for table in tables]
    made = [np.empty_like(table.features) for table in tables]
    for fold in range(FOLDS):
        training = [table.take(dealt != fold) for table, dealt in zip(tables, folds, strict=True)]
        model = run_pooled(harmonizer, training) if harmonizer.initial() is None else harmonizer.initial()
        for table, known, dealt, rows in zip(tables, training, folds, made, strict=True):
            effect = harmonizer.estimate(model, known)
            rows[dealt == fold] = harmonizer.apply(model, table.take(dealt == fold), effect)
    return 1 - _distance(np.concatenate(made), world.truth) / _distance(world.seen, world.truth)


def _distance(values: np.ndarray, truth: np.ndarray) -> float:
    difference = values - truth
    return float(((difference - difference.mean(axis=0)) ** 2).sum())


def simulated(seeds: Sequence[int]) -> str:
    """One row a scenario and method, means over seeds."""
    rows = []
    for name in ("shift and scale", "curved age", "covariance", "warp"):
        for method in COMPARED:
            scores = np.array([_scores(scenario(name, seed), method) for seed in seeds])
            site, chance, age, share, seconds = scores.mean(axis=0)
            rows.append((name, method, f"{share:.2f}", f"{site:.2f} ({chance:.2f})", f"{age:.2f}", f"{seconds:.1f}"))
    header = ["distortion", "method", "distortion undone", "site recognised (by chance)", "age R²", "seconds"]
    return markdown(header, rows)


def _scores(world: World, method: str) -> tuple[float, ...]:
    tables = tables_of(world)
    options = options_of(method, [table.site for table in tables])
    began = time.perf_counter()
    share = undone(world, tables, method, options)
    seconds = time.perf_counter() - began
    return (*recognised(tables, method, options), age_r2(tables, method, options), share, seconds)


def real(recordings: Path, participants: Path) -> str:
    """Functional connectivity of three ABIDE sites, seen through its principal components."""
    tables = _abide(recordings, participants)
    n_components = sum(table.n for table in tables) // 2
    loadings = run_pooled(Projection(n_components), tables).components.T
    tables = [replace(table, loadings=loadings) for table in tables]
    rows = []
    for method in COMPARED:
        options = options_of(method, [table.site for table in tables])
        began = time.perf_counter()
        site, chance = recognised(tables, method, options)
        age = age_r2(tables, method, options)
        seconds = time.perf_counter() - began
        rows.append((method, f"{site:.2f} ({chance:.2f})", f"{age:.2f}", f"{seconds:.0f}"))
    return markdown(["method", "site recognised (by chance)", "age R²", "seconds"], rows)


def _abide(recordings: Path, participants: Path) -> list[SiteTable]:
    design: Callable[..., np.ndarray] = Design((KNOWN["age"], KNOWN["sex"])).encode
    tables: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(("PITT", "OLIN", "OHSU")):
            path = Path(folder) / name.lower()
            chosen = ("--participants", participants, "--select", f"site={name}", "--atlas", "aal116")
            fedbrainlm("cohort", "prepare", recordings, path, *chosen, "--keep-ids", "--no-report")
            cohort = Cohort.open(path)
            people = cohort.covariates()
            connectivity = functional_connectivity(cohort, people["participant_id"].tolist())
            people = people.set_index("participant_id").loc[connectivity["participant_id"]]
            features = connectivity.drop(columns="participant_id").to_numpy()
            covariates = design({name: people[name].tolist() for name in ("age", "sex")}, len(people))
            age = people["age"].to_numpy(float)
            tables.append({"features": features, "covariates": covariates, "target": age, "site": name, "seed": number})
    known = ~np.isnan(np.concatenate([table["features"] for table in tables])).any(axis=0)
    return [SiteTable(**{**table, "features": table["features"][:, known]}) for table in tables]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--abide", type=Path, nargs=2, metavar=("RECORDINGS", "PARTICIPANTS"))
    parser.add_argument("--seeds", type=int, default=3, help="draws of each simulated scenario")
    given = parser.parse_args()
    print(f"Measured on {machine()}.\n")
    print(simulated(range(given.seeds)))
    if given.abide:
        print(f"\n{real(*given.abide)}")


if __name__ == "__main__":
    main()
