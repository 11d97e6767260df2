"""NIfTI files from outside, distrusted: everything that a header can say wrong is refused before memory is taken."""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from base.files import MAX_RUN_BYTES
from cohorts.errors import RecordingError

_BLOCK_BYTES = 2**25
_MAX_REST = 2**20
"""Most bytes that may follow a file's numbers."""
_MAX_VOXELS = 2**28
"""Most voxels of a mask or label image; 0.3 mm over a whole head."""
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}
"""Code of the time unit in a NIfTI header → seconds."""
_READING_ERRORS = (OSError, EOFError, ValueError, zlib.error)
"""What nibabel and gzip raise where the numbers of a file end early or its compression is broken."""

Header = nib.Nifti1Header
"""Header of a NIfTI-1 file, or of a NIfTI-2 file, whose class derives from it."""


def read_header(path: Path) -> Header:
    """Read and check the header of a NIfTI file (.nii or .nii.gz), and nothing of its numbers."""
    block = _first_bytes(path)
    kinds = (kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if len(block) >= kind.sizeof_hdr)
    kind = next((kind for kind in kinds if kind.may_contain_header(block)), None)
    if kind is None:
        raise _not_nifti(path)
    try:
        header = kind(block[: kind.sizeof_hdr], check=False)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        header.get_slope_inter()
        offset = header.get_data_offset()
        if not shape or min(shape) < 1 or offset < header.sizeof_hdr:
            raise ValueError
    except (HeaderDataError, KeyError, ValueError, OverflowError):
        raise RecordingError(
            "broken-header",
            f"{path.name}: its NIfTI header is broken (dimensions, type or scaling); expected a valid one. "
            "Export it again.",
        ) from None
    if dtype.kind not in "iuf":
        raise RecordingError(
            "not-numbers",
            f"{path.name}: holds colours or complex numbers; expected real numbers. Export the BOLD signal alone.",
        )
    declared = math.prod(map(int, shape)) * dtype.itemsize + offset
    if declared > MAX_RUN_BYTES:
        raise RecordingError(
            "too-large",
            f"{path.name}: its header declares {' x '.join(map(str, shape))} voxels, {declared / 2**30:.0f} GiB; "
            f"expected at most {MAX_RUN_BYTES >> 30} GiB a file. Check the file, or split the run.",
        )
    affine_of(header, path)
    return header


def affine_of(header: Header, path: Path) -> np.ndarray:
    """Return the affine [4, 4] from voxels to millimetres, or refuse one that leads nowhere."""
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError):
        affine = np.full((4, 4), np.nan)
    placed = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    if not placed or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise RecordingError(
            "broken-affine",
            f"{path.name}: its header does not say where its voxels lie (no sform or qform, NaN, or no volume); "
            "expected an affine into its template space. Export it again.",
        )
    return affine


def require_frames(header: Header, path: Path) -> int:
    """Return the number of volumes, or refuse what is not a 4D run."""
    shape = header.get_data_shape()
    if len(shape) != 4:
        raise RecordingError(
            "not-4d", f"{path.name}: has {len(shape)} dimensions; expected 4, volumes over time. Name the BOLD image."
        )
    if shape[3] < 2:
        raise RecordingError(
            "one-volume", f"{path.name}: holds one volume; expected a run of many. Name the BOLD image of the run."
        )
    return int(shape[3])


def header_repetition_time(header: Header) -> float:
    """Return the repetition time in the header's own unit as seconds, or NaN where the header leaves it open.

    A header without a unit counts as seconds; 0 and 1 without a unit are what software writes that does not know it.
    """
    declared = float(header["pixdim"][4])
    unit = int(header["xyzt_units"]) & 0b111000
    if not math.isfinite(declared) or declared <= 0 or (unit not in _SECONDS and declared == 1):
        return math.nan
    return declared * _SECONDS.get(unit, 1.0)


def read_frames(path: Path, header: Header) -> Iterator[np.ndarray]:
    """Yield the volumes [X, Y, Z] of a 4D file in order, scaled as nibabel scales them.

    One pass over the file, holding few volumes at a time; a compressed file's checksum is verified at its end.
    """
    n_frames = header.get_data_shape()[3]
    frame_bytes = 8 * math.prod(map(int, header.get_data_shape()[:3]))
    step = max(1, _BLOCK_BYTES // frame_bytes)
    with _numbers_of(path, header) as numbers:
        for start in range(0, n_frames, step):
            block = np.asanyarray(numbers[..., start : start + step])
            yield from np.moveaxis(block, -1, 0)


def read_volume(path: Path, header: Header) -> np.ndarray:
    """Read the numbers of a 3D file [X, Y, Z]."""
    shape = header.get_data_shape()
    if len(shape) != 3:
        raise RecordingError(
            "not-3d", f"{path.name}: has {len(shape)} dimensions; expected a 3D image. Export one volume."
        )
    if math.prod(map(int, shape)) > _MAX_VOXELS:
        raise RecordingError(
            "too-large", f"{path.name}: has {' x '.join(map(str, shape))} voxels; expected at most {_MAX_VOXELS:,}."
        )
    with _numbers_of(path, header) as numbers:
        return np.asanyarray(numbers[...])


@contextmanager
def _numbers_of(path: Path, header: Header) -> Iterator[ArrayProxy]:
    """Yield the numbers of a file; what reading them raises becomes the fault of the file."""
    try:
        with ImageOpener(str(path)) as stream:
            yield ArrayProxy(stream, header)
            # At its end gzip compares its checksum. A bomb may lie there, so not for ever.
            if len(stream.read(_MAX_REST)) == _MAX_REST:
                raise ValueError("more than the header declares")
    except _READING_ERRORS as error:
        if isinstance(error, EOFError) or "not enough data" in str(error):
            raise RecordingError(
                "truncated", f"{path.name}: ends before all of its volumes. Copy it again from where it was made."
            ) from None
        raise RecordingError(
            "corrupt",
            f"{path.name}: its numbers are damaged, or more than its header declares. Copy or export it again.",
        ) from None


def _first_bytes(path: Path) -> bytes:
    """As many bytes of an image, unpacked if need be, as the longer header takes."""
    try:
        if path.stat().st_size == 0:
            raise RecordingError("empty-file", f"{path.name}: is empty; expected a NIfTI image. Copy it again.")
        with ImageOpener(str(path)) as stream:
            return stream.read(nib.Nifti2Header.sizeof_hdr)
    except FileNotFoundError:
        raise RecordingError(
            "missing-file",
            f"{path.name}: is not there, or is a link that leads nowhere; expected an image. Restore it.",
        ) from None
    except _READING_ERRORS:
        raise _not_nifti(path) from None


def _not_nifti(path: Path) -> RecordingError:
    return RecordingError(
        "not-nifti", f"{path.name}: is not a NIfTI file; expected .nii or .nii.gz. Export or copy it again."
    )
