"""The one door. Every reply of a hospital is made here: policy, then masks, then audit, then out.

Only this module makes messages; where no app may run, the SuperNode refuses with a code (`runtime.supernode`). A
handler computes and returns a payload; whatever goes wrong on the way leaves as a stable code without data, and as a
full sentence in the site's own log.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, cast

from flwr.app import Context, Error, Message, RecordDict

from base.errors import FileError, SettingsError
from base.settings import read_yaml
from brainlm.errors import CheckpointError, DivergenceError, ShapeError
from client.app_files import STUDY
from client.door.audit import app_hash, describe_records
from client.door.kept_answers import Kept
from client.door.ledger import Question, Release
from client.door.limits import time_limit
from client.door.spending import Spend
from client.errors import AuditError, ClientError
from client.logs import one_line
from client.process import keep_private
from client.site import Site, find_site
from cohorts.errors import CohortError, RecordingError, VectorsError
from exchange.aggregation import check_room, own_parts, seal
from exchange.messages import (
    DescribeRequest,
    MessageError,
    Reply,
    SumReply,
    SumRequest,
    part_of,
    size_of,
    with_audit_head,
)
from exchange.refusals import Refusal, RefusalCode
from exchange.ring import RingError, RingOverflowError
from exchange.secure_sum import Masker, SecureSumError
from harmonization.core.errors import HarmonizationError, SmallGroupError

_APP = Path(__file__).parents[2]

AnyRequest = TypeVar("AnyRequest", bound="DescribeRequest | SumRequest")

_CODES: tuple[tuple[type[Exception], RefusalCode], ...] = (
    (MessageError, RefusalCode.PROTOCOL),
    (MemoryError, RefusalCode.LIMIT),
    (SecureSumError, RefusalCode.PROTOCOL),
    (RingOverflowError, RefusalCode.OVERFLOW),
    (RingError, RefusalCode.ANALYSIS_FAILED),
    (AuditError, RefusalCode.AUDIT),
    (ClientError, RefusalCode.SETUP),
    (DivergenceError, RefusalCode.DIVERGED),
    (CheckpointError, RefusalCode.PROTOCOL),
    (ShapeError, RefusalCode.PROTOCOL),
    (SettingsError, RefusalCode.PROTOCOL),  # of the request: the site's own are read before
    (RecordingError, RefusalCode.ANALYSIS_FAILED),
    (VectorsError, RefusalCode.VECTORS),
    (SmallGroupError, RefusalCode.GROUP),
    (HarmonizationError, RefusalCode.ANALYSIS_FAILED),
    (CohortError, RefusalCode.SETUP),
    (FileError, RefusalCode.SETUP),
    (OSError, RefusalCode.SETUP),  # a disk that is full, broken or gone: the site's administrator's to mend
)


_SHOWN: dict[str, Literal["metrics", "parameters", "embeddings"]] = {
    "loss": "metrics",
    "evaluation": "metrics",
    "parameters": "parameters",
}
"""What of the policy each shown part is; all others are treated as embeddings."""


@dataclass(frozen=True)
class Answer:
    """What a handler wants to let out."""

    payload: Reply
    """The answer in the clear."""
    n_participants: int
    """How many participants of the site took part in it."""
    releases: tuple[Release, ...] = ()
    """Whose data each of its parts is about, for the site's ledger."""
    spends: tuple[Spend, ...] = ()
    """What it costs of the privacy budget."""
    rounds: int = 0
    """Rounds of training that it is."""


def answer(
    message: Message, context: Context, kind: type[AnyRequest], handle: Callable[[Site, AnyRequest], Answer]
) -> Message:
    """Answer a message, or refuse it.

    Parameters
    ----------
    message : Message
        What the coordinator sent.
    kind : type
        The payload that it must carry.
    handle : callable
        Computes the answer at the site.
    """
    keep_private()
    try:
        site = find_site(context)
    except Exception as error:
        # Without settings there is no log of the site's own: the administrator reads the SuperNode's.
        print(f"fedbrainlm: {error}", flush=True)
        return Message(_error(error.code if isinstance(error, Refusal) else RefusalCode.SETUP), reply_to=message)
    asked: AnyRequest | None = None
    try:
        asked = cast(AnyRequest, kind.from_records(message.content))
        request = cast(AnyRequest, asked.model_copy(update={"run": asked.run or str(message.metadata.run_id)}))
        site.policy.permit(request.study)
        _permit_shipped(request.study)
        site.policy.permit_refusals(site.ledger.refusals(request.study))
        with time_limit(site.policy):  # masks, too: of ever so many groups
            records = _release(site, message, request, lambda: handle(site, request))
        return Message(records, reply_to=message)
    except Exception as error:
        return Message(_error(_refuse(site, message, asked, error)), reply_to=message)


