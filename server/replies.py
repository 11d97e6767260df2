"""Replies to messages as they arrive, and no longer than until a deadline."""

import threading
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue

from flwr.app import Message
from flwr.serverapp import Grid

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5
"""Between looks for a reply: short at first, for sites of a simulation."""
_PAUSE_EACH_S = 0.02
"""Of many sites each is looked for less often, so that the SuperLink gets no more than 50 questions in a second."""


def replies_to(grid: Grid, messages: list[Message], deadline_s: float) -> Iterator[Message]:
    """Send messages, and yield the replies as they arrive, until all did or the deadline is over.

    Flower's own way of doing so looks for them every three seconds only. And its `Grid.pull_messages` returns when all
    arrays of all replies that it found have arrived: over a slow link long after. So every reply is looked for by a
    thread of its own, and one that arrives slowly holds up neither the others nor the deadline.

    Parameters
    ----------
    grid : Grid
        Flower's way to the nodes.
    messages : list of Message
        One for each node.
    deadline_s : float
        In seconds, from when they are sent.

    Yields
    ------
    Message
        A reply, or Flower's own word that a node is gone. What is not whole at the deadline is dropped.
    """
    waiting = set(grid.push_messages(messages))
    give_up = time.monotonic() + deadline_s
    found: SimpleQueue[list[Message] | BaseException] = SimpleQueue()
    over = threading.Event()
    longest_pause = max(_LONGEST_PAUSE_S, _PAUSE_EACH_S * len(waiting))
    for message_id in waiting:
        threading.Thread(target=_look_for, args=(grid, message_id, longest_pause, found, over), daemon=True).start()
    try:
        while waiting and (left := give_up - time.monotonic()) > 0:
            replies = found.get(timeout=left)
            if isinstance(replies, BaseException):
                raise replies
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            yield from replies
    except Empty:
        return
    finally:
        over.set()


def _look_for(
    grid: Grid,
    message_id: str,
    longest_pause: float,
    found: "SimpleQueue[list[Message] | BaseException]",
    over: threading.Event,
) -> None:
    """Look for the reply to a message until it is there, or nobody wants it any more."""
    pause = _FIRST_PAUSE_S
    try:
        while not over.wait(pause):
            if replies := list(grid.pull_messages([message_id])):
                found.put(replies)
                return
            pause = min(1.25 * pause, longest_pause)
    except BaseException as error:
        found.put(error)
