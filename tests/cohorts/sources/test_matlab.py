import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.io.matlab import tests as scipy_tests

from cohorts.sources.matlab import MatlabError, list_variables, read_variable

# Files that MATLAB itself wrote, of each version and byte order.
WRITTEN_BY_MATLAB = sorted((Path(scipy_tests.__file__).parent / "data").glob("test[dmso]*_[67]*.mat"))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["f4", "f8", "i1", "u2", "i8"])
def test_matrices_are_read_as_they_were_saved(compressed, kind):
    values = np.random.default_rng(0).normal(scale=30, size=(7, 5)).astype(kind)
    file = io.BytesIO()
    savemat(file, {"signal": values, "tr": 2.0, "name": "text", "more": {"a": values}}, do_compression=compressed)
    file.seek(0)

    found = {variable.name: variable for variable in list_variables(file)}

    assert [name for name, variable in found.items() if variable.is_matrix] == ["signal", "tr"]
    np.testing.assert_array_equal(read_variable(file, found["signal"]), values)


@pytest.mark.skipif(not WRITTEN_BY_MATLAB, reason="scipy is installed without its test files")
def test_files_of_matlab_are_read_as_scipy_reads_them():
    compared = 0
    for path in WRITTEN_BY_MATLAB:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            expected = loadmat(path)
            for variable in list_variables(file):
                if variable.is_numeric:
                    np.testing.assert_array_equal(read_variable(file, variable), expected[variable.name])
                    compared += 1

    assert compared > 10


@pytest.mark.parametrize("compressed", [False, True])
def test_no_damage_escapes(compressed):
    """Every byte of the heads changed, and every cut, gives values or a MatlabError."""
    file = io.BytesIO()
    savemat(file, {"x": np.ones((3, 4))}, do_compression=compressed)
    whole = file.getvalue()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [whole[:n] + bytes([whole[n] ^ flip]) + whole[n + 1 :] for n in range(len(whole)) for flip in (1, 255)]
    outcomes = set()
    for content in damaged:
        file = io.BytesIO(content)
        try:
            for variable in list_variables(file):
                if variable.is_numeric and variable.most_bytes < 1000:
                    assert read_variable(file, variable).shape == variable.shape
            outcomes.add("read")
        except MatlabError:
            outcomes.add("refused")

    assert outcomes == {"read", "refused"}
