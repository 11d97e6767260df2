"""Files that are whole or absent, and folders that are."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cohorts.errors import CohortError

HEADER = "fedbrainlm"
"""Key of the header of every safetensors file."""


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place, synced to disk, if the block succeeds.

    A reader sees the old file or the new one, never a part. If the block raises, nothing changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`, mode 600; give it that name, synced to disk, if the block succeeds.

    Never takes the place of a file: of several processes that make the same one, the first wins.

    Raises
    ------
    FileExistsError
        If `path` exists, before the block or after it.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        os.link(temporary, path)  # unlike a rename, fails if the name is taken
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], header: Any = None) -> None:
    """Write arrays and a JSON-able header as safetensors, whole or not at all.

    Equal content gives equal bytes: the header is one key, since safetensors orders several at random. Arrays are
    copied to C order first, since safetensors would write others scrambled.
    """
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={HEADER: json.dumps(header, sort_keys=True)})


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; rename it to `path` if the block succeeds, delete it if not.

    A folder that a killed command left under the temporary name is cleared first.

    Raises
    ------
    FileExistsError
        If `path` exists.
    """
    if path.exists():
        raise FileExistsError(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise CohortError(f"{path}: cannot be made ({error.strerror}). Choose another place.") from None
    try:
        yield partial
        sync(partial)
        os.rename(partial, path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
