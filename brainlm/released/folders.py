"""Models, in and out. Released ones are folders: ``config.json`` beside ``model.safetensors`` or ``pytorch_model.bin``.

Large ones come in pieces (shards), and ``model.safetensors.index.json`` says what stands where. Weights are read and
nothing else: a file that would have to run code to be read is refused.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from base.errors import SettingsError
from base.files import HEADER, atomic_folder, read_arrays, write_text
from brainlm.architectures import RELEASED, AnyConfig, AnyModel, check_model_config
from brainlm.checkpoints import blank_model, load_checkpoint, load_weights
from brainlm.errors import CheckpointError
from brainlm.released.base import ReleasedConfig, ReleasedModel

LICENCE = (
    "If these are weights that the authors of BrainLM released: they are licensed CC-BY-NC-ND 4.0 "
    "(creativecommons.org/licenses/by-nc-nd/4.0): name the authors, make no commercial use of them, and do not pass on "
    "weights that were trained further from them."
)
UK_BIOBANK_TR = 0.735
"""Seconds a frame of UK Biobank, most of the released models' recordings; the Human Connectome Project has 0.72."""
NOTEBOOK_SCALE = 5.6430855
"""What the original notebooks divide the signal by before it enters the padded ViT."""

_NOTEBOOKS = {"vit_mae": {"sort_parcels": True, "signal_scale": NOTEBOOK_SCALE}}
"""What the original notebooks do before a model sees a window; the dense model takes it as it is."""

_CONFIG, _SAFETENSORS, _BIN = "config.json", "model.safetensors", "pytorch_model.bin"
_OURS = "fedbrainlm"
"""``model_type`` of our own model."""


def load_model(
    path: str | Path,
    *,
    t_r: float | None = None,
    sort_parcels: bool | None = None,
    signal_scale: float | None = None,
) -> AnyModel:
    """Read a model: a checkpoint of a study, or a folder of a released one.

    Released are the dense model of 2023 (``brainlm_mae``) and the padded ViT-MAE (``vit_mae``). Folders that
    `export_folder` wrote are read, too, with our own model in them as well, where options change nothing.

    Parameters
    ----------
    path : str or Path
        A checkpoint (.safetensors), or a folder with ``config.json`` and ``model.safetensors`` or
        ``pytorch_model.bin``.
    t_r : float, optional
        Seconds a frame of what a released model was trained on; UK Biobank's 0.735 if not given.
    sort_parcels, signal_scale : optional
        As of `brainlm.released.base.ReleasedConfig`; the notebooks of the padded ViT take `NOTEBOOK_SCALE`.

    Returns
    -------
    torch.nn.Module
        With the call of `brainlm.model.BrainLM`, in evaluation mode; ``about`` holds what was noted about it.

    Raises
    ------
    CheckpointError
        If a file is absent or damaged, the architecture is not known, settings and weights do not fit, or a checkpoint,
        which has options of its own, is given others.
    """
    path = Path(path)
    options = {"t_r": t_r, "sort_parcels": sort_parcels, "signal_scale": signal_scale}
    options = {name: value for name, value in options.items() if value is not None}
    if path.is_dir():
        return read_folder(path, options)[0]
    if options:
        raise CheckpointError(f"{path}: a checkpoint takes no {' or '.join(options)}. Give them with a folder.")
    return load_checkpoint(path)[0].eval()


def read_folder(
    directory: str | Path, options: dict[str, Any] | None = None, *, as_in_notebooks: bool = False
) -> tuple[AnyModel, dict[str, Any]]:
    """Read a checkpoint's folder, and what is known about it.

    Parameters
    ----------
    options : dict, optional
        ``t_r``, ``sort_parcels`` and ``signal_scale`` of `load_model`, where stated.
    as_in_notebooks : bool
        Take what the original notebooks do for the options that neither `options` nor the folder states.
    """
    directory = Path(directory)
    if not (directory / _CONFIG).is_file():
        raise CheckpointError(
            f"{directory}: holds no {_CONFIG}. Name a folder with {_CONFIG} and {_SAFETENSORS} or {_BIN}."
        )
    content = _read_json(directory / _CONFIG)
    note = content.get(HEADER)
    note = note if isinstance(note, dict) else {}
    usual = _NOTEBOOKS.get(str(content.get("model_type")), {}) if as_in_notebooks else {}
    noted = note.get("options")
    usual = {**usual, **(noted if isinstance(noted, dict) else {})}
    config = _check_config(content, usual, options or {}, directory / _CONFIG)
    path = _weights_path(directory)
    files = {path: None} if path.suffix != ".json" else _shards(path)
    state = _read_all(files)
    model = blank_model(config)
    load_weights(model, _with_fixed_codes(model, state), str(path))
    model.about = note["about"] if isinstance(note.get("about"), dict) else _origin(directory, sorted(files))
    return model.eval(), model.about


