"""Replies over a grid that does as a SuperLink's: who finds a reply waits until all of it has arrived."""

import threading
import time
from collections.abc import Iterable

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server.replies import replies_to
from tests.support.local_grid import LocalGrid
from tests.support.programs import wait_until

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
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 77, 0, 0
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


def test_what_a_look_raises_is_raised(wire):
    wire.pull_messages = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(replies_to(wire, questions(5), LONG_S))
