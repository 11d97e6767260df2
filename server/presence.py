"""Who takes part in a run, under which node each is found, and how long one waits for whom."""

import json
import time
from collections.abc import Callable, Collection, Mapping

from flwr.serverapp import Grid

from cohorts import load_atlas
from exchange.messages import DescribeReply, DescribeRequest
from exchange.refusals import RefusalCode
from server.absences import AWAY, explained, silent
from server.agreed_keys import AgreedKeys
from server.errors import QuorumError
from server.exchanges import NO_REPLY, Line
from server.journal import Journal
from study.sections import ProtectionConfig, RoundsConfig

POLL_S = 0.5
_MATTERS = ("n_participants", "n_windows", "n_parcels", "atlas", "preprocessing")
"""What a site must say of itself again when a run is resumed: sums of other people or recordings do not add."""


class Presence:
    """The sites that take part, in the order of their names.

    Attributes
    ----------
    about : dict
        Site → what it said of itself.
    nodes : dict
        Site → Flower's number of its node; only of those that were seen online.
    """

    def __init__(self, grid: Grid, journal: Journal, limits: RoundsConfig, protection: ProtectionConfig) -> None:
        self.line = Line(grid, journal, limits.deadline_s)
        self.limits = limits
        self.keys = AgreedKeys(journal, protection, limits.quorum)
        self.about: dict[str, DescribeReply] = {}
        self.nodes: dict[str, int] = {}
        self._journal = journal
        self._introduction: DescribeRequest  # what a node is asked before it is known
        self._known: set[int] = set()  # nodes that were asked
        self._names: dict[str, str] = {}  # sites by the numbers of their nodes, where the coordinator registered them

    @property
    def sites(self) -> list[str]:
        return list(self.about)

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
            self.keys.roster = facts.get("roster", "")
            self._gather_again(json.loads(facts["members"]), facts.get("left_out", "").split(", "))
            return
        self._journal.leave_nobody_out()
        answers, outcomes = self._introduce(self._wait_for_nodes())
        for node, about in answers.items():
            if about.site in self.about:
                raise QuorumError(f"two sites call themselves '{about.site}'. Give each its own name in its site.yaml.")
            self.about[about.site], self.nodes[about.site] = about, node
        self.about = dict(sorted(self.about.items()))
        self.require_quorum(len(self.about), outcomes, "describe")
        for site in sorted(self._expected() - set(self.about)):
            why = outcomes.get(site, AWAY)
            if why != AWAY:  # which is said where sites are waited for
                self._journal.say(f"{site} is left out: {explained(why)}")
            self._journal.leave_out(site, "describe", why)
        self.keys.agree(self.about)
        self.about = {site: about for site, about in self.about.items() if self.keys.are_approved_by(about)}
        members = {site: about.model_dump(mode="json") for site, about in self.about.items()}
        roster = {"roster": self.keys.roster} if self.keys.roster else {}
        self._journal.note(members=json.dumps(members), **roster)

    def keep(self, sites: Collection[str]) -> None:
        """Go on with these sites alone; the journal notes what the others did not answer."""
        said = {site: (stage, why) for site, stage, _, why in self._journal.unanswered()}
        for site in sorted(set(self.about) - set(sites)):
            self._journal.leave_out(site, *said.get(site, ("the run", NO_REPLY)))
        self.about = {site: about for site, about in self.about.items() if site in sites}

    def look_again(self) -> None:
        """Ask nodes that were not seen before what they are: a site that was started again may be another node."""
        nodes = sorted(set(self.line.grid.get_node_ids()) - self._known)
        if not nodes:
            return
        answers, outcomes = self._introduce(nodes)
        for node, about in answers.items():
            if (before := self.about.get(about.site)) is None:
                self._journal.say(f"{about.site} did not take part when the run began, and is left out")
            elif changed := [name for name in _MATTERS if getattr(about, name) != getattr(before, name)]:
                self._journal.say(f"{about.site} is left out: its {', '.join(changed)} changed since the run began")
            elif not self.keys.are_approved_by(about):
                self._journal.say(f"{about.site} is left out: it takes roster {self.keys.roster[:12]} no more")
            else:
                self.nodes[about.site] = node
        for name, said in outcomes.items():
            if said != "ok":
                self._journal.say(f"{name} does not take part: {explained(said)}")

    def require_quorum(self, answered: int, outcomes: Mapping[str, str], stage: str) -> None:
        """Raise `QuorumError`, with what came of each site, if fewer answered."""
        if answered < self.limits.quorum:
            raise QuorumError(
                f"{stage}: {answered} of {len(outcomes)} sites answered, the quorum is {self.limits.quorum}. "
                f"{silent(outcomes)}."
            )

    def _expected(self) -> set[str]:
        """Names of all sites that could take part, as far as they are known: those registered, or simulated."""
        simulated = (path.parent.name for path in self._journal.folder.glob("sites/*/site.yaml"))
        return {*self._names.values(), *simulated}

    def _wait_for_nodes(self) -> list[int]:
        """Wait for the nodes that are hoped for, and at the deadline make do with a quorum."""
        limits = self.limits
        hoped_for = limits.sites or limits.quorum
        self._wait_until(lambda: len(list(self.line.grid.get_node_ids())) >= hoped_for)
        nodes = sorted(self.line.grid.get_node_ids())
        if len(nodes) < limits.quorum:
            missing = f" Missing: {', '.join(absent)}." if (absent := self._absent(nodes)) else ""
            raise QuorumError(
                f"{len(nodes)} sites were online after {limits.start_deadline_s:g} s; the quorum is "
                f"{limits.quorum}.{missing} Start the sites, or lower averaging.quorum."
            )
        if absent := self._absent(nodes):
            self._journal.say(f"not online when the run began, and left out: {', '.join(absent)}")
        return nodes

    def _wait_until(self, over: Callable[[], bool]) -> None:
        """Wait until something is so, and at the deadline go on."""
        deadline = time.monotonic() + self.limits.start_deadline_s
        while not over() and time.monotonic() <= deadline:
            time.sleep(POLL_S)

    def _absent(self, nodes: Collection[int]) -> list[str]:
        """Name the sites that the coordinator registered and that are not among these nodes."""
        return sorted(name for node, name in self._names.items() if int(node) not in nodes)

    def _gather_again(self, members: Mapping[str, object], left_out: Collection[str]) -> None:
        """Wait for the sites with which the run began, and at the deadline make do with a quorum of them.

        Nobody waits for those that the run left out since; what they answered before is among what is known.
        """
        self.about = {site: DescribeReply.model_validate(about) for site, about in members.items()}
        expected = [site for site in self.about if site not in left_out]

        def all_are_back() -> bool:
            self.look_again()
            return self.nodes.keys() >= set(expected)

        self._wait_until(all_are_back)
        missing = [site for site in expected if site not in self.nodes]
        if not missing:
            return
        if len(expected) - len(missing) < self.limits.quorum:
            raise QuorumError(
                f"{len(expected) - len(missing)} of {len(expected)} sites of the run were back after "
                f"{self.limits.start_deadline_s:g} s; the quorum is {self.limits.quorum}. Missing: "
                f"{', '.join(missing)}. Start them; then resume the run again."
            )
        self._journal.say(f"going on without {', '.join(missing)} until they are back")

    def _introduce(self, nodes: list[int]) -> tuple[dict[int, DescribeReply], dict[str, str]]:
        """Ask nodes what they are."""
        names = {self._names.get(str(node), f"node {node}"): node for node in nodes}
        answers, outcomes = self.line.exchange(
            self._introduction, DescribeReply.from_records, names, "describe", expected={}
        )
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
        return {node: answers[name] for name, node in names.items() if name in answers}, outcomes
