import shutil
import socket
import ssl
import subprocess
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest

from cli.authority import Authority
from cli.edge import nginx_configuration
from cli.errors import InputError
from tests.support.programs import free_port, wait_until
from tests.support.servers import serve


def settings(folder, **changes):
    keys = folder / "keys"
    return {
        "folder": str(folder),
        "port": 18443,
        "superlink_port": 8000,
        "authority": str(keys / "ca.crt"),
        "server_certificate": str(keys / "server.crt"),
        "server_key": str(keys / "server.key"),
        "client_authority": None,
        "requests_per_second": 50,
        "max_request_mb": 32,
        **changes,
    }


def test_every_placeholder_is_filled(tmp_path):
    text = nginx_configuration(**settings(tmp_path, client_authority="/etc/clients.crt"))

    assert "@" not in text
    assert "429" not in text.replace(str(tmp_path), "")  # a SuperNode would end
    assert "ssl_client_certificate /etc/clients.crt;" in text
    assert "ssl_verify_client on;" in text
    assert "ssl_verify_client on;" not in nginx_configuration(**settings(tmp_path))


def test_a_path_cannot_bring_settings_of_its_own():
    for path in ("/a b", "/a;", "/a{", "/a\n", '/a"', "/$a"):
        with pytest.raises(InputError, match="Choose another folder"):
            nginx_configuration(**settings(Path(path)))


@pytest.fixture
def nginx(tmp_path) -> list[str | Path]:
    """The command of an nginx in a folder with certificates, which reads the settings that are written there."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("nginx is not installed: apt install nginx-light")
    Authority(tmp_path / "keys").make("north", "localhost")
    for name in ("run", "logs"):
        (tmp_path / name).mkdir()
    return [program, "-p", tmp_path, "-e", tmp_path / "logs" / "e.log", "-c", tmp_path / "nginx.conf"]


def test_nginx_accepts_it(tmp_path, nginx):
    for client_authority in (None, str(tmp_path / "keys" / "ca.crt")):
        text = nginx_configuration(**settings(tmp_path, client_authority=client_authority))
        (tmp_path / "nginx.conf").write_text(text)
        done = subprocess.run([*nginx, "-t"], capture_output=True, text=True, check=False)
        assert "test is successful" in done.stderr


class SuperLink(BaseHTTPRequestHandler):
    """Answers with the status that is asked for, and with a body."""

    def do_GET(self) -> None:
        self.send_response(int(self.headers["X-Status"]))
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"said")

    def log_message(self, *_: object) -> None:
        pass


def test_a_fault_of_the_superlink_makes_a_supernode_try_again_and_its_words_pass(tmp_path, nginx):
    keys, port = Authority(tmp_path / "keys"), free_port()
    with serve(keys, SuperLink) as superlink:
        text = nginx_configuration(**settings(tmp_path, port=port, superlink_port=superlink))
        (tmp_path / "nginx.conf").write_text(text)
        edge = subprocess.Popen(nginx)
        verify = ssl.create_default_context(cafile=keys.ca_certificate)
        try:
            assert wait_until(lambda: listens(port), 10)
            fleet = f"https://localhost:{port}/v1/fleet"
            answers = {
                (call, status): httpx.get(f"{fleet}/{call}", headers={"X-Status": str(status)}, verify=verify)
                for call in ("pull-messages", "push-object")
                for status in (200, 412, 500)
            }
            other = httpx.get(f"https://localhost:{port}/again", verify=verify)
        finally:
            edge.terminate()
            edge.wait(30)

    again = answers.pop(("pull-messages", 500))
    assert again.status_code == 503
    for (_, status), answer in answers.items():
        assert (answer.status_code, answer.text) == (status, "said")
    assert other.status_code == 404


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
