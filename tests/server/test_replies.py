"""Replies over a grid that does as a SuperLink's: who finds a reply waits until all of it has arrived."""

import threading
import time
from collections.abc import Iterable
from queue import SimpleQueue

import httpx
import pytest
from flwr.app import Message, RecordDict

from exchange.refusals import RefusalCode
from server.replies import replies_to
from tests.support.local_grid import LocalGrid
from tests.support.programs import wait_until
from tests.support.wire import be_in_run

SLOW = 6
"""A node whose reply arrives little by little."""
LONG_S = 600


class Wire(LocalGrid):
    """Nodes that answer with nothing; the reply of `SLOW` is whole once `whole` is set."""

    def __init__(self) -> None:
        super().__init__([])
        self.whole = threading.Event()

    def _answer(self, node: int, message: Message) -> Message:
        return Message(RecordDict(), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = super().pull_messages(message_ids)
        if any(reply.metadata.src_node_id == SLOW for reply in found):
            self.whole.wait(LONG_S)
        return found


@pytest.fixture
def wire():
    made = Wire()
    yield made
    made.whole.set()


def questions(*nodes: int) -> list[Message]:
    be_in_run(77)
    return [Message(RecordDict(), dst_node_id=node, message_type="query") for node in nodes]


def senders(replies: Iterable[Message]) -> set[int]:
    return {reply.metadata.src_node_id for reply in replies}


def test_all_replies_come_and_nobody_waits_for_the_deadline(wire):
    assert senders(replies_to(wire, questions(3, 4, 5), LONG_S)) == {3, 4, 5}


def test_a_reply_that_is_still_arriving_holds_up_neither_the_others_nor_the_deadline(wire):
    began = time.monotonic()
    assert senders(replies_to(wire, questions(5, SLOW, 7), 1)) == {5, 7}
    assert 1 <= time.monotonic() - began < LONG_S


def test_a_reply_that_is_whole_before_the_deadline_counts(wire):
    came = []
    for reply in replies_to(wire, questions(5, SLOW, 7), LONG_S):
        came.append(reply)
        if len(came) == 2:
            wire.whole.set()
    assert senders(came[:2]) == {5, 7}
    assert senders(came[2:]) == {SLOW}


def test_nobody_looks_for_a_reply_any_more_when_the_deadline_is_over(wire):
    wire.pull_messages = lambda _: []
    before = threading.active_count()
    assert list(replies_to(wire, questions(3, 4, 5), 0.2)) == []
    assert wait_until(lambda: threading.active_count() == before, LONG_S)


def test_a_reply_that_is_whole_after_the_deadline_is_told(wire):
    late = SimpleQueue()
    assert senders(replies_to(wire, questions(5, SLOW), 1, late.put)) == {5}
    wire.whole.set()
    assert late.get(timeout=LONG_S).metadata.src_node_id == SLOW
    assert late.empty()


def test_a_reply_that_cannot_be_read_is_that_sites_alone(wire):
    answer = wire.pull_messages

    def pull(message_ids: list[str]) -> list[Message]:
        return [damaged(reply) if reply.metadata.src_node_id == 5 else reply for reply in answer(message_ids)]

    wire.pull_messages = pull
    replies = {reply.metadata.src_node_id: reply for reply in replies_to(wire, questions(4, 5), LONG_S)}
    assert set(replies) == {4, 5}
    assert replies[5].error.code == RefusalCode.PROTOCOL.number
    assert not replies[4].has_error()


def damaged(reply: Message) -> Message:
    raise ValueError(f"{reply} cannot be inflated")


def test_that_the_superlink_is_gone_is_raised(wire):
    def pull(_: list[str]) -> list[Message]:
        raise httpx.ReadError("gone")

    wire.pull_messages = pull
    with pytest.raises(httpx.ReadError):
        list(replies_to(wire, questions(5), LONG_S))


def test_a_message_that_was_not_sent_is_not_waited_for(wire):
    push = wire.push_messages
    wire.push_messages = lambda messages: ["", *push(messages)[1:]]
    assert senders(replies_to(wire, questions(4, 5), LONG_S)) == {5}
