"""Somebody between coordinator and sites, or the SuperLink itself, who changes, swaps, cuts and repeats messages.

TLS keeps third parties out; the SuperLink is the coordinator's own, and a site may send wrong values at any time. So
this is about two things: no request makes a site crash or say more, and what of a spoilt reply the coordinator notices.
A word with a flipped bit is a wrong number and nothing more: nobody can tell it from a number that a site got wrong.
"""

from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.app import Array, ConfigRecord, Message, RecordDict

from exchange.messages import DescribeRequest, FrameSpec, Job, SummarizeReply, SummarizeRequest
from exchange.refusals import RefusalCode
from harmonization import Projection
from harmonization.core.declared import Widths
from server.errors import ServerError
from server.inquiry import Inquiry
from server.journal import Journal
from server.presence import Presence
from study.expecting import of_sums
from study.question import Question
from study.sections import ProtectionConfig, RoundsConfig
from study.settings import load_study
from tests.attacks.coordinator import MODEL, SUMS, Coordinator, features_of
from tests.support.federation import STUDY
from tests.support.local_grid import LocalGrid

# --- requests ---------------------------------------------------------------------------------------------------------


def test_damaged_requests_are_refused_by_a_code(coordinator):
    """Cut, flipped, mixed up or of another kind: never an error without a code, and nothing leaves."""
    rng = np.random.default_rng(0)
    training, sums = coordinator.training(), coordinator.sums()
    codes = []

    def send(records: RecordDict, kind: str = "train") -> None:
        reply = coordinator.send("aalborg", records, kind)
        assert reply.has_error()
        codes.append(RefusalCode(reply.error.reason))

    for kind, request in (("train", sums), ("query.summarize", training), ("query.describe", sums)):
        send(request.to_records(), kind)
    for damage in (b"", b"\x93NUMPY", None):
        records = training.to_records()
        name = next(iter(records["arrays"]))
        array = records["arrays"][name]
        data = array.data[: len(array.data) // 2] if damage is None else damage
        records["arrays"][name] = Array(array.dtype, array.shape, array.stype, data)
        send(records)
    text = training.to_records()["header"]["json"]
    for place in rng.integers(len(text), size=40):
        records = training.to_records()
        records["header"]["json"] = text[:place] + chr(rng.integers(32, 127)) + text[place + 2 :]
        reply = coordinator.send("aalborg", records, "train", run=int(place) + 100)
        if reply.has_error():  # else it was in a name, or is another good number
            codes.append(RefusalCode(reply.error.reason))
    for changes in ({"protocol": 99}, {"kind": "TrainReply"}, {"json": "[]"}, {"json": "{"}, {"json": "null"}):
        records = training.to_records()
        records["header"].update(changes)
        send(records)
    lacking = training.to_records()
    del lacking["arrays"]
    more = training.to_records()
    more["more"] = ConfigRecord({"a": 1})
    for records in (lacking, more, RecordDict()):
        send(records)
    assert "site.internal-error" not in {event.get("rule") for event in coordinator.audit_of("aalborg")}


@pytest.mark.parametrize("holdout", [-1.0, 1.0, float("nan"), float("inf")])
def test_a_fraction_that_is_none_is_no_request(coordinator, holdout):
    """One below zero held out a single person; one that is no number was an error of the site's own."""
    frames = FrameSpec(atlas="schaefer100", window={}, holdout=0.1, seed=1).model_copy(update={"holdout": holdout})
    job = Job(analysis="second_moments", parameters={"n_lags": 2}, table=frames)

    assert coordinator.code(coordinator.sums(jobs={"j": job})) is RefusalCode.PROTOCOL


# --- replies ----------------------------------------------------------------------------------------------------------


class Federation:
    """The coordinator's real side, over the sites, with something in between."""

    def __init__(self, coordinator: Coordinator, folder: Path) -> None:
        self.names = coordinator.names
        self.truth = sum(features_of(site).sum(axis=0) for site in coordinator.sites.values())
        self.grid = LocalGrid(list(coordinator.sites.values()))
        self.journal = Journal(folder)
        limits = RoundsConfig(quorum=3, deadline_s=5, start_deadline_s=1, quorum_deadline_s=0)
        presence = Presence(self.grid, self.journal, limits, ProtectionConfig())
        window = MODEL.window.model_dump(mode="json")
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
        contract = load_study(folder / "study.yaml").contract().model_dump(mode="json")
        about = {"analyses": ["projection"], "recipe": "rsfmri_brainlm_segments_v1", "holdout": 0.2, "folds": 1}
        presence.gather(DescribeRequest(study="small", contract=contract, window=window, **about))
        self.inquiry = Inquiry(presence, ProtectionConfig().max_attempts)

    def truth_without(self, node: int) -> np.ndarray:
        return self.truth - features_of(self.grid.sites[node]).sum(axis=0)

    def ask(self) -> np.ndarray:
        request = SummarizeRequest(study="small", jobs=SUMS)
        declared = {"projection": Projection(2).sends(Widths(len(self.truth), len(self.truth), 0, None, 0), None)}
        question = Question("sums", request, SummarizeReply, of_sums(declared))
        return self.inquiry.ask(question).total["projection/feature_sum"]

    def spoil(self, change) -> None:
        """Hand each summarize reply, with its node, to `change`, and let through what that returns."""

        def between(node: int, message: Message) -> Message | bool | None:
            if message.metadata.message_type != SummarizeRequest.message:
                return None
            return change(node, self.grid._answer(node, message), message)

        self.grid.tamper = between


@pytest.fixture
def federation(coordinator, tmp_path) -> Federation:
    return Federation(coordinator, tmp_path)


def test_the_sum_is_right_when_nobody_tampers(federation):
    np.testing.assert_allclose(federation.ask(), federation.truth)


def _with_words(reply: Message, change) -> Message:
    array = reply.content["arrays"]["sealed/0/64"]
    reply.content["arrays"]["sealed/0/64"] = Array(change(array.numpy().copy()))
    return reply


@pytest.mark.parametrize(
    "damage",
    [
        lambda words: words[:-1],
        lambda words: words[:0],
        lambda words: words.astype(np.uint32),
        lambda words: words.view(np.int64),
        lambda words: words.astype(np.float64),
        lambda words: words[None],
    ],
    ids=["cut", "empty", "narrow", "signed", "floats", "another shape"],
)
def test_replies_of_another_shape_or_type_are_never_added(federation, damage):
    """Their site is left out by its name, and the others answer once more."""
    federation.spoil(lambda node, reply, _: _with_words(reply, damage) if node == 2 else reply)

    np.testing.assert_allclose(federation.ask(), federation.truth_without(2))
    outcomes = federation.journal.table("outcomes").query("outcome == 'protocol.unreadable'")
    assert outcomes["site"].tolist() == [federation.names[1]]


def test_a_layout_that_is_not_the_others_is_left_out(federation):
    """The sites that are left answer once more, among themselves, and theirs is the right sum."""

    def change(node: int, reply: Message, message: Message) -> Message:
        if node == 2:
            text = reply.content["header"]["json"]
            reply.content["header"]["json"] = text.replace("feature_sum", "feature_sun")
        return reply

    federation.spoil(change)
    assert federation.ask().shape == federation.truth.shape
    assert federation.journal.table("outcomes")["outcome"].tolist()[-7:-3].count("protocol.unreadable") == 1


def test_replies_of_two_sites_that_are_swapped_add_to_the_same(federation):
    """Who sent a part does not matter to the sum, and nothing else of it is read."""
    swapped = {2: 3, 3: 2}

    answer = federation.grid.push_messages

    def between(messages: list[Message]) -> list[str]:
        message_ids = answer(messages)
        replies = {reply.metadata.src_node_id: reply for reply in federation.grid.received[-len(messages) :]}
        content = {node: reply.content for node, reply in replies.items()}
        for node, reply in replies.items():
            reply.content = content[swapped.get(node, node)]
        return message_ids

    federation.grid.push_messages = between
    np.testing.assert_allclose(federation.ask(), federation.truth)


def test_a_flipped_bit_is_a_wrong_number_that_nobody_notices(federation):
    """A known limit: what the masks hide, they hide from checks, too. The other numbers stay right."""

    def flip(words: np.ndarray) -> np.ndarray:
        words[0] ^= np.uint64(1 << 20)
        return words

    federation.spoil(lambda node, reply, _: _with_words(reply, flip) if node == 2 else reply)
    wrong = np.flatnonzero(~np.isclose(federation.ask(), federation.truth))
    assert wrong.tolist() == [0]


@pytest.mark.parametrize("how", ["of the step before", "of another site", "of noise"])
def test_a_reply_that_does_not_belong_to_the_sum_is_noticed(federation, how):
    """Masks that do not cancel leave noise of the whole ring, of the right shape; the last word of it says so."""
    earlier: dict[int, Message] = {}
    federation.spoil(lambda node, reply, _: earlier.setdefault(node, reply))
    federation.ask()
    rng = np.random.default_rng(0)

    def change(node: int, reply: Message, message: Message) -> Message:
        if node != 2:
            return reply
        if how == "of noise":
            return _with_words(reply, lambda words: rng.integers(2**64, size=words.size, dtype=np.uint64))
        if how == "of another site":
            return Message(federation.grid._answer(3, federation.grid.sent[-1]).content, reply_to=message)
        return earlier[2]

    federation.spoil(change)
    with pytest.raises(ServerError, match="masks did not cancel"):
        federation.ask()
