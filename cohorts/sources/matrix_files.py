"""Arrays out of files that others made: .npy, members of an .npz, .mat, and tables of text, packed or not.

Whatever stands in a file, reading it gives a matrix of numbers or a `RecordingError`, takes no more memory than
`MAX_MATRIX_BYTES` allows, and never runs code that a file holds.
"""

import csv
import gzip
import io
import math
import os
import stat
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import IO, TypeVar

import numpy as np

from base.files import decode_text, open_regular
from cohorts.errors import RecordingError
from cohorts.sources.matlab import MatlabError, Variable, is_version_7_3, list_variables, read_variable
from cohorts.tables import MISSING, SEPARATORS

#: Largest matrix that is read, by what its header declares: 335,000 frames of 400 parcels.
MAX_MATRIX_BYTES = 2**30
AnyVariable = TypeVar("AnyVariable", bound=Variable)
_MISSING = frozenset(map(str.lower, MISSING))

# What numpy raises for a header that is no header: it evaluates the text as a Python literal and builds a dtype of it.
_NO_HEADER = (AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError, TokenError)
# What an archive raises that is damaged, encrypted or exotic, when it or a member is opened or read.
BROKEN_ARCHIVE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Table:
    """A matrix out of a text file, and the names of its columns where the first line has them."""

    matrix: np.ndarray
    header: tuple[str, ...] | None = None


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading, or refuse it as a recording; its reading may fail, too."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _unreadable(path.name, "is a folder or a device; expected a file. Move it away.")
        if not found.st_size:
            raise _unreadable(path.name, "is empty; expected a matrix. Export it again.")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise _unreadable(path.name, "is no longer there. Restore it, and repeat.") from None
    except OSError as error:
        raise _unreadable(
            path.name,
            f"cannot be read ({error.strerror or error}); expected a file that opens. "
            "Check its permissions, links and disk.",
        ) from None


def read_npy(path: Path) -> np.ndarray:
    """Read a two-dimensional array of numbers from an .npy file."""
    with opened(path) as file:
        return _read_array(file, os.fstat(file.fileno()).st_size, path.name)


