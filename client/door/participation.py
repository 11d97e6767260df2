"""Whether a site takes part in a study, and with whom.

What a site would refuse after training, for reasons that are known before, it refuses when it is first asked, by the
same functions. Whoever checks a site beforehand asks these, too.
"""

from dataclasses import dataclass
from functools import partial
from typing import Self

from base.settings import check_settings
from brainlm.config import WindowConfig
from brainlm.windows import Lengths, lengths_of, split_participants
from client.door.describing import Checks, policy_objections, privacy_of, refusals_of
from client.door.disclosure import permit_categories, permit_table, read_design
from client.door.limits import permit_design
from client.privacy import check_privacy, spends_to_come
from client.site import Site
from cohorts.contract import CohortContract
from cohorts.vectors import Vectors, read_vectors
from exchange.messages import DescribeRequest
from exchange.refusals import Refusal, RefusalCode
from harmonization import Categorical, Design

_MISMATCHES = {
    "atlas": RefusalCode.ATLAS,
    "timing": RefusalCode.TIMING,
    "scaling": RefusalCode.SCALING,
    "covariates": RefusalCode.COVARIATES,
}


@dataclass(frozen=True)
class Participation:
    """Whom of a site's people a study would have."""

    lengths: Lengths
    """Whose recordings are as long as a window."""
    people: list[str]
    """Those participants."""
    complete: list[str]
    """Those of them of whom all is known that the study asks for."""
    vectors: Vectors | None
    """The second table of vectors that the study associates, if it does."""

    @classmethod
    def of(cls, site: Site, request: DescribeRequest) -> Self:
        """Find them; a column that the cohort lacks counts as unknown."""
        lengths = lengths_of(site.cohort, _window(request))
        people = list(lengths.usable)
        vectors = read_vectors(site.cohort, request.vectors) if request.vectors else None
        return cls(lengths, people, _contract(request).complete(site.covariates, people), vectors)

    @property
    def without_vectors(self) -> list[str]:
        """Participants who are not in the second table."""
        known = set(self.people) if self.vectors is None else set(self.vectors.participants)
        return [participant for participant in self.people if participant not in known]

    def training(self, request: DescribeRequest) -> list[str]:
        """As many participants as are trained on; who they are, the study's seed decides."""
        return split_participants(self.people, request.holdout, 0)[0]


def objections(site: Site, request: DescribeRequest) -> list[Refusal]:
    """List all that a site's policy and its cohort have against a study."""
    found = [*policy_objections(site.policy, request), *refusals_of(_checks_of_columns(site, request))]
    found += (Refusal(_MISMATCHES[one.kind], one.message) for one in _contract(request).mismatches(site.cohort))
    if not found:  # else people would be counted by columns that are not there
        whom = Participation.of(site, request)
        found += refusals_of(_checks_of_numbers(site, request, whom))
        found = found or list(refusals_of(_checks_of_people(site, request, whom)))
    return found


def _checks_of_columns(site: Site, request: DescribeRequest) -> Checks:
    yield partial(site.policy.permit_columns, request.columns, site.covariates.columns)
    yield partial(site.policy.permit_rounds, site.ledger.rounds(request.study) + request.rounds)
    for levels in _contract(request).covariates.values():
        yield partial(site.policy.permit_size, "levels", len(levels), "levels of a category")
    for design in request.designs:
        yield partial(permit_design, site.policy, design)


def _checks_of_numbers(site: Site, request: DescribeRequest, whom: Participation) -> Checks:
    yield partial(_permit_lengths, whom.lengths, len(whom.people), max(1, request.folds))
    for behind in (whom.training(request), whom.complete):
        yield partial(site.policy.permit_release, len(behind), carries_sums=True, in_secure_sum=request.secure_sums)


def _checks_of_people(site: Site, request: DescribeRequest, whom: Participation) -> Checks:
    """All else that depends on how many people stand behind what is asked for."""
    policy, folds, training = site.policy, max(1, request.folds), whom.training(request)
    if (privacy := privacy_of(request)) is not None:
        yield partial(check_privacy, privacy, _window(request), n_participants=len(training), devices=site.devices)
    lacking = set(whom.without_vectors)
    for people in (whom.complete, [participant for participant in whom.complete if participant not in lacking]):
        yield partial(policy.permit_group, len(people) // folds, f"each of {folds} folds")
        for design in map(read_design, request.designs):
            yield partial(permit_table, site, people, design, Design())
        if not lacking:
            break
    for name, levels in _contract(request).covariates.items():
        if levels:
            yield partial(permit_categories, site, whom.complete, Categorical(name, levels))
    yield partial(_permit_spending, site, request, len(training))


def _permit_lengths(lengths: Lengths, n_people: int, folds: int) -> None:
    if n_people < folds and lengths.too_short:
        raise Refusal(RefusalCode.WINDOWS, f"{lengths.said} Expected {folds} or more.")


def _permit_spending(site: Site, request: DescribeRequest, n_training: int) -> None:
    spending = site.spending(request.study)
    spending.permit(*spends_to_come(request, n_training, spending))


def _contract(request: DescribeRequest) -> CohortContract:
    return check_settings(request.contract, CohortContract, "the study's contract")


def _window(request: DescribeRequest) -> WindowConfig:
    return check_settings(request.window, WindowConfig, "the study's window")
