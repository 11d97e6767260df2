from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
from flwr.app import Error, Message

from exchange.expected import Expected
from exchange.messages import DescribeRequest, HarmonizeReply, HarmonizeRequest, Step
from exchange.refusals import RefusalCode
from server.errors import QuorumError
from server.inquiry import Inquiry
from study.question import Question
from tests.support.local_grid import LocalGrid
from tests.support.wire import over_the_wire

REQUEST = HarmonizeRequest(study="small", steps=[Step(source="a", result="b", transform="projection")])
QUESTION = Question("x", REQUEST, HarmonizeReply, {})
COUNTED = Question("x", REQUEST, HarmonizeReply, {"tally/b": Expected("count")})


def in_round(number: int) -> Question:
    return Question("x", REQUEST, HarmonizeReply, {}, number)


def answer(message: Message, **arrays: object) -> Message:
    """Answer as asked, with arrays of part ``tally``."""
    reply = HarmonizeReply(arrays={f"tally/{name}": np.array(value) for name, value in arrays.items()})
    return Message(reply.to_records(), reply_to=message)


@pytest.fixture
def inquiry_of(sites, presence_of, opening) -> Callable[..., Inquiry]:
    """An inquiry of three sites whose answers are tampered with after they joined."""

    def inquiry(tamper: Callable, grid: type[LocalGrid] = LocalGrid, **limits: object) -> Inquiry:
        presence = presence_of(grid(sites), **limits)
        presence.gather(opening)
        presence.line.grid.tamper = tamper
        return Inquiry(presence, 2)

    return inquiry


def test_a_silent_site_is_left_out_of_the_answers(inquiry_of, journal):
    inquiry = inquiry_of(lambda node, message: node != 2 and answer(message))

    assert list(inquiry.ask(QUESTION).replies) == ["aalborg", "coimbra"]
    assert journal.table("outcomes")["outcome"].tolist()[-3:] == ["ok", "no reply", "ok"]


def test_the_text_of_an_error_is_never_repeated(inquiry_of, journal):
    """Flower sends an exception's text as it is; it may hold a path or a name."""
    crashed = Error(code=2, reason="/data/sub-0042.nii: no such file")
    inquiry = inquiry_of(lambda node, message: Message(crashed, reply_to=message))

    with pytest.raises(QuorumError, match=r"x, round 3: 0 of 3 sites answered.*aalborg: flower error 2") as failed:
        inquiry.ask(in_round(3))

    assert "0042" not in str(failed.value)
    assert "0042" not in "".join(journal.table("outcomes")["outcome"])


def test_damaged_answers_do_not_count(inquiry_of, journal):
    def damage(node: int, message: Message) -> Message:
        records = HarmonizeReply().to_records()
        if node == 1:
            records["header"]["json"] = "{"
        return Message(records, reply_to=message)

    assert list(inquiry_of(damage).ask(QUESTION).replies) == ["bergen", "coimbra"]
    assert "protocol.unreadable" in journal.table("outcomes")["outcome"].tolist()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"tally/b": np.array(1), "shown/parameters/../../final/x": np.ones(2)},
            "'shown/parameters/../../final/x' was",
        ),
        ({"tally/b": np.array(1.0)}, "'tally/b' of shape () and kind float64 is not what was asked for"),
        ({}, "'tally/b' is missing"),
    ],
)
def test_an_answer_that_was_not_asked_for_is_dropped_and_named_and_the_run_goes_on(inquiry_of, journal, arrays, said):
    def tamper(node: int, message: Message) -> Message:
        wrong = Message(HarmonizeReply(arrays=arrays).to_records(), reply_to=message)
        return wrong if node == 2 else answer(message, b=node)

    answers = inquiry_of(tamper).ask(COUNTED)

    assert (list(answers.replies), answers.total["tally/b"]) == (["aalborg", "coimbra"], 4)
    assert journal.table("outcomes")["outcome"].tolist()[-3:] == ["ok", "protocol.unreadable", "ok"]
    assert [note for note in journal.table("notes")["text"] if "bergen was dropped" in note and said in note]


def test_below_the_quorum_the_run_waits_and_asks_only_those_who_are_missing(inquiry_of, journal):
    asked = []

    def late(node: int, message: Message) -> Message | bool:
        asked.append(node)
        return not (node > 1 and asked.count(node) <= 2) and answer(message)

    inquiry = inquiry_of(late, quorum_deadline_s=30)

    assert list(inquiry.ask(QUESTION).replies) == ["aalborg", "bergen", "coimbra"]
    assert asked == [1, 2, 3, 2, 3, 2, 3]
    assert list(journal.table("notes")["text"]) == ["x: below the quorum of 2; waiting for bergen, coimbra"]
    assert journal.table("exchanges")["step"].tolist()[-2:] == [1, 1]  # the same question to the sites


def test_nobody_waits_for_a_site_that_refuses(inquiry_of):
    refusal = Error(code=RefusalCode.BUDGET.number, reason=str(RefusalCode.BUDGET))
    inquiry = inquiry_of(lambda node, message: Message(refusal, reply_to=message), quorum_deadline_s=600)

    with pytest.raises(QuorumError, match=r"x: 0 of 3 sites answered.*coimbra: privacy\.budget-spent"):
        inquiry.ask(QUESTION)


def test_a_site_that_comes_back_as_another_node_is_known_by_its_name(inquiry_of):
    def gone(node: int, message: Message) -> Message | bool | None:
        if message.metadata.message_type == DescribeRequest.message:
            return None
        if node in (2, 3):  # the hospitals restart their SuperNodes, which get new numbers
            nodes = presence.line.grid.sites
            nodes[node + 10] = nodes.pop(node)
        return node in (1, 12) and answer(message)

    inquiry = inquiry_of(gone, quorum_deadline_s=30)
    presence = inquiry.presence

    assert list(inquiry.ask(QUESTION).replies) == ["aalborg", "bergen"]
    assert presence.nodes == {"aalborg": 1, "bergen": 12, "coimbra": 13}


def test_a_slow_site_misses_its_deadline_and_takes_part_in_the_next_round(inquiry_of):
    slow = {2}
    inquiry = inquiry_of(lambda node, message: node not in slow and answer(message))

    assert list(inquiry.ask(in_round(1)).replies) == ["aalborg", "coimbra"]
    slow.clear()
    assert list(inquiry.ask(in_round(2)).replies) == ["aalborg", "bergen", "coimbra"]


class Repeating(LocalGrid):
    """A grid that delivers every answer twice, the second one changed."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in list(super().pull_messages(message_ids)):
            yield reply
            if reply.content["header"]["kind"] == "HarmonizeReply":
                changed = over_the_wire(reply)
                changed.content = HarmonizeReply(arrays={"tally/b": np.array(99)}).to_records()
                yield changed


def test_an_answer_that_comes_twice_counts_once(inquiry_of, journal):
    inquiry = inquiry_of(lambda node, message: answer(message, b=node), Repeating)

    assert inquiry.ask(COUNTED).total["tally/b"] == 1 + 2 + 3
    notes = sorted(journal.table("notes")["text"])
    assert notes == [f"x: {name} answered twice; the second answer was dropped" for name in inquiry.presence.sites]
