"""One plaintext for one context, whatever the coordinator asks, and whenever the site is killed."""

import subprocess

import numpy as np
import pytest

from client.door.policy import Policy
from client.door.sums import Kept, SumStore
from exchange.messages import EmbedReply, EmbedRequest, SecureSum
from exchange.refusals import Refusal
from tests.support.disks import filled, small_disk

SITES = ["a", "b", "c", "d", "e"]
REPLY = EmbedReply(arrays={"tally/n": np.array(7), "evaluation/x": np.arange(6.0).reshape(2, 3)})


def request(step: int = 1, attempt: int = 1, sites: list[str] = SITES, seed: int = 0, weights: float = 1.0):
    secure = SecureSum(roster="00", step=step, attempt=attempt, sites=sites)
    arrays = {"weights/w": np.full(3, weights)} if attempt == 1 else {}
    return EmbedRequest(arrays=arrays, study="s", secure=secure, model={}, recipe="r", holdout=0, seed=seed)


@pytest.fixture
def store(tmp_path) -> SumStore:
    store = SumStore(tmp_path / "sums", Policy(max_attempts=3))
    store.keep("77", request(), Kept(REPLY, {"n_participants": 7}, request().question))
    return store


def refused(store: SumStore, asked: EmbedRequest, run: str = "77") -> str:
    with pytest.raises(Refusal) as refusal:
        store.find(run, asked)
    return str(refusal.value.code)


def test_the_same_question_gets_the_same_answer(store, tmp_path):
    for reader in (store, SumStore(tmp_path / "sums", Policy(max_attempts=3))):  # the second after a restart
        found = reader.find("77", request())

        assert found.about == {"n_participants": 7}
        assert found.reply.arrays.keys() == REPLY.arrays.keys()
        for name, values in REPLY.arrays.items():
            np.testing.assert_array_equal(found.reply.arrays[name], values)
            assert found.reply.arrays[name].dtype == values.dtype


def test_a_new_step_or_run_is_a_new_question(store):
    assert store.find("77", request(step=2)) is None
    assert store.find("78", request()) is None


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"weights": 2.0}, {"sites": SITES[:4]}], ids=["header", "arrays", "sites"]
)
def test_another_question_in_a_context_is_refused(store, changes):
    assert refused(store, request(**changes)) == "sum.context-used-before"


def test_a_step_that_is_over_is_never_answered_again(store):
    store.keep("77", request(step=5), Kept(REPLY, {}, ""))

    assert refused(store, request(step=1)) == "sum.context-used-before"
    assert refused(store, request(step=3)) == "sum.context-used-before"


def test_further_attempts_take_the_stored_answer_among_ever_fewer_sites(store):
    second = request(attempt=2, sites=SITES[:4])

    assert store.find("77", second).about == {"n_participants": 7}
    store.use("77", second)
    assert store.find("77", second) is not None  # asked again
    assert refused(store, request()) == "sum.attempt-not-allowed"  # no way back
    assert refused(store, request(attempt=2, sites=["a", "b", "c", "e"])) == "sum.context-used-before"
    assert refused(store, request(attempt=3, sites=SITES[:4])) == "sum.attempt-not-allowed"
    assert refused(store, request(attempt=3, sites=["a", "b", "e"])) == "sum.attempt-not-allowed"
    assert store.find("77", request(attempt=3, sites=SITES[:3])) is not None
    assert refused(store, request(attempt=4, sites=SITES[:3])) == "sum.attempt-not-allowed"


def test_a_second_attempt_at_what_never_began_is_refused(store):
    assert refused(store, request(step=9, attempt=2)) == "sum.attempt-not-allowed"


def test_a_stored_answer_that_is_damaged_is_refused_and_not_computed_again(store, tmp_path):
    (path,) = (tmp_path / "sums").glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])

    assert refused(store, request()) == "sum.context-used-before"


def test_only_the_last_plaintext_stays_on_the_disk(store, tmp_path):
    (first,) = (tmp_path / "sums").glob("*/*.safetensors")
    first.with_name(f".{first.name}.4711.tmp").write_bytes(b"left by a kill")

    store.keep("78", request(step=2), Kept(REPLY, {}, ""))

    (last,) = first.parent.iterdir()
    assert last != first


def test_the_answer_of_a_study_lies_where_the_guide_says(store, tmp_path):
    command = f"ls sums/$(printf %s '{request().study}' | sha256sum | cut -c-16)"
    listed = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert listed.split() == [path.name for path in tmp_path.rglob("*.safetensors")]


def test_a_disk_that_takes_no_answer_is_the_administrators_to_mend(store, tmp_path):
    (tmp_path / "sums" / "contexts.sqlite").write_bytes(b"no database at all, and no header of one either")

    assert refused(store, request()) == "site.not-set-up"

    with small_disk(tmp_path / "disk") as disk, filled(disk):
        full = SumStore(disk / "sums", Policy(max_attempts=3))
        assert refused(full, request()) == "site.not-set-up"
