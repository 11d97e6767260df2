"""Replies to messages as they arrive, and no longer than until a deadline."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

import httpx
from flwr.app import Error, Message
from flwr.serverapp import Grid

from exchange.refusals import RefusalCode

_FIRST_PAUSE_S, _STEADY_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5, 5.0
"""Between looks for a reply: short at first, for sites of a simulation, and longer the longer it is waited for."""
_PAUSE_EACH_S = 0.1
"""Of many sites each is looked for less often: a look costs the SuperLink some 20 ms of the processor."""
_OF_THE_TIME = 1 / 50


def replies_to(
    grid: Grid, messages: list[Message], deadline_s: float, late: Callable[[Message], object] = lambda reply: None
) -> Iterator[Message]:
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
    late : callable
        Given each reply that was on its way when the deadline was over, once it is whole, by another thread.

    Yields
    ------
    Message
        A reply, or Flower's own word that a node is gone; an error of the code of `RefusalCode.PROTOCOL` in place of a
        reply that cannot be read.

    Raises
    ------
    httpx.HTTPError
        If the SuperLink does not answer.
    """
    pushed = set(grid.push_messages(messages))
    sent = {message.metadata.message_id: message for message in messages if message.metadata.message_id in pushed}
    looks = _Looks(grid, max(_STEADY_PAUSE_S, _PAUSE_EACH_S * len(sent)), late)
    for message_id, message in sent.items():
        threading.Thread(target=looks.look_for, args=(message_id, message), daemon=True).start()
    give_up, waiting = time.monotonic() + deadline_s, set(sent)
    try:
        while waiting and (left := give_up - time.monotonic()) > 0:
            replies = looks.found.get(timeout=left)
            if isinstance(replies, BaseException):
                raise replies
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            yield from replies
    except Empty:
        return
    finally:
        looks.over.set()


class _Looks:
    """What the threads share that look for replies, each for one.

    Parameters
    ----------
    steady_pause_s : float
        Between two looks, unless it is waited for long.
    """

    def __init__(self, grid: Grid, steady_pause_s: float, late: Callable[[Message], object]) -> None:
        self.found: SimpleQueue[list[Message] | BaseException] = SimpleQueue()
        self.over = threading.Event()
        self._grid = grid
        self._steady_pause_s = steady_pause_s
        self._late = late

    def look_for(self, message_id: str, message: Message) -> None:
        """Look for the reply to a message until it is there, or nobody wants it any more."""
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        while not self.over.wait(pause):
            try:
                replies = list(self._grid.pull_messages([message_id]))
            except httpx.HTTPError as error:
                self.found.put(error)
                return
            except Exception:  # raised by what the site sent, and that site's alone; or the grid was closed meanwhile
                if self.over.is_set():
                    return
                replies = [Message(Error(RefusalCode.PROTOCOL.number), reply_to=message)]
            except BaseException as error:  # Flower's own, once the run was stopped
                self.found.put(error)
                return
            if replies:
                self._hand_over(replies)
                return
            waited = time.monotonic() - began
            pause = min(1.25 * pause, max(self._steady_pause_s, min(_OF_THE_TIME * waited, _LONGEST_PAUSE_S)))

    def _hand_over(self, replies: list[Message]) -> None:
        if not self.over.is_set():
            self.found.put(replies)
            return
        for reply in replies:
            self._late(reply)
