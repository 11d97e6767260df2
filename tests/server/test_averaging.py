import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from exchange.messages import TrainReply, join
from server.averaging import average, measure_reconstruction
from server.errors import ServerError
from server.journal import Journal


@pytest.fixture(autouse=True)
def identity():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0


def reply(seed: int, n_windows: int, value: float | None = None) -> TrainReply:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(4, 3)).astype(np.float32) if value is None else np.full((4, 3), value, np.float32)
    sums = {"parcels": rng.random((8, 5)) * 10, "horizons": rng.random((8, 41)) * 10}
    return TrainReply(arrays=join(weights={"w": weight}, evaluation=sums), n_windows=n_windows, loss=1.0, atlas="x")


def strategy() -> FedAvg:
    return FedAvg(weighted_by_key="num-examples")


def test_weights_are_averaged_by_windows():
    replies = {"a": reply(1, 10), "b": reply(2, 30), "c": reply(3, 60)}

    averaged = average(strategy(), 1, replies)

    expected = sum(share * replies[name].part("weights")["w"] for name, share in (("a", 0.1), ("b", 0.3), ("c", 0.6)))
    np.testing.assert_allclose(averaged["w"], expected, rtol=1e-6)
    assert averaged["w"].dtype == np.float32


def test_who_answers_first_does_not_matter():
    replies = {name: reply(seed, 10 + seed) for seed, name in enumerate("abcdefg")}
    backwards = dict(reversed(replies.items()))

    np.testing.assert_array_equal(average(strategy(), 1, replies)["w"], average(strategy(), 1, backwards)["w"])


def test_an_average_that_is_not_finite_ends_the_run():
    with pytest.raises(ServerError, match="round 4: the averaged model is not finite"):
        average(strategy(), 4, {"a": reply(1, 1), "b": reply(1, 1, value=np.inf)})


def test_r2_over_sites_is_that_of_their_sums(tmp_path):
    replies = {"a": reply(1, 10), "b": reply(2, 30)}

    by_atlas = measure_reconstruction(Journal(tmp_path), 3, replies)

    total = sum(r.part("evaluation")["parcels"] for r in replies.values())
    np.testing.assert_allclose(by_atlas["x"].parcels, total)
    metrics = Journal(tmp_path).table("metrics").set_index(["site", "name"])["value"]
    assert metrics["all", "mse"] == pytest.approx(total[6].sum() / total[0].sum())
    assert set(metrics.index.get_level_values("site")) == {"a", "b", "all"}
