"""From settings to a model, whichever architecture they name."""

import math
from typing import Any

import torch

from brainlm.config import ModelConfig
from brainlm.errors import BrainLMError
from brainlm.model import BrainLM
from brainlm.official_base import ReleasedModel
from brainlm.official_dense import DenseBrainLM, DenseConfig
from brainlm.official_padded import PaddedBrainLM, PaddedConfig
from cohorts.settings import check_settings

AnyConfig = ModelConfig | DenseConfig | PaddedConfig
AnyModel = BrainLM | ReleasedModel

RELEASED: dict[str, type[DenseConfig] | type[PaddedConfig]] = {"brainlm_mae": DenseConfig, "vit_mae": PaddedConfig}
"""Architectures of the released checkpoints, by the name in their ``config.json``."""


_DEPTHS = ("depth", "decoder_depth", "num_hidden_layers", "decoder_num_hidden_layers")
"""Settings of how many equal blocks a model has."""


def check_model_config(content: dict[str, Any], source: str) -> AnyConfig:
    """Read a model's settings; those without an ``architecture`` are our own model's.

    Raises
    ------
    BrainLMError
        If the architecture is not known.
    cohorts.errors.SettingsError
        If a setting is wrong; `source` names the file.
    """
    if "architecture" not in content:
        return check_settings(content, ModelConfig, source)
    name = content["architecture"]
    if not isinstance(name, str) or name not in RELEASED:
        raise BrainLMError(
            f"{source}: architecture {name!r} is not known; expected one of {', '.join(RELEASED)}, or none for "
            "FedBrainLM's own."
        )
    return check_settings(content, RELEASED[name], source)


def weight_shapes(config: AnyConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights, without making them."""
    with torch.device("meta"):
        return {name: tuple(values.shape) for name, values in build_model(config).state_dict().items()}


def count_weights(config: AnyConfig) -> float:
    """Count a model's weights without making them, however many its settings ask for; infinity beyond all numbers."""
    depths = [name for name in _DEPTHS if hasattr(config, name)]
    shallow = config.model_copy(update=dict.fromkeys(depths, 1))
    try:
        n = _count(shallow)
        deeper = {name: _count(shallow.model_copy(update={name: 2})) - n for name in depths}
    except RuntimeError:  # torch counts in 64 bits
        return math.inf
    return n + sum((getattr(config, name) - 1) * more for name, more in deeper.items())


def _count(config: AnyConfig) -> int:
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def build_model(config: AnyConfig) -> AnyModel:
    """Make a model with fresh weights."""
    if isinstance(config, DenseConfig):
        return DenseBrainLM(config)
    if isinstance(config, PaddedConfig):
        return PaddedBrainLM(config)
    return BrainLM(config)
