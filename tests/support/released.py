"""Tiny checkpoints of the released architectures, with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from brainlm.architectures import RELEASED, AnyModel, check_model_config
from brainlm.pretraining import initial_model

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 20,
}
DENSE: dict[str, Any] = {
    "model_type": "brainlm_mae",
    **SIZES,
    "num_brain_voxels": 10,
    "num_timepoints_per_voxel": 24,
    "timepoint_patching_size": 6,
    "mask_ratio": 0.5,
    "conv_kernel_size": 5,
    "patch_size": 2,
}
PADDED: dict[str, Any] = {
    "model_type": "vit_mae",
    **SIZES,
    "num_brain_voxels": 10,
    "num_timepoints_per_voxel": 12,
    "image_size": 16,
    "patch_size": 4,
    "mask_ratio": 0.5,
}


def make_released(content: dict[str, Any], seed: int = 0, **options: Any) -> AnyModel:
    """Make a model from a released ``config.json``, with every weight random, biases and norms too."""
    fields = {**RELEASED[content["model_type"]].from_json(content), **options}
    model = initial_model(check_model_config({**fields, "architecture": content["model_type"]}, "test"), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def write_released(folder: Path, content: dict[str, Any], seed: int = 0) -> AnyModel:
    """Write a folder as it is released, and return its model."""
    model = make_released(content, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return model
