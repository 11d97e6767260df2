"""The SuperLink's app over a real database that another program locks."""

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.retry import RetryInvoker, http_retry
from flwr.supercore.sql_mixin import SqlMixin
from flwr.superlink import main as flower
from flwr.superlink.servicer.runtime import runtime_handlers
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from runtime import superlink
from tests.support.programs import wait_until

RUN = 77


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


@pytest.fixture
def push(wrapped) -> Callable[[], bool]:
    """Push one object of a message to the SuperLink; say whether it was stored."""
    state = flower.create_app().state.linkstate_factory.state()
    array = Array(np.arange(3))
    session_id = state.start_session(RUN)
    state.preregister_object_tree(get_object_tree(array), session_id)
    name, content = array.object_id, array.deflate()
    node = Node(node_id=SUPERLINK_NODE_ID)
    request = PushObjectRequest(node=node, object_id=name, object_content=content, session_id=session_id)
    task = SimpleNamespace(run_id=RUN)
    return lambda: runtime_handlers.push_object(request, state, task).stored


def test_a_part_of_a_message_that_meets_a_lock_is_not_lost(push, database):
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OperationalError):
            push()
    assert push()


def test_a_part_that_was_stored_before_the_database_failed_is_stored_again(push, monkeypatch):
    handler = runtime_handlers.push_object.__wrapped__
    monkeypatch.setattr(runtime_handlers, "push_object", superlink.whole_or_not_at_all(then_fails(handler)))
    with pytest.raises(OperationalError):
        push()
    monkeypatch.setattr(runtime_handlers, "push_object", superlink.whole_or_not_at_all(handler))
    assert push()
    assert not push()  # nobody waits for it any more


def then_fails(handler: Callable[..., PushObjectResponse]) -> Callable[..., PushObjectResponse]:
    """A handler that does its work, and then finds the database unusable."""

    def handle(request: PushObjectRequest, state: SqlMixin, task: object) -> PushObjectResponse:
        assert handler(request, state, task).stored
        state.query("SELECT * FROM nothing")
        raise AssertionError("not reached")

    return handle


def test_other_faults_are_answered_as_flower_does(address, database):
    with closing(sqlite3.connect(database)) as other:
        other.execute("DROP TABLE node")
    with pytest.raises(httpx.HTTPStatusError) as answer:
        register(address)
    assert answer.value.response.status_code == 500


def test_a_connection_keeps_two_megabytes_of_the_database(wrapped):
    with flower.create_app().state.linkstate_factory.state().session() as session:
        assert session.execute(text("PRAGMA cache_size")).scalar_one() == -2000
