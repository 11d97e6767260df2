"""Attacks that work in this version, as docs/privacy.md says: each is expected to fail until something stops it.

The sites are honest, their sums are secure, and their apps were approved. The coordinator does not follow the protocol:
it chooses states, seeds, weights and sets of sites, which come with its messages and are no part of an app.
"""

import numpy as np
import pytest

from base.seeding import derive_seed
from brainlm.windows import prepare, split_participants, usable_recordings
from client.site import load_site
from exchange.aggregation import add_replies
from exchange.messages import Arrays, FrameSpec, HarmonizeRequest, Job, Step, TableSpec, join
from harmonization.core.newton import contrasts
from tests.attacks.coordinator import MODEL, WIDTH, Coordinator, features_of, kept_of, own_sum, write_careful_sites
from tests.attacks.test_chosen_questions import works

HOSPITAL = {"min_group": 5, "min_change": 10, "columns": ["age", "sex", "mean_fd", "tsnr"]}
"""Of configs/sites/hospital.yaml."""
SEX = {"target": "sex", "levels": ["F", "M"]}


@works("the coordinator sends the states, where a site could solve them from the sums of the round before")
def test_a_state_that_nobody_solved_does_not_give_a_person_s_row(tmp_path, four_cohorts):
    """A gradient is a sum of rows, weighted by how wrong the incoming model is: here by 1 above a threshold, 0 below.

    Two thresholds with one person between them differ in that person's row. One message has many. What is taken out of
    the first feature before, by a coefficient of its choice, is the age, which so stands in the row.
    """
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, **HOSPITAL))
    ages = np.concatenate([_write_age_into_a_feature(coordinator, name) for name in coordinator.names])
    axis = np.random.default_rng(0).normal(size=WIDTH)
    axis[0] /= 100 * _TIMES
    jobs, arrays = {}, {}
    for number, threshold in enumerate(np.linspace(-5, 5, 120)):
        jobs[f"j{number}"] = Job(
            analysis="logistic_regression",
            parameters={"C": 1.0},
            table=TableSpec(features=f"aged{len(_COEFFICIENTS) - 1}", **SEX),
            state="ClassFit",
        )
        arrays |= join(**{f"j{number}": _steep_state(axis, threshold)})
    request = coordinator.sums(jobs=jobs, arrays=arrays, step=2)
    if (replies := coordinator.ask_all(request)) is None:
        return

    total = add_replies(request, replies)
    sums = np.stack([total[f"j{number}/gradient"].ravel() for number in range(len(jobs))]) / np.diff(contrasts(2)[:, 0])
    between = np.diff(sums, axis=0)
    seen = -between[np.abs(between[:, -1] + 1) < 1e-6, :-1]  # the last entry counts people
    people = np.concatenate([features_of(path)[:, 1:] for path in coordinator.sites.values()])
    nearest = [np.abs(people - row[1:]).max(axis=1).argmin() for row in seen]
    found = np.abs(people[nearest] - seen[:, 1:]).max(axis=1, initial=0) < 1e-6
    found &= np.abs(-seen[:, 0] / _TIMES - ages[nearest]) < 0.01
    assert found.sum() < len(people) / 10


_COEFFICIENTS = 0.05 * 2.0 ** np.arange(14)
"""Of one residualization after the other: features that hardly vary beside the effects of covariates would stay."""
_TIMES = float(_COEFFICIENTS.sum())


def _write_age_into_a_feature(coordinator: Coordinator, name: str) -> np.ndarray:
    """Have a site residualize its features again and again; return the ages, which nobody else must learn."""
    age = [{"name": "age", "center": 0.0, "scale": 1.0}]
    steps, arrays, source = [], {}, "x"
    for number, coefficient in enumerate(_COEFFICIENTS):
        result = f"aged{number}"
        model = {"coefficients": coefficient * np.eye(1, WIDTH), "mean": np.zeros(WIDTH)}
        arrays |= join(**{result: {**model, "covariate_mean": np.zeros(1), "site": np.array(0.0)}})
        about = {"transform": "residualization", "model": "ResidualizationModel", "covariates": age}
        steps.append(Step(source=source, result=result, **about))
        source = result
    request = HarmonizeRequest(arrays=arrays, study="small", steps=steps, secure=coordinator.secure())
    coordinator.send(name, request.to_records(), request.message)
    return load_site(coordinator.sites[name]).covariates["age"].sort_index().to_numpy()


def _steep_state(axis: np.ndarray, threshold: float) -> Arrays:
    """A fit under way by which a person is of class 1 for sure above the threshold, and of class 0 below."""
    point = 1e9 * np.append(axis, -threshold)[None, None] * np.sign(np.diff(contrasts(2)[:, 0]))
    return {
        "strength": np.ones(1),
        "point": point,
        "step": np.zeros_like(point),
        "value": np.full(1, np.inf),
        "slope": np.zeros(1),
        "active": np.ones(1),
        "steps": np.array(0),
        "mean": np.zeros(WIDTH),
    }


