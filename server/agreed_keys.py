"""Whose keys sums are masked with: one roster of keys, which every site that takes part has approved."""

from collections import Counter
from collections.abc import Mapping

from exchange.messages import DescribeReply
from exchange.refusals import RefusalCode
from server.errors import QuorumError
from server.journal import Journal
from study.sections import ProtectionConfig


class AgreedKeys:
    """The roster of keys of a run.

    Attributes
    ----------
    roster : str
        Its hash; empty where sums are in the clear, and until the sites agreed.
    """

    def __init__(self, journal: Journal, protection: ProtectionConfig, quorum: int) -> None:
        self._journal = journal
        self._protection = protection
        self._quorum = quorum
        self.roster = ""

    def are_approved_by(self, about: DescribeReply) -> bool:
        """Whether a site can take part."""
        return not self.roster or self.roster in about.rosters

    def agree(self, sites: Mapping[str, DescribeReply]) -> None:
        """Take the study's roster, or the one that most sites approved; a QuorumError if fewer than the quorum did."""
        if not self._protection.secure_sums:
            return
        named = self._protection.roster
        counts = Counter(keys for about in sites.values() for keys in set(about.rosters))
        keys = named or min(counts, key=lambda one: (-counts[one], one), default="")
        listed = "; ".join(
            f"{site}: {', '.join(sorted(one[:12] for one in set(about.rosters))) or 'none'}"
            for site, about in sites.items()
        )
        lacking = sorted(site for site, about in sites.items() if keys not in about.rosters)
        few = len(sites) - len(lacking) < self._quorum
        if few and named is not None:
            raise QuorumError(
                f"the study names roster {named[:12]}, which fewer sites than the quorum of {self._quorum} have "
                f"approved ({listed}). Correct privacy.roster, or set it to null for the one that most have approved."
            )
        if few:
            raise QuorumError(
                f"fewer sites than the quorum of {self._quorum} have approved a roster of keys in common "
                f"({listed}). Let each administrator approve one roster with 'fedbrainlm site approve-roster', or set "
                "privacy.secure_sums: false."
            )
        self.roster = keys
        if lacking:
            self._journal.say(f"left out, not having approved roster {keys[:12]}: {', '.join(lacking)} ({listed})")
        for site in lacking:
            self._journal.leave_out(site, "describe", str(RefusalCode.ROSTER))
