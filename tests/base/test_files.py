import os
import pickle
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from base.errors import FileError, InputError
from base.files import atomic_folder, atomic_path, read_arrays, save_arrays
from base.seeding import derive_seed


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


@pytest.mark.parametrize("fail", [True, False])
def test_a_failed_folder_is_gone_and_an_old_partial_one_is_cleared(tmp_path, fail):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale").touch()

    with pytest.raises(RuntimeError) if fail else nullcontext(), atomic_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
        if fail:
            raise RuntimeError

    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ([] if fail else ["out", "out/new"])


def test_seeds_depend_on_names_and_their_order():
    seeds = [derive_seed(*parts) for parts in ((1, "a"), (1, "b"), ("1", "a"), ("a", 1), (1, "a", 0))]

    assert len(set(seeds)) == len(seeds)
    assert derive_seed(1, "a") == seeds[0]
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("framework", ["numpy", "pt"])
def test_arrays_come_back_as_they_were_with_their_header(tmp_path, framework):
    arrays = {"number": np.float32(2.5), "across": np.arange(6.0).reshape(2, 3).T, "none": np.zeros((0, 4))}
    given = arrays if framework == "numpy" else {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}

    for name in ("a", "again"):
        save_arrays(tmp_path / name, given, {"b": 1, "a": [2]}, framework=framework)

    found, header = read_arrays(tmp_path / "a", framework=framework)
    assert header == {"a": [2], "b": 1}
    assert found.keys() == arrays.keys()
    for name, values in found.items():
        assert tuple(values.shape) == np.shape(arrays[name])
        np.testing.assert_array_equal(values, arrays[name])
    assert list(read_arrays(tmp_path / "a", ("across", "missing"))[0]) == ["across"]
    assert read_arrays(tmp_path / "a", ()) == ({}, header)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "again").read_bytes()


NO_ARRAYS = {
    "of another program": b"junk" * 9,
    "with a header larger than any": (2**40).to_bytes(8, "little") + b"{}",
    "cut off": b"\x08\0",
    "empty": b"",
}


def what_is_said(path: Path) -> str:
    with pytest.raises(InputError, match=r"^.*/x: (.*)\. Do it again\.$") as raised:
        read_arrays(path, error=InputError, remedy="Do it again.")
    return str(raised.value).removeprefix(f"{path}: ").removesuffix(". Do it again.")


def test_what_is_no_safetensors_file_is_refused_by_a_sentence(tmp_path):
    path = tmp_path / "x"
    assert what_is_said(path) == "is not there"
    for content in NO_ARRAYS.values():
        path.write_bytes(content)
        assert what_is_said(path) == "is damaged, or no safetensors file"
    pickled = "holds a pickle, which is not read since it can run code; expected safetensors"
    path.write_bytes(pickle.dumps({"weights": [1.0]}))
    assert what_is_said(path) == pickled
    torch.save({"weights": torch.ones(2)}, path)
    assert what_is_said(path) == pickled
    path.unlink()
    os.mkfifo(path)  # is not waited for
    assert what_is_said(path) == "is damaged, or no safetensors file"
    path.unlink()
    path.mkdir()
    assert what_is_said(path) == "is damaged, or no safetensors file"


def test_a_file_of_another_program_has_no_header(tmp_path):
    save_file({"x": np.ones(2)}, tmp_path / "x", metadata={"format": "pt"})
    assert read_arrays(tmp_path / "x")[1] is None
    for header in ("{no JSON", "[" * 100_000):
        save_file({"x": np.ones(2)}, tmp_path / "x", metadata={"fedbrainlm": header})
        with pytest.raises(FileError, match="is damaged"):
            read_arrays(tmp_path / "x")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn])
def test_numbers_that_numpy_has_not_are_refused_by_a_sentence(tmp_path, kind):
    save_arrays(tmp_path / "x", {"x": torch.ones(2).to(kind)}, framework="pt")

    assert read_arrays(tmp_path / "x", framework="pt")[0]["x"].dtype == kind
    with pytest.raises(FileError, match="is damaged, or no safetensors file"):
        read_arrays(tmp_path / "x")
