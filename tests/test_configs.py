"""What lies in configs/ can be used as it is."""

import re
from pathlib import Path

import pytest
import torch

from base.settings import read_settings
from brainlm import load_model_config
from brainlm.config import ModelConfig
from brainlm.model import BrainLM, count_parameters
from client.settings import SiteSettings
from study.settings import load_study

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("models/*.yaml")), ids=lambda path: path.stem)
def test_models_have_the_size_that_their_comment_says(path):
    said = re.search(r"^# ([0-9,]+) parameters$", path.read_text(), re.MULTILINE)
    with torch.device("meta"):
        model = BrainLM(load_model_config(path))

    assert said
    assert count_parameters(model) == int(said.group(1).replace(",", ""))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("studies/*.yaml")), ids=lambda path: path.stem)
def test_studies(path):
    assert load_study(path).study == path.stem


def test_the_example_of_a_hospital_names_every_setting():
    """They are the defaults, as `tests/test_claims.py` holds, which let nothing out."""
    settings = read_settings(CONFIGS / "sites" / "hospital.yaml", SiteSettings)
    for part in (settings, settings.policy, settings.supernode):
        assert part.model_fields_set == set(type(part).model_fields)


def test_the_defaults_are_those_of_the_small_preset():
    assert load_model_config(CONFIGS / "models" / "small.yaml") == ModelConfig()
