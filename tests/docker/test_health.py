"""The health check of the images, against the service that Flower's programs have."""

import socket
import subprocess
import sys

import pytest
from flwr.supercore.grpc_health import run_health_server_grpc_no_tls

from tests.support.containers import DOCKER


def check(port: int) -> tuple[int, str]:
    command = [sys.executable, DOCKER / "health.py", f"127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_what_serves_is_healthy_whatever_proxies_are_named(monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = run_health_server_grpc_no_tls("127.0.0.1:0")
    try:
        assert check(int(server.bound_address.rpartition(":")[2])) == (0, "")
    finally:
        server.stop(None)


@pytest.mark.parametrize("listens", [True, False])
def test_what_hangs_or_is_not_there_is_not_healthy(listens):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        port = silent.getsockname()[1]
        code, said = check(port)
    assert code == 1
    assert said == f"127.0.0.1:{port}: " + ("DEADLINE_EXCEEDED" if listens else "UNAVAILABLE")
