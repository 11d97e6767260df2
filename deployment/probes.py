"""Looks at another machine: name, port, proxy, certificate, clock. None waits longer than a few seconds."""

import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509

from base.proxies import Proxy

WAIT_S = 5.0


@dataclass(frozen=True)
class Answer:
    """What a server answers."""

    status: int
    """Of HTTP."""
    skew_s: float | None
    """Seconds that this machine's clock is ahead of the server's ``Date``; None if it sends none."""


def resolve(host: str) -> list[str]:
    """Return the addresses of a host; an OSError if it has none, or the answer takes too long."""
    pool = ThreadPoolExecutor(1)  # not as a context: leaving that waits for the thread, which nothing can stop
    try:
        found = pool.submit(socket.getaddrinfo, host, None, 0, socket.SOCK_STREAM).result(WAIT_S)
    except FutureTimeoutError:
        raise OSError(f"no answer within {WAIT_S:g} s") from None
    finally:
        pool.shutdown(wait=False)
    return sorted({str(entry[4][0]) for entry in found})


def connect(host: str, port: int) -> None:
    """Open a port, and close it; an OSError if nobody answers there."""
    socket.create_connection((host, port), WAIT_S).close()


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody answers at a port."""
    try:
        connect(host, port)
    except OSError:
        return False
    return True


class ProxyRefusalError(OSError):
    """A proxy does not lead to where it was asked to.

    Attributes
    ----------
    status : int or None
        What it answers, of HTTP; None if it speaks no HTTP, or says nothing.
    """

    def __init__(self, said: str) -> None:
        super().__init__(said)
        number = said.partition(" ")[0]
        self.status = int(number) if number.isdigit() else None


def certificate(address: str, authority: Path, proxy: Proxy | None = None) -> x509.Certificate:
    """Return a server's certificate, once it has proved to be signed by the authority, in time and of this name.

    Raises
    ------
    ProxyRefusalError
        If the proxy does not lead there.
    OSError
        If it has not, or does not answer.
    """
    return _Look(address, ssl.create_default_context(cafile=str(authority)), proxy).certificate()


def signer(address: str, proxy: Proxy | None = None) -> str:
    """Return who signed what is shown as a server's certificate, believed or not; an OSError if nothing is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return _Look(address, context, proxy).certificate().issuer.rfc4514_string()


def get(address: str, path: str, authority: Path, proxy: Proxy | None = None) -> Answer:
    """Ask for a page over TLS; errors as of `certificate`."""
    return _Look(address + path, ssl.create_default_context(cafile=str(authority)), proxy).answer()


class _Look:
    """One request as Flower's clients make it, by httpx, directly or through a proxy; and how far it came."""

    def __init__(self, where: str, context: ssl.SSLContext, proxy: Proxy | None) -> None:
        self._is_there = proxy is None
        self._shown = b""
        self._answer: Answer | None = None
        self._fault = ""
        try:
            with httpx.Client(
                verify=context, proxy=proxy.url if proxy else None, trust_env=False, timeout=WAIT_S
            ) as client:
                sent = time.time()
                with client.stream("GET", f"https://{where}", extensions={"trace": self._note}) as response:
                    self._answer = Answer(response.status_code, _skew(response, (sent + time.time()) / 2))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._fault = str(error) or f"no answer within {WAIT_S:g} s"

    def _note(self, event: str, info: dict[str, Any]) -> None:
        """Note how far the request has come: httpcore says so before and after each step."""
        if event == "proxy.start_tls.started":  # before, TLS may have begun with the proxy itself
            self._is_there, self._shown = True, b""
        if event.endswith("start_tls.complete"):
            self._shown = info["return_value"].get_extra_info("ssl_object").getpeercert(True)

    def certificate(self) -> x509.Certificate:
        if not (self._is_there and self._shown):
            raise self._error()
        return x509.load_der_x509_certificate(self._shown)

    def answer(self) -> Answer:
        if self._answer is None:
            raise self._error()
        return self._answer

    def _error(self) -> OSError:
        return OSError(self._fault) if self._is_there else ProxyRefusalError(self._fault)


def _skew(response: httpx.Response, now: float) -> float | None:
    """Seconds that this clock is ahead of the server's, whose date is cut to whole seconds."""
    date = response.headers.get("Date")
    return None if date is None else now - parsedate_to_datetime(date).timestamp() - 0.5
