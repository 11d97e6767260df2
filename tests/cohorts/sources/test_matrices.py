"""What files of matrices give, and every kind of thing that they can hold instead of a matrix."""

import gzip
import io
import pickle
import re
import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from cohorts import Atlas, Cohort, CohortError, RecordingError, load_atlas
from cohorts.preparation import prepare_cohort
from cohorts.quality import QualityRules
from cohorts.settings import MatrixSettings
from cohorts.sources.formats import kind_of
from cohorts.sources.kinds import Run
from cohorts.sources.matrices import MatrixSource, participant_of
from tests.support.derivatives import write_ptseries
from tests.support.mat73 import write_mat73

ATLAS = load_atlas("schaefer100")
SIGNAL = np.random.default_rng(0).normal(size=(60, 100)).astype(np.float32)


def table(
    values: np.ndarray = SIGNAL,
    separator: str = "\t",
    header: list[str] | None = None,
    end: str = "\n",
    point: str = ".",
) -> str:
    rows = [separator.join(str(value).replace(".", point) for value in row) for row in values.tolist()]
    return end.join(([separator.join(header)] if header else []) + rows) + end


def npy(values: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def npy_header(shape: str, descr: str = "'<f8'", more: str = "") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}{more}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def mat(compressed: bool = False, **variables: object) -> bytes:
    file = io.BytesIO()
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def mat73(**variables: object) -> bytes:
    with TemporaryDirectory() as folder:
        return write_mat73(Path(folder) / "a.mat", **variables).read_bytes()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def ptseries(values: np.ndarray, names: list[str]) -> bytes:
    with TemporaryDirectory() as folder:
        write_ptseries(Path(folder) / "a.ptseries.nii", values, names, t_r=2.0)
        return (Path(folder) / "a.ptseries.nii").read_bytes()


def read(folder: Path, name: str, content: bytes | str, **options: object) -> np.ndarray:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    source = MatrixSource(folder, ATLAS, **options)
    (run,) = source.runs()
    return pickle.loads(pickle.dumps(source)).read(run).signal


NAMED = list(ATLAS.labels)
READ = {
    "npy": ("a.npy", npy(SIGNAL)),
    "npy in Fortran order": ("a.npy", npy(np.asfortranarray(SIGNAL))),
    "npy, big-endian": ("a.npy", npy(SIGNAL.astype(">f8"))),
    "mat": ("a.mat", mat(x=SIGNAL, tr=2.0)),
    "mat, compressed": ("a.mat", mat(True, x=SIGNAL, label="rest")),
    "mat 7.3": ("a.mat", mat73(x=SIGNAL, tr=2.0, label="rest", about={"mask": SIGNAL})),
    "mat 7.3, plain": ("a.mat", mat73(packed=False, x=SIGNAL.astype(float))),
    "npz of one array": ("a.npz", npz(arr_0=SIGNAL)),
    "npz with more than the signal": ("a.npz", npz(t_r=np.array(2.0), labels=np.array(["x"] * 100), x=SIGNAL)),
    "CIFTI": ("a.ptseries.nii", ptseries(SIGNAL, [label.removeprefix("7Networks_") for label in NAMED])),
    "CIFTI in another order": ("a.PTSERIES.NII", ptseries(SIGNAL[:, ::-1], NAMED[::-1])),
    "tsv, packed": ("a.tsv.gz", gzip.compress(table().encode())),
    "csv of named columns, packed": (
        "a.csv.gz",
        gzip.compress(table(separator=",", header=list(ATLAS.labels)).encode()),
    ),
    "1D, packed": ("a.1D.gz", gzip.compress(table(separator="  ").encode())),
    "tsv": ("a.tsv", table()),
    "tsv with Windows line ends": ("a.tsv", table(end="\r\n")),
    "tsv with a header": ("a.tsv", table(header=NAMED)),
    "tsv in another order": ("a.tsv", table(SIGNAL[:, ::-1], header=NAMED[::-1])),
    "tsv in UTF-16": ("a.tsv", table(header=NAMED).encode("utf-16")),
    "tsv with a byte-order mark": ("a.tsv", table(header=NAMED).encode("utf-8-sig")),
    "csv": ("a.csv", table(separator=",")),
    "csv in quotes": ("a.csv", table(separator=",", header=[f'"{label}"' for label in NAMED])),
    "csv that counts its columns from 0": ("a.csv", pd.DataFrame(SIGNAL.astype(float)).to_csv(index=False)),
    "csv that counts its rows": ("a.csv", pd.DataFrame(SIGNAL.astype(float)).to_csv()),
    "csv of named columns that counts its rows": ("a.csv", pd.DataFrame(SIGNAL.astype(float), columns=NAMED).to_csv()),
    "1D of ABIDE": ("a.1D", table(header=[f"#{code}" for code in range(2001, 2101)])),
}


