import numpy as np
import pytest
from safetensors.numpy import load_file

from base.files import atomic_folder, atomic_path, save_arrays
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


def test_a_failed_folder_is_gone_and_an_old_partial_one_is_cleared(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale").touch()

    def fill(fail: bool) -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "new").touch()
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        fill(fail=True)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale").touch()
    fill(fail=False)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["out", "out/new"]


def test_seeds_depend_on_names_and_their_order():
    seeds = [
        derive_seed(1, "a"),
        derive_seed(1, "b"),
        derive_seed("1", "a"),
        derive_seed("a", 1),
        derive_seed(1, "a", 0),
    ]

    assert len(set(seeds)) == len(seeds)
    assert derive_seed(1, "a") == seeds[0]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_arrays_keep_their_shapes(tmp_path):
    arrays = {"number": np.float32(2.5), "across": np.arange(6.0).reshape(2, 3).T, "none": np.zeros((0, 4))}

    save_arrays(tmp_path / "a", arrays)

    for name, values in load_file(tmp_path / "a").items():
        assert values.shape == np.shape(arrays[name])
        np.testing.assert_array_equal(values, arrays[name])
