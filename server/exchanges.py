"""One exchange: a question to some nodes, what came of each, and how the journal has it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from exchange.expected import Expected, check_reply
from exchange.messages import MessageError, Reply, Request, audit_head_of, size_of
from exchange.refusals import RefusalCode
from server.journal import Attempt, Journal
from server.replies import replies_to

AnyReply = TypeVar("AnyReply", bound=Reply)
NO_REPLY = "no reply"
_CODES = {code.number: str(code) for code in RefusalCode}


@dataclass(frozen=True)
class Line:
    """The way to the sites: Flower's, with the journal of all that goes over it, and how long an answer may take."""

    grid: Grid
    journal: Journal
    deadline_s: float

    def exchange(
        self,
        request: Request,
        read: Callable[[RecordDict], AnyReply],
        nodes: Mapping[str, int | None],
        stage: str,
        *,
        expected: Mapping[str, Expected],
        round_number: int | None = None,
        attempt: Attempt | None = None,
    ) -> tuple[dict[str, AnyReply], dict[str, str]]:
        """Send one question to nodes, by name; return the answers that are as `expected`, and what came of each name.

        A name without a node is not asked, and did not reply.
        """
        journal, records = self.journal, request.to_records()
        names = {node: name for name, node in nodes.items() if node is not None}
        messages = [Message(records, node, request.message, ttl=self.deadline_s + 60) for node in sorted(names)]
        exchange = journal.begin_exchange(
            stage, request.message, round_number, len(messages), size_of(records) * len(messages), attempt
        )
        answers: dict[str, AnyReply] = {}
        outcomes = dict.fromkeys(nodes, NO_REPLY)
        heads: dict[str, str] = {}
        bytes_up = 0

        def say_late(reply: Message) -> None:
            name = names.get(reply.metadata.src_node_id)
            journal.say(f"{stage}: the answer of {name} came after the deadline; it was dropped")

        for reply in replies_to(self.grid, messages, self.deadline_s, say_late):
            name = names.get(reply.metadata.src_node_id)
            if name is None:  # Flower's own word that a node is gone
                continue
            bytes_up += size_of(reply.content) if reply.has_content() else 0
            if outcomes[name] != NO_REPLY:
                journal.say(f"{stage}: {name} answered twice; the second answer was dropped")
                continue
            if reply.has_error():  # never its text, which may hold a site's data
                outcomes[name] = _CODES.get(reply.error.code, f"flower error {reply.error.code}")
                continue
            try:
                answer = read(reply.content)
                check_reply(answer, request, name, expected)
            except MessageError as error:
                journal.say(f"{stage}: the answer of {name} was dropped: {error}")
                outcomes[name] = str(RefusalCode.PROTOCOL)
                continue
            answers[name], outcomes[name], heads[name] = answer, "ok", audit_head_of(reply.content)
        outcomes = self._named(outcomes)
        journal.end_exchange(exchange, outcomes, bytes_up, self._named(heads))
        return answers, outcomes

    def _named(self, by_name: Mapping[str, str]) -> dict[str, str]:
        """Call the nodes of a simulation by their sites' names, which each notes when it is asked what it is."""
        known = {f"node {path.read_text()}": path.parent.name for path in self.journal.folder.glob("sites/*/node")}
        return {known.get(name, name): value for name, value in by_name.items()}