@pytest.mark.parametrize(("name", "content"), READ.values(), ids=READ)
def test_what_holds_a_matrix_is_read_exactly(tmp_path, name, content):
    np.testing.assert_array_equal(read(tmp_path, name, content), SIGNAL)


def test_missing_parcels_come_as_nan(tmp_path):
    rows = [line.split("\t") for line in table().splitlines()]
    for row in rows:
        row[0], row[7] = "n/a", ""
    content = "\n".join("\t".join(row) for row in rows)

    values = read(tmp_path, "a.tsv", content)

    assert np.flatnonzero(np.isnan(values).all(axis=0)).tolist() == [0, 7]
    np.testing.assert_array_equal(values[:, 8:], SIGNAL[:, 8:])


def test_options_say_how_matrices_lie(tmp_path):
    wide = np.hstack([np.zeros((60, 3), np.float32), SIGNAL])
    labels = ["x", "y", "z", *NAMED]
    for number, (name, content, options) in enumerate(
        [
            ("a.npy", npy(SIGNAL.T), {"orientation": "parcels-first"}),
            ("a.tsv", table(header=NAMED), {"orientation": "parcels-first"}),  # its header knows better
            ("a.npy", npy(wide), {"columns": (4, 103)}),
            ("a.tsv", table(wide, header=labels), {"columns": (4, 103)}),
            ("a.mat", mat(x=SIGNAL, y=SIGNAL + 1), {"variable": "x"}),
            ("a.mat", mat73(x=SIGNAL, y=SIGNAL + 1), {"variable": "x"}),
            ("a.npz", npz(x=SIGNAL, y=SIGNAL + 1), {"variable": "x"}),
            ("a.ptseries.nii", ptseries(wide, labels), {"columns": (4, 103)}),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        np.testing.assert_array_equal(read(folder, name, content, **options), SIGNAL)


def test_counted_names_are_names_where_the_atlas_has_them(tmp_path):
    atlas = Atlas("own", tuple(f"p{number}" for number in (3, 1, 2)), np.eye(3))
    (tmp_path / "a.tsv").write_text("p1\tp2\tp3\n1\t2\t3\n1\t2\t3\n")
    matrices = MatrixSource(tmp_path, atlas)
    [run] = matrices.runs()
    assert matrices.read(run).signal.tolist() == [[3, 1, 2]] * 2


REFUSED = {
    # tests/bad_inputs holds more of them, by the command.
    "text as npy": ("a.npy", table(), "unreadable", "no array"),
    "dimensions beyond the file": ("a.npy", npy_header("(1000, 100)"), "unreadable", "ends before"),
    "negative dimensions": ("a.npy", npy_header("(-4, 100)"), "not-a-matrix", "shape"),
    "a header that nests": ("a.npy", npy_header("(" * 300), "unreadable", "no array"),
    "a header of negations": ("a.npy", npy_header("(" + "-" * 9000 + "1, 2)"), "unreadable", "no array"),
    "a header with a list as key": ("a.npy", npy_header("(2, 2)", more=", []: 1"), "unreadable", "no array"),
    "a type that is none": ("a.npy", npy_header("(2, 2)", "'<q99'"), "unreadable", "no array"),
    "booleans": ("a.npy", npy(SIGNAL > 0), "not-a-matrix", "bool"),
    "preamble of mat 7.3 alone": ("a.mat", mat73(x=SIGNAL)[:128], "unreadable", "save -v7"),
    "no matrix in mat 7.3": ("a.mat", mat73(s={"x": SIGNAL}, name="rest"), "not-a-matrix", "no two-dimensional"),
    "text as npz": ("a.npz", table(), "unreadable", "no whole .npz"),
    "truncated npz": ("a.npz", npz(x=SIGNAL)[:-100], "unreadable", "no whole .npz"),
    "npz without a matrix": ("a.npz", npz(x=SIGNAL[0], y=np.array(["a"])), "not-a-matrix", "no two-dimensional"),
    "npz of pickles": ("a.npz", npz(x=np.array([[{}, 1]] * 2, dtype=object)), "not-a-matrix", "no two-dimensional"),
    "text as CIFTI": ("a.ptseries.nii", table(), "unreadable", "CIFTI"),
    "CIFTI of another atlas": ("a.ptseries.nii", ptseries(SIGNAL[:, :50], NAMED[:50]), "wrong-atlas", "50 of the 100"),
    "CIFTI of another kind": ("a.dtseries.nii", b"x", "not-read", "Make one with wb_command -cifti-parcellate"),
    "pickle by its name": ("a.pkl", pickle.dumps(SIGNAL), "not-read", "can run code"),
    "text as gz": ("a.csv.gz", table(separator=","), "unreadable", "no whole .gz"),
    "HDF5 as mat": ("a.mat", b"\x89HDF\r\n\x1a\n" + bytes(600), "unreadable", "save -v7"),
    "text as mat": ("a.mat", table(), "unreadable", "MATLAB"),
    "truncated mat": ("a.mat", mat(x=SIGNAL)[:-100], "unreadable", "MATLAB"),
    "two matrices": ("a.mat", mat(x=SIGNAL, y=SIGNAL), "variable", "holds 2 matrices"),
    "no matrix": ("a.mat", mat(name="rest", tr=2.0), "not-a-matrix", "no two-dimensional"),
    "complex mat": ("a.mat", mat(x=SIGNAL + 1j), "not-a-matrix", "real numbers"),
    "UTF-16 without a mark": ("a.tsv", table().encode("utf-16-le"), "unreadable", "UTF-8"),
    "only a comment": ("a.csv", "# nothing\n\n", "unreadable", "no numbers"),
    "semicolons and decimal commas": ("a.csv", table(separator=";", point=","), "separator", "decimal"),
}


@pytest.mark.parametrize(("name", "content", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_what_holds_none_is_refused_with_its_reason(tmp_path, name, content, code, said):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)

    with pytest.raises(RecordingError, match=said) as fault:
        MatrixSource(tmp_path, ATLAS).read(Run(path.stem, "a", files=(path,)))

    assert fault.value.code == code
    assert str(fault.value).startswith(f"{name}: ") or code == "bad-id"
    assert str(tmp_path) not in str(fault.value)


ZEROS = np.zeros((80_000, 100))
"""64 MB, which are packed into 64 kB."""


def bomb_mat(path: Path) -> None:
    """A variable that declares six numbers, and inflates to 64 MB."""
    whole = bytearray(mat(x=np.zeros((8_000_000, 1))))
    whole[160:168] = struct.pack("<ii", 2, 3)
    packed = zlib.compress(bytes(whole[128:]))
    path.write_bytes(bytes(whole[:128]) + struct.pack("<II", 15, len(packed)) + packed)


@pytest.mark.parametrize(
    ("make", "name", "code"),
    [
        (lambda path: np.savez_compressed(path, a=ZEROS), "a.npz", "too-large"),
        (lambda path: np.savez_compressed(path, a=ZEROS), ".", "too-large"),
        (bomb_mat, "a.mat", "unreadable"),
        (lambda path: write_mat73(path, x=ZEROS), "a.mat", "too-large"),
        (lambda path: path.write_bytes(gzip.compress(b"0\t" * 2**25)), "a.tsv.gz", "too-large"),
    ],
)
def test_a_bomb_takes_no_memory(tmp_path, monkeypatch, make, name, code):
    path = tmp_path / (name if name != "." else "a.npz")
    make(path)
    monkeypatch.setattr("cohorts.sources.matrix_files.MAX_MATRIX_BYTES", 2**20)
    source = MatrixSource(path if name == "a.npz" else tmp_path, ATLAS)
    (run,) = source.runs()
    with suppress(RecordingError):
        source.read(run)  # imports what it needs

    tracemalloc.start()
    with pytest.raises(RecordingError) as fault:
        source.read(run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert fault.value.code == code
    assert peak < 2**22


def test_what_is_no_recording_is_passed_over_and_one_that_has_gone_is_refused(tmp_path):
    (tmp_path / "gone.npy").write_bytes(npy(SIGNAL))
    (tmp_path / "._mac.npy").write_bytes(b"resource fork")
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-01\n")
    source = MatrixSource(tmp_path, ATLAS)
    (run,) = source.runs()
    (tmp_path / "gone.npy").unlink()

    with pytest.raises(RecordingError, match="no longer there"):
        source.read(run)


def test_a_folder_names_what_it_does_not_read(tmp_path):
    """A recording in a form that is not read is not passed over; text beside the others, and their copies, are."""
    names = "sub-1.npy sub-2.xlsx sub-3.dtseries.nii sub-1.rds notes.txt participants.xlsx x.json"
    for name in names.split():
        (tmp_path / name).write_bytes(npy(SIGNAL))
    source = MatrixSource(tmp_path, ATLAS)

    assert [run.name for run in source.runs()] == ["sub-1", "sub-2", "sub-3"]
    (tmp_path / "sub-1.npy").unlink()
    with pytest.raises(CohortError, match=r"holds no file of .*sub-1\.rds: is a file of R"):
        source.runs()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sub-1.txt", "expected .tsv, .csv, or .1D for spaces. Rename it."),
        ("func/sub-1_bold.dtseries.nii", "Make one with wb_command -cifti-parcellate, or with XCP-D."),
        ("sub-1.pconn.nii", "or with XCP-D."),
        ("sub-1.h5", "Save it as .npy, .mat or .tsv."),
        ("README.txt", "Name another folder."),
    ],
)
def test_a_folder_of_nothing_that_is_read_says_why(tmp_path, name, said):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("1 2\n")
    with pytest.raises(CohortError, match=re.escape(said) + "$"):
        kind_of(tmp_path)


@pytest.mark.parametrize("name", ["a.npz", "a.ptseries.nii", "a.tsv.gz", "a.mat", "A.1D"])
def test_the_kind_of_a_folder_of_matrices_is_found_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert kind_of(tmp_path) == "matrices"


def test_sources_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "a.npy").write_bytes(npy(SIGNAL))
    twice = tmp_path / "twice"
    twice.mkdir()
    (twice / "a.npy").write_bytes(npy(SIGNAL))
    (twice / "a.tsv").write_text(table())
    for name, said in {
        "empty": "holds no",
        "loop": "not a readable",
        "text.npz": "not a readable",
        "a.npy": "expected an .npz file, or a folder",
        "none": "no such file",
        "twice": "'a' stands there twice",
    }.items():
        with pytest.raises(CohortError, match=said):
            MatrixSource(tmp_path / name, ATLAS).runs()


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("sub-01_ses-2_run-1", None, "sub-01"),
        ("PITT_0050003_rois_aal", None, "PITT_0050003"),
        ("sub-01_ses-2_run-1", ("sub-01", "sub-02"), "sub-01"),
        ("01", ("sub-01", "sub-1"), "sub-01"),
        ("sub-01", ("01", "02"), "01"),
        ("0050003", ("sub-0050003",), "sub-0050003"),
        ("0050003", ("50003", "50004"), "50003"),
        ("PITT_0050003_rois_aal", ("50003", "50004"), "50003"),
        ("UM_1_0050272_rois_cc200", ("50272", "50273"), "50272"),
        ("PITT_0050003_rois_aal", ("PITT_0050003",), "PITT_0050003"),
        ("sub-1_ses-2", ("sub-2",), "unknown-participant"),
        ("patientX_session_2", ("2", "3"), "unknown-participant"),
        ("../sub-02", ("sub-02",), "unknown-participant"),
        ("01", ("001", "1"), "ambiguous-participant"),
        ("a_b", ("a", "b"), "ambiguous-participant"),
    ],
)
def test_a_name_names_one_participant_or_none(name, known, expected):
    try:
        found = participant_of(name, known)
    except RecordingError as fault:
        found = fault.code

    assert found == expected


