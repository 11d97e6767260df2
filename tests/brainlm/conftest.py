from pathlib import Path

import pytest

from brainlm.config import MaskConfig, ModelConfig, WindowConfig
from brainlm.windows import WindowSet
from cohorts import Cohort
from cohorts.simulation import simulate_cohorts, simulated_hospitals


@pytest.fixture
def config() -> ModelConfig:
    window = WindowConfig(t_r=2.0, n_frames=40, patch_frames=10)
    return ModelConfig(
        window=window, mask=MaskConfig(ratio=0.5), width=32, depth=2, heads=2, decoder_width=16, decoder_heads=2
    )


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory) -> Path:
    """A simulated cohort of ten people, TR 2 s, 90 frames, Schaefer-100."""
    sites = simulated_hospitals(1, 8, minutes=3.0)
    return simulate_cohorts(tmp_path_factory.mktemp("sim") / "c", sites, atlas="schaefer100", seed=1)[0]


@pytest.fixture
def cohort(cohort_folder) -> Cohort:
    return Cohort.open(cohort_folder)


@pytest.fixture
def windows(config, cohort) -> WindowSet:
    return WindowSet(cohort, config.window)
