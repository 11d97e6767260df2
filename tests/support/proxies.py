"""A network's proxy for HTTPS: it passes connections on, or refuses, or opens them."""

import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from deployment.authority import Authority


@dataclass
class Tunnels:
    """A proxy at work.

    Attributes
    ----------
    port : int
        Where it listens, on this machine.
    asked : list of str
        Where it was asked to lead to, one each time.
    """

    port: int
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def proxy(
    *,
    names: Mapping[str, str] | None = None,
    sign_in: str | None = None,
    answer: tuple[int, str] | None = None,
    opens_tls: Authority | None = None,
    certificate: Authority | None = None,
) -> Iterator[Tunnels]:
    """Serve as a proxy until the end of a block.

    Parameters
    ----------
    names : mapping, optional
        Host names that only this proxy knows, and their addresses.
    sign_in : str, optional
        ``USER:PASSWORD`` that it wants.
    answer : (int, str), optional
        What it answers instead of leading anywhere.
    opens_tls : Authority, optional
        Whose certificate it shows in place of the server's.
    certificate : Authority, optional
        With which the way to the proxy is encrypted itself.
    """
    wanted = f"Basic {b64encode(sign_in.encode()).decode()}" if sign_in else None

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            tunnels.asked.append(self.path)
            if wanted and self.headers["Proxy-Authorization"] != wanted:
                self._refuse(407, "Proxy Authentication Required")
            elif answer:
                self._refuse(*answer)
            else:
                self._lead_on()

        def _refuse(self, status: int, said: str) -> None:
            self.send_response_only(status, said)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _lead_on(self) -> None:
            host, _, port = self.path.rpartition(":")
            try:
                far = socket.create_connection(((names or {}).get(host, host), int(port)), 10)
            except OSError:
                self._refuse(502, "Bad Gateway")
                return
            with far:
                self.send_response_only(200, "Connection established")
                self.end_headers()
                if opens_tls:
                    with suppress(OSError):  # whoever does not trust it ends the connection
                        _context(opens_tls).wrap_socket(self.connection, server_side=True)
                    return
                back = threading.Thread(target=_copy, args=(far, self.connection), daemon=True)
                back.start()
                _copy(self.connection, far)
                back.join()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        server.socket = _context(certificate).wrap_socket(server.socket, server_side=True)
    tunnels = Tunnels(server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield tunnels
    finally:
        server.shutdown()
        server.server_close()


def _context(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_certificate, authority.server_key)
    return context


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(2**16):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
