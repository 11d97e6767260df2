"""The way to the coordinator where a hospital's network has a proxy, and no detour from this machine to itself.

Flower's clients are httpx's: they go by ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``. Who reaches the coordinator
(the SuperNode, and what checks its way) decides here by which proxy, and has those clients find that one and no other.
All other programs speak to this machine alone, for which no proxy is asked.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed has neither

from base.errors import InputError

DIRECT = "direct"
"""What a setting says that wants no proxy, whatever the environment says."""
EXPECTED = "expected http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT with signs such as @ and # as %40 and %23"
_OWN = ("localhost", "127.0.0.1", "::1")
_SCHEMES = ("http", "https")
_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass(frozen=True)
class Proxy:
    """A proxy by which the coordinator is reached."""

    url: str = field(repr=False)
    """As it is used: with user and password, and so nothing to show."""
    named_by: str
    """The setting or variable that names it."""
    scheme: str
    host: str
    port: int
    """Where it is."""
    signs_in: bool
    """Whether a user and a password are given."""

    @classmethod
    def read(cls, url: str, named_by: str) -> Self:
        """Read a proxy's URL; a ValueError if it is none, which does not repeat it, since it may hold a password."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        except ValueError:
            port = None
        more = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme not in _SCHEMES or not parts.hostname or not port or more:
            raise ValueError(f"{EXPECTED}.")
        return cls(parts.geturl(), named_by, parts.scheme, parts.hostname, port, parts.username is not None)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def proxy_to(address: str, setting: str | None) -> Proxy | None:
    """Return the proxy by which an address is reached; None for no proxy.

    Parameters
    ----------
    address : str
        Host and port.
    setting : str or None
        What ``supernode.proxy`` says: a URL; `DIRECT`; or None, for what the environment says.

    Raises
    ------
    InputError
        If what names it is no proxy that can be used.
    """
    if address.rpartition(":")[0].strip("[]") in _OWN or setting == DIRECT:
        return None
    url, named_by = setting, "supernode.proxy"
    if url is None:
        named = getproxies_environment()
        if proxy_bypass_environment(address, named):
            return None
        url, named_by = named.get("https"), "HTTPS_PROXY"
        if not url:
            url, named_by = named.get("all"), "ALL_PROXY"
    if not url:
        return None
    try:
        return Proxy.read(url, named_by)
    except ValueError as error:
        raise InputError(f"{named_by}: {error} Correct it, or set supernode.proxy in site.yaml.") from None


def variables_of(proxy: Proxy | None) -> dict[str, str]:
    """Variables by which clients go through a proxy, and through no other."""
    said = {"no_proxy": ",".join(_OWN)} | ({"https_proxy": proxy.url} if proxy else {})
    return {spelled: value for name, value in said.items() for spelled in (name, name.upper())}


def only(proxy: Proxy | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which this proxy is the only one."""
    others = {name: value for name, value in environment.items() if name.lower() not in _NAMES}
    return others | variables_of(proxy)


def sparing_this_machine(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose proxies, for whatever they are, are not asked for this machine.

    One of another kind than HTTP's is left out: Flower's clients end where they only find it named.
    """
    spared = dict(environment)
    for name in [name for name in spared if name.lower() in _NAMES and name.lower() != "no_proxy"]:
        scheme, separator, _ = spared[name].partition("://")
        if separator and scheme.lower() not in _SCHEMES:
            del spared[name]
    listed = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    text = ",".join([*hosts, *(own for own in _OWN if own not in hosts)])
    return spared | {"no_proxy": text, "NO_PROXY": text}


@contextmanager
def through(proxy: Proxy | None) -> Iterator[None]:
    """Let clients that are made in the block go through a proxy, and through no other, in this process."""
    before = {name: value for name, value in os.environ.items() if name.lower() in _NAMES}
    impose(proxy)
    try:
        yield
    finally:
        for name in variables_of(proxy):
            os.environ.pop(name, None)
        os.environ.update(before)


def impose(proxy: Proxy | None) -> None:
    """Let this process and what it starts go through a proxy, and through no other."""
    for name in [name for name in os.environ if name.lower() in _NAMES]:
        os.environ.pop(name, None)
    os.environ.update(variables_of(proxy))