def test_runs_carry_the_labels_of_their_names(tmp_path):
    for name in ("sub-01_ses-2_task-rest_run-1", "sub-01_ses-10", "other"):
        (tmp_path / f"{name}.npy").write_bytes(npy(SIGNAL))

    runs = MatrixSource(tmp_path, ATLAS, participants=("sub-01",)).runs()

    assert [(run.participant, run.session, run.task, run.run) for run in runs] == [
        ("", "", "", ""),
        ("sub-01", "10", "", ""),
        ("sub-01", "2", "rest", "1"),
    ]


def test_a_square_matrix_lies_as_is_said(tmp_path):
    square = np.random.default_rng(1).normal(size=(100, 100)).astype(np.float32)
    np.testing.assert_array_equal(read(tmp_path, "a.npy", npy(square), orientation="frames-first"), square)
    np.testing.assert_array_equal(read(tmp_path, "a.npy", npy(square), orientation="parcels-first"), square.T)


def prepared(path: Path, out: Path, **options: object) -> Cohort:
    settings = MatrixSettings(**options)
    people = settings.read_participants(path)
    source = settings.open(path, people)
    return Cohort.open(prepare_cohort(source, out, settings, participants=people, rules=QualityRules()).path)


def test_good_matrices_come_in_with_what_the_table_says(tmp_path):
    table = "participant_id\tage\tsex\tt_r\nsub-01\t30\tF\t2.0\nsub-02\tn/a\tm\t2.0\nsub-03\t50\tM\t1.5\n"
    (tmp_path / "people.tsv").write_text(table)
    good = {name: SIGNAL + n for n, name in enumerate(("sub-01", "sub-02_ses-1_run-1", "sub-02_ses-1_run-2", "sub-03"))}
    np.savez(tmp_path / "a.npz", **good)

    cohort = prepared(tmp_path / "a.npz", tmp_path / "out", atlas="schaefer100", participants=tmp_path / "people.tsv")

    assert cohort.recordings["t_r"].tolist() == [2.0, 2.0, 2.0, 1.5]
    assert cohort.covariates()["sex"].tolist() == ["F", "M", "M"]
    for name, signal in good.items():
        np.testing.assert_array_equal(cohort.read(name).signal, signal)


