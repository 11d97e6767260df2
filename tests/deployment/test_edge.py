import shutil
import subprocess
from pathlib import Path

import pytest

from base.errors import InputError
from deployment.authority import Authority
from deployment.edge import nginx_configuration


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


def test_nginx_accepts_it(tmp_path):
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if nginx is None:
        pytest.skip("nginx is not installed: apt install nginx-light")
    Authority(tmp_path / "keys").make("north", "localhost")
    for name in ("run", "logs"):
        (tmp_path / name).mkdir()
    for client_authority in (None, str(tmp_path / "keys" / "ca.crt")):
        text = nginx_configuration(**settings(tmp_path, client_authority=client_authority))
        (tmp_path / "nginx.conf").write_text(text)
        command = [nginx, "-t", "-p", tmp_path, "-e", tmp_path / "logs" / "e.log", "-c", tmp_path / "nginx.conf"]
        assert "test is successful" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
