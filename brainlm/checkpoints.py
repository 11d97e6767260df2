"""Models on disk: one safetensors file, its settings in the header, whole or absent."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from brainlm.config import ModelConfig
from brainlm.errors import CheckpointError
from brainlm.model import BrainLM
from cohorts.files import HEADER, atomic_path
from cohorts.settings import check_settings


def save_checkpoint(
    path: str | Path, state: dict[str, Tensor], config: ModelConfig, about: dict[str, Any] | None = None
) -> None:
    """Write a model's weights, its settings, and whatever else a reader should know of it.

    Parameters
    ----------
    state : dict
        As `BrainLM.state_dict` returns it.
    about : dict, optional
        JSON-able: study, round, seed and so on.
    """
    # One key, since safetensors writes several in an order of its own: equal models have equal bytes.
    header = {HEADER: json.dumps({"config": config.model_dump(), "about": about or {}}, sort_keys=True)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_checkpoint(path: str | Path) -> tuple[BrainLM, dict[str, Any]]:
    """Read a model and what was noted about it.

    Raises
    ------
    CheckpointError
        If the file is absent, damaged, or not one of BrainLM's.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open has no iterator)
    except (SafetensorError, OSError):
        raise CheckpointError(f"{path}: is damaged or no safetensors file. Restore it.") from None
    if "config" not in header:
        raise CheckpointError(f"{path}: holds no BrainLM settings. Name a checkpoint that FedBrainLM wrote.")
    config = check_settings(header["config"], ModelConfig, str(path))
    with torch.random.fork_rng(
        devices=[]
    ):  # making a model draws weights; the caller's random numbers stay as they were
        model = BrainLM(config)
    load_weights(model, state, str(path))
    return model, header["about"]


def load_weights(model: BrainLM, state: dict[str, Tensor], source: str) -> None:
    """Put weights into a model; every one must be there, of its shape, and no other.

    Raises
    ------
    CheckpointError
        Naming the first weight that does not fit.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape)
    for names, fault in ((missing, "lacks"), (unknown, "has unknown"), (wrong, "has another shape for")):
        if names:
            raise CheckpointError(
                f"{source}: {fault} {', '.join(names[:5])}{' …' if len(names) > 5 else ''}. "
                "Use the settings that the weights were trained with."
            )
    model.load_state_dict(state)
