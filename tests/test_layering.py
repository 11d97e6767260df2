"""A folder imports only what stands below it, so that a reviewer can stop where the door is."""

import ast
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


def imported(folder: str) -> set[str]:
    """Top-level names that the modules of a folder import."""
    found = set()
    for path in (PROJECT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_stands_below(folder):
    names = imported(folder)
    assert names & set(MAY_IMPORT) - {folder} <= MAY_IMPORT[folder]
    assert not names & NEVER.get(folder, set())
