"""From settings to a model, whichever architecture they name."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import Discriminator, Tag

from base.settings import check_settings
from brainlm.config import ModelConfig
from brainlm.errors import BrainLMError
from brainlm.masking import count_tokens, masks_of
from brainlm.model import BrainLM
from brainlm.released.base import ReleasedConfig
from brainlm.released.dense import DenseBrainLM, DenseConfig
from brainlm.released.padded import PaddedBrainLM, PaddedConfig

AnyConfig = Annotated[
    Annotated[ModelConfig, Tag("ModelConfig")]
    | Annotated[DenseConfig, Tag("DenseConfig")]
    | Annotated[PaddedConfig, Tag("PaddedConfig")],
    Discriminator(lambda content: _class_of(content).__name__),
]
AnyModel = BrainLM | DenseBrainLM | PaddedBrainLM

RELEASED: dict[str, type[DenseConfig] | type[PaddedConfig]] = {"brainlm_mae": DenseConfig, "vit_mae": PaddedConfig}
"""Architectures of the released checkpoints, by the name in their ``config.json``."""


_DEPTHS = ("depth", "decoder_depth", "num_hidden_layers", "decoder_num_hidden_layers")
"""Settings of how many equal blocks a model has."""


def check_model_config(content: dict[str, Any], source: str) -> AnyConfig:
    """Read a model's settings, in errors called `source`; those without an ``architecture`` are our own model's."""
    check_architecture(content, source)
    return check_settings(content, _class_of(content), source)


def check_architecture(content: dict[str, Any], source: str) -> None:
    """Refuse, by a BrainLMError, a model's settings of another architecture than ours and the released ones."""
    if "architecture" in content and str(content["architecture"]) not in RELEASED:
        raise BrainLMError(
            f"{source}: architecture {content['architecture']!r} is not known; expected one of "
            f"{', '.join(RELEASED)}, or none for FedBrainLM's own."
        )


def _class_of(content: Any) -> type[ModelConfig | DenseConfig | PaddedConfig]:
    """Settings class of an architecture, for settings as a file has them or as they were checked."""
    if isinstance(content, dict):
        return RELEASED.get(str(content.get("architecture")), ModelConfig)
    return type(content) if isinstance(content, ModelConfig | DenseConfig | PaddedConfig) else ModelConfig


def mask_conflicts(config: AnyConfig, n_parcels: int) -> Iterator[str]:
    """Say which masks hide nothing of a window of so many parcels, or all of it: nothing would be learned from it."""
    if isinstance(config, ReleasedConfig):
        with torch.device("meta"):
            seen, predicted = _build_released(config).seen_and_predicted()
        if not (seen and predicted):
            yield (
                f"mask_ratio {config.mask_ratio:g} hides {'nothing' if seen else 'everything'} of a window, so that "
                f"nothing would be learned. {'Raise' if seen else 'Lower'} it."
            )
        return
    n_groups, n_patches = math.ceil(n_parcels / config.parcels_per_token), config.window.n_patches
    for mask in masks_of(config.mask):
        seen, predicted = count_tokens(mask, n_groups, n_patches, config.decode_every)
        what = f"mask '{mask.kind}' of ratio {mask.ratio:g}"
        if seen == n_groups * n_patches:
            yield (
                f"{what} hides nothing of a window of {n_groups} x {n_patches} tokens (parcels x spans of time), so "
                "that nothing would be learned. Raise the ratio, make patch_frames or parcels_per_token smaller, or "
                "take another mask."
            )
        elif not predicted:
            yield (
                f"{what} hides {n_groups * n_patches - seen} of a window's {n_groups * n_patches} tokens, and "
                f"decode_every {config.decode_every} predicts none of them in training. Lower decode_every, or raise "
                "the ratio."
            )


def weight_shapes(config: AnyConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights, without making them."""
    with torch.device("meta"):
        return {name: tuple(values.shape) for name, values in build_model(config).state_dict().items()}


def count_weights(config: AnyConfig) -> float:
    """Count a model's weights without making them, however many its settings ask for; infinity beyond all numbers."""
    return _counted(type(config), config.model_dump_json())


@lru_cache(maxsize=8)
def _counted(kind: type[ModelConfig | DenseConfig | PaddedConfig], content: str) -> float:
    """Count once for equal settings: a study asks again and again for its own."""
    config = kind.model_validate_json(content)
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
    return BrainLM(config) if isinstance(config, ModelConfig) else _build_released(config)


def _build_released(config: DenseConfig | PaddedConfig) -> DenseBrainLM | PaddedBrainLM:
    return DenseBrainLM(config) if isinstance(config, DenseConfig) else PaddedBrainLM(config)