def _permit_shipped(study: str, app: Path = _APP) -> None:
    """Refuse another study than the one that was approved together with this app."""
    shipped = app / STUDY
    if shipped.is_file() and (name := read_yaml(shipped).get("study")) != study:
        raise Refusal(RefusalCode.CODE, f"the app was built for study '{name}', and the message is of '{study}'.")


def _release(
    site: Site, message: Message, request: DescribeRequest | SumRequest, handle: Callable[[], Answer]
) -> RecordDict:
    """Compute the answer, or take the stored one; mask it, write down what leaves, and let it out."""
    kept = None
    if request.secure is not None:
        _permit_sum(site, request)
        kept = site.kept.find(request.run, request)
    answered, question = (handle(), request.question) if kept is None else (_restored(kept), kept.question)
    _permit(site, request, answered)
    payload = _masked(site, request, answered.payload, question)
    with site.database.transaction():  # all of it or nothing, and on the disk before anything leaves
        site.ledger.enter(
            study=request.study,
            run=request.run,
            releases=[one for release in answered.releases for one in _told(site, request, answered.payload, release)],
            policy=site.policy,
            rounds=answered.rounds,
        )
        spending = site.spending(request.study)
        spending.commit(answered.spends)
        if request.secure is not None and kept is None:
            site.kept.keep(request.run, request, _kept(answered, question))
        elif request.secure is not None:
            site.kept.use(request.run, request)
        epsilon = spending.epsilon
    records = payload.to_records()
    head = site.audit.append(
        "release",
        study=request.study,
        run=request.run,
        app=app_hash(),
        message=message.metadata.message_type,
        question=question,
        **request.audited,
        payload=type(payload).__name__,
        n_participants=answered.n_participants,
        masked=request.secure is not None,
        attempt=request.secure.attempt if request.secure else None,
        among=request.secure.sites if request.secure else None,
        groups=[group.sites for group in payload.sealed],
        epsilon=epsilon or None,  # nothing was counted, which is not nothing lost
        bytes=size_of(records),
        items=describe_records(records),
    )
    site.log.info("%s released, %d bytes", message.metadata.message_type, size_of(records))
    return with_audit_head(records, head)


def _permit(site: Site, request: DescribeRequest | SumRequest, answered: Answer) -> None:
    """Ask the policy about an answer, and refuse numbers that no sum has room for, so that mended data can answer."""
    site.policy.permit_release(
        answered.n_participants, carries_sums=bool(answered.payload.arrays), in_secure_sum=request.secure is not None
    )
    for name in part_of(answered.payload.arrays, "shown"):
        site.policy.permit_sharing(_SHOWN.get(name.partition("/")[0], "embeddings"))
    for release in answered.releases:
        if not release.accounted:
            site.policy.permit_without_noise(release.question.kind)
    try:
        check_room(answered.payload, request, site.name)
    except RingError as error:
        with site.database.transaction():
            site.spending(request.study).commit(answered.spends)  # a refusal tells something of it, too
            if isinstance(error, RingOverflowError):
                site.kept.note_overflow(request.study)
        raise


def _kept(answered: Answer, question: str) -> Kept:
    """Everything of an answer that a second attempt needs; hundreds of its parts are about the same people."""
    assert isinstance(answered.payload, SumReply), "only sums are masked"
    people: dict[tuple[str, ...], int] = {}
    releases = [
        {
            "question": asdict(release.question),
            "people": people.setdefault(tuple(sorted(release.participants)), len(people)),
            "parts": release.parts,
            "accounted": release.accounted,
        }
        for release in answered.releases
    ]
    about = {"n_participants": answered.n_participants, "people": list(people), "releases": releases}
    return Kept(answered.payload, about, question)


