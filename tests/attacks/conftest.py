"""Four hospitals with policies as a careful administrator writes them, and a coordinator that may ask anything."""

from pathlib import Path

import pytest

from cohorts.simulation import simulate_cohorts, simulated_hospitals
from tests.attacks.coordinator import Coordinator, write_careful_sites


@pytest.fixture(scope="session")
def four_cohorts(tmp_path_factory) -> list[Path]:
    """Cohorts of 12 people or more; never changed."""
    folder = tmp_path_factory.mktemp("attacked") / "cohorts"
    return simulate_cohorts(folder, simulated_hospitals(4, 20, minutes=2.2), atlas="schaefer100", seed=4)


@pytest.fixture
def coordinator(tmp_path, four_cohorts) -> Coordinator:
    return Coordinator(write_careful_sites(tmp_path, four_cohorts))
