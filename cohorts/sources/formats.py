"""What kinds of files matrices come in, by the endings of their names, and why others are not read."""

from collections.abc import Iterable
from pathlib import Path

SEPARATORS = {".tsv": "\t", ".csv": ",", ".1d": None}
"""What separates the cells of a table; None for any white space, as AFNI and the ABIDE derivatives of PCP write it."""
SEPARATORS |= {f"{suffix}.gz": separator for suffix, separator in SEPARATORS.items()}
IMAGES = (".nii.gz", ".nii")
MATRIX_SUFFIXES = (".npy", ".npz", ".mat", ".ptseries.nii", *SEPARATORS)
TEXT = (".txt", ".dat")
"""Matrices, or what is written about them."""
_CIFTI = (".dtseries.nii", ".dscalar.nii", ".dlabel.nii", ".dconn.nii", ".pscalar.nii", ".plabel.nii", ".pconn.nii")
CIFTI = (".ptseries.nii", *_CIFTI)
_WHY = {
    _CIFTI: "is a CIFTI file, but no parcellated series (.ptseries.nii); expected frames by parcels. Make one with "
    "wb_command -cifti-parcellate, or with XCP-D.",
    (".gii",): "is a GIFTI file of a surface; expected frames by parcels. Make a .ptseries.nii or a table of it.",
    (".xlsx", ".xls", ".ods"): "is a spreadsheet; expected text. Save it as .tsv or .csv.",
    (".rds", ".rda", ".rdata"): "is a file of R; expected a table. Save it with write.table as .tsv.",
    (".pkl", ".pickle", ".joblib", ".pt", ".pth"): "is a pickle, which is not read since it can run code; expected "
    "numbers alone. Save the array as .npy.",
    (".h5", ".hdf5", ".nc", ".parquet", ".feather", ".arrow"): "is of a kind that is not read; expected a matrix. Save "
    "it as .npy, .mat or .tsv.",
    TEXT: "does not say by its name what separates its numbers; expected .tsv, .csv, or .1D for spaces. Rename it.",
}
UNREAD = {suffix: why for suffixes, why in _WHY.items() for suffix in suffixes}
"""Suffix of what may hold a recording and is not read → why, and what to do."""
_ABOUT = ("readme", "license", "changes")


def suffix_of(path: Path, suffixes: Iterable[str]) -> str:
    """Return the one of these suffixes that a file's name ends with, in any case; empty if none."""
    return next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")


def unread(path: Path) -> str:
    """Say why a file that may hold a recording is not read, and what to do; empty of any other file."""
    suffix = suffix_of(path, UNREAD)
    return f"{path.name}: {UNREAD[suffix]}" if suffix and path.stem.lower() not in _ABOUT else ""


def first_unread(paths: Iterable[Path]) -> str:
    """Say so of the first of these files that is not read, text last; empty if there is none."""
    return next(filter(None, map(unread, sorted(paths, key=lambda path: bool(suffix_of(path, TEXT))))), "")
