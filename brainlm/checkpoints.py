"""Models on disk: one safetensors file, its settings in the header, whole or absent."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.files import open_arrays, read_arrays, save_arrays
from brainlm.architectures import AnyConfig, AnyModel, build_model, check_model_config, weight_shapes
from brainlm.errors import CheckpointError


def save_checkpoint(
    path: str | Path, state: dict[str, Tensor], config: AnyConfig, about: dict[str, Any] | None = None
) -> None:
    """Write a model's weights, its settings, and whatever else a reader should know of it.

    Parameters
    ----------
    state : dict
        As the model's `state_dict` returns it.
    about : dict, optional
        JSON-able: study, round, seed and so on.
    """
    save_arrays(Path(path), state, {"config": config.model_dump(), "about": about or {}}, framework="pt")


def load_checkpoint(path: str | Path) -> tuple[AnyModel, dict[str, Any]]:
    """Read a model and what was noted about it, which the model keeps as `about`, too.

    A CheckpointError says that the file is absent, damaged, or not one of BrainLM's.
    """
    path = Path(path)
    config, about = load_settings(path)
    model = blank_model(config)
    load_weights(model, read_arrays(path, framework="pt", error=CheckpointError)[0], str(path))
    model.about = about
    return model, about


def blank_model(config: AnyConfig) -> AnyModel:
    """Make a model whose weights are to be read; it draws some, and the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        return build_model(config)


def load_settings(path: str | Path) -> tuple[AnyConfig, dict[str, Any]]:
    """Read a checkpoint's settings and what was noted about it, but not its weights; errors as of `load_checkpoint`."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Check the path.")
    _, header = read_arrays(path, (), error=CheckpointError)
    parts = (header.get("config"), header.get("about", {})) if isinstance(header, dict) else (None,)
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{path}: holds no BrainLM settings. Name a checkpoint that FedBrainLM wrote.")
    return check_model_config(header["config"], str(path)), header.get("about", {})


def load_weights(model: AnyModel, state: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a model; a CheckpointError lists those that are absent, unknown, misshapen or not finite."""
    expected, given = ({name: tuple(w.shape) for name, w in one.items()} for one in (model.state_dict(), state))
    _check_shapes(expected, given, source)
    check_numbers(state, source)
    model.load_state_dict(state)


def check_checkpoint(path: str | Path) -> None:
    """Refuse a checkpoint that cannot be loaded and trained from; weights are read one by one, and no model is made."""
    config, _ = load_settings(path)
    with open_arrays(Path(path), framework="pt", error=CheckpointError) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name in shapes:
            check_numbers({name: file.get_tensor(name)}, str(path))
    _check_shapes(weight_shapes(config), shapes, str(path))


def check_numbers(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not floating-point numbers, and those that are NaN or infinite, or so large as float32.

    A CheckpointError names them.
    """
    if whole := {name for name, values in state.items() if not values.is_floating_point()}:
        raise CheckpointError(
            f"{source}: holds no floating-point numbers for {_listed(whole)}, as quantised weights do. Save the "
            "weights as float32."
        )
    if broken := {name for name, values in state.items() if not bool(values.float().isfinite().all())}:
        raise CheckpointError(
            f"{source}: holds NaN or infinite numbers in {_listed(broken)}: a training that diverged leaves them, and "
            "float16 of numbers above 65504. Take an earlier checkpoint, or save the weights as float32."
        )


def _check_shapes(expected: Mapping[str, Any], given: Mapping[str, Any], source: str) -> None:
    faults = {
        "lacks": expected.keys() - given.keys(),
        "has unknown": given.keys() - expected.keys(),
        "has another shape for": {name for name in expected.keys() & given.keys() if expected[name] != given[name]},
    }
    if any(faults.values()):
        said = "; ".join(f"{fault} {_listed(names)}" for fault, names in faults.items() if names)
        raise CheckpointError(f"{source}: {said}. Use the settings that the weights were trained with.")


def _listed(names: Set[str]) -> str:
    """Name the first five in order, and count the others."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(sorted(names)[:5]) + more
