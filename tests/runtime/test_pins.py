"""Flower's private parts: each is as it was read, and nothing but `runtime` rests on them."""

import ast
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from runtime.pins import PINS, VERSIONS, changed

PROJECT = Path(__file__).parents[2]
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
"""What Flower's own documents show."""
FOLDERS = ("base", "benchmarks", "brainlm", "cli", "client", "cohorts", "deployment", "exchange", "fedbrainlm")
FOLDERS += ("harmonization", "server", "study", "tests")
KNOWN = {
    "benchmarks/robust.py": {"flwr.supercore.task_identity"},
    "tests/docker/test_health.py": {"flwr.supercore.grpc_health"},
}
"""What has no other way: messages outside of a run, and a stranger's health service."""


def private_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("flwr.") and not name.startswith(PUBLIC))


def test_every_private_part_is_as_it_was_read():
    assert version("flwr") in VERSIONS
    assert changed() == {}


def test_a_source_that_nobody_read_is_named(monkeypatch):
    monkeypatch.setattr("runtime.pins.PINS", {**PINS, "json": {"dumps": ("0" * 16, "writes")}})
    assert list(changed()) == ["json:dumps"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_private_is_imported_by_runtime_alone(folder):
    """And by its tests, and by what lets tests do without Flower's programs."""
    found = {
        str(path.relative_to(PROJECT)): names
        for path in (PROJECT / folder).rglob("*.py")
        if path.relative_to(PROJECT).parts[:2] not in {("tests", "runtime"), ("tests", "support")}
        and (names := set(private_imports(path)))
    }
    assert found == {path: names for path, names in KNOWN.items() if path.startswith(f"{folder}/")}