def _restored(kept: Kept) -> Answer:
    """Undo `_kept`. The round of training was counted, and what it costs was spent, when it was kept."""
    releases = [
        Release(
            Question(**release["question"]),
            kept.about["people"][release["people"]],
            tuple(release["parts"]),
            accounted=release["accounted"],
        )
        for release in kept.about["releases"]
    ]
    return Answer(kept.reply, kept.about["n_participants"], tuple(releases))


def _permit_sum(site: Site, request: SumRequest) -> None:
    """Refuse a secure sum that the site's administrator did not approve, or that is among too few."""
    secure = request.secure
    assert secure is not None, "only asked of masked requests"
    site.kept.permit_overflow(request.study)
    roster = site.keys.approved(secure.roster)
    names = {key.name for key in roster.sites}
    for sites in (secure.sites, *(group.sites for group in request.groups if group.sites)):
        if list(sites) != sorted(set(sites)) or not set(sites) <= names & set(secure.sites):
            raise Refusal(RefusalCode.ROSTER, f"the sum is among {', '.join(sites)}, who are not all of the roster.")
        site.policy.permit_sites(len(sites))
    if site.name not in secure.sites:
        raise Refusal(RefusalCode.ROSTER, f"the sum is among {', '.join(secure.sites)}, without this site.")


def _masked(site: Site, request: DescribeRequest | SumRequest, reply: Reply, question: str) -> Reply:
    """Mask what would be added, unless the request is for an answer in the clear."""
    if request.secure is None:
        return own_parts(reply, request, site.name)
    masker = Masker(site.name, site.keys.private_key, site.keys.approved(request.secure.roster))
    return seal(reply, request, masker, site=site.name, run=request.run, question=question)


def _told(site: Site, request: DescribeRequest | SumRequest, payload: Reply, release: Release) -> list[Release]:
    """What leaves of a release: once for each set of sites that its arrays are masked among, or once in the clear.

    By array: the coordinator says who sends which part, and may part what the release takes for one.
    """
    if request.secure is None:
        return [release]
    parts = tuple(f"{part}/" for part in release.parts)
    sets = {tuple(request.sites_of(name, request.secure.sites)) for name in payload.arrays if name.startswith(parts)}
    return [replace(release, sites=sites) for sites in sorted(sets) if site.name in sites]


def _refuse(site: Site, message: Message, asked: DescribeRequest | SumRequest | None, error: Exception) -> RefusalCode:
    """Count, log and audit a refusal; return the code that leaves.

    Nothing may be raised from here: Flower would send its text to the coordinator.
    """
    code, kind = _code_of(error), message.metadata.message_type
    told = code if site.policy.share_reasons else code.told
    detail = _detail(error)
    try:
        about = {} if asked is None else {"study": asked.study, "question": asked.question, **asked.audited}
        site.log.error("%s %s: %s", kind, code, detail, exc_info=error if code is RefusalCode.INTERNAL else None)
        if asked is not None and code.told is RefusalCode.DATA:
            site.ledger.note_refusal(asked.study)
        run = str(message.metadata.run_id)
        site.audit.append("refusal", run=run, message=kind, code=str(told), rule=str(code), **about)
    except Exception as broken:
        print(f"fedbrainlm: {one_line(f'{kind} {code}: {detail}')}", flush=True)
        print(f"fedbrainlm: the state folder cannot be written: {broken}", flush=True)
        if code.told is RefusalCode.DATA:  # what is not counted is not told either
            return RefusalCode.SETUP
    return told


def _detail(error: Exception) -> str:
    """What an error says; one of others' may fail at that, too."""
    try:
        return error.detail if isinstance(error, Refusal) else str(error)
    except Exception:
        return type(error).__name__


def _code_of(error: Exception) -> RefusalCode:
    if isinstance(error, Refusal):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), RefusalCode.INTERNAL)


def _error(code: RefusalCode) -> Error:
    return Error(code=code.number, reason=str(code))
