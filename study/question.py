"""What a study asks its sites, and which of them add what to the answer."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from exchange.expected import Expected
from exchange.key_roster import MIN_SITES
from exchange.messages import AnySumRequest, DescribeReply, Group, SumReply


@dataclass(frozen=True)
class Question:
    """A question to all sites that are in a study."""

    stage: str
    """What a journal calls its place: measuring, pretraining, embedding or harmonization."""
    request: AnySumRequest
    """What is asked; who drives the program adds run and masks."""
    reply: type[SumReply]
    """Payload of an answer."""
    expected: Mapping[str, Expected]
    """What it may hold, by the names of arrays."""
    round_number: int | None = None
    """Round of training; None of other stages."""
    bound: float = 1.0
    """Of changes of weights under masks (`exchange.messages.SecureSum`)."""
    optional: bool = False
    """Whether the study goes on without an answer."""


def atlases_of(sites: Mapping[str, DescribeReply]) -> dict[str, int]:
    """Atlases of sites, and how many parcels each has."""
    return {about.atlas: about.n_parcels for _, about in sorted(sites.items())}


def together(sites: Collection[str], *, secure: bool) -> list[str]:
    """Return sites that sum something together, in order of names; nobody where a secure sum would be of too few."""
    return sorted(sites) if not secure or len(sites) >= MIN_SITES else []


def by_atlas(sites: Mapping[str, DescribeReply], *, secure: bool) -> dict[str, list[str]]:
    """Sites of each atlas that sum together what is by parcel; nobody where they are too few."""
    having: dict[str, list[str]] = {}
    for site, about in sites.items():
        having.setdefault(about.atlas, []).append(site)
    return {atlas: together(names, secure=secure) for atlas, names in sorted(having.items())}


def evaluation_groups(sites: Mapping[str, DescribeReply], *, secure: bool) -> list[Group]:
    """Group sites by atlas, for what is summed by parcel; those who share theirs with too few sum over parcels."""
    groups = by_atlas(sites, secure=secure)
    within = {site for names in groups.values() for site in names}
    return [
        *(
            Group(parts=[f"{part}/{atlas}" for part in ("evaluation", "baselines", "lacking")], sites=names)
            for atlas, names in groups.items()
        ),
        Group(parts=["overall"], sites=together(sites.keys() - within, secure=secure)),
    ]
