import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2.cifti2_axes import ScalarAxis

from cohorts.errors import RecordingError
from cohorts.sources.cifti import read_ptseries
from tests.support.derivatives import write_ptseries

NAMES = ("LH_Vis_1", "RH_Vis_1", "LH-Pu")


@pytest.fixture
def signal():
    return np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


@pytest.fixture
def path(tmp_path, signal):
    write_ptseries(tmp_path / "x.ptseries.nii", signal, NAMES, t_r=2.0)
    return tmp_path / "x.ptseries.nii"


def refused(path):
    with pytest.raises(RecordingError, match=r"^x\.ptseries\.nii: .+\. \S") as caught:
        read_ptseries(path)
    return caught.value.code


def test_series_come_back_with_their_names(path, signal):
    names, values = read_ptseries(path)
    assert tuple(names) == NAMES
    np.testing.assert_array_equal(values.astype(np.float32), signal)


@pytest.mark.parametrize(
    "content", [b"", b"LH_Vis_1\tRH_Vis_1\n0\t1\n", bytes(2000), gzip.compress(bytes(2000), mtime=0)]
)
def test_what_is_no_cifti_file_is_refused(path, content):
    path.write_bytes(content)
    assert refused(path) == "unreadable"


def test_a_file_that_went_away_is_refused(path):
    path.unlink()
    assert refused(path) == "unreadable"


@pytest.mark.parametrize("kept", [200, 700, 0.7, 0.99])
def test_a_file_cut_off_is_refused(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if kept > 1 else int(kept * len(whole))])
    assert refused(path) in ("unreadable", "truncated")


def test_huge_dimensions_are_refused_from_the_header(path):
    """Dimensions 5 and 6 of NIfTI-2 are the frames and parcels of CIFTI-2, as int64 from byte 16 on."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<q", content, 16 + 5 * 8, 2**40)
    path.write_bytes(content)
    assert refused(path) == "too-large"
    struct.pack_into("<q", content, 16 + 5 * 8, 2**20)
    path.write_bytes(content)
    assert refused(path) == "truncated"


def test_other_cifti_files_and_volumes_are_refused(path):
    parcels = nib.load(path).header.get_axis(1)
    nib.save(nib.Cifti2Image(np.ones((1, 3), np.float32), header=(ScalarAxis(["mean"]), parcels)), path)
    assert refused(path) == "not-ptseries"
    nib.save(nib.Nifti2Image(np.ones((3, 3, 3, 9), np.float32), np.eye(4)), path)
    assert refused(path) == "not-ptseries"


def test_changed_bytes_never_end_in_another_error(path):
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=rng.integers(1, 12)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            names, values = read_ptseries(path)
        except RecordingError:
            continue
        assert values.shape[1] == len(names)
