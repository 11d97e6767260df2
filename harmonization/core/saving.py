"""Arrays and what is to be known about them in one file: safetensors and JSON, which run no code when they are read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError

from base.files import read_arrays, save_arrays
from harmonization.core.errors import HarmonizationError

_HEADER = "fedbrainlm.harmonization"
"""Key of the file's header."""


def write(path: Path | str, arrays: Mapping[str, NDArray[Any]], about: Any) -> None:
    """Write arrays and a JSON-able `about` to `path`, whole or not at all. Equal content gives equal bytes."""
    try:
        save_arrays(Path(path), arrays, {"about": about, "sha256": _digest(arrays, about)}, key=_HEADER)
    except (SafetensorError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise HarmonizationError(f"{path}: cannot be written ({why}). Choose another place, or make room.") from None


def read(path: Path | str) -> tuple[dict[str, NDArray[Any]], Any]:
    """Read the arrays of a file that `write` made, and what it says about them.

    Raises
    ------
    HarmonizationError
        If there is no such file, another program made it, or a byte of it was changed.
    """
    arrays, header = read_arrays(Path(path), key=_HEADER, error=HarmonizationError, remedy="Save it again.")
    if header is None:
        raise HarmonizationError(f"{path}: does not hold a harmonization. Name a file that was saved by one.")
    try:
        about, digest = header["about"], header["sha256"]
    except (KeyError, TypeError):
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
