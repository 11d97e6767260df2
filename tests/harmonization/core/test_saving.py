import numpy as np
import pytest
from safetensors.numpy import save_file

from harmonization import HarmonizationError
from harmonization.core import saving

ARRAYS = {
    "matrix": np.asfortranarray(np.arange(12.0).reshape(3, 4)) / 7,
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "strided": np.arange(10)[::3],
    "number": np.array(0.1),
    "flags": np.array([True, False]),
    "gaps": np.array([np.nan, -0.0, np.inf]),
    "nothing": np.empty((0, 5)),
}
ABOUT = {"name": "é", "levels": ["a", "b"], "none": None, "x": 0.1}


def test_comes_back_bit_by_bit(tmp_path):
    saving.write(tmp_path / "a.safetensors", ARRAYS, ABOUT)
    arrays, about = saving.read(tmp_path / "a.safetensors")

    assert about == ABOUT
    assert arrays.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        assert (arrays[name].shape, arrays[name].dtype) == (values.shape, values.dtype)
        assert arrays[name].tobytes() == values.tobytes()

    saving.write(tmp_path / "b.safetensors", arrays, about)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_no_arrays_come_back_too(tmp_path):
    saving.write(tmp_path / "a", {}, [])

    assert saving.read(tmp_path / "a") == ({}, [])


def test_refuses_a_file_with_any_changed_byte(tmp_path):
    path = tmp_path / "a.safetensors"
    saving.write(path, {"x": np.arange(3.0)}, {"a": 1})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x11]) + whole[position + 1 :])
        with pytest.raises(HarmonizationError, match=r"a.safetensors: (is damaged|does not hold)"):
            saving.read(path)
    for length in (0, 7, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(HarmonizationError, match="is damaged"):
            saving.read(path)


def test_refuses_files_that_are_not_there_or_of_others(tmp_path):
    with pytest.raises(HarmonizationError, match="is not there"):
        saving.read(tmp_path / "none.safetensors")
    save_file({"x": np.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(HarmonizationError, match="does not hold a harmonization"):
        saving.read(tmp_path / "model.safetensors")
    with pytest.raises(HarmonizationError, match="damaged, or no safetensors file"):
        saving.read(tmp_path)


def test_a_failed_save_leaves_the_file_before_it(tmp_path):
    path = tmp_path / "a.safetensors"
    saving.write(path, ARRAYS, ABOUT)
    before = path.read_bytes()

    with pytest.raises(TypeError):
        saving.write(path, ARRAYS, {"not": {"JSON"}})
    with pytest.raises(Exception, match="cannot be written"):
        saving.write(path, {"not an array": np.array([object()])}, ABOUT)

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
