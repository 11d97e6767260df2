"""What a study's program knows between two questions, and what it found: typed, and equal once written and read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from pydantic import Field

from exchange.messages import DescribeReply, Payload, Step, join

_CALLED = {"model": "harmonization", "site": "site_classification", "network": "site_network"}
"""What people call measures of another kind."""


@dataclass(frozen=True)
class Measure:
    """What an analysis is about; its name on the wire is that of its job."""

    kind: str = ""
    """What is measured or solved; empty where `of` says it."""
    of: str = ""
    """Feature set, atlas, or ``association``; empty for what is done once in a study."""
    variant: str = ""
    """Of the feature set (`study.comparing.Variant`)."""
    target: str = ""
    """What is predicted."""

    @property
    def name(self) -> str:
        # A column may be called "sex/age": that must be no part of what is about "sex".
        target = self.target.replace("%", "%25").replace("/", "%2F")
        return "/".join(filter(None, (self.of, self.variant, self.kind, target)))

    @property
    def called(self) -> str:
        """Name for people, whatever it is of."""
        return "/".join(filter(None, (_CALLED.get(self.kind, self.kind), self.target)))


@dataclass(frozen=True)
class Found:
    """Numbers of an answer by name, short arrays as lists; or why there is none."""

    measure: Measure
    numbers: dict[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class FeatureCount:
    """How many features a set has, and how many of them are left out since somebody lacks them."""

    features: int
    left_out: int


@dataclass(frozen=True)
class ComponentCount:
    """Dimensions that a projection keeps, and the share of the variance that they hold."""

    components: int
    explained: float


@dataclass(frozen=True)
class Findings:
    """What a study found."""

    features: dict[str, FeatureCount] = field(default_factory=dict)
    """Feature set → its features."""
    components: dict[str, ComponentCount] = field(default_factory=dict)
    """Feature set, or ``projected`` → its components."""
    compared: tuple[str, ...] = ()
    """Feature sets that were measured."""
    found: tuple[Found, ...] = ()
    """All that was solved, and what has no answer, in the order in which it was asked for."""
    not_associated: str = ""
    """Why there is no association that the study asks for."""

    @property
    def left_out(self) -> list[Found]:
        """What the sites or their data do not allow."""
        return [one for one in self.found if one.why]

    def left_out_by_reason(self) -> dict[str, list[str]]:
        """Return reason → measures, whatever they are of. One reason often stands behind many."""
        by_reason: dict[str, dict[str, None]] = {}
        for one in self.left_out:
            by_reason.setdefault(one.why, {})[one.measure.called] = None
        return {why: list(measures) for why, measures in by_reason.items()}


@dataclass(frozen=True)
class Solved:
    """How far an analysis has come: the kind of its state, whether that is its answer, and why there will be none."""

    kind: str = ""
    done: bool = False
    why: str = ""


class State(Payload):
    """Where a study is.

    Its arrays are ``scaling/<atlas>`` and ``moments/<atlas>``, what was measured; ``weights`` of the model and
    ``outer``, what the outer optimizer remembers, until the model was applied; ``states/<measure>`` of analyses under
    way; ``models/<feature set>`` that are to be applied next; and ``effects``, of one model that serves twice.
    """

    stage: str
    """Of `study.program.STAGES`."""
    sites: dict[str, DescribeReply]
    """Those that are in it, in order of names → what each said of itself."""
    round_number: int = 0
    """Last round of training that is done."""
    sizes: dict[str, int] = Field({})
    """Feature set that lies at the sites, or is to be made next → its features."""
    compared: tuple[str, ...] = ()
    """The raw ones of these, which are measured."""
    n_counted: int = 0
    """Participants, as the sites last counted them."""
    solving: dict[str, Solved] = Field({})
    """Measure's name → how far its analysis has come in this stage."""
    steps: tuple[Step, ...] = ()
    """What is to be applied next."""
    findings: Findings = Findings()

    @property
    def n_participants(self) -> int:
        """Participants behind the sums: as the sites last counted, less those of sites that fell silent since."""
        return min(self.n_counted, sum(about.n_participants for about in self.sites.values()))

    def but(self, **changes: Any) -> Self:
        """Return the state with other fields."""
        return self.model_copy(update=changes)

    def among(self, sites: Collection[str]) -> Self:
        """Go on with those of its sites alone."""
        return self.but(sites={site: about for site, about in self.sites.items() if site in sites})

    def and_found(self, *found: Found, **changes: Any) -> Self:
        """Add to the findings, and change others of their fields."""
        changes |= {"found": (*self.findings.found, *found)}
        return self.but(findings=replace(self.findings, **changes))

    def holding(self, **parts: Mapping[str, Any]) -> Self:
        """Put arrays in the place of parts; a part without any is dropped.

        They are of C order, as they are once they were written and read: the order decides last digits.
        """
        kept = {name: v for name, v in self.arrays.items() if not name.startswith(tuple(f"{part}/" for part in parts))}
        return self.but(arrays=kept | {name: np.asarray(v, order="C") for name, v in join(**parts).items()})
