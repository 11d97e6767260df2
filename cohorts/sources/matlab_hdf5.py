"""Matrices of numbers out of MATLAB files of version 7.3, which are HDF5, and nothing else of them.

What leads out of a file, as links and external storage can, is not followed. The format: *HDF5 File Format
Specification*, The HDF Group; what MATLAB makes of it is told by its attribute ``MATLAB_class``.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from cohorts.sources.matlab import MatlabError, Variable

_NUMBERS = {b"double", b"single", *(b"%sint%d" % (sign, bits) for sign in (b"", b"u") for bits in (8, 16, 32, 64))}
"""Classes of an array; others are text, logicals, cells, structures and objects."""
_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""What h5py raises on files with bytes changed or cut off: of HDF5's own faults it makes plain Python errors."""


def list_variables(path: Path) -> list[Variable]:
    """List the variables of a file."""
    with _opened(path) as file:
        return [_described(file, name) for name in file if not name.startswith("#")]  # those are MATLAB's own


def read_variable(path: Path, variable: Variable) -> np.ndarray:
    """Read the values of a numeric variable, of which `most_bytes` has been found bearable."""
    with _opened(path) as file:
        if _described(file, variable.name) != variable:
            raise MatlabError("has changed")
        return np.asarray(file[variable.name][...]).T


def _described(file: h5py.File, name: str) -> Variable:
    """Describe what a name stands for, of which MATLAB stores the dimensions the other way round."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return Variable(name, (), False)
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.shape is None or found.is_virtual or found.external:
        return Variable(name, (), False)
    shape, kind = tuple(map(int, found.shape[::-1])), found.attrs.get("MATLAB_class", b"double")
    kind = kind.encode() if isinstance(kind, str) else kind
    numeric = found.dtype.kind in "fiu" and isinstance(kind, bytes) and kind in _NUMBERS
    # A chunk is unpacked as a whole, and may be larger than what it holds a part of.
    bearable = math.prod(found.chunks or (1,)) <= max(math.prod(shape), 2**20)
    return Variable(name, shape, numeric and bearable and "MATLAB_empty" not in found.attrs)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        # Without locks, which file systems of clusters refuse.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except MatlabError:
        raise
    except _ERRORS as error:
        raise MatlabError(type(error).__name__) from None
