"""The sites of a run: who they are, and how to ask them all something and wait no longer than allowed."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from exchange.adding import add_replies, misfits
from exchange.messages import (
    AnySumRequest,
    Arrays,
    DescribeReply,
    DescribeRequest,
    Group,
    MessageError,
    Payload,
    Request,
    SecureSum,
    SumReply,
    TrainReply,
    audit_head_of,
    size_of,
)
from exchange.refusals import RefusalCode
from exchange.roster import MIN_SITES
from server.errors import QuorumError, ServerError
from server.journal import Journal
from server.study import ProtectionConfig, RoundsConfig

AnyReply = TypeVar("AnyReply", bound=Payload)
AnySumReply = TypeVar("AnySumReply", bound=SumReply)

_NO_REPLY = "no reply"
_POLL_S = 0.5


@dataclass(frozen=True)
class Member:
    """A site that takes part: Flower's number of its node, and what it said of itself."""

    node: int
    about: DescribeReply


@dataclass(frozen=True)
class Answers(Generic[AnySumReply]):
    """What the sites answered to one question.

    Attributes
    ----------
    replies : dict
        Site → reply, in the order of names. Under masks only what is public of it can be read.
    total : dict
        Name → sum over the sites that send it.
    masked : bool
        Whether it was a secure sum.
    """

    replies: dict[str, AnySumReply]
    total: Arrays
    masked: bool


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
    protection : ProtectionConfig
        Whether sums are masked.
    """

    def __init__(self, grid: Grid, journal: Journal, limits: RoundsConfig, protection: ProtectionConfig) -> None:
        self._grid = grid
        self._journal = journal
        self._limits = limits
        self._protection = protection
        self._keys = ""  # hash of the roster of keys that all members approved
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
        if self._protection.secure_sums:
            self._keys = self._common_keys()
            self._journal.note(roster=self._keys)

    def ask(
        self,
        request: AnySumRequest,
        kind: type[AnySumReply],
        stage: str,
        round_number: int | None = None,
        *,
        bound: float = 1.0,
    ) -> Answers[AnySumReply]:
        """Ask every site, and add the answers.

        Where sums are masked and a site fell silent, those that are left are asked once more, for the answers that
        they kept, masked among themselves.

        Parameters
        ----------
        bound : float
            Of updates of weights under masks (`exchange.messages.SecureSum`).

        Raises
        ------
        QuorumError
            If fewer sites than the quorum, or than a secure sum needs, answered before the deadline.
        """
        where = stage if round_number is None else f"{stage}, round {round_number}"
        step, sites, attempt = self._journal.next_step(), self.sites, 0
        while True:
            attempt += 1
            asked = self._masked(request, sites, step, attempt, bound) if self._keys else request
            names = {self.members[site].node: site for site in sites}
            answers, outcomes = self._exchange(asked, kind, names, stage, round_number)
            self._require_quorum(len(answers), outcomes, where)
            replies = {site: answers[site] for site in sites if site in answers}
            if not self._keys or len(replies) == len(sites):
                return Answers(replies, _added(asked, replies, where), masked=bool(self._keys))
            self._require_another_attempt(attempt, outcomes, where)
            sites = list(replies)

    def _masked(self, request: AnySumRequest, sites: list[str], step: int, attempt: int, bound: float) -> AnySumRequest:
        """Ask for an answer under masks; after the first attempt for the one that the sites kept."""
        groups = [Group(parts=group.parts, sites=self.together(group.sites, sites)) for group in request.groups]
        secure = SecureSum(roster=self._keys, step=step, attempt=attempt, sites=sites, bound=bound)
        arrays = request.arrays if attempt == 1 else {}
        return request.model_copy(update={"groups": groups, "secure": secure, "arrays": arrays})

    def together(self, sites: Collection[str], among: Collection[str] | None = None) -> list[str]:
        """Those of `sites` that are there, or nobody where they would be too few for a secure sum."""
        there = sorted(set(sites) & set(self.members if among is None else among))
        return there if not self._keys or len(there) >= MIN_SITES else []

    def by_atlas(self) -> dict[str, list[str]]:
        """Sites of each atlas that sum together what is by parcel; nobody where they are too few."""
        having: dict[str, list[str]] = {}
        for site, about in self.about.items():
            having.setdefault(about.atlas, []).append(site)
        return {atlas: self.together(sites) for atlas, sites in sorted(having.items())}

    def _common_keys(self) -> str:
        """Find the roster of keys that all members approved.

        Raises
        ------
        QuorumError
            If there is none, or not the one that the study names.
        """
        approved = {site: set(about.rosters) for site, about in self.about.items()}
        common, named = set.intersection(*approved.values()), self._protection.roster
        listed = "; ".join(
            f"{site}: {', '.join(sorted(h[:12] for h in hashes)) or 'none'}" for site, hashes in approved.items()
        )
        if named is not None and named not in common:
            raise QuorumError(
                f"the study names roster {named[:12]}, which not all sites have approved ({listed}). Correct "
                "privacy.roster, or set it to null for the one that they have in common."
            )
        if named is not None:
            return named
        if not common:
            raise QuorumError(
                f"the sites have approved no roster of keys in common ({listed}). Let each administrator approve one "
                "roster with 'fedbrainlm site approve-roster', or set privacy.secure_sums: false."
            )
        return min(common)

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
        heads: dict[str, str] = {}
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
                heads[name] = audit_head_of(reply.content)
            except MessageError:
                outcomes[name] = str(RefusalCode.PROTOCOL)
        for name in _misfits(request, answers):
            outcomes[name] = str(RefusalCode.PROTOCOL)
            del answers[name]
        self._journal.end_exchange(exchange, outcomes, bytes_up, heads)
        return answers, outcomes

    def _require_another_attempt(self, attempt: int, outcomes: dict[str, str], stage: str) -> None:
        answered = sum(said == "ok" for said in outcomes.values())
        silent = "; ".join(f"{name}: {_explained(said)}" for name, said in outcomes.items() if said != "ok")
        if answered < MIN_SITES:
            raise QuorumError(
                f"{stage}: {answered} sites are left, and a secure sum needs {MIN_SITES}, or it would show too much "
                f"of each. {silent}."
            )
        if attempt >= self._protection.max_attempts:
            raise QuorumError(f"{stage}: a site was missing in each of {attempt} attempts at a secure sum. {silent}.")

    def _require_quorum(self, answered: int, outcomes: dict[str, str], stage: str) -> None:
        if answered >= self._limits.quorum:
            return
        missing = "; ".join(f"{name}: {_explained(said)}" for name, said in outcomes.items() if said != "ok")
        raise QuorumError(
            f"{stage}: {answered} of {len(outcomes)} sites answered, the quorum is {self._limits.quorum}. {missing}."
        )


def _added(request: AnySumRequest, replies: dict[str, AnySumReply], stage: str) -> Arrays:
    """Add the answers.

    Raises
    ------
    ServerError
        If they do not open, for which nobody can be named.
    """
    try:
        return add_replies(request, replies)
    except MessageError as error:
        raise ServerError(f"{stage}: {error}") from None


def _misfits(request: Request, answers: dict[str, AnyReply]) -> list[str]:
    """Name the sites whose sums do not fit those of the others."""
    if isinstance(request, DescribeRequest):
        return []
    return misfits(request, {site: reply for site, reply in answers.items() if isinstance(reply, SumReply)})


def _sound(answer: AnyReply, request: Request) -> AnyReply:
    """Refuse an answer that would spoil the sum: numbers that are not finite, or other weights than were sent."""
    finite = all(np.isfinite(values).all() for values in answer.arrays.values())
    sent = {name: values.shape for name, values in request.part("weights").items()}
    came = {name: values.shape for name, values in answer.part("weights").items()}
    clear = isinstance(answer, TrainReply) and not answer.sealed
    if not finite or (clear and came != sent):
        raise MessageError("an answer does not fit its question.")
    return answer


def _said(reply: Message) -> str:
    """Code of a refusal; any other error of Flower's by its number, never by its text, which may hold a site's data."""
    known = {code.number: str(code) for code in RefusalCode}
    return known.get(reply.error.code, f"flower error {reply.error.code}")


def _explained(said: str) -> str:
    return f"{said} ({RefusalCode(said).sentence})" if said in list(RefusalCode) else said
