"""What a policy has against a study, whoever the participants are: asked also where no cohort is at hand."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from base.settings import check_settings
from brainlm.config import PrivacyConfig
from client.door.ledger import EVALUATION, LACKING
from client.door.policy import Policy
from exchange.messages import DescribeRequest
from exchange.refusals import Refusal, RefusalCode
from harmonization.core.registry import ANALYSES, TAKEN

Checks = Iterable[Callable[[], object]]


def refusals_of(checks: Checks) -> Iterator[Refusal]:
    """Yield what is refused, one by one."""
    for check in checks:
        try:
            check()
        except Refusal as refusal:
            yield refusal


def policy_objections(policy: Policy, request: DescribeRequest) -> Iterator[Refusal]:
    """Yield all that a policy has against a study; of one that is not named, everything else is refused, too."""
    unnamed = list(refusals_of([partial(policy.permit, request.study)]))
    yield from unnamed or refusals_of(_checks(policy, request))


def _checks(policy: Policy, request: DescribeRequest) -> Checks:
    privacy = privacy_of(request)
    checks: list[Callable[[], None]] = [
        *(partial(policy.permit, request.study, [analysis]) for analysis in request.analyses),
        *(partial(_require_known, analysis) for analysis in request.analyses),
        partial(policy.permit, request.study, recipe=request.recipe),
        *(partial(policy.permit_column, name) for name in request.columns),
        partial(policy.permit_rounds, request.rounds),
        partial(policy.permit_privacy, privacy.delta if privacy else None),
        partial(policy.permit_sum, in_secure_sum=request.secure_sums),
        partial(policy.permit_size, "steps", request.steps_per_round, "steps in a round"),
    ]
    checks += [partial(policy.permit_without_noise, name) for name in without_noise(request)]
    if request.vectors:
        checks.append(partial(policy.permit_vectors, request.vectors))
    if privacy and privacy.epsilon is not None:
        checks.append(partial(policy.permit_epsilon, privacy.epsilon))
    return checks


def _require_known(analysis: str) -> None:
    """Refuse what is not installed here, and would fail after training."""
    if analysis not in ANALYSES and analysis not in TAKEN:
        raise Refusal(
            RefusalCode.PROTOCOL,
            f"analysis '{analysis}' is not known here. Install the package that it comes from, or the same version.",
        )


def privacy_of(request: DescribeRequest) -> PrivacyConfig | None:
    """How the study's training is private; None if it is not."""
    return check_settings(request.privacy, PrivacyConfig, "the study's privacy") if request.privacy else None


def without_noise(request: DescribeRequest) -> list[str]:
    """Name what a study wants of participants that carries no noise."""
    counts = {"embedding"}  # how many were embedded: numbers of participants are taken to be known
    noisy = {*request.noisy, *counts, *(["pretraining"] if request.privacy else [])}
    return [name for name in (EVALUATION.kind, LACKING.kind, *request.analyses) if name not in noisy]
