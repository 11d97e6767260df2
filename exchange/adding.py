"""How answers are masked at a site, and added at the coordinator, with masks or without."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from exchange.messages import Arrays, MessageError, SealedGroup, SumReply, SumRequest
from exchange.ring import RingError, Words
from exchange.roster import MIN_SITES
from exchange.secure_sum import Context, Layout, Masker, SecureSumError, check_numbers, open_sum

AnySumReply = TypeVar("AnySumReply", bound=SumReply)

SHOWN = "shown/"
"""How the names of arrays begin that a site shows of itself: they are neither masked nor added."""
_NOT_ADDED = (SHOWN, "weights/")
_BITS = {"32": 32, "64": 64}


def seal(reply: AnySumReply, request: SumRequest, masker: Masker, *, site: str, run: str, question: str) -> AnySumReply:
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
    for number, (sites, of_group) in enumerate(sorted(_by_group(reply, request, site, secure.sites).items())):
        context = Context(request.study, run, secure.step, secure.attempt, sites, question)
        layout, sealed = masker.seal(of_group, context, secure.bound)
        groups.append(SealedGroup(sites=list(sites), layout=layout.to_json()))
        arrays |= {f"sealed/{number}/{bits}": words for bits, words in sealed.items()}
    return reply.model_copy(update={"arrays": arrays, "sealed": groups})


def check_room(reply: SumReply, request: SumRequest, site: str) -> None:
    """Refuse an answer with a number that cannot be summed, or that is too large for the sum's ring.

    Raises
    ------
    RingError
        Naming the array, and why.
    """
    for name, values in own_parts(reply, request, site).arrays.items():
        if not np.isfinite(values).all():
            raise RingError(f"{name}: a number is NaN or infinite, and cannot be summed.")
    if request.secure is not None:
        for sites, of_group in _by_group(reply, request, site, request.secure.sites).items():
            check_numbers(of_group, len(sites), request.secure.bound)


def _by_group(reply: SumReply, request: SumRequest, site: str, among: Sequence[str]) -> dict[tuple[str, ...], Arrays]:
    """Arrays of a site's answer that are masked, by the sites that they are masked among."""
    by_group: dict[tuple[str, ...], Arrays] = {}
    for name, values in own_parts(reply, request, site).arrays.items():
        if not name.startswith(SHOWN):
            by_group.setdefault(tuple(request.sites_of(name, among)), {})[name] = values
    return by_group


def own_parts(reply: AnySumReply, request: SumRequest, site: str) -> AnySumReply:
    """Keep of an answer what the request wants of this site."""
    arrays = {name: values for name, values in reply.arrays.items() if request.sites_of(name, [site])}
    return reply.model_copy(update={"arrays": arrays})


def add_replies(request: SumRequest, replies: Mapping[str, SumReply]) -> Arrays:
    """Add the answers of all sites, in the order of names; masks cancel.

    Returns
    -------
    dict
        Name → sum over the sites that send it, float64.

    Raises
    ------
    MessageError
        If answers do not fit together: see `misfits`.
    """
    if misfits(request, replies):
        raise MessageError("answers do not fit together.")
    if request.secure is None:
        total: Arrays = {}
        for _, reply in sorted(replies.items()):
            for name in _added(reply):
                values = np.asarray(reply.arrays[name], dtype=np.float64)
                total[name] = total[name] + values if name in total else values
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


def misfits(request: SumRequest, replies: Mapping[str, SumReply]) -> list[str]:
    """Name the sites whose answers lack what others send, or have it in another shape.

    Right is what most of those say who answered and were to send it; a site that is silent says nothing.
    """
    described = {site: _describe(request, reply) for site, reply in replies.items()}
    wrong: set[str] = set()
    for name in {name for named in described.values() for name in named}:
        sent = {site for site, named in described.items() if name in named}
        asked = [site for site in replies if site in _senders(request, name, list(replies))]
        wrong |= sent.difference(asked)
        if request.secure is not None and len(asked) < MIN_SITES:
            continue  # of so few no sum is made: the next attempt asks nobody for it
        said = Counter(described[site].get(name) for site in asked)
        usual = [what for what, count in said.items() if count == max(said.values())]
        wrong |= {site for site in asked if described[site].get(name) not in usual}
        if len(usual) > 1:  # nobody can tell who is right
            wrong |= sent
    return [site for site in replies if site in wrong]


def _describe(request: SumRequest, reply: SumReply) -> dict[str, str]:
    """Say of each array that is added, or of each group's words, what must be the same at all sites."""
    if request.secure is None:
        if reply.sealed:
            return {"sealed": "sealed"}
        return {name: str(reply.arrays[name].shape) for name in _added(reply)}
    named, asked = {}, [request.secure.sites, *(group.sites for group in request.groups)]
    for number, group in enumerate(reply.sealed):
        words = reply.part(f"sealed/{number}")
        shapes = sorted((bits, str(values.dtype), values.shape) for bits, values in words.items())
        name = "\n".join(group.sites)
        once = group.sites in asked and name not in named
        named[name if once else "elsewhere"] = str([sorted(group.layout.items()), shapes])
    own = tuple(f"sealed/{number}/{bits}" for number in range(len(reply.sealed)) for bits in _BITS)
    return {**named, **{name: "elsewhere" for name in reply.arrays if name not in own and not name.startswith(SHOWN)}}


def _senders(request: SumRequest, name: str, sites: Sequence[str]) -> list[str]:
    return request.sites_of(name, sites) if request.secure is None else name.split("\n")


def _added(reply: SumReply) -> list[str]:
    return [name for name in reply.arrays if not name.startswith(_NOT_ADDED)]


def _words(reply: SumReply, sites: tuple[str, ...]) -> tuple[Layout, dict[int, Words]]:
    """Layout and words by ring of one group of a masked answer."""
    number = next(number for number, group in enumerate(reply.sealed) if tuple(group.sites) == sites)
    words = reply.part(f"sealed/{number}")
    return Layout.from_json(reply.sealed[number].layout), {_BITS[bits]: words[bits] for bits in words}