@works("the coordinator draws the seeds by which people are held out, and each pair of answers differs in enough")
def test_seeds_do_not_take_the_sums_over_frames_apart(tmp_path, four_cohorts):
    """Whom a seed holds out is public, so that the answers to many seeds are a linear system for each person's own sum.

    Here two of three sites side with the coordinator, and one message is enough for all people of the third. Without
    them it takes as many seeds as the three have people. With `min_change` at 10, hospitals this small take a search of
    minutes for seeds that the ledger is content with.
    """
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, **{**HOSPITAL, "min_change": 4}))
    *accomplices, victim = sorted(coordinator.names[:3], key=lambda name: -len(_own_products(coordinator, name)))
    write_careful_sites(tmp_path, [four_cohorts[coordinator.names.index(name)] for name in accomplices], min_change=1)
    secret = np.stack(_own_products(coordinator, victim))
    taken = _seeds_that_differ(victim, len(secret), least=4)
    jobs = {f"s{seed}": _second_moments(seed, holdout) for seed, holdout in taken}
    request = coordinator.sums(sorted([victim, *accomplices]), jobs=jobs)
    if (replies := coordinator.ask_all(request)) is None:
        return

    total = add_replies(request, replies)
    for accomplice in accomplices:
        own = kept_of(coordinator.sites[accomplice]).arrays
        total = {name: values - own[name] for name, values in total.items()}
    answers = np.stack([total[f"{job}/products"].ravel() for job in jobs])
    seen, *_ = np.linalg.lstsq(np.stack(list(taken.values())), answers, rcond=None)
    alike = [np.corrcoef(*pair)[0, 1] for pair in zip(seen, secret, strict=True)]
    assert min(alike) < 0.9


def _own_products(coordinator: Coordinator, name: str) -> list[np.ndarray]:
    """Each usable participant's own products of parcels [P * P], which the coordinator must not learn."""
    cohort = load_site(coordinator.sites[name]).cohort
    products = []
    for recordings in usable_recordings(cohort, MODEL.window).values():
        frames = [prepare(cohort.read(recording), MODEL.window, None).astype(np.float64) for recording in recordings]
        products.append(sum(values @ values.T for values in frames).ravel())
    return products


def _second_moments(seed: int, holdout: float) -> Job:
    window = MODEL.window.model_dump(mode="json")
    table = FrameSpec(atlas="schaefer100", window=window, holdout=holdout, seed=seed)
    return Job(analysis="second_moments", parameters={"n_lags": 1}, table=table)


def _seeds_that_differ(site: str, n_people: int, least: int) -> dict[tuple[int, float], np.ndarray]:
    """Seeds and fractions, each with 1 for whom it trains on: any two differ in enough people, and none is in few."""
    numbers = [str(number) for number in range(n_people)]
    taken: dict[tuple[int, float], np.ndarray] = {}
    for seed in range(10_000):
        holdout = (0.15, 0.25)[seed % 2]
        training, _ = split_participants(numbers, holdout, derive_seed(seed, site))
        mask = np.array([float(number in training) for number in numbers])
        if all(np.abs(mask - other).sum() >= least for other in taken.values()):
            taken[seed, holdout] = mask
        if len(taken) == n_people + 6:
            break
    return taken


@works("sets of sites are counted for each question, and questions of several kinds have sums in common")
@pytest.mark.parametrize(
    "other",
    [
        Job(analysis="logistic_regression", parameters={}, table=TableSpec(features="x", **SEX)),
        Job(
            analysis="projection",
            parameters={"n_components": 2},
            table=TableSpec(features="x", covariates=[{"name": "age", "center": 0.0, "scale": 1.0}]),
        ),
    ],
    ids=["another analysis", "other covariates"],
)
def test_with_one_set_of_sites_allowed_no_difference_is_left(tmp_path, four_cohorts, other):
    """`max_attempts` at 1 stops second attempts and the same question among other sites, and that alone."""
    coordinator = Coordinator(write_careful_sites(tmp_path, four_cohorts, **HOSPITAL, max_attempts=1))
    everybody = coordinator.total(coordinator.sums())["projection/feature_sum"]
    request = coordinator.sums(coordinator.names[:3], jobs={"j": other}, step=2)
    if (replies := coordinator.ask_all(request)) is None:
        return

    left = everybody - add_replies(request, replies)["j/feature_sum"]
    assert not np.allclose(left, own_sum(coordinator.sites[coordinator.names[3]]))
