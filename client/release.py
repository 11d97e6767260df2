"""The one door. Every reply of a hospital is made here: policy, then audit, then out.

Only this module makes messages. A handler computes and returns a payload; whatever goes wrong on the way leaves as a
stable code without data, and as a full sentence in the site's own log.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Context, Error, Message, RecordDict

from brainlm.errors import CheckpointError, DivergenceError, ShapeError
from client.audit import describe_records
from client.site import Site, find_site
from cohorts.errors import CohortError, RecordingError, SettingsError, VectorsError
from exchange.messages import MessageError, Payload, size_of
from exchange.refusals import Refusal, RefusalCode
from harmonization.errors import HarmonizationError, SmallGroupError

AnyRequest = TypeVar("AnyRequest", bound=Payload)

_CODES: tuple[tuple[type[Exception], RefusalCode], ...] = (
    (MessageError, RefusalCode.PROTOCOL),
    (DivergenceError, RefusalCode.DIVERGED),
    (CheckpointError, RefusalCode.PROTOCOL),
    (ShapeError, RefusalCode.PROTOCOL),
    (SettingsError, RefusalCode.PROTOCOL),  # of the request: the site's own are read before
    (RecordingError, RefusalCode.PROTOCOL),
    (VectorsError, RefusalCode.VECTORS),
    (SmallGroupError, RefusalCode.GROUP),
    (HarmonizationError, RefusalCode.ANALYSIS_FAILED),
    (CohortError, RefusalCode.SETUP),
)


@dataclass(frozen=True)
class Answer:
    """What a handler wants to let out, and how many participants of the site took part in it."""

    payload: Payload
    n_participants: int


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
    try:
        site = find_site(context)
    except Exception as error:
        # Without settings there is no log of the site's own: the administrator reads the SuperNode's.
        print(f"fedbrainlm: {error}", flush=True)
        return Message(_error(error.code if isinstance(error, Refusal) else RefusalCode.SETUP), reply_to=message)
    try:
        answered = handle(site, kind.from_records(message.content))
        return Message(_release(site, message, answered), reply_to=message)
    except Exception as error:
        code = _code_of(error)
        _write_down_refusal(site, message, code, error)
        return Message(_error(code), reply_to=message)


def _release(site: Site, message: Message, answered: Answer) -> RecordDict:
    """Apply the policy to what would leave, and write it down."""
    payload = answered.payload
    site.policy.permit_release(answered.n_participants, carries_sums=bool(payload.arrays), in_secure_sum=False)
    records = payload.to_records()
    site.audit.append(
        "release",
        run=message.metadata.run_id,
        message=message.metadata.message_type,
        payload=type(payload).__name__,
        n_participants=answered.n_participants,
        masked=False,
        bytes=size_of(records),
        items=describe_records(records),
    )
    site.log.info("%s released, %d bytes", message.metadata.message_type, size_of(records))
    return records


def _write_down_refusal(site: Site, message: Message, code: RefusalCode, error: Exception) -> None:
    """Log and audit a refusal. Nothing may be raised from here: Flower would send its text to the coordinator."""
    kind = message.metadata.message_type
    detail = error.detail if isinstance(error, Refusal) else str(error)
    try:
        unexpected = error if code is RefusalCode.INTERNAL else None
        site.log.error("%s %s: %s", kind, code, detail, exc_info=unexpected)
        site.audit.append("refusal", run=message.metadata.run_id, message=kind, code=str(code))
    except Exception as broken:
        print(f"fedbrainlm: the state folder cannot be written: {broken}", flush=True)


def _code_of(error: Exception) -> RefusalCode:
    if isinstance(error, Refusal):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), RefusalCode.INTERNAL)


def _error(code: RefusalCode) -> Error:
    return Error(code=code.number, reason=str(code))
