"""The sites of a run: who they are, and how to ask them all something and wait no longer than allowed."""

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from cohorts import load_atlas
from exchange.aggregation import add_replies
from exchange.expected import Expected, check_reply
from exchange.key_roster import MIN_SITES
from exchange.messages import (
    AnySumRequest,
    Arrays,
    DescribeReply,
    DescribeRequest,
    Group,
    MessageError,
    Reply,
    Request,
    SecureSum,
    audit_head_of,
    size_of,
)
from exchange.refusals import RefusalCode
from server.absences import AWAY, explained
from server.answers import Answers, AnySumReply, read_answers
from server.errors import QuorumError, ServerError
from server.journal import Attempt, Journal
from server.replies import replies_to
from study.question import together
from study.settings import ProtectionConfig, RoundsConfig

AnyReply = TypeVar("AnyReply", bound=Reply)
_NO_REPLY = "no reply"
_POLL_S = 0.5
_LONGEST_PAUSE_S = 30
_MATTERS = ("n_participants", "n_windows", "n_parcels", "atlas", "preprocessing")
"""What a site must say of itself again when a run is resumed: sums of other people or recordings do not add."""


@dataclass(frozen=True)
class Member:
    """A site that takes part: Flower's number of its node, if it was seen online, and what it said of itself."""

    node: int | None
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
    protection : ProtectionConfig
        Whether sums are masked.
    """

    def __init__(self, grid: Grid, journal: Journal, limits: RoundsConfig, protection: ProtectionConfig) -> None:
        self._grid = grid
        self._journal = journal
        self._limits = limits
        self._protection = protection
        self._keys = ""  # hash of the roster of keys that all members approved
        self._introduction: DescribeRequest  # what a node is asked before it is known
        self._known: set[int] = set()  # nodes that were asked
        self._asked: Counter[str] = Counter()  # questions by stage
        self._names: dict[str, str] = {}  # sites by the numbers of their nodes, where the coordinator registered them
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

        When a run is resumed, these are the sites with which it began.

        Raises
        ------
        QuorumError
            If too few are online in time, or too few take part; the message says why each did not.
        """
        self._introduction = request.model_copy(update={"run": self._journal.run})
        facts = self._journal.facts()
        self._names = json.loads(facts.get("nodes", "{}"))
        if "members" in facts:
            self._keys = facts.get("roster", "")
            self._gather_again(json.loads(facts["members"]), facts.get("left_out", "").split(", "))
            return
        self._journal.leave_nobody_out()
        answers, outcomes = self._introduce(self._wait_for_nodes())
        for node, about in answers.items():
            if about.site in self.members:
                raise QuorumError(f"two sites call themselves '{about.site}'. Give each its own name in its site.yaml.")
            self.members[about.site] = Member(node, about)
        self.members = dict(sorted(self.members.items()))
        self._require_quorum(len(self.members), outcomes, "describe")
        for site in sorted(self._expected() - set(self.members)):
            why = outcomes.get(site, AWAY)
            if why != AWAY:  # which is said where sites are waited for
                self._journal.say(f"{site} is left out: {explained(why)}")
            self._journal.leave_out(site, "describe", why)
        if self._protection.secure_sums:
            self._agree_on_keys()
        members = {site: about.model_dump(mode="json") for site, about in self.about.items()}
        self._journal.note(members=json.dumps(members), **({"roster": self._keys} if self._keys else {}))

    def ask(
        self,
        request: AnySumRequest,
        kind: type[AnySumReply],
        expected: Mapping[str, Expected],
        stage: str,
        round_number: int | None = None,
        *,
        bound: float = 1.0,
    ) -> Answers[AnySumReply]:
        """Ask every site, and add the answers; one that is not as `expected` counts as none.

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
        self._asked[stage] += 1
        number = self._asked[stage] if round_number is None else round_number
        where = stage if round_number is None else f"{stage}, round {round_number}"
        path = self._journal.answers(stage, number)
        if self._journal.is_whole(path) and (known := read_answers(path, request.question, kind)) is not None:
            return known
        attempt = self._journal.attempt(stage, number, request.question, tuple(self.sites))
        answers = self._attempt(request, kind, expected, attempt, where, round_number, bound)
        answers.save(path, request.question)
        self._journal.seal(path)
        return answers

    def _attempt(
        self,
        request: AnySumRequest,
        kind: type[AnySumReply],
        expected: Mapping[str, Expected],
        attempt: Attempt,
        where: str,
        round_number: int | None,
        bound: float,
    ) -> Answers[AnySumReply]:
        """Ask until the sites of an attempt have answered, or those that are left of them."""
        while True:
            asked = request.model_copy(update={"run": self._journal.run})
            if self._keys:
                asked = self._masked(asked, attempt, bound)
            replies, outcomes = self._ask_until_quorum(asked, kind, expected, attempt, where, round_number)
            if not self._keys or len(replies) == len(attempt.sites):
                return Answers(replies, _added(asked, replies, where), masked=bool(self._keys))
            self._require_another_attempt(attempt.attempt, outcomes, where)
            attempt = replace(attempt, attempt=attempt.attempt + 1, sites=tuple(replies))

    def _ask_until_quorum(
        self,
        asked: AnySumRequest,
        kind: type[AnySumReply],
        expected: Mapping[str, Expected],
        attempt: Attempt,
        where: str,
        round_number: int | None,
    ) -> tuple[dict[str, AnySumReply], dict[str, str]]:
        """Ask the sites of an attempt; below the quorum wait for those that are missing, and ask them again.

        A site answers the same question of an attempt as often as it is asked, and with the same.
        """
        answers: dict[str, AnySumReply] = {}
        outcomes: dict[str, str] = {}
        give_up, pause, waited_for = None, _POLL_S, ""
        while True:
            missing = {site: self.members[site].node for site in attempt.sites if site not in answers}
            outcomes |= self._exchange(
                asked, kind.from_records, missing, attempt.stage, round_number, answers, expected, attempt
            )
            if len(answers) >= self._limits.quorum:
                break
            give_up = give_up or time.monotonic() + self._limits.quorum_deadline_s
            if time.monotonic() >= give_up or not any(map(_may_change, outcomes.values())):
                self._require_quorum(len(answers), outcomes, where)
            silent = ", ".join(site for site, said in outcomes.items() if said != "ok")
            if silent != waited_for:
                self._journal.say(f"{where}: below the quorum of {self._limits.quorum}; waiting for {silent}")
            waited_for = silent
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            self._look_for_members()
        return {site: answers[site] for site in attempt.sites if site in answers}, outcomes

    def _masked(self, request: AnySumRequest, attempt: Attempt, bound: float) -> AnySumRequest:
        """Ask for an answer under masks; after the first attempt for the one that the sites kept."""
        sites = list(attempt.sites)
        groups = [
            Group(parts=group.parts, sites=together({*sites} & {*group.sites}, secure=True)) for group in request.groups
        ]
        secure = SecureSum(roster=self._keys, step=attempt.step, attempt=attempt.attempt, sites=sites, bound=bound)
        arrays = request.arrays if attempt.attempt == 1 else {}
        return request.model_copy(update={"groups": groups, "secure": secure, "arrays": arrays})

    def _agree_on_keys(self) -> None:
        """Go on with the sites that approved one roster of keys: the study's, or the one that most approved.

        Raises
        ------
        QuorumError
            If they are fewer than the quorum.
        """
        approved = {site: set(about.rosters) for site, about in self.about.items()}
        counts, named = Counter(keys for hashes in approved.values() for keys in hashes), self._protection.roster
        keys = named or min(counts, key=lambda one: (-counts[one], one), default="")
        having = [site for site, hashes in approved.items() if keys in hashes]
        listed = "; ".join(
            f"{site}: {', '.join(sorted(h[:12] for h in hashes)) or 'none'}" for site, hashes in approved.items()
        )
        if len(having) < self._limits.quorum and named is not None:
            raise QuorumError(
                f"the study names roster {named[:12]}, which fewer sites than the quorum of {self._limits.quorum} have "
                f"approved ({listed}). Correct privacy.roster, or set it to null for the one that most have approved."
            )
        if len(having) < self._limits.quorum:
            raise QuorumError(
                f"fewer sites than the quorum of {self._limits.quorum} have approved a roster of keys in common "
                f"({listed}). Let each administrator approve one roster with 'fedbrainlm site approve-roster', or set "
                "privacy.secure_sums: false."
            )
        self._keys = keys
        if without := sorted(set(self.members) - set(having)):
            self._journal.say(f"left out, not having approved roster {keys[:12]}: {', '.join(without)} ({listed})")
            for site in without:
                self._journal.leave_out(site, "describe", str(RefusalCode.ROSTER))
        self.members = {site: self.members[site] for site in having}

    def keep(self, sites: Collection[str]) -> None:
        """Go on with these sites alone; the journal notes what the others did not answer."""
        said = {site: (stage, why) for site, stage, _, why in self._journal.unanswered()}
        for site in sorted(set(self.members) - set(sites)):
            self._journal.leave_out(site, *said.get(site, ("the run", _NO_REPLY)))
        self.members = {site: member for site, member in self.members.items() if site in sites}

    def _expected(self) -> set[str]:
        """Names of all sites that could take part, as far as they are known: those registered, or simulated."""
        simulated = (path.parent.name for path in self._journal.folder.glob("sites/*/site.yaml"))
        return {*self._names.values(), *simulated}

    def _wait_for_nodes(self) -> list[int]:
        """Wait for the nodes that are hoped for, and at the deadline make do with a quorum."""
        deadline = time.monotonic() + self._limits.start_deadline_s
        hoped_for = self._limits.sites or self._limits.quorum
        while len(nodes := sorted(self._grid.get_node_ids())) < hoped_for:
            if time.monotonic() > deadline:
                if len(nodes) >= self._limits.quorum:
                    break
                missing = f" Missing: {', '.join(absent)}." if (absent := self._absent(nodes)) else ""
                raise QuorumError(
                    f"{len(nodes)} sites were online after {self._limits.start_deadline_s:g} s; the quorum is "
                    f"{self._limits.quorum}.{missing} Start the sites, or lower averaging.quorum."
                )
            time.sleep(_POLL_S)
        if absent := self._absent(nodes):
            self._journal.say(f"not online when the run began, and left out: {', '.join(absent)}")
        return nodes

    def _absent(self, nodes: Collection[int]) -> list[str]:
        """Name the sites that the coordinator registered and that are not among these nodes."""
        return sorted(name for node, name in self._names.items() if int(node) not in nodes)

    def _gather_again(self, members: Mapping[str, object], left_out: Collection[str]) -> None:
        """Wait for the sites with which the run began, and at the deadline make do with a quorum of them.

        Nobody waits for those that the run left out since; what they answered before is among what is known.

        Raises
        ------
        QuorumError
            Naming those that are missing.
        """
        self.members = {site: Member(None, DescribeReply.model_validate(about)) for site, about in members.items()}
        deadline = time.monotonic() + self._limits.start_deadline_s
        while True:
            self._look_for_members()
            expected = {site: member for site, member in self.members.items() if site not in left_out}
            missing = [site for site, member in expected.items() if member.node is None]
            if not missing:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        if len(expected) - len(missing) < self._limits.quorum:
            raise QuorumError(
                f"{len(expected) - len(missing)} of {len(expected)} sites of the run were back after "
                f"{self._limits.start_deadline_s:g} s; the quorum is {self._limits.quorum}. Missing: "
                f"{', '.join(missing)}. Start them; then resume the run again."
            )
        self._journal.say(f"going on without {', '.join(missing)} until they are back")

    def _look_for_members(self) -> None:
        """Ask nodes that were not seen before what they are: a site that was started again may be another node."""
        nodes = sorted(set(self._grid.get_node_ids()) - self._known)
        if not nodes:
            return
        answers, outcomes = self._introduce(nodes)
        for node, about in answers.items():
            if (member := self.members.get(about.site)) is None:
                self._journal.say(f"{about.site} did not take part when the run began, and is left out")
            elif changed := [name for name in _MATTERS if getattr(about, name) != getattr(member.about, name)]:
                self._journal.say(f"{about.site} is left out: its {', '.join(changed)} changed since the run began")
            elif self._keys and self._keys not in about.rosters:
                self._journal.say(f"{about.site} is left out: it takes roster {self._keys[:12]} no more")
            else:
                self.members[about.site] = replace(member, node=node)
        for name, said in outcomes.items():
            if said != "ok":
                self._journal.say(f"{name} does not take part: {explained(said)}")

    def _introduce(self, nodes: list[int]) -> tuple[dict[int, DescribeReply], dict[str, str]]:
        """Ask nodes what they are."""
        names: dict[str, int | None] = {self._names.get(str(node), f"node {node}"): node for node in nodes}
        answers: dict[str, DescribeReply] = {}
        outcomes = self._exchange(self._introduction, DescribeReply.from_records, names, "describe", None, answers, {})
        self._known |= set(nodes)
        atlases = {name: load_atlas(name).n_parcels for name in self._introduction.contract["atlases"]}
        for name, about in list(answers.items()):
            if atlases.get(about.atlas) != about.n_parcels:
                wrong = f"{about.n_parcels} parcels of '{about.atlas[:80]}' are none of the study's atlases"
            elif not name.startswith("node ") and about.site != name:  # or one hospital could take another's place
                wrong = f"it calls itself {about.site}. Correct name in its site.yaml"
            else:
                continue
            self._journal.say(f"{name} is left out: {wrong}")
            outcomes[name] = str(RefusalCode.PROTOCOL)
            del answers[name]
        return {node: answers[name] for name, node in names.items() if node is not None and name in answers}, outcomes

    def _named(self, by_name: Mapping[str, str]) -> dict[str, str]:
        """Call the nodes of a simulation by their sites' names, which each notes when it is asked what it is."""
        known = {f"node {path.read_text()}": path.parent.name for path in self._journal.folder.glob("sites/*/node")}
        return {known.get(name, name): value for name, value in by_name.items()}

    def _exchange(
        self,
        request: Request,
        read: Callable[[RecordDict], AnyReply],
        nodes: Mapping[str, int | None],
        stage: str,
        round_number: int | None,
        answers: dict[str, AnyReply],
        expected: Mapping[str, Expected],
        attempt: Attempt | None = None,
    ) -> dict[str, str]:
        """Send one question to nodes, by name; add the good answers to `answers`, and return what came of each."""
        records = request.to_records()
        names = {node: name for name, node in nodes.items() if node is not None}
        messages = [Message(records, node, request.message, ttl=self._limits.deadline_s + 60) for node in sorted(names)]
        exchange = self._journal.begin_exchange(
            stage, request.message, round_number, len(messages), size_of(records) * len(messages), attempt
        )
        outcomes = dict.fromkeys(nodes, _NO_REPLY)
        heads: dict[str, str] = {}
        bytes_up = 0

        def say_late(reply: Message) -> None:
            name = names.get(reply.metadata.src_node_id)
            self._journal.say(f"{stage}: the answer of {name} came after the deadline; it was dropped")

        for reply in replies_to(self._grid, messages, self._limits.deadline_s, say_late):
            name = names.get(reply.metadata.src_node_id)
            if name is None:  # Flower's own word that a node is gone
                continue
            bytes_up += size_of(reply.content) if reply.has_content() else 0
            if outcomes[name] != _NO_REPLY:
                self._journal.say(f"{stage}: {name} answered twice; the second answer was dropped")
                continue
            if reply.has_error():
                outcomes[name] = _said(reply)
                continue
            try:
                answer = read(reply.content)
                check_reply(answer, request, name, expected)
            except MessageError as error:
                self._journal.say(f"{stage}: the answer of {name} was dropped: {error}")
                outcomes[name] = str(RefusalCode.PROTOCOL)
                continue
            answers[name], outcomes[name], heads[name] = answer, "ok", audit_head_of(reply.content)
        outcomes = self._named(outcomes)
        self._journal.end_exchange(exchange, outcomes, bytes_up, self._named(heads))
        return outcomes

    def _require_another_attempt(self, attempt: int, outcomes: dict[str, str], stage: str) -> None:
        answered = sum(said == "ok" for said in outcomes.values())
        silent = "; ".join(f"{name}: {explained(said)}" for name, said in outcomes.items() if said != "ok")
        if answered < MIN_SITES:
            raise QuorumError(
                f"{stage}: {answered} sites are left, and a secure sum needs {MIN_SITES}, or it would show too much "
                f"of each. {silent}."
            )
        if attempt >= self._protection.max_attempts:
            raise QuorumError(
                f"{stage}: a site was missing in each of {attempt} attempts at a secure sum. {silent}. Resume the run "
                "when they answer again, or begin it again with a larger privacy.max_attempts, as far as the sites' "
                "policies allow."
            )

    def _require_quorum(self, answered: int, outcomes: dict[str, str], stage: str) -> None:
        if answered >= self._limits.quorum:
            return
        missing = "; ".join(f"{name}: {explained(said)}" for name, said in outcomes.items() if said != "ok")
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


def _may_change(said: str) -> bool:
    """Whether a site that is asked again may answer: a refusal stays one."""
    return said != "ok" and said not in list(RefusalCode)


def _said(reply: Message) -> str:
    """Code of a refusal; any other error of Flower's by its number, never by its text, which may hold a site's data."""
    known = {code.number: str(code) for code in RefusalCode}
    return known.get(reply.error.code, f"flower error {reply.error.code}")
