"""The SuperLink's app, over a real database."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from flwr.supercore import sql_mixin
from flwr.superlink import main as flower
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from sqlalchemy import Engine, event

from runtime import superlink
from tests.support.programs import free_port, wait_until


@pytest.fixture
def database(tmp_path, monkeypatch) -> Path:
    """The SuperLink's, which it waits for less than usual."""
    monkeypatch.setenv("FLWR_DATABASE", str(tmp_path / "superlink.sqlite"))
    usual = [pragma for pragma in sql_mixin.SQLITE_PRAGMAS if pragma[0] != "busy_timeout"]
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", [("busy_timeout", "50"), *usual])
    return tmp_path / "superlink.sqlite"


@pytest.fixture
def wrapped(database, monkeypatch) -> Iterator[None]:
    """Flower as `runtime.superlink` has it, until the test is over."""
    for module in (flower, fleet_handlers, runtime_handlers):
        for name in {"http_error_translator", "pull_messages", "push_object"} & set(vars(module)):
            monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(superlink, "flower_superlink", lambda: None)
    superlink.main()
    yield
    event.remove(Engine, "handle_error", superlink._note)


@pytest.fixture
def address(wrapped) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(flower.create_app(), port=free_port()))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert wait_until(lambda: server.started, 30)
    yield f"127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()
