"""One plaintext for one context, whatever the coordinator asks, and whenever the site is killed."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from client.door import kept_answers
from client.door.database import SiteDatabase
from client.door.kept_answers import Kept, KeptAnswers
from client.door.policy import Policy
from exchange.messages import EmbedReply, EmbedRequest, SecureSum
from exchange.refusals import Refusal
from tests.support.disks import filled, small_disk

SITES = ["a", "b", "c", "d", "e"]
REPLY = EmbedReply(arrays={"tally/n": np.array(7), "evaluation/x": np.arange(6.0).reshape(2, 3)})


def request(step: int = 1, attempt: int = 1, sites: list[str] = SITES) -> EmbedRequest:
    secure = SecureSum(roster="00", step=step, attempt=attempt, sites=sites)
    arrays = {"weights/w": np.ones(3)} if attempt == 1 else {}
    return EmbedRequest(arrays=arrays, study="s", secure=secure, model={}, recipe="r", holdout=0, seed=0)


@pytest.fixture
def store(tmp_path) -> KeptAnswers:
    store = KeptAnswers(SiteDatabase(tmp_path, b"key"), Policy(max_attempts=3))
    store.keep("77", request(), Kept(REPLY, {"n_participants": 7}, request().question))
    return store


def refused(store: KeptAnswers, asked: EmbedRequest) -> str:
    with pytest.raises(Refusal) as refusal:
        store.find("77", asked)
    return str(refusal.value.code)


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


@pytest.mark.parametrize("lost", ["name = 'evaluation/x'", "name = '' AND study = 's'"], ids=["array", "header"])
def test_a_stored_answer_that_is_damaged_is_refused_and_not_computed_again(store, tmp_path, lost):
    with SiteDatabase(tmp_path, b"key").transaction() as database:
        assert database.execute(f"DELETE FROM kept WHERE {lost}").rowcount

    assert refused(store, request()) == "sum.context-used-before"


def test_large_arrays_are_kept_in_pieces(store, monkeypatch):
    monkeypatch.setattr(kept_answers, "_PIECE", 5)
    arrays = {"a": np.arange(12.0).reshape(3, 4).T, "b": np.zeros((0, 3), np.int64), "c": np.array(7, np.int32)}
    store.keep("78", request(), Kept(EmbedReply(arrays=arrays), {}, request().question))

    found = store.find("78", request()).reply.arrays
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values, strict=True)


def test_only_the_last_plaintext_stays_on_the_disk(store, tmp_path):
    plaintext = REPLY.arrays["evaluation/x"].tobytes()
    assert plaintext in (tmp_path / "ledger.sqlite").read_bytes()

    store.keep("78", request(step=2), Kept(EmbedReply(), {}, ""))

    assert not any(plaintext in path.read_bytes() for path in tmp_path.iterdir())


def test_the_answer_of_a_study_is_deleted_as_the_guide_says(store, tmp_path):
    guide = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text(encoding="utf-8")
    (statements,) = re.findall(r'sqlite3 state/ledger.sqlite "(.*)"', guide)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database:
        database.executescript(statements.replace("STUDY", request().study))

    assert REPLY.arrays["evaluation/x"].tobytes() not in (tmp_path / "ledger.sqlite").read_bytes()
    assert refused(store, request()) == "sum.context-used-before"  # the masks that were used are still known


def test_a_disk_that_takes_no_answer_is_the_administrators_to_mend(store, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"no database at all, and no header of one either")

    assert refused(store, request()) == "site.not-set-up"

    with small_disk(tmp_path / "disk") as disk, filled(disk):
        full = KeptAnswers(SiteDatabase(disk, b"key"), Policy(max_attempts=3))
        assert refused(full, request()) == "site.not-set-up"