def npz_keys(path: Path) -> list[str]:
    """Keys of an .npz in order of its directory, as `numpy.load` names them; raises any of `BROKEN_ARCHIVE`."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if not name.endswith("/")]


def read_npz(path: Path, key: str, name: str = "") -> np.ndarray:
    """Read the two-dimensional array of numbers under one key of an .npz file; messages call it `name`, if given."""
    name = name or key
    with opened(path) as file:
        found = os.fstat(file.fileno())
    try:
        archive = _archive(path, (found.st_mtime_ns, found.st_size), os.getpid())
        member = archive.NameToInfo.get(f"{key}.npy") or archive.getinfo(key)
        with archive.open(member) as file:
            return _read_array(file, member.file_size, name)
    except KeyError:
        raise _unreadable(name, f"is no longer in {path.name}. Restore it, and repeat.") from None
    except BROKEN_ARCHIVE:
        raise _unreadable(
            name, f"is damaged or encrypted in {path.name}; expected an array that numpy wrote. Export it again."
        ) from None


def read_npz_file(path: Path, variable: str = "") -> np.ndarray:
    """Read the array under a key of an .npz of one recording; if that is empty, its only matrix of numbers."""
    with opened(path):  # refuses what is no file, or empty
        pass
    try:
        found = _members(path)
    except BROKEN_ARCHIVE:
        raise _unreadable(path.name, "is no whole .npz that numpy wrote. Copy or export it again.") from None
    return read_npz(path, _variable(found, variable, path.name).name, path.name)


def read_mat(path: Path, variable: str = "") -> np.ndarray:
    """Read a variable of a MATLAB file of version 5 to 7.3; if its name is empty, the only matrix of numbers."""
    try:
        with opened(path) as file:
            if is_version_7_3(file.read(128)):
                return _read_mat_7_3(path, variable)
            file.seek(0)
            chosen = _variable(list_variables(file), variable, path.name)
            _check_size(chosen.most_bytes, path.name)
            return to_float32(read_variable(file, chosen))
    except MatlabError:
        raise _unreadable(
            path.name, "is no whole MATLAB file of version 5 to 7.3. Save it again with 'save -v7'."
        ) from None


def _read_mat_7_3(path: Path, variable: str) -> np.ndarray:
    from cohorts.sources import matlab_hdf5  # with h5py, which takes a fifth of a second

    chosen = _variable(matlab_hdf5.list_variables(path), variable, path.name)
    _check_size(chosen.most_bytes, path.name)
    return to_float32(matlab_hdf5.read_variable(path, chosen))


def read_table(path: Path, separator: str | None) -> Table:
    """Read a matrix of numbers from a text file, packed (.gz) or not.

    Lines that begin with ``#`` and empty ones are passed over. UTF-8 and marked UTF-16, and any line ends, are read.
    Without a `separator`, any white space stands between two cells.
    """
    lines = [line for line in _text(path).splitlines() if line.strip() and not line.startswith("#")]
    _check_separator(lines, separator, path.name)
    header = _header(lines[0], separator) if lines else None
    rows = lines[1:] if header else lines
    if not rows:
        raise _unreadable(path.name, "holds no numbers; expected a matrix. Export it again.")
    width = len(header) if header else len(_cells(rows[0], separator))
    _check_size(len(rows) * width * 4, path.name)
    values = np.empty((len(rows), width), np.float32)
    for index, line in enumerate(rows):
        cells = _cells(line, separator)
        if len(cells) != width:
            raise RecordingError(
                "ragged",
                f"{path.name}: row {index + 1} has {len(cells)} values, and the first line has {width}; expected as "
                "many in each. Export it again, with n/a where a value is missing.",
            )
        values[index] = _numbers(cells, path.name)
    return Table(values, tuple(header) if header else None)


@lru_cache(maxsize=1)
def _archive(path: Path, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    """Open an archive once for all of its members; a process that was forked opens its own."""
    return zipfile.ZipFile(path)


def _members(path: Path) -> list[Variable]:
    """Describe the arrays of an .npz by their headers; what has none is no matrix."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                try:
                    shape, _, dtype = _npy_header(file)
                except _NO_HEADER:
                    continue
            found.append(Variable(member.filename.removesuffix(".npy"), shape, dtype.kind in "fiu"))
    return found


