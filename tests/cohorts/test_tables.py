import gzip

import numpy as np
import pytest

from cohorts.errors import RecordingError
from cohorts.tables import read_numbers


@pytest.mark.parametrize(
    "content",
    [
        b"a\tb\n1.5\tn/a\n-2\t3\n",
        b"a\tb\r\n1.5\tn/a\r\n-2\t3\r\n",
        b"\xef\xbb\xbfa\tb\n1.5\tn/a\n-2\t3",
        b'"a"\t"b"\n1.5\t\n-2\t3\n',
        b"a,b\n1.5,NaN\n-2,3\n",
        b"a;b\n1.5;NA\n-2;3\n",
        "a\tb\n1.5\tnan\n-2\t3\n".encode("utf-16"),
    ],
)
def test_tables_of_any_editor_are_the_same(tmp_path, content):
    path = tmp_path / "x.tsv"
    path.write_bytes(content)
    table = read_numbers(path)
    assert list(table.columns) == ["a", "b"]
    np.testing.assert_array_equal(table.to_numpy(), [[1.5, np.nan], [-2, 3]])


def test_columns_of_text_are_kept(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("Node\tv\n1\t1\n")
    table = read_numbers(path, text=("Node",))
    assert list(table.columns) == ["Node", "v"]
    assert table.iloc[0].tolist() == ["1", 1.0]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "unreadable"),
        (b"\n\n", "unreadable"),
        (b"a\tb\n", "empty"),
        (b"0.5\t-1e3\n1\t2\n", "no-header"),
        (b"a\tb\n1,5\t2\n", "text"),
        (b"a\tb\n1\tx\n", "text"),
        (b"a\tb\n1\tTrue\n", "text"),
        (b"a\tb\ta\n1\t2\t3\n", "unreadable"),
        (b"a" * 200_000 + b"\n1\n", "unreadable"),
        (b"a\tb\n1\t2\t3\n", "unreadable"),
        (b"a\tb\n1\t2\n1\t2\t3\n", "unreadable"),
        (b"a\tb\n1\t\xff\xfe\n", "unreadable"),
        (b"a\tb\n\0\0\0\0\n", "unreadable"),
        ("a\tb\n1\t2\n".encode("utf-16-le"), "unreadable"),
        (gzip.compress(b"a\tb\n1\t2\n", mtime=0), "unreadable"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(tmp_path, content, code):
    path = tmp_path / "x.tsv"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"^x\.tsv: .+\. ?\S.*") as caught:
        read_numbers(path)
    assert caught.value.code == code


def test_a_file_that_went_away_or_is_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.tsv").mkdir()
    for name in ("gone.tsv", "folder.tsv"):
        with pytest.raises(RecordingError, match=f"^{name}: cannot be read"):
            read_numbers(tmp_path / name)


def test_a_table_too_large_for_a_run_is_not_read(tmp_path):
    with (tmp_path / "x.tsv").open("wb") as file:
        file.write(b"a\tb\n1\t2\n")
        file.truncate(9 * 2**30)  # a hole, which takes no place on the disk
    with pytest.raises(RecordingError, match=r"^x\.tsv: cannot be read \(is larger than 256 MiB\)"):
        read_numbers(tmp_path / "x.tsv")
