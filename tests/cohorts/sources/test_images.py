"""What a NIfTI header can say wrong is refused before memory is taken, each under its own code."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from cohorts.errors import RecordingError
from cohorts.sources.images import header_repetition_time, read_frames, read_header, read_volume, require_frames
from tests.support.volumes import AFFINE, noise, paint, save_nifti


@pytest.fixture
def run(tmp_path):
    return save_nifti(tmp_path / "run.nii", paint(noise(12)), t_r=2.0)


def patched(content: bytes, *fields: tuple[int, str, tuple]) -> bytes:
    """Overwrite fields of a header: (offset, struct format, values)."""
    changed = bytearray(content)
    for offset, form, values in fields:
        struct.pack_into(form, changed, offset, *values)
    return bytes(changed)


NAN = float("nan")
BAD = {
    "not-nifti ": lambda c: c[:200],
    "broken-header": lambda c: patched(c, (40, "<8h", (4, -10, 12, 8, 12, 1, 1, 1))),
    "broken-header ": lambda c: patched(c, (40, "<8h", (9, 10, 12, 8, 12, 1, 1, 1))),
    "broken-header  ": lambda c: patched(c, (70, "<h", (4242,))),
    "broken-header   ": lambda c: patched(c, (108, "<f", (NAN,))),
    "too-large ": lambda c: patched(c, (108, "<f", (1e12,))),
    "broken-affine ": lambda c: patched(c, (280, "<12f", (0.0,) * 12)),
    "broken-affine  ": lambda c: patched(c, (252, "<2h", (0, 0))),
    "not-4d ": lambda c: patched(c, (40, "<8h", (5, 10, 12, 8, 6, 2, 1, 1))),
    "truncated": lambda c: c[:-100],
}


def read(path):
    header = read_header(path)
    require_frames(header, path)
    return np.stack(list(read_frames(path, header)), axis=-1)


@pytest.mark.parametrize("code", BAD)
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_each_fault_has_its_code_and_names_the_file_alone(run, tmp_path, code, extension):
    bad = tmp_path / f"bad{extension}"
    content = BAD[code](run.read_bytes())
    bad.write_bytes(gzip.compress(content) if extension == ".nii.gz" and code != "empty-file" else content)
    with pytest.raises(RecordingError) as refused:
        read(bad)
    assert refused.value.code == code.strip()
    assert str(refused.value).startswith(f"bad{extension}: ")
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("corrupt", lambda z: z[: len(z) // 2] + bytes([z[len(z) // 2] ^ 0xFF]) + z[len(z) // 2 + 1 :]),
        ("corrupt", lambda z: z[:-8] + b"\0" * 8),
    ],
    ids=["damaged", "checksum wrong"],
)
def test_a_broken_gzip_is_refused(tmp_path, code, change):
    rng = np.random.default_rng(0)
    whole = save_nifti(tmp_path / "run.nii.gz", rng.standard_normal((10, 12, 8, 12)).astype(np.float32))
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(change(whole.read_bytes()))
    with pytest.raises(RecordingError, check=lambda fault: fault.code == code):
        read(bad)


def test_a_missing_file_and_a_link_to_nowhere_are_refused(tmp_path):
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    for name in ("link.nii.gz", "gone.nii.gz"):
        with pytest.raises(RecordingError, check=lambda fault: fault.code == "missing-file"):
            read_header(tmp_path / name)


def test_a_bomb_is_refused_without_memory(run, tmp_path):
    """After the numbers of a small run lie 256 MiB of zeros, and before them it declares an extension of 2 GiB."""
    bomb = tmp_path / "bomb.nii.gz"
    content = run.read_bytes()
    with gzip.open(bomb, "wb", compresslevel=1) as stream:
        stream.write(patched(content, (348, "<B3x2i", (1, 2**31 - 16, 0))))
        for _ in range(16):
            stream.write(bytes(2**24))
    tracemalloc.start()
    with pytest.raises(RecordingError) as refused:
        read(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.code == "corrupt"
    assert peak < 2**24


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.float64])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_frames_are_those_of_nibabel(tmp_path, monkeypatch, dtype, extension):
    monkeypatch.setattr("cohorts.sources.images._BLOCK_BYTES", 5 * 8 * 10 * 12 * 8)
    data = paint(noise(12)).astype(dtype)
    path = save_nifti(tmp_path / f"run{extension}", data)
    frames = read(path)
    assert np.array_equal(frames, data)
    assert frames.dtype == dtype


def test_a_volume_must_be_three_dimensional(run):
    with pytest.raises(RecordingError, match="expected a 3D image"):
        read_volume(run, read_header(run))


@pytest.mark.parametrize(
    ("pixdim", "unit", "expected"),
    [(2.0, 8, 2.0), (2000.0, 16, 2.0), (2e6, 24, 2.0), (1.0, 0, NAN), (0.0, 8, NAN), (0.8, 0, 0.8), (NAN, 8, NAN)],
)
def test_repetition_time_is_taken_in_the_header_s_unit(run, tmp_path, pixdim, unit, expected):
    path = tmp_path / "units.nii"
    path.write_bytes(patched(run.read_bytes(), (92, "<f", (pixdim,)), (123, "<B", (unit | 2,))))
    assert header_repetition_time(read_header(path)) == pytest.approx(expected, nan_ok=True)
    assert np.allclose(AFFINE, read_header(path).get_best_affine())
