import numpy as np
import pytest
from flwr.serverapp.strategy import Krum
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exchange.messages import Arrays
from server.errors import QuorumError
from server.robust import as_reply, robust_centre
from study.sections import RoundsConfig
from tests.support.wire import be_in_run

SHAPES = {"b.weight": (4, 3), "a.bias": (3,), "c": ()}
RULES = ["median", "trimmed_mean", "krum", "multi_krum", "bulyan"]
NEEDS = {"median": (3, 5), "trimmed_mean": (3, 5), "krum": (5, 7), "multi_krum": (5, 7), "bulyan": (7, 11)}
SITES = ["oslo", "bergen", "delft", "evora", "ghent", "aalborg", "coimbra", "faro", "heraklion", "lund", "york", "zug"]


@pytest.fixture(autouse=True, scope="module")
def identity():
    be_in_run(1)


def rounds_config(rule: str, f: int = 1) -> RoundsConfig:
    return RoundsConfig(robust=rule, byzantine=f, quorum=NEEDS["bulyan"][-1] + 8)


def draw(n: int, seed: int, spread: float = 1.0) -> dict[str, Arrays]:
    """Weights of `n` sites about a common model."""
    rng = np.random.default_rng(seed)
    common = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return {
        site: {name: np.float32(common[name] + spread * rng.normal(size=shape)) for name, shape in SHAPES.items()}
        for site in SITES[:n]
    }


def one_array(rows: np.ndarray) -> dict[str, Arrays]:
    return {f"site-{index:02d}": {"w": row} for index, row in enumerate(rows)}


def flat(weights: Arrays) -> np.ndarray:
    return np.concatenate([weights[name].ravel() for name in sorted(weights)])


def table(replies: dict[str, Arrays]) -> np.ndarray:
    """Sites × weights, in the order of names."""
    return np.stack([flat(replies[site]) for site in sorted(replies)]).astype(np.float64)


def krum_scores(rows: np.ndarray, f: int) -> list[float]:
    scores = []
    for i, row in enumerate(rows):
        distances = sorted(((row - other) ** 2).sum() for j, other in enumerate(rows) if j != i)
        scores.append(sum(distances[: len(rows) - f - 2]))
    return scores


def best(rows: np.ndarray, f: int, count: int) -> np.ndarray:
    scores = krum_scores(rows, f)
    return rows[sorted(range(len(rows)), key=lambda i: scores[i])[:count]]


def plain_loop(rule: str, rows: np.ndarray, f: int) -> np.ndarray:
    """What a rule makes of sites × weights, written down weight by weight."""
    n = len(rows)
    if rule == "krum":
        return best(rows, f, 1)[0]
    if rule == "multi_krum":
        return best(rows, f, n - f - 2).mean(axis=0)
    if rule == "bulyan":
        rows = best(rows, f, n - 2 * f)
    centre = np.empty(rows.shape[1])
    for k, column in enumerate(rows.T):
        values = sorted(column)
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        if rule == "median":
            centre[k] = middle
        elif rule == "trimmed_mean":
            centre[k] = np.mean(values[f : n - f])
        else:
            centre[k] = np.mean(sorted(values, key=lambda value: abs(value - middle))[: n - 4 * f])
    return centre


@pytest.mark.parametrize("f", [1, 2])
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("rule", RULES)
def test_rules_are_those_of_plain_loops(rule, more, f):
    for seed in range(2):
        replies = draw(NEEDS[rule][f - 1] + more, seed)

        centre = robust_centre(rounds_config(rule, f), 1, replies)

        np.testing.assert_allclose(flat(centre), plain_loop(rule, table(replies), f), rtol=1e-6, atol=1e-7)
        assert {name: values.shape for name, values in centre.items()} == SHAPES
        assert all(values.dtype == np.float32 for values in centre.values())


small_numbers = st.integers(-2, 2).map(np.float32)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(5, 9), st.just(4)), elements=small_numbers), st.integers(1, 2))
def test_ties_of_coordinates_make_no_difference(rows, f):
    for rule in ("median", "trimmed_mean"):
        centre = robust_centre(rounds_config(rule, f), 1, one_array(rows))["w"]

        np.testing.assert_array_equal(centre, plain_loop(rule, rows.astype(float), f).astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(5, 9), st.just(4)), elements=small_numbers))
def test_of_equally_good_replies_krum_returns_one(rows):
    centre = robust_centre(rounds_config("krum"), 1, one_array(rows))["w"]

    scores = krum_scores(rows.astype(float), 1)
    equally_good = rows[np.array(scores) == min(scores)]
    assert (equally_good == centre).all(axis=1).any()


def test_of_values_as_far_from_the_median_bulyan_takes_one():
    rows = np.float32([[-2], [-1], [0], [1], [2], [1000], [-1000]])  # of the five, three: 0 and ±1

    np.testing.assert_array_equal(robust_centre(rounds_config("bulyan"), 1, one_array(rows))["w"], [0])

    rows = np.float32([[-2], [0], [0.5], [1], [3], [1000], [-1000]])  # 0.5, then 0 and 1
    np.testing.assert_array_equal(robust_centre(rounds_config("bulyan"), 1, one_array(rows))["w"], [0.5])

    rows = np.float32([[-1], [0], [0], [1], [2], [1000], [-1000]])  # 0 twice, and one of ±1
    centre = robust_centre(rounds_config("bulyan"), 1, one_array(rows))["w"]
    assert centre in np.float32([-1 / 3, 1 / 3])


