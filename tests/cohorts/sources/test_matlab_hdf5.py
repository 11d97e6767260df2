import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io.matlab import tests as scipy_tests

from cohorts.sources.matlab import MatlabError
from cohorts.sources.matlab_hdf5 import list_variables, read_variable
from tests.support.mat73 import write_mat73

WRITTEN_BY_MATLAB = Path(scipy_tests.__file__).parent / "data" / "testhdf5_7.4_GLNX86.mat"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["f4", "f8", "i1", "u2", "i8"])
def test_matrices_are_read_as_they_were_saved(tmp_path, packed, kind):
    values = np.random.default_rng(0).normal(scale=30, size=(70, 5)).astype(kind)
    path = write_mat73(
        tmp_path / "a.mat", packed=packed, signal=values, tr=2.0, name="rest", more={"a": values}, ok=values > 0
    )

    found = {variable.name: variable for variable in list_variables(path)}

    assert [name for name, variable in found.items() if variable.is_matrix] == ["signal", "tr"]
    np.testing.assert_array_equal(read_variable(path, found["signal"]), values)


@pytest.mark.parametrize(("kind", "is_matrix"), [("double", True), (None, True), ("char", False), (7, False)])
def test_the_class_may_be_written_by_other_software(tmp_path, kind, is_matrix):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["x"] = np.ones((3, 4))
        if kind is not None:
            file["x"].attrs["MATLAB_class"] = kind

    [variable] = list_variables(tmp_path / "a.mat")
    assert (variable.shape, variable.is_matrix) == ((4, 3), is_matrix)


@pytest.mark.skipif(not WRITTEN_BY_MATLAB.is_file(), reason="scipy is installed without its test files")
def test_a_file_of_matlab_is_read():
    """Scipy's own test of the same name in version 7 holds these numbers: 0 to 2 pi in steps of a quarter of pi."""
    [variable] = list_variables(WRITTEN_BY_MATLAB)
    assert (variable.name, variable.shape, variable.is_matrix) == ("testdouble", (1, 9), True)
    np.testing.assert_allclose(read_variable(WRITTEN_BY_MATLAB, variable), [np.arange(9) * np.pi / 4], atol=1e-12)


def soft_link(file: h5py.File, folder: Path) -> None:
    file["x"] = h5py.SoftLink("/nowhere")


def external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones((4, 4))
    file["x"] = h5py.ExternalLink(str(folder / "other.h5"), "/x")


def external_storage(file: h5py.File, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(8 * 16))
    file.create_dataset("x", (4, 4), "f8", external=[(str(folder / "secret"), 0, 8 * 16)])


def virtual(file: h5py.File, folder: Path) -> None:
    external_link(file, folder)
    del file["x"]
    layout = h5py.VirtualLayout((4, 4), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (4, 4))
    file.create_virtual_dataset("x", layout)


def references(file: h5py.File, folder: Path) -> None:
    """Store a cell array, which MATLAB does as references into the group #refs#."""
    file["#refs#/a"] = np.ones((4, 4))
    file.create_dataset("x", data=np.array([[file["#refs#/a"].ref] * 2] * 2), dtype=h5py.ref_dtype)
    file["x"].attrs["MATLAB_class"] = np.bytes_("cell")


def complex_numbers(file: h5py.File, folder: Path) -> None:
    file["x"] = np.ones((4, 4), [("real", "f8"), ("imag", "f8")])


def one_huge_chunk(file: h5py.File, folder: Path) -> None:
    file.create_dataset("x", (4, 4), "f8", maxshape=(None, None), chunks=(2**14, 2**14), compression="gzip")[:] = 1


def empty(file: h5py.File, folder: Path) -> None:
    file["x"] = np.array([0, 0], np.uint64)
    file["x"].attrs["MATLAB_empty"] = 1


@pytest.mark.parametrize(
    "make",
    [soft_link, external_link, external_storage, virtual, references, complex_numbers, one_huge_chunk, empty],
    ids=lambda make: make.__name__,
)
def test_what_leads_elsewhere_or_holds_no_plain_numbers_is_no_matrix(tmp_path, make):
    path = write_mat73(tmp_path / "a.mat", y=np.eye(3))
    with h5py.File(path, "r+") as file:
        make(file, tmp_path)

    found = {variable.name: variable.is_matrix for variable in list_variables(path)}

    assert found == {"x": False, "y": True}


def test_dimensions_are_told_before_memory_is_taken(tmp_path):
    path = write_mat73(tmp_path / "a.mat", y=2.0)
    with h5py.File(path, "r+") as file:
        file.create_dataset("x", (2**20, 2**20), "f8", chunks=(64, 64), compression="gzip")
    tracemalloc.start()
    variable = next(one for one in list_variables(path) if one.name == "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert variable.most_bytes == 2**43
    assert peak < 2**20


@pytest.mark.parametrize("packed", [False, True])
def test_no_damage_escapes(tmp_path, packed):
    """Every 97th byte behind the preamble changed, and every 97th cut, gives values or a MatlabError."""
    path = tmp_path / "a.mat"
    whole = write_mat73(path, packed=packed, x=np.random.default_rng(0).normal(size=(40, 4)), tr=2.0).read_bytes()
    places = range(512, len(whole), 97)
    damaged = [whole[:place] for place in places]
    damaged += [whole[:n] + bytes([whole[n] ^ flip]) + whole[n + 1 :] for n in places for flip in (1, 255)]
    outcomes = set()
    for content in damaged:
        path.write_bytes(content)
        try:
            for variable in list_variables(path):
                if variable.is_matrix and variable.most_bytes < 2**20:
                    assert read_variable(path, variable).shape == variable.shape
            outcomes.add("read")
        except MatlabError:
            outcomes.add("refused")

    assert outcomes == {"read", "refused"}
