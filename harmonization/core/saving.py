"""Arrays and what is to be known about them in one file: safetensors and JSON, which run no code when they are read.

The only module here that imports more than numpy and scipy: safetensors, which the project pins.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harmonization.core.errors import HarmonizationError

_HEADER = "fedbrainlm.harmonization"
"""Key of the file's header; only one, since safetensors orders several at random."""


def write(path: Path | str, arrays: Mapping[str, NDArray[Any]], about: Any) -> None:
    """Write arrays and a JSON-able `about` to `path`, whole or not at all. Equal content gives equal bytes."""
    path = Path(path)
    # safetensors writes the memory as it lies: arrays in another order than C would come back scrambled.
    ordered = {name: np.asarray(values, order="C") for name, values in arrays.items()}
    header = json.dumps({"about": about, "sha256": _digest(ordered, about)}, sort_keys=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(ordered, temporary, metadata={_HEADER: header})
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (SafetensorError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise HarmonizationError(f"{path}: cannot be written ({why}). Choose another place, or make room.") from None
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path | str) -> tuple[dict[str, NDArray[Any]], Any]:
    """Read the arrays of a file that `write` made, and what it says about them.

    Raises
    ------
    HarmonizationError
        If there is no such file, another program made it, or a byte of it was changed.
    """
    try:
        with safe_open(Path(path), framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise HarmonizationError(f"{path}: is not there. Name a file that was saved.") from None
    except (SafetensorError, OSError):
        raise HarmonizationError(f"{path}: is damaged, or no safetensors file. Save it again.") from None
    if _HEADER not in metadata:
        raise HarmonizationError(f"{path}: does not hold a harmonization. Name a file that was saved by one.")
    try:
        header = json.loads(metadata[_HEADER])
        about, digest = header["about"], header["sha256"]
    except (ValueError, KeyError, TypeError):
        raise HarmonizationError(f"{path}: is damaged. Save it again.") from None
    if digest != _digest(arrays, about):
        raise HarmonizationError(f"{path}: is damaged: its content does not match its checksum. Save it again.")
    return arrays, about


def _digest(arrays: Mapping[str, NDArray[Any]], about: Any) -> str:
    """Checksum of names, types, shapes, values and what is said about them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(json.dumps([name, arrays[name].dtype.str, list(arrays[name].shape)]).encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Wait until the file, or the folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