@pytest.mark.parametrize("rule", RULES)
def test_sites_that_agree_are_returned_to_the_last_bit(rule):
    same = draw(1, 3)["oslo"]

    centre = robust_centre(rounds_config(rule), 1, dict.fromkeys(SITES[:7], same))

    for name, values in same.items():
        np.testing.assert_array_equal(centre[name], values)


@pytest.mark.parametrize("rule", RULES)
def test_who_answers_first_does_not_matter(rule):
    replies = draw(8, 4)

    forwards = robust_centre(rounds_config(rule), 1, replies)
    backwards = robust_centre(rounds_config(rule), 1, dict(reversed(replies.items())))

    np.testing.assert_array_equal(flat(forwards), flat(backwards))
    assert all(name in replies["oslo"] for name in forwards), "the replies are left as they were"


POISONS = {
    "flipped": lambda rng, honest: {name: -100 * values for name, values in honest.items()},
    "constant": lambda rng, honest: {name: np.full_like(values, 7) for name, values in honest.items()},
    "noise": lambda rng, honest: {name: np.float32(50 * rng.normal(size=v.shape)) for name, v in honest.items()},
    "huge": lambda rng, honest: {name: np.full_like(values, 3e38) for name, values in honest.items()},
    "one weight": lambda rng, honest: {**honest, "a.bias": honest["a.bias"] + np.float32([0, 0, 1e4])},
}


def poisoned(n: int, f: int, poison: str) -> tuple[dict[str, Arrays], np.ndarray]:
    """Replies of which the first `f` by name are wrong, together; and those of the others, sites × weights."""
    replies = draw(n, 6, spread=0.1)
    wrong = POISONS[poison](np.random.default_rng(7), replies["oslo"])
    for site in sorted(replies)[:f]:
        replies[site] = wrong
    return replies, table(replies)[f:]


@pytest.mark.parametrize("f", [1, 2])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("rule", RULES)
def test_the_wrong_cannot_move_the_centre_out_of_the_others_range(rule, poison, f):
    replies, honest = poisoned(NEEDS[rule][f - 1], f, poison)

    centre = flat(robust_centre(rounds_config(rule, f), 1, replies))

    assert (honest.min(axis=0) <= centre).all()
    assert (centre <= honest.max(axis=0)).all()
    if rule == "krum":
        assert (honest == centre).all(axis=1).any()


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(0, 2))
def test_no_poison_moves_a_coordinate_out_of_the_others_range(data, f, more):
    honest = data.draw(hnp.arrays(np.float32, (f + 1 + more, 3), elements=finite))
    wrong = data.draw(hnp.arrays(np.float32, (f, 3), elements=finite))

    for rule in ("median", "trimmed_mean"):
        centre = robust_centre(rounds_config(rule, f), 1, one_array(np.concatenate([wrong, honest])))["w"]

        assert (honest.min(axis=0) <= centre).all()
        assert (centre <= honest.max(axis=0)).all()


@given(st.integers(3, 200), st.integers(1, 99))
@example(49, 1)
@settings(max_examples=60, deadline=None)
def test_as_many_are_trimmed_as_may_be_wrong(n, f):
    f = min(f, (n - 1) // 2)
    rows = np.concatenate([np.full((f, 1), 1e6), np.zeros((n - f, 1))]).astype(np.float32)
    config = RoundsConfig(robust="trimmed_mean", byzantine=f, quorum=n)

    assert robust_centre(config, 1, one_array(rows))["w"] == 0


def test_small_steps_of_large_weights_are_told_apart():
    """A round moves weights by little, and Flower's distances lose that in float32."""
    rng = np.random.default_rng(0)
    model = rng.normal(size=(1, 20_000))
    rows = np.float32(model + 1e-4 * rng.normal(size=(8, 20_000)) * np.linspace(1, 2, 8)[:, None])
    replies = one_array(rows)

    centre = robust_centre(rounds_config("krum"), 1, replies)["w"]

    scores = krum_scores(rows.astype(float), 1)
    np.testing.assert_array_equal(centre, rows[np.argmin(scores)])
    as_it_is, _ = Krum(num_malicious_nodes=1).aggregate_train(1, [as_reply(w, 1) for w in replies.values()])
    assert not np.array_equal(as_it_is["w"].numpy(), centre), "Flower tells them apart now: float64 can go"


@pytest.mark.parametrize("rule", RULES)
def test_too_few_sites_are_refused(rule):
    replies = draw(NEEDS[rule][1] - 1, 1)

    with pytest.raises(
        QuorumError, match=rf"round 4: {rule} with averaging.byzantine 2 needs .* {NEEDS[rule][1]} sites"
    ):
        robust_centre(rounds_config(rule, 2), 4, replies)


def test_without_a_rule_there_is_no_centre():
    with pytest.raises(ValueError, match=r"averaging\.robust is none"):
        robust_centre(RoundsConfig(), 1, draw(3, 1))
