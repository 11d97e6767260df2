"""Flower's real Control API."""

import hashlib
import sqlite3
from contextlib import closing

import pytest
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab

from base.errors import RunFailedError
from runtime.control import control, explained, run_outcome, stop_run
from tests.support.apps import app_of
from tests.support.programs import free_port


@pytest.fixture
def connection(address) -> dict[str, object]:
    return {"address": address, "insecure": True}


@pytest.fixture
def run_id(connection) -> int:
    """A run that nobody executes."""
    content = app_of("app = None\n")
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    with control(connection) as superlink:
        return superlink.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id


def test_a_run_is_asked_after_and_stopped_without_a_program_of_flowers(connection, run_id, monkeypatch, capfd):
    monkeypatch.setattr("subprocess.Popen", None)

    assert not run_outcome(connection, run_id).is_final
    stop_run(connection, run_id)

    outcome = run_outcome(connection, run_id)
    assert (outcome.status, outcome.is_final) == ("finished:stopped", True)
    with pytest.raises(RunFailedError):
        stop_run(connection, run_id)
    with pytest.raises(RunFailedError):
        run_outcome(connection, run_id + 1)
    assert "Using SuperLink" not in capfd.readouterr().out


def test_what_cannot_be_asked_is_said_with_its_address(connection, run_id, database):
    gone = {"address": f"127.0.0.1:{free_port()}", "insecure": True}
    with pytest.raises(RunFailedError, match=f"the SuperLink at {gone['address']}: Connection .* unavailable"):
        run_outcome(gone, 12)
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunFailedError, match="Another program holds"):
            stop_run(connection, run_id)


def test_a_locked_database_is_explained_and_nothing_else():
    assert explained("Error: no such run") == "Error: no such run"
    assert explained("Error: Service Unavailable") == (
        "Error: Service Unavailable Another program holds the SuperLink's database: end it, and repeat."
    )
