"""What a path holds, by names: the kind of a source, what kinds of files are read, and why others are not."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from cohorts.errors import CohortError
from cohorts.sources.bids import generated_by, parse_name, walk

Kind = Literal["fmriprep", "xcpd", "nifti", "matrices"]
_MAKERS: dict[str, Kind] = {"fmriprep": "fmriprep", "xcp_d": "xcpd", "xcpd": "xcpd", "xcp-d": "xcpd"}

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


def kind_of(path: str | Path) -> Kind:
    """Tell what kind of source a path is, by what made it, else by its files; refuse what holds none that is read."""
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".npz":
        return "matrices"
    if not path.is_dir():
        found = "is a file of another kind" if path.exists() else "does not exist"
        raise CohortError(
            f"{path}: {found}; expected a folder of fMRIPrep or XCP-D, of NIfTI images or of matrices, or an .npz. "
            "Check the path."
        )
    maker = generated_by(path).partition("-")[0]
    if maker in _MAKERS:
        return _MAKERS[maker]
    # A tree of derivatives holds images and tables of many uses; so the most telling names decide.
    shown = set(map(_shown_by, walk(path)))
    if kind := next((kind for kind in get_args(Kind) if kind in shown), None):
        return kind
    if said := first_unread(walk(path)):
        raise CohortError(f"{path}: holds no recordings in a form that is read. {said}")
    raise CohortError(
        f"{path}: holds no recordings; expected files such as *_desc-preproc_bold.nii.gz, *_timeseries.tsv, *.nii.gz "
        f"or {', '.join(MATRIX_SUFFIXES)}. Name another folder."
    )


def _shown_by(path: Path) -> Kind | None:
    name = parse_name(path)
    if name is not None and "sub" in name.entities:
        if name.suffix == "bold" and name.entities.get("desc") == "preproc":
            return "fmriprep"
        if name.suffix == "timeseries" and {"atlas", "seg"} & name.entities.keys():
            return "xcpd"
    if suffix_of(path, MATRIX_SUFFIXES):
        return "matrices"
    return "nifti" if path.name.endswith(IMAGES) and not unread(path) else None
