"""The SuperLink's app over a real database that another program locks."""

import hashlib
import inspect
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.supercore import sql_mixin
from flwr.supercore.error.http import http_error_translator
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.retry import RetryInvoker, http_retry
from flwr.superlink import main as flower
from flwr.superlink.cli.flower_superlink import _run_superlink_http_api, flower_superlink
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from cli.superlink import have_try_again
from tests.support.programs import free_port, wait_until

SOURCES = {
    http_error_translator: "63e39a121204a42b",
    flower._get_middleware: "acdbc2dce1520f8f",
    flower.create_app: "ee966b630c8ba8b5",
    flower_superlink: "398ce9c85755e9ee",
    _run_superlink_http_api: "eb0d78b85f999576",
    http_retry.make_simple_http_retry_invoker: "49e12326a4b17e26",
}
"""Start of the SHA-256 of the source of everything that `cli.superlink` wraps, calls or rests on."""


@pytest.fixture
def database(tmp_path, monkeypatch) -> Path:
    """The SuperLink's, which it waits for less than usual."""
    monkeypatch.setenv("FLWR_DATABASE", str(tmp_path / "superlink.sqlite"))
    usual = [pragma for pragma in sql_mixin.SQLITE_PRAGMAS if pragma[0] != "busy_timeout"]
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", [("busy_timeout", "50"), *usual])
    return tmp_path / "superlink.sqlite"


@pytest.fixture
def address(database, monkeypatch) -> Iterator[str]:
    monkeypatch.setattr(flower, "http_error_translator", have_try_again)
    server = uvicorn.Server(uvicorn.Config(flower.create_app(), port=free_port()))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert wait_until(lambda: server.started, 30)
    yield f"127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


def register(address: str, retry_invoker: RetryInvoker | None = None) -> None:
    """Register a node, which writes to the database."""
    key = ec.generate_private_key(ec.SECP384R1())
    interceptors = [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())]
    client = FleetHttpClient.from_server_address(address, True, None, interceptors, retry_invoker=retry_invoker)
    with client:
        client.RegisterNode(RegisterNodeFleetRequest(public_key=public_key_to_bytes(key.public_key())))


def test_while_the_database_is_locked_clients_are_to_try_again_and_flowers_do(address, database, capsys):
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(httpx.HTTPStatusError) as answer:
            register(address)
        with ThreadPoolExecutor() as pool:
            registered = pool.submit(register, address, http_retry.make_simple_http_retry_invoker())
            refusals = "fedbrainlm: the database cannot be used: database is locked. Clients try again.\n" * 2
            said = [""]
            assert wait_until(lambda: said.append(said.pop() + capsys.readouterr().out) or refusals in said[0], 30)
            other.rollback()
            registered.result(30)

    assert answer.value.response.status_code == 503
    assert answer.value.response.json() == {"detail": "Service Unavailable"}


def test_other_faults_are_answered_as_flower_does(address, database):
    with closing(sqlite3.connect(database)) as other:
        other.execute("DROP TABLE node")
    with pytest.raises(httpx.HTTPStatusError) as answer:
        register(address)
    assert answer.value.response.status_code == 500


def test_flower_is_the_one_that_was_read():
    assert {function.__name__: source_of(function) for function in SOURCES} == {
        function.__name__: expected for function, expected in SOURCES.items()
    }


def source_of(function: Callable[..., object]) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
