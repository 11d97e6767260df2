"""Files that are whole or absent, and folders that are."""

import codecs
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from base.errors import FedBrainLMError, FileError

HEADER = "fedbrainlm"
"""Key of the header of every safetensors file."""
Framework = Literal["numpy", "pt"]
"""Whose arrays a safetensors file is written from, or read to: numpy's, or torch's."""
_PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")
"""How files of ``torch.save`` and of pickle begin."""
MAX_RUN_BYTES = 8 * 2**30
"""Largest uncompressed size of one run's file; what declares more is refused before it is read."""
MAX_JSON_BYTES = 2**24
"""Largest JSON file that others made that is read."""


_NAMELESS = (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE)
"""What the system says of an open file that cannot be written, without its name."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name `path`, where it names none; safetensors' own becomes one, too."""
    try:
        yield
    except OSError as error:
        if error.errno in _NAMELESS and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        if (system := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        number = int(system[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_apart(source: Path, out: Path) -> None:
    """Refuse, by a FileError, to write into what is read from, by way of links or not."""
    inner, outer = (Path(os.path.realpath(path)) for path in (out, source))
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise FileError(
            f"{out}: is, holds or lies in its source {source}; expected a folder elsewhere, since a source stays as it "
            "is. Choose another."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; a FileError if another holds it, or gave it another name in this moment."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = os.path.samestat(os.fstat(descriptor), os.stat(folder))
        except (BlockingIOError, FileNotFoundError):
            alone = False
        if not alone:
            raise FileError(f"{folder}: another command is changing it. Wait until it ends.")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _placed(temporary: Path, path: Path, place: Callable[[Path, Path], None]) -> Iterator[Path]:
    """Yield `temporary`, synced to disk and put into place if the block succeeds; nothing is left of it if not."""
    try:
        with naming(path):
            yield temporary
            sync(temporary)
            place(temporary, path)
            sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place, synced to disk, if the block succeeds.

    A reader sees the old file or the new one, never a part. If the block raises, nothing changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _placed(path.with_name(f".{path.name}.{os.getpid()}.tmp"), path, os.replace) as temporary:
        yield temporary


@contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`, mode 600; give it that name, synced to disk, if the block succeeds.

    Never takes the place of a file: of several processes that make the same one, the first wins. A FileExistsError
    says that `path` exists, before the block or after it.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    with _placed(Path(name), path, os.link) as temporary:  # unlike a rename, a link fails if the name is taken
        yield temporary


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; rename it to `path` if the block succeeds, delete it if not.

    A folder that a killed command left under the temporary name is cleared first. A FileError says that `path` exists,
    or cannot be made.
    """
    if path.exists():
        raise FileError(f"{path}: exists already; expected a new folder. Choose another, or remove it.")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be made ({error.strerror}). Choose another place.") from None
    with _placed(partial, path, os.rename) as folder:
        yield folder


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading; an OSError, and no waiting for the other end, if it is a pipe, a device or a folder."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return file


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, which is opened by `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def decode_text(content: bytes) -> str:
    """Text of a file that is UTF-8, with a byte-order mark or without, or UTF-16 with one; else a UnicodeError."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    if b"\x00" in content[:4096]:
        raise UnicodeError("UTF-16 without a mark, or no text")
    return content.decode("utf-8-sig")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that others wrote, as text of any encoding that `decode_text` reads.

    A ValueError says that it is none, or larger than `MAX_JSON_BYTES`; an OSError, that it cannot be read.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError("too large")
    try:
        content = json.loads(decode_text(read_bytes(path)))
    except RecursionError:
        raise ValueError("nested without end") from None
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def save_arrays(
    path: Path,
    arrays: Mapping[str, Any],
    header: Any = None,
    *,
    key: str = HEADER,
    framework: Framework = "numpy",
) -> None:
    """Write arrays and a JSON-able header as safetensors, whole or not at all.

    Equal content gives equal bytes: the header is one key, since safetensors orders several at random. Arrays are
    copied to C order first, since safetensors would write others scrambled.

    Parameters
    ----------
    arrays : mapping
        Name → numpy.ndarray, or torch.Tensor with ``framework="pt"``.
    """
    metadata = {key: json.dumps(header, sort_keys=True)}
    with atomic_path(path) as temporary:
        if framework == "numpy":
            ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
            save_file(ordered, temporary, metadata=metadata)
        else:
            from safetensors.torch import save_file as save_tensors  # with torch, which the statistics do without

            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in arrays.items()}
            save_tensors(tensors, temporary, metadata=metadata)


@contextmanager
def open_arrays(
    path: Path,
    *,
    framework: Framework = "numpy",
    error: type[FedBrainLMError] = FileError,
    remedy: str = "Restore it.",
) -> Iterator[Any]:
    """Open a safetensors file, which runs no code, to read one array at a time: the ``safe_open`` of safetensors.

    Parameters
    ----------
    framework : {"numpy", "pt"}
        Whose arrays come of it.
    error, remedy
        What is raised, and the sentence that its message ends with.

    Raises
    ------
    FedBrainLMError
        Of the class `error`, if the file is absent, damaged or of another format.
    """
    if not path.exists():
        raise error(f"{path}: is not there. {remedy}")
    try:
        if not path.is_file():  # of a pipe, safetensors would wait for the other end
            raise FileNotFoundError
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, ValueError):
        raise error(f"{path}: {_what_else(path)}. {remedy}") from None


def read_arrays(
    path: Path, names: Collection[str] | None = None, *, key: str = HEADER, **how: Any
) -> tuple[dict[str, Any], Any]:
    """Read arrays and the header of a safetensors file.

    Parameters
    ----------
    names : collection of str, optional
        The arrays to read, those of them that are there; all if not given, nothing but the header if empty.
    **how
        As of `open_arrays`, which says what is raised, too.

    Returns
    -------
    arrays : dict
        Name → array.
    header : Any
        As `save_arrays` was given it; None in a file that another program wrote.
    """
    with open_arrays(path, **how) as file:
        try:
            header = json.loads((file.metadata() or {}).get(key, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys() if names is None or name in names}  # noqa: SIM118
        except (AttributeError, RecursionError, TypeError):  # a type that numpy has not, a header nested without end
            raise ValueError from None
        return arrays, header


def _what_else(path: Path) -> str:
    """Say what a file is that cannot be read as safetensors."""
    with suppress(OSError), open_regular(path) as file:
        if _PICKLE.match(file.read(4)):
            return "holds a pickle, which is not read since it can run code; expected safetensors"
    return "is damaged, or no safetensors file"
