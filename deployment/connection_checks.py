"""A hospital's way to the coordinator, step by step: directly, or through its network's proxy."""

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from base.proxies import Proxy, proxy_to
from client.keys.joining import authority_path, joined
from client.keys.nodekey import NodeKey
from client.site import Site
from deployment import probes
from deployment.authority import days_left, read_certificate
from deployment.checks import Check, Found, attempt, expiry
from exchange.bundle import JoinPackage
from runtime.supernode import authentication

CLOCK_S = 300
"""The SuperLink refuses requests that are signed by a clock more than this behind its own, and a few seconds ahead."""
AHEAD_S = 5
_NO_PROXY: Found = ("skip", "")
"""Nothing to be said, where the way is direct."""
_SIGN_IN = 407
_UNREACHED = (502, 503, 504)
"""What a proxy answers: whoever asks must sign in; it does not reach the other side."""


@dataclass
class _Way:
    """What leads from a site to the coordinator: read when it is first asked for."""

    site: Site
    settings: Path

    @cached_property
    def package(self) -> JoinPackage:
        return joined(self.site.state)

    @cached_property
    def proxy(self) -> Proxy | None:
        return proxy_to(self.package.address, self.site.settings.supernode.proxy)

    @property
    def address(self) -> str:
        return self.package.address

    @property
    def authority(self) -> Path:
        return authority_path(self.site.state)


def checks(site: Site, settings: Path) -> Iterator[Check]:
    """Yield each check as it is made: a step that fails ends the way."""
    way = _Way(site, settings)
    for what, step in _STEPS.items():
        found = attempt(what, step, way)
        if found.said:
            yield found
        if found.verdict == "fail":
            return


def _federation(way: _Way) -> Found:
    return "pass", f"{way.package.federation} at {way.address}"


def _proxy(way: _Way) -> Found:
    proxy = way.proxy
    if proxy is None:
        return _NO_PROXY
    readable = stat.S_IMODE(way.settings.stat().st_mode) & 0o077
    if proxy.signs_in and proxy.named_by == "supernode.proxy" and readable:
        return "fail", f"{way.settings}: others may read the proxy's password. Run 'chmod 600 {way.settings}'."
    return "pass", f"{proxy}, as {proxy.named_by} says"


def _dns(way: _Way) -> Found:
    host = way.proxy.host if way.proxy else way.package.host
    try:
        found = ", ".join(probes.resolve(host))
    except OSError as error:
        return "fail", f"{host}: {error}. Ask the network's administrator, or add it to /etc/hosts."
    later = f"; {way.package.host} is the proxy's to find" if way.proxy else ""
    return "pass", f"{host} is {found}{later}"


def _tcp(way: _Way) -> Found:
    """Whether the coordinator's port is open, or the proxy's that leads there."""
    proxy, package = way.proxy, way.package
    first = proxy or package
    try:
        probes.connect(first.host, first.port)
    except OSError as error:
        if proxy:
            return "fail", f"{proxy}: {error}. Correct {proxy.named_by}, or ask the network's administrator."
        remedy = (
            f"Let this machine reach port {package.port} of {package.host} through the firewall; where the network has "
            "a proxy instead, name it: supernode.proxy."
        )
        return "fail", f"{way.address}: {error}. {remedy}"
    return "pass", f"port {first.port}{' of the proxy' if proxy else ''} is open"


def _connect(way: _Way) -> Found:
    """Whether the proxy leads on to the coordinator; what is found there is for the steps after this one."""
    if way.proxy is None:
        return _NO_PROXY
    try:
        probes.certificate(way.address, way.authority, way.proxy)
    except probes.ProxyRefusalError as error:
        return "fail", _why_not(way.proxy, way.address, error)
    except OSError:
        pass
    return "pass", f"the proxy leads on to {way.address}"


def _why_not(proxy: Proxy, address: str, error: probes.ProxyRefusalError) -> str:
    said = str(error)
    if error.status == _SIGN_IN and not proxy.signs_in:
        return f"the proxy wants a user and a password ({said}). Put them into {proxy.named_by}: http://USER:PASSWORD@…"
    if error.status == _SIGN_IN:
        return (
            f"the proxy does not take the user and password of {proxy.named_by} ({said}). Correct them; where it wants "
            "NTLM or Kerberos, name a local relay that signs in so, such as cntlm."
        )
    if error.status in _UNREACHED:
        return (
            f"the proxy does not reach {address} ({said}). Ask the coordinator whether it is running, and then the "
            "network's administrator."
        )
    if error.status is None:
        return (
            f"{proxy} answers as no proxy does ({said}). Correct {proxy.named_by}, or ask the network's administrator."
        )
    return f"the proxy does not lead on to {address} ({said}). Ask the network's administrator to allow CONNECT to it."


def _tls(way: _Way) -> Found:
    try:
        shown = probes.certificate(way.address, way.authority, way.proxy)
    except OSError as error:
        return "fail", f"the coordinator's certificate is refused: {error}. {_whose(way)}"
    return expiry(days_left(shown), "Ask the coordinator to renew it: 'fedbrainlm federation renew'.")


def _whose(way: _Way) -> str:
    """What to do about a certificate that is refused: a proxy that opens TLS shows one of its own."""
    try:
        signer = probes.signer(way.address, way.proxy)
    except OSError:
        signer = ""
    if signer in ("", read_certificate(way.authority).subject.rfc4514_string()):
        return "If a proxy of the hospital opens TLS, except this host; else ask the coordinator."
    return (
        f"It is signed by {signer} and not by the federation's authority: a proxy of the network opens TLS. "
        f"Let its administrator except {way.package.host}."
    )


def _clock(way: _Way) -> Found:
    try:
        skew = probes.get(way.address, "/", way.authority, way.proxy).skew_s
    except OSError as error:
        return "fail", f"{way.address}: {error}. Ask the coordinator whether it is running."
    if skew is None:
        return "warn", "the coordinator sends no date, so that clocks cannot be compared"
    if not -CLOCK_S < skew < AHEAD_S:
        return "fail", f"this clock is {skew:+.0f} s from the coordinator's. Switch time synchronisation on."
    return "pass", f"{skew:+.1f} s from the coordinator's"


def _authentication(way: _Way) -> Found:
    authentication(way.address, way.authority, NodeKey(way.site.state).private, way.proxy)
    return "pass", "the coordinator knows this site's SuperNode key"


_STEPS: dict[str, Callable[[_Way], Found]] = {
    "federation": _federation,
    "proxy": _proxy,
    "DNS": _dns,
    "TCP": _tcp,
    "CONNECT": _connect,
    "TLS": _tls,
    "clock": _clock,
    "authentication": _authentication,
}
