"""A hospital's way to the coordinator, step by step: directly, or through its network's proxy."""

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from base.errors import FedBrainLMError
from base.proxies import Proxy, proxy_to
from client.keys.joining import authority_path, joined
from client.keys.nodekey import NodeKey
from client.site import Site
from deployment import probes
from deployment.authority import days_left, read_certificate
from deployment.checks import Check, expiry, failed, passed, warned
from exchange.bundle import JoinPackage
from runtime.supernode import authentication

CLOCK_S = 300
"""The SuperLink refuses requests that are signed by a clock more than this behind its own, and a few seconds ahead."""
AHEAD_S = 5
_SIGN_IN = 407
_UNREACHED = (502, 503, 504)
"""What a proxy answers: whoever asks must sign in; it does not reach the other side."""


@dataclass(frozen=True)
class _Way:
    """What leads from a site to the coordinator."""

    site: Site
    settings: Path
    package: JoinPackage
    proxy: Proxy | None

    @property
    def address(self) -> str:
        return self.package.address

    @property
    def authority(self) -> Path:
        return authority_path(self.site.state)


def checks(site: Site, settings: Path) -> Iterator[Check]:
    """Yield each check as it is made: a step that fails ends the way."""
    try:
        package = joined(site.state)
    except FedBrainLMError as error:
        yield failed("federation", str(error))
        return
    yield passed("federation", f"{package.federation} at {package.address}")
    try:
        proxy = proxy_to(package.address, site.settings.supernode.proxy)
    except FedBrainLMError as error:
        yield failed("proxy", str(error))
        return
    way = _Way(site, settings, package, proxy)
    for step in _DIRECTLY if proxy is None else _BY_PROXY:
        found = step(way)
        yield found
        if found.verdict == "fail":
            return


def _named(way: _Way) -> Check:
    proxy = way.proxy
    assert proxy is not None
    readable = stat.S_IMODE(way.settings.stat().st_mode) & 0o077
    if proxy.signs_in and proxy.named_by == "supernode.proxy" and readable:
        return failed("proxy", f"{way.settings}: others may read the proxy's password. Run 'chmod 600 {way.settings}'.")
    return passed("proxy", f"{proxy}, as {proxy.named_by} says")


def _dns(way: _Way) -> Check:
    host = way.proxy.host if way.proxy else way.package.host
    try:
        found = ", ".join(probes.resolve(host))
    except OSError as error:
        return failed("DNS", f"{host}: {error}. Ask the network's administrator, or add it to /etc/hosts.")
    later = f"; {way.package.host} is the proxy's to find" if way.proxy else ""
    return passed("DNS", f"{host} is {found}{later}")


def _tcp(way: _Way) -> Check:
    try:
        probes.connect(way.package.host, way.package.port)
    except OSError as error:
        remedy = (
            f"Let this machine reach port {way.package.port} of {way.package.host} through the firewall; where the "
            "network has a proxy instead, name it: supernode.proxy."
        )
        return failed("TCP", f"{way.address}: {error}. {remedy}")
    return passed("TCP", f"port {way.package.port} is open")


def _tcp_of_proxy(way: _Way) -> Check:
    proxy = way.proxy
    assert proxy is not None
    try:
        probes.connect(proxy.host, proxy.port)
    except OSError as error:
        return failed("TCP", f"{proxy}: {error}. Correct {proxy.named_by}, or ask the network's administrator.")
    return passed("TCP", f"port {proxy.port} of the proxy is open")


def _connect(way: _Way) -> Check:
    """Whether the proxy leads on to the coordinator; what is found there is for the steps after this one."""
    assert way.proxy is not None
    try:
        probes.certificate(way.address, way.authority, way.proxy)
    except probes.ProxyRefusalError as error:
        return failed("CONNECT", _why_not(way.proxy, way.address, error))
    except OSError:
        pass
    return passed("CONNECT", f"the proxy leads on to {way.address}")


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


def _tls(way: _Way) -> Check:
    try:
        shown = probes.certificate(way.address, way.authority, way.proxy)
    except OSError as error:
        return failed("TLS", f"the coordinator's certificate is refused: {error}. {_whose(way)}")
    return expiry("TLS", days_left(shown), "Ask the coordinator to renew it: 'fedbrainlm federation renew'.")


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


def _clock(way: _Way) -> Check:
    try:
        skew = probes.get(way.address, "/", way.authority, way.proxy).skew_s
    except OSError as error:
        return failed("clock", f"{way.address}: {error}. Ask the coordinator whether it is running.")
    if skew is None:
        return warned("clock", "the coordinator sends no date, so that clocks cannot be compared")
    if not -CLOCK_S < skew < AHEAD_S:
        return failed("clock", f"this clock is {skew:+.0f} s from the coordinator's. Switch time synchronisation on.")
    return passed("clock", f"{skew:+.1f} s from the coordinator's")


def _authentication(way: _Way) -> Check:
    try:
        authentication(way.address, way.authority, NodeKey(way.site.state).private, way.proxy)
    except FedBrainLMError as error:
        return failed("authentication", str(error))
    return passed("authentication", "the coordinator knows this site's SuperNode key")


_DIRECTLY: tuple[Callable[[_Way], Check], ...] = (_dns, _tcp, _tls, _clock, _authentication)
_BY_PROXY = (_named, _dns, _tcp_of_proxy, _connect, _tls, _clock, _authentication)
