"""What kind of source a path is: an fMRIPrep or XCP-D tree, plain NIfTI images, or ready matrices."""

from pathlib import Path
from typing import Literal, get_args

from cohorts.errors import CohortError
from cohorts.sources.bids import generated_by, parse_name, walk
from cohorts.sources.formats import IMAGES, MATRIX_SUFFIXES, first_unread, suffix_of, unread

Kind = Literal["fmriprep", "xcpd", "nifti", "matrices"]
_MAKERS: dict[str, Kind] = {"fmriprep": "fmriprep", "xcp_d": "xcpd", "xcpd": "xcpd", "xcp-d": "xcpd"}


def kind_of(path: str | Path) -> Kind:
    """Tell what kind of source a path is, by what made it, else by the first file that shows it.

    Raises
    ------
    CohortError
        If there is nothing, or nothing that can be read.
    """
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
