"""Parcellated time series in CIFTI-2 files (``.ptseries.nii``)."""

import math
import warnings
from pathlib import Path
from xml.parsers.expat import ExpatError

import nibabel as nib
import numpy as np
from nibabel.cifti2 import Cifti2HeaderError
from nibabel.cifti2.cifti2_axes import ParcelsAxis, SeriesAxis
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from base.files import MAX_RUN_BYTES
from cohorts.errors import RecordingError

_OWN_ERRORS = (Cifti2HeaderError, ExpatError, HeaderDataError, ImageFileError)
_ERRORS = (*_OWN_ERRORS, ArithmeticError, AttributeError, EOFError, LookupError, OSError, TypeError, ValueError)
"""What nibabel raises for CIFTI-2 files with bytes changed or cut off, of which many are plain Python errors."""


def read_ptseries(path: Path) -> tuple[list[str], np.ndarray]:
    """Read parcellated series in CIFTI-2: the names of the parcels, and values [T, parcels]."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what they are about is checked below
            image = nib.load(path)
        cifti = image if isinstance(image, nib.Cifti2Image) else None
        axes = [] if cifti is None else [cifti.header.get_axis(number) for number in range(cifti.ndim)]
        if cifti is None or [type(axis) for axis in axes] != [SeriesAxis, ParcelsAxis]:
            raise RecordingError(
                "not-ptseries",
                f"{path.name}: is not a parcellated series; expected a CIFTI-2 file of frames by parcels. "
                "Export it with XCP-D, or with wb_command -cifti-parcellate.",
            )
        declared = math.prod(cifti.shape) * cifti.get_data_dtype().itemsize
        if declared > MAX_RUN_BYTES:
            raise RecordingError(
                "too-large",
                f"{path.name}: declares {declared / 2**30:.0f} GiB; expected the series of one run. Export it again.",
            )
        if path.stat().st_size < declared:
            raise RecordingError(
                "truncated", f"{path.name}: is shorter than its header says; expected {declared} bytes. Copy it again."
            )
        if cifti.shape != (axes[0].size, len(axes[1])):
            raise ValueError
        return [str(name) for name in axes[1].name], np.asarray(cifti.dataobj, dtype=np.float64)
    except _ERRORS:
        raise RecordingError(
            "unreadable",
            f"{path.name}: cannot be read as a CIFTI-2 file. Copy it again, or export it again with XCP-D.",
        ) from None