def test_missing_parcels_are_kept_as_missing(tmp_path):
    partial = SIGNAL + 100
    partial[:, 3], partial[:, 4], partial[:, 5] = 0, 7, np.nan
    np.savez(tmp_path / "a.npz", **{"sub-01": partial})

    (recording,) = prepared(tmp_path / "a.npz", tmp_path / "out", atlas="schaefer100", tr=2.0)

    assert np.flatnonzero(~recording.coverage).tolist() == [3, 4, 5]
    assert (recording.signal[:, 3:6] == 0).all()
    assert recording.tsnr == pytest.approx(100, rel=0.1)


def test_real_recordings_come_in(real_data, tmp_path):
    """Three ABIDE sites: 36 all-zero parcels, and one of millionths, in 13 people, who all stay."""
    path, people = (real_data / "real" / f"abide_pitt_olin_ohsu_{name}" for name in ("aal116.npz", "participants.tsv"))
    totals = []
    for site in ("PITT", "OLIN", "OHSU"):
        cohort = prepared(path, tmp_path / site, atlas="aal116", participants=people, select=(f"site={site}",))
        missing = cohort.recordings["n_missing_parcels"]
        totals.append((len(cohort), int(missing.sum()), int((missing > 0).sum()), len(cohort.quarantined)))

    assert np.sum(totals, axis=0).tolist() == [100, 37, 13, 0]