def _read_array(file: IO[bytes], size: int, name: str) -> np.ndarray:
    """Read an .npy stream of `size` bytes, after its header has shown that it is a matrix that fits."""
    try:
        shape, fortran_order, dtype = _npy_header(file)
    except _NO_HEADER:
        raise _unreadable(name, "is no array that numpy wrote, whatever its name says. Export it again.") from None
    if dtype.hasobject:
        raise _unreadable(
            name,
            "holds pickled Python objects, which are not read since they can run code; expected numbers. "
            "Export the array as float32.",
        )
    if len(shape) != 2 or dtype.kind not in "fiu" or min(shape) < 0:
        raise _not_a_matrix(name, f"has shape {shape} of {dtype}")
    declared = math.prod(shape) * dtype.itemsize
    _check_size(declared, name)
    content = file.read(declared) if declared <= size else b""
    file.read(1)  # brings an archive to compare its checksum
    if len(content) != declared:
        raise _unreadable(name, "ends before the numbers that its header declares. Copy or export it again.")
    return to_float32(np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C"))


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    with warnings.catch_warnings(action="ignore"):  # numpy tells of headers that Python 2 wrote
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    raise ValueError  # version 3 is for names of fields that no matrix of numbers has


def _unreadable(name: str, finding: str) -> RecordingError:
    return RecordingError("unreadable", f"{name}: {finding}")


def _not_a_matrix(name: str, finding: str) -> RecordingError:
    return RecordingError(
        "not-a-matrix", f"{name}: {finding}; expected numbers, frames by parcels. Export one matrix a recording."
    )


def _check_size(size: int, name: str) -> None:
    if size > MAX_MATRIX_BYTES:
        raise RecordingError(
            "too-large",
            f"{name}: declares {size / 2**30:.3g} GiB; expected at most {MAX_MATRIX_BYTES / 2**30:g} GiB a recording. "
            "Export parcels, not voxels, and one matrix a recording.",
        )


def to_float32(values: np.ndarray) -> np.ndarray:
    """Return numbers as float32, in C order."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
        return np.ascontiguousarray(values, dtype=np.float32)


def _variable(found: Sequence[AnyVariable], wanted: str, name: str) -> AnyVariable:
    """Return the variable to read: the wanted one, or the only matrix of numbers.

    What others are called is not said: these may be people's ids.
    """
    if wanted:
        chosen = next((one for one in found if one.name == wanted), None)
        if chosen is None:
            raise RecordingError(
                "variable",
                f"{name}: has no variable '{wanted}' among its {len(found)}. Name one of these (--variable).",
            )
        if not chosen.is_matrix:
            raise _not_a_matrix(name, f"its variable '{wanted}' is no two-dimensional array of real numbers")
        return chosen
    matrices = [one for one in found if one.is_matrix and min(one.shape) > 1]
    if len(matrices) > 1:
        raise RecordingError(
            "variable",
            f"{name}: holds {len(matrices)} matrices; expected one in each file of a folder. Name the variable to take "
            "(--variable), or split the file; an .npz whose arrays are recordings is a source by itself.",
        )
    if not matrices:
        raise _not_a_matrix(name, "holds no two-dimensional variable of real numbers")
    return matrices[0]


def _text(path: Path) -> str:
    """Text of a file, unpacked if need be, of which no more is read than a matrix may have."""
    with opened(path) as file:
        _check_size(os.fstat(file.fileno()).st_size, path.name)
        try:
            stream = gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
            content = stream.read(MAX_MATRIX_BYTES + 1)
            _check_size(len(content), path.name)
            return decode_text(content)
        except UnicodeError:
            raise _unreadable(
                path.name, "is no text in UTF-8; expected a table of numbers. Save it as UTF-8 text."
            ) from None
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise _unreadable(path.name, "is no whole .gz file. Copy it again, or export it again.") from None


def _check_separator(lines: list[str], separator: str | None, name: str) -> None:
    """Refuse a table whose cells are separated by something else than its name promises."""
    if separator is None or not lines:
        return
    spoken = {**SEPARATORS, " ": "spaces"}
    line = lines[-1]
    if separator not in line:
        other = next((mark for mark in ("\t", ";", ",", " ") if mark in line.strip()), None)
        if other:
            raise RecordingError(
                "separator",
                f"{name}: separates its numbers by {spoken[other]}; expected {spoken[separator]}. "
                "Save it so, with decimal points, or give it the suffix of what it is (.tsv, .csv).",
            )
    if (separator == "\t" and "," in line) or (separator == "," and ";" in line):
        raise RecordingError(
            "separator",
            f"{name}: has decimal commas or semicolons in its numbers; expected decimal points, and "
            f"{spoken[separator]} between the numbers. Save it so.",
        )


def _cells(line: str, separator: str | None) -> list[str]:
    if '"' in line and separator:
        try:
            return [cell.strip() for cell in next(csv.reader(io.StringIO(line), delimiter=separator))]
        except csv.Error:
            return [line]
    return [cell.strip() for cell in line.split(separator)]


def _header(line: str, separator: str | None) -> list[str] | None:
    """Names of the columns, if the first line has any: text, or numbers that only count the columns."""
    cells = _cells(line, separator)
    numbers = [_number(cell) for cell in cells]
    counted = numbers[1:] if not cells[0] else numbers
    if len(counted) > 1 and counted in (list(range(len(counted))), list(range(1, len(counted) + 1))):
        return cells
    return cells if any(number is None for number in numbers) else None


def _number(cell: str) -> float | None:
    """Value of a cell, NaN if it is missing, None if it is text."""
    if cell.lower() in _MISSING:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def _numbers(cells: list[str], name: str) -> np.ndarray:
    try:
        return to_float32(np.array([float(cell) for cell in cells]))
    except ValueError:
        numbers = [_number(cell) for cell in cells]
    if None in numbers:
        raise RecordingError(
            "text",
            # Not the text itself, since it may be somebody's name.
            f"{name}: holds text between its numbers, first in column {numbers.index(None) + 1}; expected numbers and "
            "n/a. Check its separator and header.",
        )
    return to_float32(np.array(numbers, dtype=float))
