"""Two relays in a row, as in the two containers of a hospital."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from client.errors import RelayError
from runtime import relay
from tests.support.programs import free_port


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(params=["state", "long" * 30])
def ports(tmp_path, request) -> tuple[int, int]:
    """The port that apps ask at, and the one that their SuperNode is to listen at; by a socket in any folder."""
    (tmp_path / request.param).mkdir()
    path, outer, inner = tmp_path / request.param / "socket", free_port(), free_port()
    relay.start(path, inner)
    relay.start(outer, path)
    return outer, inner


def answer(port: int, body: bytes) -> bytes | None:
    try:
        return httpx.post(f"http://127.0.0.1:{port}/", content=body, timeout=30).content
    except httpx.HTTPError:
        return None


def test_what_is_sent_arrives_and_what_is_answered_comes_back(ports):
    outer, inner = ports
    assert answer(outer, b"early") is None  # there is no SuperNode yet: whoever asks is told so, and tries again

    with ThreadingHTTPServer(("127.0.0.1", inner), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        large = bytes(range(256)) * 20_000  # as large as the pieces that Flower sends
        bodies = [large, b"", b"x"]
        said = [None] * len(bodies)

        def ask(number: int) -> None:
            said[number] = answer(outer, bodies[number])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.shutdown()

    assert said == bodies


def test_whoever_asks_hears_when_the_other_side_is_gone(ports):
    outer, inner = ports
    with socket.create_server(("127.0.0.1", inner)) as server, socket.create_connection(("127.0.0.1", outer)) as asking:
        server.settimeout(10)
        accepted, _ = server.accept()
        accepted.close()
        asking.settimeout(10)
        assert asking.recv(1) == b""


def test_a_socket_that_was_left_behind_is_replaced(tmp_path):
    path = tmp_path / "socket"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()

    relay.start(path, free_port())

    with socket.socket(socket.AF_UNIX) as asking:
        assert asking.connect_ex(str(path)) == 0


def test_where_nobody_can_listen_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RelayError, match="End what uses it"):
        relay.start(taken.getsockname()[1], tmp_path / "socket")
    with pytest.raises(RelayError, match="cannot be listened at"):
        relay.start(tmp_path / ("long" * 30), 1)  # a name, not a folder
    with pytest.raises(RelayError, match="cannot be listened at"):
        relay.start(tmp_path / "none" / "socket", 1)
