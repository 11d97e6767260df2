"""Looks at another machine: name, port, certificate, clock. None waits longer than a few seconds."""

import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
from cryptography import x509

WAIT_S = 5.0


@dataclass(frozen=True)
class Answer:
    """What a server answers.

    Attributes
    ----------
    status : int
        Of HTTP.
    skew_s : float or None
        Seconds that this machine's clock is ahead of the server's ``Date``; None if it sends none.
    """

    status: int
    skew_s: float | None


def resolve(host: str) -> list[str]:
    """Return the addresses of a host.

    Raises
    ------
    OSError
        If it has none, or the answer takes too long.
    """
    pool = ThreadPoolExecutor(1)  # not as a context: leaving that waits for the thread, which nothing can stop
    try:
        found = pool.submit(socket.getaddrinfo, host, None, 0, socket.SOCK_STREAM).result(WAIT_S)
    except FutureTimeoutError:
        raise OSError(f"no answer within {WAIT_S:g} s") from None
    finally:
        pool.shutdown(wait=False)
    return sorted({str(entry[4][0]) for entry in found})


def connect(host: str, port: int) -> None:
    """Open a port, and close it.

    Raises
    ------
    OSError
        If nobody answers there.
    """
    socket.create_connection((host, port), WAIT_S).close()


def certificate(host: str, port: int, authority: Path) -> x509.Certificate:
    """Return a server's certificate, once it has proved to be signed by the authority, in time and of this name.

    Raises
    ------
    OSError
        If it has not; an ``ssl.SSLError`` says why.
    """
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection((host, port), WAIT_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        return x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")


def get(url: str, authority: Path) -> Answer:
    """Ask for a page over TLS.

    Raises
    ------
    OSError
        If there is no answer.
    """
    try:
        sent = time.time()
        context = ssl.create_default_context(cafile=str(authority))
        response = httpx.get(url, timeout=WAIT_S, verify=context)
    except httpx.HTTPError as error:
        raise OSError(str(error)) from None
    date = response.headers.get("Date")
    if date is None:
        return Answer(response.status_code, None)
    said = parsedate_to_datetime(date).timestamp() + 0.5  # it is cut to whole seconds
    return Answer(response.status_code, (sent + time.time()) / 2 - said)
