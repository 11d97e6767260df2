"""How much of a person's embedding depends on the parcellation: the same people in Schaefer-100, 200 and 400.

``python benchmarks/parcellations.py`` simulates four hospitals whose people are recorded in all three atlases, trains
small models, and prints the tables of docs/benchmarks/parcellations.md. Each model is trained by a pooled loop over the
people of all hospitals; a fifth of each hospital's people is held out.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import machine, markdown
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cdist, pdist
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold

from base.seeding import derive_seed
from brainlm.architectures import AnyModel
from brainlm.config import ModelConfig, TrainingConfig, load_model_config
from brainlm.embedding import embed, functional_connectivity
from brainlm.evaluation import evaluate
from brainlm.pretraining import initial_model, train_round
from brainlm.windows import WindowSet, split_participants
from cohorts import Atlas, Cohort, load_atlas
from cohorts.quality import temporal_snr
from cohorts.simulation import SimulatedSite, simulate_people, simulate_recording, simulated_hospitals
from harmonization import ComBatHarmonizer, CrossValidatedRidge, Design, Projection, SiteTable, add_sums, run_pooled
from harmonization.core.design import KNOWN

CONFIG = Path(__file__).parents[1] / "configs" / "models" / "tiny.yaml"
ATLASES = ("schaefer100", "schaefer200", "schaefer400")
NOISE, MOVEMENT, LATER = "schaefer100, other noise", "schaefer100, other movement", "schaefer100, later"
RETRAINED = "schaefer100, other seed"
PAIRS = [*combinations(ATLASES, 2), *(("schaefer100", other) for other in (NOISE, MOVEMENT, LATER, RETRAINED))]
"""What is compared; the last four keep the atlas and change something else, to compare with."""
MIXED = "another at each hospital"
ONE, EACH, UNTRAINED = "one model", "a model each", "untrained"
WHOLE, NETWORKS = "connectivity", "7 networks"
KINDS = (ONE, EACH, UNTRAINED, WHOLE, NETWORKS)
N_COMPONENTS = 20
"""Principal components that are aligned between atlases."""

Features = dict[str, dict[str, np.ndarray]]
"""Kind → recordings → [n, p], in order of participants."""


@dataclass(frozen=True)
class People:
    """Everybody, in order of participant_id: the name of the site, the age in years, the design matrix of age, sex."""

    ids: list[str]
    site: np.ndarray
    age: np.ndarray
    design: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=30, help="mean number a hospital")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of a recording")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sites = simulated_hospitals(4, given.people, 2 * given.minutes)
    with tempfile.TemporaryDirectory() as folder:
        cohorts = record(Path(folder), sites, given.seed)
        people = describe(cohorts["schaefer100"])
        models = train(cohorts, people, load_model_config(CONFIG), given.steps, given.seed)
        features = make_features(cohorts, people, models)
        reconstruction = reconstruct(cohorts, people, models)
    harmonized = {
        kind: {name: ComBatHarmonizer().fit_transform(x, people.design, people.site) for name, x in of.items()}
        for kind, of in features.items()
    }
    ages = {kind: {name: predict_age(x, people) for name, x in of.items()} for kind, of in features.items()}
    print(f"\n{len(people.ids)} people. Measured in {time.process_time():.0f} s of CPU time on {machine()}.")
    show("Masked R² of held-out people", reconstruction)
    show("Linear CKA / rank correlation of the distances between people", over_pairs(harmonized, cka, rank_distances))
    show(
        "How far a person moves, in distances between two people / less the shift of all",
        over_pairs(harmonized, lambda a, b: measure_move(a, b, False), lambda a, b: measure_move(a, b, True)),
    )
    show("Share of people identified, as they are / aligned", over_pairs(harmonized, identify, identify_aligned))
    show("R² of age, and half of its 95 % interval", over_recordings(ages, lambda x: score_age(people.age, x)))
    print(f"\nThe mean age of each hospital alone: {score_age(people.age, average_by_site(people))}")
    show(
        "Rank correlation of predicted ages / at equal age",
        over_pairs(ages, correlate_ranks, lambda a, b: correlate_ranks_given(a, b, people.age)),
    )


def record(folder: Path, sites: list[SimulatedSite], seed: int) -> dict[str, Cohort]:
    """Record everybody in each atlas, and in the first one again: with other noise, other movement, and later."""
    cohorts = {name: simulate(folder / name, sites, load_atlas(name), seed) for name in ATLASES}
    first = load_atlas("schaefer100")
    # The simulation derives the noise from the atlas' name, and the sources from the person alone.
    cohorts[NOISE] = simulate(folder / "noise", sites, replace(first, name="schaefer100-again"), seed)
    cohorts[MOVEMENT] = simulate(folder / "movement", sites, first, seed, movement=1)
    cohorts[LATER] = simulate(folder / "later", sites, first, seed, later=True)
    return cohorts


def simulate(
    folder: Path, sites: list[SimulatedSite], atlas: Atlas, seed: int, *, movement: int = 0, later: bool = False
) -> Cohort:
    """Make one cohort of all sites' people, of the first or the later half of their recordings."""
    members = [(site, person) for site in sites for person in simulate_people(site, seed)]
    table = pd.DataFrame([{**asdict(person), "site": site.name} for site, person in members])
    cohort = Cohort.create(folder, atlas=atlas, name=atlas.name, participants=table, preprocessing="simulated")
    for site, person in members:
        # The simulation draws other movements for every atlas, which one scan cannot have: here people lie still first.
        still = simulate_recording(site, replace(person, mean_fd=0.0), atlas, seed)
        rng = np.random.default_rng(derive_seed(seed, person.participant_id, "movement", movement))
        half = slice(site.n_frames // 2, None) if later else slice(site.n_frames // 2)
        signal = move(still.signal, person.mean_fd, rng)[half]
        cohort.add(replace(still, signal=signal, mean_fd=person.mean_fd, tsnr=temporal_snr(signal)))
    return cohort


def move(signal: np.ndarray, mean_fd: float, rng: np.random.Generator) -> np.ndarray:
    """Add sudden movements to a signal [T, P]: those of `cohorts.simulation`, the same in every atlas."""
    shape = (len(signal), 1)
    percent = (rng.random(shape) < 0.04) * rng.normal(size=shape) * 2.0 * mean_fd / 0.2
    return (signal + signal.mean(axis=0) * percent / 100).astype(np.float32)


def describe(cohort: Cohort) -> People:
    """Read who is there."""
    table = cohort.covariates()
    design = Design((KNOWN["age"], KNOWN["sex"])).encode(table, len(table))
    return People(table["participant_id"].tolist(), table["site"].to_numpy(str), table["age"].to_numpy(float), design)


def train(
    cohorts: Mapping[str, Cohort], people: People, config: ModelConfig, steps: int, seed: int
) -> dict[str, AnyModel]:
    """Train a model for each atlas from the same weights, and one for the first atlas from others."""
    settings = TrainingConfig(
        learning_rate=2e-3, batch_size=2, steps_per_round=steps, warmup_steps=100, precision="float32"
    )
    models = {UNTRAINED: initial_model(config, seed)}
    for name in (*ATLASES, RETRAINED):
        cohort, own_seed = (cohorts["schaefer100"], seed + 1) if name == RETRAINED else (cohorts[name], seed)
        windows = WindowSet(cohort, config.window, split(people)[0])
        models[name] = initial_model(config, own_seed)
        began = time.process_time()
        outcome = train_round(models[name], windows, settings, round_number=1, rounds=1, seed=own_seed)
        print(f"{name}: {time.process_time() - began:.0f} s, mean loss {outcome.loss:.3f}", flush=True)
    return models


def split(people: People) -> tuple[list[str], list[str]]:
    """Split into people to train on and people held out, at each site."""
    training, held_out = [], []
    for site in np.unique(people.site):
        of_site = [person for person, where in zip(people.ids, people.site, strict=True) if where == site]
        for part, chosen in zip((training, held_out), split_participants(of_site, 0.2, 0), strict=True):
            part += chosen
    return training, held_out


def reconstruct(
    cohorts: Mapping[str, Cohort], people: People, models: Mapping[str, AnyModel]
) -> dict[str, dict[str, str]]:
    """Score the models on held-out people."""
    rows: dict[str, dict[str, str]] = {}
    for name in ATLASES:
        windows = WindowSet(cohorts[name], models[name].config.window, split(people)[1])
        chosen = {ONE: models["schaefer100"], EACH: models[name], UNTRAINED: models[UNTRAINED]}
        rows[name] = {
            kind: f"{evaluate(model, windows, seed=0).overall['masked_r2']:.3f}" for kind, model in chosen.items()
        }
    return rows


def make_features(cohorts: Mapping[str, Cohort], people: People, models: Mapping[str, AnyModel]) -> Features:
    """Embed everybody in every recording, and make the baselines."""
    features: Features = {kind: {} for kind in KINDS}
    for name, cohort in cohorts.items():
        features[ONE][name] = values(embed(models["schaefer100"], cohort))
        features[UNTRAINED][name] = values(embed(models[UNTRAINED], cohort))
        features[WHOLE][name] = values(functional_connectivity(cohort))
        features[NETWORKS][name] = between_networks(features[WHOLE][name], cohort.atlas)
    for name in (*ATLASES, RETRAINED):
        features[EACH][name] = values(embed(models[name], cohorts.get(name, cohorts["schaefer100"])))
    for kind in (ONE, UNTRAINED, NETWORKS):
        features[kind][MIXED] = mix(features[kind], people)
    return features


def mix(features: Mapping[str, np.ndarray], people: People) -> np.ndarray:
    """Take each site's rows from another atlas; the fourth site has the first one's."""
    rows = np.empty_like(features["schaefer100"])
    for number, site in enumerate(np.unique(people.site)):
        rows[people.site == site] = features[ATLASES[number % 3]][people.site == site]
    return rows


def values(frame: pd.DataFrame) -> np.ndarray:
    """Features [n, p] of a table."""
    return frame.drop(columns="participant_id").to_numpy(np.float64)


def between_networks(connectivity: np.ndarray, atlas: Atlas) -> np.ndarray:
    """Mean connectivity [n, 28] within and between the seven networks, from that of all pairs of parcels."""
    names, network = np.unique(np.array(atlas.networks), return_inverse=True)
    first, second = np.sort(network[np.stack(np.triu_indices(atlas.n_parcels, 1))], axis=0)
    pair = first * len(names) + second
    return np.stack([connectivity[:, pair == which].mean(axis=1) for which in np.unique(pair)], axis=1)


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear centred kernel alignment, 0 by chance.

    Kornblith et al. (ICML 2019), with the unbiased estimate of HSIC by Song et al. (JMLR 2012): the biased one nears 1
    for any features that are many more than people.
    """

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        return (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * k.sum(axis=0) @ m.sum(axis=0) / (n - 2)

    kernels = []
    for x in (a, b):
        centred = x - x.mean(axis=0)
        kernel = centred @ centred.T
        np.fill_diagonal(kernel, 0)
        kernels.append(kernel)
    k, m = kernels
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def rank_distances(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of the distances between all pairs of people."""
    return correlate_ranks(pdist(a), pdist(b))


def measure_move(a: np.ndarray, b: np.ndarray, less_shift: bool) -> float:
    """Distance between a person's two rows over that between two people (root mean squares); NaN if p differs.

    With `less_shift`, after the mean difference of all people is taken away. A stranger is at 1 then.
    """
    if a.shape != b.shape:
        return np.nan
    moved = a - b - less_shift * (a - b).mean(axis=0)
    return np.sqrt((moved**2).sum(axis=1).mean() / (a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)).sum())


