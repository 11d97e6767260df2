"""The sites of a run: who they are, and how to ask them all something and wait no longer than allowed."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from exchange.messages import (
    DescribeReply,
    DescribeRequest,
    MessageError,
    Payload,
    Request,
    TrainReply,
    size_of,
)
from exchange.refusals import RefusalCode
from server.errors import QuorumError
from server.journal import Journal
from server.study import RoundsConfig

AnyReply = TypeVar("AnyReply", bound=Payload)

_NO_REPLY = "no reply"
_POLL_S = 0.5


@dataclass(frozen=True)
class Member:
    """A site that takes part: Flower's number of its node, and what it said of itself."""

    node: int
    about: DescribeReply


class Roster:
    """The sites that take part, in the order of their names.

    Parameters
    ----------
    grid : Grid
        Flower's way to the nodes.
    journal : Journal
        Where every exchange is written down.
    limits : RoundsConfig
        Quorum and deadlines.
    """

    def __init__(self, grid: Grid, journal: Journal, limits: RoundsConfig) -> None:
        self._grid = grid
        self._journal = journal
        self._limits = limits
        self.members: dict[str, Member] = {}

    @property
    def sites(self) -> list[str]:
        return list(self.members)

    @property
    def about(self) -> dict[str, DescribeReply]:
        """What each site said of itself."""
        return {site: member.about for site, member in self.members.items()}

    def gather(self, request: DescribeRequest) -> None:
        """Wait for a quorum of nodes, ask each what it is, and enter those that take part.

        Raises
        ------
        QuorumError
            If too few are online in time, or too few take part; the message says why each did not.
        """
        nodes = self._wait_for_nodes()
        names = {node: f"node {node}" for node in nodes}
        answers, outcomes = self._exchange(request, DescribeReply, names, "describe", None)
        for node, name in names.items():
            if name not in answers:
                continue
            site = answers[name].site
            if site in self.members:
                raise QuorumError(f"two sites call themselves '{site}'. Give each its own name in its site.yaml.")
            self.members[site] = Member(node, answers[name])
        self.members = dict(sorted(self.members.items()))
        self._require_quorum(len(self.members), outcomes, "describe")

    def ask(
        self, request: Request, kind: type[AnyReply], stage: str, round_number: int | None = None
    ) -> dict[str, AnyReply]:
        """Ask every site, and return the answers in the order of names.

        Raises
        ------
        QuorumError
            If fewer sites than the quorum answered before the deadline.
        """
        names = {member.node: site for site, member in self.members.items()}
        answers, outcomes = self._exchange(request, kind, names, stage, round_number)
        self._require_quorum(
            len(answers), outcomes, stage if round_number is None else f"{stage}, round {round_number}"
        )
        return {site: answers[site] for site in self.members if site in answers}

    def keep(self, sites: Collection[str]) -> None:
        """Go on with these sites alone; the journal notes the others."""
        silent = set(self.members) - set(sites)
        if silent:
            left_out = {*self._journal.facts().get("left_out", "").split(", "), *silent} - {""}
            self._journal.note(left_out=", ".join(sorted(left_out)))
        self.members = {site: member for site, member in self.members.items() if site in sites}

    def _wait_for_nodes(self) -> list[int]:
        """Wait for the nodes that are hoped for, and at the deadline make do with a quorum."""
        deadline = time.monotonic() + self._limits.start_deadline_s
        hoped_for = self._limits.sites or self._limits.quorum
        while len(nodes := sorted(self._grid.get_node_ids())) < hoped_for:
            if time.monotonic() > deadline:
                if len(nodes) >= self._limits.quorum:
                    break
                raise QuorumError(
                    f"{len(nodes)} sites were online after {self._limits.start_deadline_s:g} s; the quorum is "
                    f"{self._limits.quorum}. Start the sites, or lower averaging.quorum."
                )
            time.sleep(_POLL_S)
        return nodes

    def _exchange(
        self, request: Request, kind: type[AnyReply], names: dict[int, str], stage: str, round_number: int | None
    ) -> tuple[dict[str, AnyReply], dict[str, str]]:
        """Send one question to all nodes; return the good answers, and what came of each node."""
        records = request.to_records()
        deadline = self._limits.deadline_s
        messages = [Message(records, node, request.message, ttl=deadline + 60) for node in sorted(names)]
        exchange = self._journal.begin_exchange(
            stage, request.message, round_number, len(messages), size_of(records) * len(messages)
        )
        answers: dict[str, AnyReply] = {}
        outcomes = dict.fromkeys(names.values(), _NO_REPLY)
        bytes_up = 0
        for reply in self._grid.send_and_receive(messages, timeout=deadline):
            name = names.get(reply.metadata.src_node_id)
            if name is None:  # Flower's own word that a node is gone
                continue
            if reply.has_error():
                outcomes[name] = _said(reply)
                continue
            bytes_up += size_of(reply.content)
            try:
                answers[name] = _sound(kind.from_records(reply.content), request)
                outcomes[name] = "ok"
            except MessageError:
                outcomes[name] = str(RefusalCode.PROTOCOL)
        self._journal.end_exchange(exchange, outcomes, bytes_up)
        return answers, outcomes

    def _require_quorum(self, answered: int, outcomes: dict[str, str], stage: str) -> None:
        if answered >= self._limits.quorum:
            return
        missing = "; ".join(f"{name}: {_explained(said)}" for name, said in outcomes.items() if said != "ok")
        raise QuorumError(
            f"{stage}: {answered} of {len(outcomes)} sites answered, the quorum is {self._limits.quorum}. {missing}."
        )


def _sound(answer: AnyReply, request: Request) -> AnyReply:
    """Refuse an answer that would spoil the sum: numbers that are not finite, or other weights than were sent."""
    finite = all(np.isfinite(values).all() for values in answer.arrays.values())
    sent = {name: values.shape for name, values in request.part("weights").items()}
    came = {name: values.shape for name, values in answer.part("weights").items()}
    if not finite or (isinstance(answer, TrainReply) and came != sent):
        raise MessageError("an answer does not fit its question.")
    return answer


def _said(reply: Message) -> str:
    """Code of a refusal; any other error of Flower's by its number, never by its text, which may hold a site's data."""
    known = {code.number: str(code) for code in RefusalCode}
    return known.get(reply.error.code, f"flower error {reply.error.code}")


def _explained(said: str) -> str:
    return f"{said} ({RefusalCode(said).sentence})" if said in list(RefusalCode) else said
