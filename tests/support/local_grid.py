"""A federation in one process: every message is serialised both ways, as on the wire, and answered by the ClientApp."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import yaml
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.app import app as client_app
from client.door.policy import SHOWS_ONE_SITE
from tests.support.wire import be_in_run, over_the_wire


class LocalGrid(Grid):
    """Nodes 1, 2, … with one ``site.yaml`` each.

    Parameters
    ----------
    sites : list of Path
        The sites' settings.
    tamper : callable, optional
        Given the node and the message it received; whatever message it returns is the node's reply instead of the
        ClientApp's, and False means that the node stays silent.
    """

    def __init__(
        self, sites: list[Path], tamper: Callable[[int, Message], Message | bool | None] = lambda node, message: None
    ) -> None:
        self.sites = dict(enumerate(sites, start=1))
        self.tamper = tamper
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self._replies: dict[str, Message] = {}
        be_in_run(77)

    def set_run(self, run: Run) -> None:
        raise AssertionError("not used")

    @property
    def run(self) -> Run:
        raise AssertionError("not used")

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise AssertionError("not used")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.sites)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Answer one message after the other; for a node that stays silent, say what Flower does when one is gone."""
        self._replies.clear()  # what was under way when a server was killed
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            arrived = over_the_wire(message)
            self.sent.append(arrived)
            reply = self.tamper(message.metadata.dst_node_id, arrived)
            if reply is None:
                reply = self._answer(message.metadata.dst_node_id, arrived)
            if reply is False:
                reply = self._gone(message)
            else:
                self.received.append(reply := over_the_wire(reply))
            self._replies[message.metadata.message_id] = reply
        return list(self._replies)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        raise AssertionError("not used")

    def _gone(self, message: Message) -> Message:
        reply = Message(Error(code=ErrorCode.NODE_UNAVAILABLE), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 0  # Flower's own is 1, which is a site's here
        return reply

    def _answer(self, node: int, message: Message) -> Message:
        context = Context(77, node, {"site-config": str(self.sites[node])}, RecordDict(), {})
        try:
            return client_app(message, context)
        except Exception as error:  # what Flower does: the text goes to the server
            return Message(Error(code=2, reason=str(error)), reply_to=message)


def write_site(folder: Path, name: str, cohort: Path, **policy: object) -> Path:
    """Write the ``site.yaml`` of a site that allows everything, but for what `policy` changes."""
    limits = {"min_participants": 2, "min_group": 1, "max_covariate_ratio": 1.0, "min_change": 1}
    limits |= {"secure_sum_required": False, "plain_grams": True}
    names = {"studies": ["*"], "analyses": ["*", *sorted(SHOWS_ONE_SITE)], "vectors": ["*"], "columns": ["*"]}
    allowed = {**names, **limits, **policy}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump({"name": name, "cohort": str(cohort), "state": "state", "policy": allowed}))
    return path
