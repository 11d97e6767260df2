"""Fixtures that many tests share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def real_data() -> Path:
    """Folder of the real recordings, where it is at hand."""
    if not (SHARED / "data" / "real").is_dir():
        pytest.skip("the real recordings are not here; they are never part of the project")
    return SHARED / "data"
