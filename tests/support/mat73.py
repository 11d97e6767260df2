"""MATLAB files of version 7.3 as MATLAB writes them: HDF5 behind 512 bytes of its own, with dimensions reversed."""

from pathlib import Path

import h5py
import numpy as np

_PREAMBLE = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Mar 04 10:00:00 2019 HDF5 schema 1.00 ."


def write_mat73(path: Path, *, packed: bool = True, **variables: object) -> Path:
    """Write arrays, texts, and dicts as structures; `packed` as MATLAB does by default."""
    with h5py.File(path, "w", userblock_size=512, libver=("earliest", "v108")) as file:
        for name, value in variables.items():
            _write(file, name, value, packed)
    whole = bytearray(path.read_bytes())
    whole[:128] = _PREAMBLE.ljust(124) + b"\x00\x02IM"
    path.write_bytes(whole)
    return path


def _write(group: h5py.Group, name: str, value: object, packed: bool) -> None:
    if isinstance(value, dict):
        made = group.create_group(name)
        kind = "struct"
        for key, one in value.items():
            _write(made, key, one, packed)
    elif isinstance(value, str):
        made = group.create_dataset(name, data=np.array([[ord(letter)] for letter in value], np.uint16))
        kind = "char"
    else:
        array = np.atleast_2d(value)
        chunks = tuple(min(size, 32) for size in array.T.shape) if packed and array.size > 1 else None
        made = group.create_dataset(name, data=array.T, chunks=chunks, compression="gzip" if chunks else None)
        kind = {"b": "logical", "f": {8: "double", 4: "single"}.get(array.itemsize)}.get(array.dtype.kind)
        kind = kind or array.dtype.name
    made.attrs["MATLAB_class"] = np.bytes_(kind)
