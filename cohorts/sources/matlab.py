"""Matrices of numbers out of MATLAB files of version 5 to 7, and nothing else of them.

`scipy.io.loadmat` reads more, but a damaged file can end its process, and a small one can make it inflate gigabytes.
The format: *MAT-File Format*, The MathWorks, chapter 1.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from typing import IO

import numpy as np

_COMPRESSED, _MATRIX = 15, 14
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMBERS = range(6, 16)  # classes of an array: double, single, and the integers
_COMPLEX, _LOGICAL = 0x0800, 0x0200
_HEAD = 4096  # bytes that flags, dimensions and name always fit into
_TAIL = 64  # bytes that may follow the numbers: padding


class MatlabError(ValueError):
    """The bytes are no MATLAB file of version 5 to 7, or a damaged one."""


@dataclass(frozen=True)
class Variable:
    """One variable of a file of several, before its values are read."""

    name: str
    shape: tuple[int, ...]
    is_numeric: bool
    """False for text, logicals, complex numbers, sparse matrices, cells and structures."""

    @property
    def is_matrix(self) -> bool:
        return self.is_numeric and len(self.shape) == 2

    @property
    def most_bytes(self) -> int:
        """Bytes that its values take in the widest type."""
        return 8 * math.prod(self.shape)


@dataclass(frozen=True)
class MatlabVariable(Variable):
    """A variable of a MATLAB file, and where its bytes lie there."""

    offset: int
    length: int
    compressed: bool
    values_at: int
    """Where the element with the values begins, after decompression."""
    order: str
    """``<`` or ``>``."""


def is_version_7_3(head: bytes) -> bool:
    """Whether a file's first 128 bytes are those of an HDF5 file, with MATLAB's preamble or without."""
    return head.startswith(b"\x89HDF\r\n\x1a\n") or head[124:128] in (b"\x00\x02IM", b"\x02\x00MI")


def list_variables(file: IO[bytes]) -> list[MatlabVariable]:
    """List the variables of an open file."""
    head = file.read(128)
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(head[124:128])
    if order is None:
        raise MatlabError("no header")
    found = []
    while tag := file.read(8):
        if len(tag) < 8:
            raise MatlabError("ends in a tag")
        kind, length = struct.unpack(f"{order}II", tag)
        offset = file.tell()
        if kind in (_COMPRESSED, _MATRIX):
            found.append(_variable(file, kind == _COMPRESSED, length, order))
        file.seek(offset + length)
    return [variable for variable in found if variable.name]


def read_variable(file: IO[bytes], variable: MatlabVariable) -> np.ndarray:
    """Read the values of a numeric variable, of which `most_bytes` has been found bearable."""
    needed = variable.values_at + 8 + variable.most_bytes + _TAIL
    file.seek(variable.offset)
    if variable.compressed:
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(file.read(variable.length), needed)
        except zlib.error as error:
            raise MatlabError(str(error)) from None
        if not inflater.eof:
            raise MatlabError("holds more than it declares, or ends early")
    else:
        content = file.read(min(variable.length, needed))
    stored, start, length, _ = _element(content, variable.values_at, variable.order)
    if stored not in _STORED:
        raise MatlabError("has no numbers")
    dtype = np.dtype(variable.order + _STORED[stored])
    count = math.prod(variable.shape)
    if length != count * dtype.itemsize or len(content) < start + length:
        raise MatlabError("has not as many numbers as it declares")
    return np.frombuffer(content, dtype, count, start).reshape(variable.shape, order="F")


def _variable(file: IO[bytes], compressed: bool, length: int, order: str) -> MatlabVariable:
    """Read the head of the variable that begins here."""
    offset, place = file.tell(), 0
    body = file.read(min(length, _HEAD))
    if compressed:
        try:
            body = zlib.decompressobj().decompress(body, _HEAD)
        except zlib.error as error:
            raise MatlabError(str(error)) from None
        kind, place, _, _ = _element(body, 0, order)
        if kind != _MATRIX:
            raise MatlabError("is compressed, and no variable")
    _, start, _, place = _element(body, place, order)
    (flags,) = struct.unpack(f"{order}I", _bytes(body, start, 4))
    _, start, size, place = _element(body, place, order)
    shape = struct.unpack(f"{order}{size // 4}i", _bytes(body, start, size // 4 * 4))
    _, start, size, place = _element(body, place, order)
    name = _bytes(body, start, size).decode("latin-1")
    numeric = flags & 0xFF in _NUMBERS and not flags & (_COMPLEX | _LOGICAL)
    if min(shape, default=0) < 0:
        raise MatlabError("has a negative dimension")
    return MatlabVariable(name, shape, numeric, offset, length, compressed, place, order)


def _element(body: bytes, place: int, order: str) -> tuple[int, int, int, int]:
    """Kind of the element at `place`, where its content starts, its length, and where the next one begins."""
    (word,) = struct.unpack(f"{order}I", _bytes(body, place, 4))
    if word >> 16:  # a short one: kind, length and up to four bytes of content in eight bytes
        return word & 0xFFFF, place + 4, word >> 16, place + 8
    (length,) = struct.unpack(f"{order}I", _bytes(body, place + 4, 4))
    return word, place + 8, length, place + 8 + -(-length // 8) * 8


def _bytes(body: bytes, start: int, length: int) -> bytes:
    content = body[start : start + length]
    if len(content) != length:
        raise MatlabError("ends early")
    return content