def identify(a: np.ndarray, b: np.ndarray) -> float:
    """Share of people whose own row in the other recording is nearest, mean of both directions; NaN if p differs."""
    if a.shape != b.shape:
        return np.nan
    distance, own = cdist(a, b), np.arange(len(a))
    return ((distance.argmin(axis=1) == own).mean() + (distance.argmin(axis=0) == own).mean()) / 2


def identify_aligned(a: np.ndarray, b: np.ndarray) -> float:
    """Share of people identified once principal components are turned onto the other's, as other people say."""

    def one_way(a: np.ndarray, b: np.ndarray) -> float:
        found = 0
        for others, left_out in KFold(10, shuffle=True, random_state=0).split(a):
            mine, theirs = (PCA(N_COMPONENTS, svd_solver="full").fit(x[others]) for x in (a, b))
            x, y = mine.transform(a), theirs.transform(b)
            turn, _ = orthogonal_procrustes(x[others], y[others])
            # Of the same size, not of that which fits best: shrunk to the middle, all would be nearest to a few.
            distance = cdist(x[left_out] @ turn / np.linalg.norm(x[others]), y / np.linalg.norm(y[others]))
            found += (distance.argmin(axis=1) == left_out).sum()
        return found / len(a)

    a, b = turn_to_axes(a), turn_to_axes(b)
    return (one_way(a, b) + one_way(b, a)) / 2


