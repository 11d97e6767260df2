import numpy as np
import pytest

from brainlm.evaluation import MODEL
from exchange.aggregation import add_replies
from exchange.messages import TrainReply, TrainRequest, join
from server.answers import Answers
from server.averaging import Checkpoints, averaged, measure_reconstruction, starting_model, weights_of
from server.errors import ServerError
from server.journal import Journal
from study.sections import RoundsConfig
from study.settings import Study
from study.state import State
from tests.support.federation import STUDY
from tests.support.wire import be_in_run


@pytest.fixture(autouse=True)
def identity():
    be_in_run(1)


def reply(seed: int, n_windows: int, value: float | None = None) -> TrainReply:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(4, 3)).astype(np.float32) if value is None else np.full((4, 3), value, np.float32)
    sums = {"parcels": rng.random((8, 5)) * 10, "horizons": rng.random((8, 41)) * 10}
    tally = {"n_windows": np.array(n_windows), "n_losses": np.array(n_windows), "loss": np.array(1.5 * n_windows)}
    return TrainReply(arrays=join(weights={"w": weight}, tally=tally, **{"evaluation/x": sums}))


REQUEST = TrainRequest(study="s", model={}, training={}, round_number=1, rounds=4, seed=0)


def in_clear(replies: dict[str, TrainReply]) -> Answers:
    return Answers(replies, add_replies(REQUEST, replies), masked=False)


def averaged_of(replies: dict[str, TrainReply], **settings: object) -> np.ndarray:
    return averaged(RoundsConfig(**settings), REQUEST, in_clear(replies))["weights/w"]


def test_weights_are_averaged_by_windows():
    replies = {"a": reply(1, 10), "b": reply(2, 30), "c": reply(3, 60)}

    averaged = averaged_of(replies)

    expected = sum(share * replies[name].part("weights")["w"] for name, share in (("a", 0.1), ("b", 0.3), ("c", 0.6)))
    np.testing.assert_allclose(averaged, expected, rtol=1e-6)
    assert averaged.dtype == np.float32


def test_who_answers_first_does_not_matter():
    replies = {name: reply(seed, 10 + seed) for seed, name in enumerate("abcdefg")}
    backwards = dict(reversed(replies.items()))

    np.testing.assert_array_equal(averaged_of(replies), averaged_of(backwards))


def test_a_robust_rule_takes_the_place_of_the_average():
    replies = {name: reply(0, 10, value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 1e6))}

    np.testing.assert_array_equal(averaged_of(replies, robust="median"), np.full((4, 3), 2.0))


def test_sums_under_masks_are_left_as_they_are():
    total = {"update/w": np.ones(3), "tally/n_windows": np.array(100.0)}

    assert averaged(RoundsConfig(), REQUEST, Answers({}, total, masked=True)) == total


def test_r2_over_sites_is_that_of_their_sums(tmp_path):
    replies = {"a": reply(1, 10), "b": reply(2, 30)}

    by_atlas = measure_reconstruction(Journal(tmp_path), 3, in_clear(replies))[MODEL]

    total = sum(r.part("evaluation/x")["parcels"] for r in replies.values())
    np.testing.assert_allclose(by_atlas["x"].parcels, total)
    metrics = Journal(tmp_path).table("metrics").set_index(["site", "name"])["value"]
    assert metrics["all", "mse"] == pytest.approx(total[6].sum() / total[0].sum())
    assert set(metrics.index.get_level_values("site")) == {"a", "b", "all"}


def test_what_another_outer_optimizer_remembers_is_refused(tmp_path):
    adam, yogi = (Study(**{**STUDY, "averaging": {"optimizer": name}}) for name in ("fedadam", "fedyogi"))
    weights, journal = weights_of(starting_model(adam)), Journal(tmp_path)
    memory = join(first=weights, second=weights)
    state = State(stage="pretraining", sites={}, round_number=1).holding(weights=weights, outer=memory)
    Checkpoints(adam, journal).save(state)

    number, _, remembered = Checkpoints(adam, journal).last(state)

    assert number == 1
    assert remembered.keys() == memory.keys()
    with pytest.raises(ServerError, match=r"outer-0001\.safetensors: is not of fedyogi\. Resume with the study that"):
        Checkpoints(yogi, journal).last(state)
