"""Three sites that gather in this process, in the clear."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from exchange.messages import DescribeRequest
from server.journal import Journal
from server.presence import Presence
from study.sections import ProtectionConfig, RoundsConfig
from study.settings import load_study
from tests.support.federation import PLAIN, write_sites
from tests.support.local_grid import LocalGrid


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(tmp_path)


@pytest.fixture
def opening(tmp_path) -> DescribeRequest:
    """What a study asks its sites first."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(PLAIN))
    return load_study(tmp_path / "study.yaml").opening()


@pytest.fixture
def sites(tmp_path, small_cohorts) -> list[Path]:
    return write_sites(tmp_path / "s", small_cohorts)


@pytest.fixture
def presence_of(journal) -> Callable[..., Presence]:
    """Whoever is present on a grid, with limits that a test may change."""

    def presence(grid: LocalGrid, *, roster: str | None = None, **changes: object) -> Presence:
        limits = {"quorum": 2, "deadline_s": 5, "start_deadline_s": 0.1, "quorum_deadline_s": 0, **changes}
        protection = ProtectionConfig(secure_sums=roster is not None, roster=roster)
        return Presence(grid, journal, RoundsConfig(**limits), protection)

    return presence