def turn_to_axes(features: np.ndarray) -> np.ndarray:
    """Turn n centred rows onto n axes, which keeps their distances: thousands of edges are slow."""
    centred = features - features.mean(axis=0)
    squares, axes = np.linalg.eigh(centred @ centred.T)
    return axes * np.sqrt(squares.clip(min=0))


def predict_age(features: np.ndarray, people: People) -> np.ndarray:
    """Predict everybody's age [n] from the rows of others, as a study does: ComBat and ridge in five folds.

    The answer of `CrossValidatedRidge` is a score alone; the predictions come from its last state but one.
    """
    sites = np.unique(people.site)
    rows = [np.flatnonzero(people.site == site) for site in sites]
    tables = [SiteTable(features[r], people.design[r], people.age[r], seed=k) for k, r in enumerate(rows)]
    model = run_pooled(Projection(min(512, features.shape[1], len(features) // 2)), tables)
    tables = [replace(table, loadings=model.components.T) for table in tables]
    ridge = CrossValidatedRidge(n_folds=5, method="combat")
    before = state = None
    while state is None or not state.done:
        before, state = state, ridge.solve(add_sums([ridge.summarize(table, state) for table in tables]), state)
    predicted = np.empty(len(features))
    for table, r in zip(tables, rows, strict=True):
        left_out = ridge.deal(table)
        for fold, combat in enumerate(before.models):
            held_out, fits = left_out == fold, before.own
            effect = ridge.harmonizer.estimate(combat, table.take(~held_out))
            x = ridge.harmonizer.apply(combat, table.take(held_out), effect) @ table.loadings
            predicted[r[held_out]] = (x - fits.mean[fold]) @ fits.coef[fold] + fits.target_mean[fold, 0]
    return predicted


def average_by_site(people: People) -> np.ndarray:
    """Predict the mean age of each person's site, which takes no recording."""
    return pd.Series(people.age).groupby(people.site).transform("mean").to_numpy()


def score_age(age: np.ndarray, predicted: np.ndarray) -> str:
    """R² of predictions, and half the width of its 95 % interval over 1000 bootstrap samples of people."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([[np.arange(len(age))], rng.integers(len(age), size=(1000, len(age)))])
    r2 = 1 - ((age - predicted)[samples] ** 2).mean(axis=1) / age[samples].var(axis=1)
    low, high = np.quantile(r2[1:], (0.025, 0.975))
    return f"{r2[0]:.2f} ± {(high - low) / 2:.2f}"


def correlate_ranks(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation."""
    return spearmanr(a, b).statistic


def correlate_ranks_given(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
    """Partial Spearman correlation of `a` and `b`, at equal `given`."""
    ab, ag, bg = correlate_ranks(a, b), correlate_ranks(a, given), correlate_ranks(b, given)
    return (ab - ag * bg) / np.sqrt((1 - ag**2) * (1 - bg**2))


def over_pairs(
    features: Features, *comparisons: Callable[[np.ndarray, np.ndarray], float]
) -> dict[str, dict[str, str]]:
    """Compare every pair of recordings that a kind of features has; "–" where two cannot be compared."""
    rows: dict[str, dict[str, str]] = {}
    for first, second in PAIRS:
        rows[f"{first} and {second}" if second in ATLASES else second] = {
            kind: " / ".join(f"{compare(of[first], of[second]):.2f}" for compare in comparisons).replace("nan", "–")
            for kind, of in features.items()
            if first in of and second in of
        }
    return rows


def over_recordings(features: Features, score: Callable[[np.ndarray], str]) -> dict[str, dict[str, str]]:
    """Score every recording of every kind of features."""
    names = (*ATLASES, NOISE, MOVEMENT, LATER, RETRAINED, MIXED)
    return {name: {kind: score(of[name]) for kind, of in features.items() if name in of} for name in names}


def show(title: str, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Print one table: a column for every kind of features that has a number."""
    kinds = [kind for kind in KINDS if any(kind in row for row in rows.values())]
    print(f"\n{title}\n")
    print(markdown(["", *kinds], [(name, *(row.get(kind, "") for kind in kinds)) for name, row in rows.items()]))


if __name__ == "__main__":
    main()
