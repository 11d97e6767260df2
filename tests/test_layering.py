"""A room imports only what stands below it, so that a reviewer can stop where the door is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
ROOMS = (
    ("base",),
    ("cohorts", "harmonization"),
    ("brainlm",),
    ("exchange",),
    ("study",),
    ("client", "server"),
    ("runtime",),
    ("deployment",),
    ("cli",),
    ("fedbrainlm",),
)
"""Each imports what stands in a line above it, and nothing beside it."""
MAY_IMPORT = {
    room: {above for line in ROOMS[:level] for above in line} for level, line in enumerate(ROOMS) for room in line
}
NEVER = {
    "base": {"torch", "flwr", "pandas"},
    "cohorts": {"torch", "flwr", "harmonization"},
    "harmonization": {"torch", "flwr", "pandas", "cohorts"},
    "brainlm": {"flwr"},
    "study": {"flwr"},
}
EXCEPT = {"harmonization.networks": {"torch"}}
"""Gradients, and nothing else of harmonization, are torch's."""


MODULES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in MAY_IMPORT
    for path in (PROJECT / room).rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_stands_above_it(room):
    for name, path in MODULES.items():
        if name.split(".")[0] == room:
            rooms = {found.partition(".")[0] for found in imports(path)}
            assert rooms & set(MAY_IMPORT) - {room} <= MAY_IMPORT[room], name
            assert not rooms & (NEVER.get(room, set()) - EXCEPT.get(name.rpartition(".")[0], set())), name


STATISTICS = (("core",), ("methods",), ("probes",), ("association", "site_effects"), ("networks",), ("estimators",))
"""The rooms inside harmonization, in the same order."""


@pytest.mark.parametrize("level", range(len(STATISTICS)))
def test_a_room_of_statistics_imports_only_what_stands_above_it(level):
    above = {f"harmonization.{room}" for line in STATISTICS[:level] for room in line} | {"harmonization.core"}
    for room in STATISTICS[level]:
        for name, path in MODULES.items():
            if name.startswith(f"harmonization.{room}."):
                found = {".".join(one.split(".")[:2]) for one in imports(path) if one.startswith("harmonization.")}
                assert found <= above | {f"harmonization.{room}"}, name


def test_no_files_import_each_other_in_a_circle():
    ahead = {name: imports(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    while ready := {name for name, needed in ahead.items() if not needed}:
        ahead = {name: needed - ready for name, needed in ahead.items() if name not in ready}
    assert not ahead, f"a circle, and what stands on it: {sorted(ahead)}"


def test_statistics_need_neither_torch_nor_flower():
    said = (
        "import sys; from harmonization import ComBatHarmonizer; print({'torch', 'flwr', 'pandas'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert ended.stdout == "set()\n"