def export_folder(directory: str | Path, model: AnyModel, about: dict[str, Any]) -> None:
    """Write a model as a folder of ``config.json`` and ``model.safetensors``.

    A released architecture gets the released names of settings and weights, so that its original code reads it; what
    those files have no place for stands under ``fedbrainlm``, which that code ignores. A FileError refuses a folder
    that exists.
    """
    directory = Path(directory)
    config = model.config
    if isinstance(config, ReleasedConfig):
        options = config.model_dump(mode="json", include=set(config.OPTIONS))
        content = {**config.to_json(), HEADER: {"options": options, "about": about}}
    else:
        content = {"model_type": _OURS, HEADER: {"config": config.model_dump(mode="json"), "about": about}}
    tensors = {name: values.detach().cpu().contiguous() for name, values in model.state_dict().items()}
    with atomic_folder(directory) as partial:
        write_text(partial / _CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")
        save_file(tensors, partial / _SAFETENSORS, metadata={"format": "pt"})  # what other readers ask for


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        raise CheckpointError(f"{path}: is no JSON that can be read. Restore it.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds nothing by name. Restore it.")
    return content


def _check_config(content: dict[str, Any], usual: dict[str, Any], options: dict[str, Any], path: Path) -> AnyConfig:
    """Check the settings of a folder; `usual` holds options that `options` overrides."""
    name = content.get("model_type")
    try:
        if name == _OURS and isinstance(content.get(HEADER), dict):
            return check_model_config(content[HEADER].get("config", {}), str(path))
        if not isinstance(name, str) or name not in RELEASED:
            raise CheckpointError(
                f"{path}: model_type is {name!r}; expected one of {', '.join(RELEASED)}. Name a BrainLM checkpoint."
            )
        try:
            released = RELEASED[name].from_json(content)
        except SettingsError as error:
            raise CheckpointError(f"{path}: {error}") from None
        window = {"t_r": UK_BIOBANK_TR, **usual.get("window", {}), **released["window"]}
        stated = {field: value for field, value in options.items() if field != "t_r"}
        window["t_r"] = options.get("t_r", window["t_r"])
        return check_model_config({**released, **usual, **stated, "architecture": name, "window": window}, str(path))
    except SettingsError as error:
        raise CheckpointError(str(error)) from None


def _weights_path(directory: Path) -> Path:
    """File of the weights, or the index of its shards."""
    names = [name for file in (_SAFETENSORS, _BIN) for name in (file, f"{file}.index.json")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise CheckpointError(
        f"{directory}: holds neither {_SAFETENSORS} nor {_BIN}, nor the index of either's shards. Download the weights "
        "into it."
    )


def _shards(index: Path) -> dict[Path, set[str]]:
    """Files beside an index, and the names of the weights that each holds.

    An index that comes with a download could name any file of the machine: only those of its own folder are taken.
    """
    named = _read_json(index).get("weight_map")
    kind = index.name.removesuffix(".index.json").rpartition(".")[2]
    files: dict[Path, set[str]] = {}
    for name, file in named.items() if isinstance(named, dict) else ():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(f".{kind}"):
            raise CheckpointError(
                f"{index}: says that weights lie in {file!r}; expected the name of a .{kind} file beside it. Download "
                "the folder again, as it was published."
            )
        files.setdefault(index.parent / file, set()).add(name)
    if not files:
        raise CheckpointError(f"{index}: says of no weights where they lie. Restore it.")
    return files


def _read_all(files: Mapping[Path, set[str] | None]) -> dict[str, Tensor]:
    """Read the weights of one file, or of several: of each those that it is said to hold; None stands for all."""
    state: dict[str, Tensor] = {}
    for path, names in files.items():
        read = _read_weights(path)
        if missing := sorted((names or set()) - read.keys()):
            raise CheckpointError(f"{path}: lacks {missing[0]}, which the index of its folder says. Download it again.")
        state.update(read if names is None else {name: read[name] for name in names})
    return state


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors by name."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Download the rest of the weights.")
    if path.suffix == ".safetensors":
        return read_arrays(path, framework="pt", error=CheckpointError)[0]
    try:
        state = torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: is damaged, or holds more than weights and was not opened, since opening could run code. "
            f"Restore it, or save the weights alone as {_SAFETENSORS}."
        ) from None
    except Exception:  # whatever damaged bytes make of a reader
        raise CheckpointError(f"{path}: is damaged. Restore it.") from None
    if not isinstance(state, dict) or not all(isinstance(values, Tensor) for values in state.values()):
        raise CheckpointError(f"{path}: holds other things than weights by name. Name a checkpoint of the model alone.")
    return state


def _with_fixed_codes(model: AnyModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add fixed codes that the file leaves out, and drop those that the model makes itself.

    Whole numbers of other names are no weights but places in a sequence, such as ``position_ids``, which some versions
    of the library that wrote these files kept.
    """
    made = model.state_dict()
    state = {name: values for name, values in state.items() if name in made or values.is_floating_point()}
    if not isinstance(model, ReleasedModel):
        return state
    kept = {name: values for name, values in state.items() if name in made or not name.endswith(model.rebuilt)}
    return {**{name: values for name, values in made.items() if name.endswith(model.rebuilt)}, **kept}


def _origin(directory: Path, weights: list[Path]) -> dict[str, Any]:
    """What is to be known of weights that say nothing of themselves: their files are hashed one after the other."""
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    origin = {"folder": directory.resolve().name, "weights_sha256": digest.hexdigest()}
    return {"origin": origin, "licence": LICENCE}
