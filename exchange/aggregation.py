"""How answers are masked at a site, and added at the coordinator, with masks or without."""

from collections.abc import Mapping

import numpy as np

from exchange.messages import (
    SHOWN,
    Arrays,
    DescribeRequest,
    MessageError,
    Reply,
    SealedGroup,
    StudyRequest,
    SumReply,
    SumRequest,
)
from exchange.ring import RingError, Words
from exchange.secure_sum import MaskContext, Masker, SecureSumError, SumLayout, check_numbers, open_sum

_NOT_ADDED = (SHOWN, "weights/")


def seal(reply: Reply, request: SumRequest, masker: Masker, *, site: str, run: str, question: str) -> Reply:
    """Mask everything that would be added.

    Parameters
    ----------
    reply : SumReply
        The site's answer in the clear.
    request : SumRequest
        What it answers, with `secure`.
    masker : Masker
        The site's masks.
    site, run : str
        Name of the site, and what the run is called.
    question : str
        What the first attempt asked (`SumRequest.question`); later ones do not say it again.

    Returns
    -------
    SumReply
        The answer, with words of rings instead of what they hide.

    Raises
    ------
    SecureSumError, RingError
        If the sites are not fit for a sum, or a number does not fit its ring.
    """
    secure = request.secure
    if secure is None:
        raise SecureSumError("the request is for an answer in the clear.")
    arrays = {name: values for name, values in reply.arrays.items() if name.startswith(SHOWN)}
    groups = []
    for number, (sites, of_group) in enumerate(sorted(request.by_sites(_masked_of(reply, request, site)).items())):
        context = MaskContext(request.study, run, secure.step, secure.attempt, sites, question)
        layout, sealed = masker.seal(of_group, context, secure.bound)
        groups.append(SealedGroup(sites=list(sites), layout=layout.to_json()))
        arrays |= {f"sealed/{number}/{bits}": words for bits, words in sealed.items()}
    return reply.model_copy(update={"arrays": arrays, "sealed": groups})


def check_room(reply: Reply, request: DescribeRequest | SumRequest, site: str) -> None:
    """Refuse an answer with a number that cannot be summed, or has no room in its ring: a `RingError` names one."""
    masked = _masked_of(reply, request, site)
    for name, values in masked.items():
        if not np.isfinite(values).all():
            raise RingError(f"{name}: a number is NaN or infinite, and cannot be summed.")
    if request.secure is not None:
        for sites, of_group in request.by_sites(masked).items():
            check_numbers(of_group, len(sites), request.secure.bound)


def _masked_of(reply: Reply, request: StudyRequest, site: str) -> Arrays:
    """Arrays of a site's answer that are added."""
    arrays = own_parts(reply, request, site).arrays
    return {name: values for name, values in arrays.items() if not name.startswith(SHOWN)}


def own_parts(reply: Reply, request: StudyRequest, site: str) -> Reply:
    """Keep of an answer what the request wants of this site."""
    arrays = {name: values for name, values in reply.arrays.items() if request.sites_of(name, [site])}
    return reply.model_copy(update={"arrays": arrays})


def add_replies(request: SumRequest, replies: Mapping[str, SumReply]) -> Arrays:
    """Add the answers of all sites, in the order of names; masks cancel.

    Each is as it was asked for (`exchange.expected.check_reply`), and so they fit each other.

    Returns
    -------
    dict
        Name → sum over the sites that send it, float64.

    Raises
    ------
    MessageError
        If masks do not cancel.
    """
    if request.secure is None:
        total: Arrays = {}
        for _, reply in sorted(replies.items()):
            for name, values in reply.arrays.items():
                if not name.startswith(_NOT_ADDED):
                    wide = np.asarray(values, dtype=np.float64)
                    total[name] = total[name] + wide if name in total else wide
        return total
    by_group: dict[tuple[str, ...], list[SumReply]] = {}
    for reply in replies.values():
        for group in reply.sealed:
            by_group.setdefault(tuple(group.sites), []).append(reply)
    try:
        opened = (open_sum([_words(reply, sites) for reply in of_group]) for sites, of_group in by_group.items())
        return {name: values for group in opened for name, values in group.items()}
    except SecureSumError as error:
        raise MessageError(str(error)) from None


def _words(reply: SumReply, sites: tuple[str, ...]) -> tuple[SumLayout, dict[int, Words]]:
    """Layout and words by ring of one group of a masked answer."""
    number = next(number for number, group in enumerate(reply.sealed) if tuple(group.sites) == sites)
    words = reply.part(f"sealed/{number}")
    return SumLayout.from_json(reply.sealed[number].layout), {int(bits): words[bits] for bits in words}
