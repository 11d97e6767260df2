"""The corpus of bad inputs: small good sources in which one thing is broken, and what becomes of each.

``python -m tests.bad_inputs.cases`` prints the table of README.md.
"""

import fcntl
import gzip
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cli.main import run_command
from tests.bad_inputs.sources import (
    IMAGES,
    MATRICES,
    N_FRAMES,
    NIFTI,
    PEOPLE,
    XCPD,
    archive,
    change_header,
    fmriprep,
    matrices,
    nifti,
    signal,
    tables,
    write_archive,
    write_atlas,
    write_people,
    xcpd,
)
from tests.support.derivatives import write_ptseries
from tests.support.mat73 import write_mat73
from tests.support.volumes import AFFINE, block_labels, noise, paint, save_nifti

REFUSED = "refused"
"""The command ends with exit code 2 and leaves nothing."""
STOPPED = "stopped"
"""The command ends with exit code 2 and leaves what it had done, for the next one to go on."""
ACCEPTED = "accepted"
"""It looks bad and is not: every recording is in."""

CleanUp = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes
    ----------
    name : str
        What is wrong.
    build : callable
        Makes it in an empty folder; may return what is to be called afterwards.
    command : tuple of str
        The arguments, to be run in that folder.
    outcome : str
        `REFUSED`, `STOPPED`, `ACCEPTED`, or the code that the bad recording of sub-A02 is quarantined with, while
        the other two are in the cohort.
    says : str
        What the user sees; … stands for what differs from run to run.
    """

    name: str
    build: Callable[[Path], CleanUp | None]
    command: tuple[str, ...]
    outcome: str
    says: str


CASES: list[Case] = []


def case(
    name: str, command: tuple[str, ...], outcome: str, says: str
) -> Callable[[Callable[[Path], CleanUp | None]], Callable[[Path], CleanUp | None]]:
    """Enter the function below into the corpus."""

    def enter(build: Callable[[Path], CleanUp | None]) -> Callable[[Path], CleanUp | None]:
        CASES.append(Case(name, build, command, outcome, says))
        return build

    return enter


def readme_table() -> str:
    """Table of every kind, as README.md has it."""
    rows = ["| Kind | What becomes of it | What the user reads |", "|---|---|---|"]
    for one in CASES:
        known = {
            REFUSED: "refused, exit code 2",
            STOPPED: "stopped, exit code 2; goes on when repeated",
            ACCEPTED: "accepted",
        }
        outcome = known.get(one.outcome, f"quarantined, `{one.outcome}`")
        rows.append(f"| {one.name} | {outcome} | {one.says.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


ALONE = (*MATRICES[:-4], *MATRICES[-2:])
"""Without a participants table."""
NPY = Path("source/sub-A02.npy")
TSV = Path("source/sub-A02.tsv")
BOLD = Path("source/sub-A02_task-rest_bold.nii.gz")
FUNC = Path("source/sub-02/func")
PREP = FUNC / "sub-02_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
CONFOUNDS = FUNC / "sub-02_task-rest_desc-confounds_timeseries.tsv"
SERIES = FUNC / "sub-02_task-rest_space-MNI152NLin6Asym_seg-4S156Parcels_stat-mean_timeseries.tsv"

# --- Matrices: what is in them -------------------------------------------------------------------------------------


def changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Make a builder of matrices of which the second is another."""

    def build(folder: Path) -> None:
        matrices(folder)
        np.save(folder / NPY, change(signal(1)))

    return build


def put(matrix: np.ndarray, where: object, value: float) -> np.ndarray:
    matrix[where] = value
    return matrix


case(
    "matrix transposed",
    MATRICES,
    "transposed",
    "sub-A02.npy: has 8 rows, the number of parcels of atlas, and 80 columns; expected one row a frame. "
    "It looks transposed: use --orientation parcels-first if it is.",
)(changed(lambda m: m.T))
case(
    "matrix of another atlas",
    MATRICES,
    "wrong-parcels",
    "sub-A02: has 12 columns; expected the 8 parcels of atlas. Name the right atlas, or pick columns with --columns.",
)(changed(lambda m: signal(1, n_parcels=12)))
case(
    "parcels missing, as columns left out",
    MATRICES,
    "wrong-parcels",
    "sub-A02: has 7 columns; expected the 8 parcels of atlas. Name the right atlas, or pick columns with --columns.",
)(changed(lambda m: m[:, :7]))
case(
    "parcels missing, as columns of NaN",
    MATRICES,
    ACCEPTED,
    "result/cohort: 3 recordings of 3 participants, from matrices.",
)(changed(lambda m: put(m, (slice(None), 0), np.nan)))
case(
    "half of the parcels missing",
    MATRICES,
    "low-coverage",
    "sub-A02: 50.0% of the parcels have a signal, the others are NaN or constant but for rounding; expected at "
    "least 80%. Check its field of view and atlas, or lower min_coverage.",
)(changed(lambda m: put(m, (slice(None), slice(4)), np.nan)))
case(
    "all zero",
    MATRICES,
    "constant",
    "sub-A02: no parcel changes over time by more than rounding does; expected BOLD signals. Check how it was "
    "extracted.",
)(changed(lambda m: m * 0))
case(
    "constant",
    MATRICES,
    "constant",
    "sub-A02: no parcel changes over time by more than rounding does; expected BOLD signals. Check how it was "
    "extracted.",
)(changed(lambda m: m * 0 + 7))
case(
    "half of the parcels residue of rounding",
    MATRICES,
    "low-coverage",
    "sub-A02: 50.0% of the parcels have a signal, the others are NaN or constant but for rounding; expected at "
    "least 80%. Check its field of view and atlas, or lower min_coverage.",
)(changed(lambda m: np.hstack([m[:, :4], 1e-13 * (m[:, 4:] - 50)])))
case(
    "nothing but residue of rounding",
    MATRICES,
    "constant",
    "sub-A02: no parcel changes over time by more than rounding does; expected BOLD signals. Check how it was "
    "extracted.",
)(changed(lambda m: 1e-13 * (m - 50)))
case(
    "some NaN",
    MATRICES,
    "nan",
    "sub-A02: has NaN in 1 frames of 1 parcels; expected numbers, or NaN in a whole parcel that is "
    "missing. Interpolate or drop those frames first.",
)(changed(lambda m: put(m, (3, 2), np.nan)))
case("infinite", MATRICES, "infinite", "sub-A02: holds infinite values; expected finite ones. Clean it first.")(
    changed(lambda m: put(m, (3, 2), np.inf))
)
case(
    "numbers too large for float32",
    MATRICES,
    "infinite",
    "sub-A02: holds infinite values; expected finite ones. Clean it first.",
)(changed(lambda m: m.astype(np.float64) * 1e300))
case(
    "numbers too large to square in float32",
    MATRICES,
    "out-of-range",
    "sub-A02: holds values of 1e+30; expected at most 1e+15, whose squares float32 can still add up. Find out which "
    "step made them, and clean it first.",
)(changed(lambda m: put(m, (3, 2), 1e30)))
case(
    "too few frames",
    MATRICES,
    "too-short",
    "sub-A02: has 20 frames; expected at least 40. Leave it out, or lower min_frames.",
)(changed(lambda m: m[:20]))
case(
    "too few seconds",
    (*MATRICES[:-1], "1.4"),
    REFUSED,
    "cohort: none of its 3 recordings is usable (3 too-short). The first: sub-A01: has 80 frames (112 "
    "s); expected at least 40 frames and 120 s. Leave it out, or lower min_seconds.",
)(matrices)
case(
    "connectivity instead of time series",
    MATRICES,
    "connectivity",
    "sub-A02.npy: is a symmetric 80 x 80 matrix, as of connectivity; expected time series. Export the "
    "parcels' time series instead.",
)(changed(lambda m: np.corrcoef(m)))
case(
    "as many frames as parcels",
    MATRICES,
    "ambiguous",
    "sub-A02.npy: has 8 rows and 8 columns, so frames and parcels cannot be told apart. Say which with "
    "--orientation frames-first or parcels-first.",
)(changed(lambda m: m[:8]))
case(
    "complex numbers",
    MATRICES,
    "not-a-matrix",
    "sub-A02.npy: has shape (80, 8) of complex64; expected numbers, frames by parcels. Export one matrix a recording.",
)(changed(lambda m: m * 1j))
case(
    "strings in an array",
    MATRICES,
    "not-a-matrix",
    "sub-A02.npy: has shape (80, 8) of <U8; expected numbers, frames by parcels. Export one matrix a recording.",
)(changed(lambda m: m.astype("U8")))
case(
    "one-dimensional array",
    MATRICES,
    "not-a-matrix",
    "sub-A02.npy: has shape (80,) of float32; expected numbers, frames by parcels. Export one matrix a recording.",
)(changed(lambda m: m[:, 0]))
case(
    "three-dimensional array",
    MATRICES,
    "not-a-matrix",
    "sub-A02.npy: has shape (1, 80, 8) of float32; expected numbers, frames by parcels. Export one matrix a recording.",
)(changed(lambda m: m[None]))
case(
    "no frames at all",
    MATRICES,
    "too-short",
    "sub-A02: has 0 frames; expected at least 2. Leave it out.",
)(changed(lambda m: m[:0]))
case("one frame", MATRICES, "too-short", "sub-A02: has 1 frame; expected at least 2. Leave it out.")(
    changed(lambda m: m[:1])
)
case("big-endian float64 array", MATRICES, ACCEPTED, "result/cohort: 3 recordings of 3 participants, from matrices.")(
    changed(lambda m: m.astype(">f8"))
)


@case(
    "pickled objects in an .npy",
    MATRICES,
    "unreadable",
    "sub-A02.npy: holds pickled Python objects, which are not read since they can run code; expected "
    "numbers. Export the array as float32.",
)
def _(folder: Path) -> None:
    matrices(folder)
    np.save(folder / NPY, np.array([[{"run": "me"}]], dtype=object), allow_pickle=True)


@case(
    "a pickle named .npy",
    MATRICES,
    "unreadable",
    "sub-A02.npy: is no array that numpy wrote, whatever its name says. Export it again.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).write_bytes(pickle.dumps(signal(1)))


@case(
    "an .npy that declares huge dimensions",
    MATRICES,
    "too-large",
    "sub-A02.npy: declares 298 GiB; expected at most 1 GiB a recording. Export parcels, not voxels, and "
    "one matrix a recording.",
)
def _(folder: Path) -> None:
    matrices(folder)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 8)}\n"
    (folder / NPY).write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


@case(
    "truncated .npy",
    MATRICES,
    "unreadable",
    "sub-A02.npy: ends before the numbers that its header declares. Copy or export it again.",
)
def _(folder: Path) -> None:
    matrices(folder)
    os.truncate(folder / NPY, 1000)


@case("empty file", MATRICES, "unreadable", "sub-A02.npy: is empty; expected a matrix. Export it again.")
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).write_bytes(b"")


@case(
    "folder named like a file",
    MATRICES,
    "unreadable",
    "sub-A02.npy: is a folder or a device; expected a file. Move it away.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).unlink()
    (folder / NPY).mkdir()


@case(
    "named pipe in place of a file",
    MATRICES,
    "unreadable",
    "sub-A02.npy: is a folder or a device; expected a file. Move it away.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).unlink()
    os.mkfifo(folder / NPY)


@case("link that leads nowhere", MATRICES, "unreadable", "sub-A02.npy: is no longer there. Restore it, and repeat.")
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).unlink()
    (folder / NPY).symlink_to("gone.npy")


@case(
    "link to itself",
    MATRICES,
    "unreadable",
    "sub-A02.npy: cannot be read (Too many levels of symbolic links); expected a file that opens. Check "
    "its permissions, links and disk.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).unlink()
    (folder / NPY).symlink_to(NPY.name)


@case(
    "unreadable file",
    MATRICES,
    "unreadable",
    "sub-A02.npy: cannot be read (Permission denied); expected a file that opens. Check its permissions, "
    "links and disk.",
)
def _(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    matrices(folder)
    (folder / NPY).chmod(0)


@case(
    "the same recording as .npy and .csv",
    MATRICES,
    REFUSED,
    "source: 'sub-A02' stands there twice. Leave one matrix a recording.",
)
def _(folder: Path) -> None:
    matrices(folder)
    np.savetxt(folder / "source/sub-A02.csv", signal(1), delimiter=",")


@case(
    "name with spaces and umlauts",
    ALONE,
    "bad-id",
    "recording id 'Messung für sub A02 (2)': expected letters, digits, '.', '_' or '-', starting with a "
    "letter or digit. Rename it.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).rename(folder / "source/Messung für sub A02 (2).npy")


@case(
    "name with a line break",
    ALONE,
    "bad-id",
    "recording id 'A02�Mueller': expected letters, digits, '.', '_' or '-', starting with a letter or "
    "digit. Rename it.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).rename(folder / "source/A02\nMueller.npy")


@case("name that is not UTF-8", MATRICES, REFUSED, "'A02\\udcff': is no name in UTF-8; expected one. Rename the file.")
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).rename(os.fsdecode(os.fsencode(folder) + b"/source/A02\xff.npy"))


# --- Archives and MATLAB files ----------------------------------------------------------------------------------

ARCHIVE = tuple("source.npz" if word == "source" else word for word in MATRICES)


@case(
    "zip bomb: an .npz member of gigabytes",
    ARCHIVE,
    "too-large",
    "sub-A02: declares 2.98 GiB; expected at most 1 GiB a recording. Export parcels, not voxels, and one "
    "matrix a recording.",
)
def _(folder: Path) -> None:
    archive(folder)
    with zipfile.ZipFile(folder / "source.npz") as made:
        members = {name: made.read(name) for name in made.namelist()}
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000, 8), }".ljust(117) + b"\n"
    zeros = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(2**25)
    members["sub-A02.npy"] = zeros
    with zipfile.ZipFile(folder / "source.npz", "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)


@case(
    "an .npz key that climbs out of the output",
    (*ALONE[:2], "source.npz", *ALONE[3:]),
    "bad-id",
    "recording id '../../../sub-A02': expected letters, digits, '.', '_' or '-', starting with a letter "
    "or digit. Rename it.",
)
def _(folder: Path) -> None:
    archive(folder)
    write_archive(folder, {"sub-A01": signal(0), "../../../sub-A02": signal(1), "sub-A03": signal(2)})


@case(
    "truncated .npz",
    ARCHIVE,
    REFUSED,
    "source.npz: is not a readable .npz file or folder. Check its permissions, or export it again.",
)
def _(folder: Path) -> None:
    archive(folder)
    os.truncate(folder / "source.npz", 3000)


@case(
    "damaged member of an .npz",
    ARCHIVE,
    "unreadable",
    "sub-A02: is damaged or encrypted in source.npz; expected an array that numpy wrote. Export it again.",
)
def _(folder: Path) -> None:
    archive(folder)
    content = bytearray((folder / "source.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "source.npz").write_bytes(content)


@case(
    "an .npz that is no archive",
    ARCHIVE,
    REFUSED,
    "source.npz: is not a readable .npz file or folder. Check its permissions, or export it again.",
)
def _(folder: Path) -> None:
    archive(folder)
    (folder / "source.npz").write_text("sub-A01,1,2,3\n")


@case(
    "an .npz that is a named pipe",
    (*ARCHIVE, "--kind", "matrices"),
    REFUSED,
    "source.npz: is not a readable .npz file or folder. Check its permissions, or export it again.",
)
def _(folder: Path) -> None:
    archive(folder)
    (folder / "source.npz").unlink()
    os.mkfifo(folder / "source.npz")


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Make a builder of matrices of which the second is another file, which is named so and made by a function."""

    def build(folder: Path) -> None:
        matrices(folder)
        (folder / NPY).unlink()
        make(folder / "source" / name)

    return build


def cut_off(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def leading_out(path: Path) -> None:
    write_mat73(path, tr=2.0)
    with h5py.File(path, "r+") as file:
        file["x"] = h5py.ExternalLink("/etc/passwd", "/x")


def huge(path: Path) -> None:
    write_mat73(path, tr=2.0)
    with h5py.File(path, "r+") as file:
        file.create_dataset("x", (8, 10**10), "f8", chunks=(8, 64), compression="gzip")


THREE = "result/cohort: 3 recordings of 3 participants, from matrices."
OF_PEOPLE = {"sub-A01": signal(0), "sub-A03": signal(2)}
SEVERAL = (
    "holds 2 matrices; expected one in each file of a folder. Name the variable to take (--variable), or split the "
    "file; an .npz whose arrays are recordings is a source by itself."
)
case("MATLAB 7.3", MATRICES, ACCEPTED, THREE)(
    instead("sub-A02.mat", lambda path: write_mat73(path, x=signal(1), tr=2.0))
)
case(
    "truncated MATLAB 7.3 file",
    MATRICES,
    "unreadable",
    "sub-A02.mat: is no whole MATLAB file of version 5 to 7.3. Save it again with 'save -v7'.",
)(instead("sub-A02.mat", lambda path: cut_off(write_mat73(path, x=signal(1)), 3000)))
case(
    "MATLAB 7.3 file that declares huge dimensions",
    MATRICES,
    "too-large",
    "sub-A02.mat: declares 596 GiB; expected at most 1 GiB a recording. Export parcels, not voxels, and one matrix a "
    "recording.",
)(instead("sub-A02.mat", huge))
case(
    "MATLAB 7.3 file that leads to another file",
    MATRICES,
    "not-a-matrix",
    "sub-A02.mat: holds no two-dimensional variable of real numbers; expected numbers, frames by parcels. Export one "
    "matrix a recording.",
)(instead("sub-A02.mat", leading_out))
case("MATLAB file of several matrices, named by people", MATRICES, "variable", f"sub-A02.mat: {SEVERAL}")(
    instead("sub-A02.mat", lambda path: write_mat73(path, **OF_PEOPLE))
)
case("an .npz in a folder", MATRICES, ACCEPTED, THREE)(
    instead("sub-A02.npz", lambda path: np.savez(path, signal(1), tr=2.0))
)
case("an .npz of several arrays in a folder, named by people", MATRICES, "variable", f"sub-A02.npz: {SEVERAL}")(
    instead("sub-A02.npz", lambda path: np.savez(path, **OF_PEOPLE))
)
case("CIFTI series in a folder", MATRICES, ACCEPTED, THREE)(
    instead(
        "sub-A02.ptseries.nii",
        lambda path: write_ptseries(path, signal(1), [f"parcel-{number}" for number in range(8)], 2.0),
    )
)
case("packed table", MATRICES, ACCEPTED, THREE)(
    instead("sub-A02.csv.gz", lambda path: np.savetxt(path, signal(1), delimiter=","))
)
case(
    "packed table that is cut off",
    MATRICES,
    "unreadable",
    "sub-A02.csv.gz: is no whole .gz file. Copy it again, or export it again.",
)(instead("sub-A02.csv.gz", lambda path: path.write_bytes(gzip.compress(b"1,2\n" * 999)[:-9])))
case(
    "spreadsheet among matrices",
    MATRICES,
    "not-read",
    "sub-A02.xlsx: is a spreadsheet; expected text. Save it as .tsv or .csv.",
)(instead("sub-A02.xlsx", lambda path: path.write_bytes(b"PK")))


# --- Tables of numbers -------------------------------------------------------------------------------------------


def rewritten(change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    """Make a builder of tables of which the second has another text."""

    def build(folder: Path) -> None:
        tables(folder)
        text = change((folder / TSV).read_text())
        (folder / TSV).write_bytes(text if isinstance(text, bytes) else text.encode())

    return build


case(
    "header of the 17-network order",
    MATRICES,
    "wrong-atlas",
    "sub-A02.tsv: names parcels in the 17-network order of Schaefer's atlas; expected atlas, which has "
    "other names and another order. Name the atlas table of the 17-network order.",
)(rewritten(lambda text: text.replace("parcel-0", "17Networks_LH_VisCent_ExStr_1")))
case(
    "a column left out",
    MATRICES,
    "wrong-parcels",
    "sub-A02: has 7 columns; expected the 8 parcels of atlas. Name the right atlas, or pick columns with --columns.",
)(rewritten(lambda text: "\n".join(line.rpartition("\t")[0] for line in text.splitlines())))
case(
    "header that names a parcel twice",
    MATRICES,
    "repeated-parcel",
    "sub-A02.tsv: names 'parcel-0' twice; expected one column a parcel. Export it again.",
)(rewritten(lambda text: text.replace("parcel-1", "parcel-0")))
case(
    "columns sorted as text: roi_1, roi_10, roi_2",
    MATRICES,
    "wrong-order",
    "sub-A02.tsv: its header counts the columns out of order ('roi_2' after 'roi_10'); expected the "
    "order of the atlas. Put them in order, or name the parcels.",
)(rewritten(lambda text: text.replace("parcel-", "roi_").replace("roi_1", "roi_10")))
case(
    "commas in a .tsv",
    MATRICES,
    "separator",
    "sub-A02.tsv: separates its numbers by commas; expected tabs. Save it so, with decimal points, or "
    "give it the suffix of what it is (.tsv, .csv).",
)(rewritten(lambda text: text.replace("\t", ",")))
case(
    "semicolons in a .tsv",
    MATRICES,
    "separator",
    "sub-A02.tsv: separates its numbers by semicolons; expected tabs. Save it so, with decimal points, "
    "or give it the suffix of what it is (.tsv, .csv).",
)(rewritten(lambda text: text.replace("\t", ";")))
case(
    "decimal commas",
    MATRICES,
    "separator",
    "sub-A02.tsv: has decimal commas or semicolons in its numbers; expected decimal points, and tabs "
    "between the numbers. Save it so.",
)(rewritten(lambda text: text.replace(".", ",")))
case(
    "rows of different lengths",
    MATRICES,
    "ragged",
    "sub-A02.tsv: row 81 has 2 values, and the first line has 8; expected as many in each. Export it "
    "again, with n/a where a value is missing.",
)(rewritten(lambda text: text + "1\t2\n"))
case(
    "text between the numbers",
    MATRICES,
    "text",
    "sub-A02.tsv: holds text between its numbers, first in column 1; expected numbers and n/a. Check its "
    "separator and header.",
)(rewritten(lambda text: text + "\t".join(["Mueller", *"1234567"]) + "\n"))
case(
    "a table that is binary",
    MATRICES,
    "unreadable",
    "sub-A02.tsv: is no text in UTF-8; expected a table of numbers. Save it as UTF-8 text.",
)(rewritten(lambda text: bytes(range(256)) * 4))
case(
    "UTF-16, as spreadsheets save it",
    MATRICES,
    ACCEPTED,
    "result/cohort: 3 recordings of 3 participants, from matrices.",
)(rewritten(lambda text: text.encode("utf-16")))
case("Windows line ends", MATRICES, ACCEPTED, "result/cohort: 3 recordings of 3 participants, from matrices.")(
    rewritten(lambda text: text.replace("\n", "\r\n"))
)
case(
    "byte-order mark before the header",
    MATRICES,
    ACCEPTED,
    "result/cohort: 3 recordings of 3 participants, from matrices.",
)(rewritten(lambda text: text.encode("utf-8-sig")))
case("only a header", MATRICES, "unreadable", "sub-A02.tsv: holds no numbers; expected a matrix. Export it again.")(
    rewritten(lambda text: text.partition("\n")[0] + "\n")
)

# --- The participants table --------------------------------------------------------------------------------------


def people(header: str = "participant_id\tage\tsex", *rows: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        matrices(folder)
        write_people(folder, header, rows or tuple(f"{name}\t30\tF" for name in PEOPLE))

    return build


ROW1, ROW3 = "sub-A01\t30\tF", "sub-A03\t30\tF"
case(
    "participant twice in the table",
    MATRICES,
    REFUSED,
    "participants.tsv: participant 'sub-A02' stands twice (again in row 4); expected one row a "
    "participant. Merge the rows, or tell them apart in a column session_id.",
)(people("participant_id\tage\tsex", ROW1, "sub-A02\t31\tM", "A02\t32\tM", ROW3))
case(
    "participant not in the table",
    MATRICES,
    "unknown-participant",
    "sub-A02: no participant of that name is in the participants table. Add the row, or rename it.",
)(people("participant_id\tage\tsex", ROW1, ROW3))
case(
    "age as text",
    MATRICES,
    REFUSED,
    "participants.tsv: row 3 has age 'forty'; expected a number in years from 0 to 120, or n/a. Write "
    "the number alone.",
)(people("participant_id\tage\tsex", ROW1, "sub-A02\tforty\tM", ROW3))
case(
    "age with a decimal comma",
    MATRICES,
    REFUSED,
    "participants.tsv: row 3 has age '40,5'; expected a number in years from 0 to 120, or n/a. Write it "
    "with a decimal point.",
)(people("participant_id\tage\tsex", ROW1, "sub-A02\t40,5\tM", ROW3))
case(
    "age in months",
    MATRICES,
    REFUSED,
    "participants.tsv: row 3 has age '480'; expected a number in years from 0 to 120, or n/a. Correct "
    'it; if ages are in months, say so in a .json beside it: {"age": {"Units": "month"}}.',
)(people("participant_id\tage\tsex", ROW1, "sub-A02\t480\tM", ROW3))
case(
    "sex as 1 and 2 without levels",
    MATRICES,
    REFUSED,
    "participants.tsv: row 2 has sex '1'; expected F, M or n/a. Recode it, or give its Levels in "
    "participants.json: which number means which sex cannot be guessed.",
)(people("participant_id\tage\tsex", "sub-A01\t30\t1", "sub-A02\t30\t2", "sub-A03\t30\t1"))
case(
    "commas in participants.tsv",
    MATRICES,
    REFUSED,
    "participants.tsv: separates its columns by commas; expected tabs in a .tsv file. Save it so.",
)(people("participant_id,age,sex", *(f"{name},30,F" for name in PEOPLE)))
case(
    "no column participant_id",
    MATRICES,
    REFUSED,
    "participants.tsv: has no column participant_id (columns: subject, age, sex). Add it, and separate "
    "columns by tabs in .tsv and by commas in .csv files.",
)(people("subject\tage\tsex"))
case(
    "participants table with a column twice",
    MATRICES,
    REFUSED,
    "participants.tsv: has more than one column 'age'. Rename or remove all but one.",
)(people("participant_id\tage\tage"))
case(
    "participants table with rows of different lengths",
    MATRICES,
    REFUSED,
    "participants.tsv: row 3 has 2 cells, and the header 3; expected as many in each, with n/a where a "
    "value is missing. Correct it.",
)(people("participant_id\tage\tsex", ROW1, "sub-A02\t31", ROW3))
case("participant without an id", MATRICES, REFUSED, "participants.tsv: row 3 has no participant_id. Fill it in.")(
    people("participant_id\tage\tsex", ROW1, "n/a\t31\tF", ROW3)
)
case(
    "participants' id that climbs out of the output",
    (*MATRICES, "--keep-ids"),
    "unknown-participant",
    "sub-A03: no participant of that name is in the participants table. Add the row, or rename it.",
)(people("participant_id\tage\tsex", ROW1, "sub-A02\t31\tF", "../../A03\t31\tF"))
case(
    "repetition time in milliseconds in the table",
    MATRICES[:-2],
    REFUSED,
    "participants.tsv: row 2 has t_r '2000'; expected a number in seconds from 0 to 20, or n/a. Correct it.",
)(people("participant_id\tage\tt_r", *(f"{name}\t30\t2000" for name in PEOPLE)))
case(
    "repetition time that contradicts the table",
    MATRICES,
    "tr-contradicts",
    "sub-A02: its repetition time is 2 s, and 3 s in the participants table; expected one. Correct the table.",
)(people("participant_id\tage\tt_r", "sub-A01\t30\t2", "sub-A02\t30\t3", "sub-A03\t30\t2"))
case(
    "value missing that is required",
    (*MATRICES, "--require", "age"),
    "missing-covariate",
    "sub-A02: its participant has no age in the participants table. Fill it in, or choose another rule "
    "(--missing keep).",
)(people("participant_id\tage\tsex", ROW1, "sub-A02\tn/a\tM", ROW3))
case(
    "value missing, and the rule is to refuse",
    (*MATRICES, "--require", "age", "--missing", "refuse"),
    REFUSED,
    "the participants table: 1 of 3 participants have no age; expected a value for each. Fill it in, or "
    "choose another rule (--missing keep or quarantine).",
)(people("participant_id\tage\tsex", ROW1, "sub-A02\tn/a\tM", ROW3))
case(
    "required column that is not there",
    (*MATRICES, "--require", "agee"),
    REFUSED,
    "the participants table has no column 'agee' (columns: participant_id, age, sex). Add it, or do not ask for it.",
)(matrices)
case(
    "--select of an unknown column",
    (*MATRICES, "--select", "sexx=F"),
    REFUSED,
    "--select sexx=F: the participants table has no column 'sexx' (columns: participant_id, age, sex). "
    "Correct the name.",
)(matrices)
case(
    "--select of a value that nobody has",
    (*MATRICES, "--select", "sex=female"),
    REFUSED,
    "--select sex=female: no participant has it (found: F, M). Correct it.",
)(matrices)
case(
    "--select without =",
    (*MATRICES, "--select", "sex"),
    REFUSED,
    "--select sex: expected COLUMN=VALUE, such as site=PITT. Correct it.",
)(matrices)


def table_bytes(content: bytes | None) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        matrices(folder)
        path = folder / "participants.tsv"
        text = path.read_text()
        path.write_bytes(text.encode("utf-16") if content is None else content)

    return build


case(
    "participants table in UTF-16", MATRICES, ACCEPTED, "result/cohort: 3 recordings of 3 participants, from matrices."
)(table_bytes(None))
case(
    "participants table without a byte",
    MATRICES,
    REFUSED,
    "participants.tsv: cannot be read as a table; expected UTF-8 text with a header row, columns "
    "separated by tabs (.tsv) or commas (.csv). Save it so.",
)(table_bytes(b""))
case(
    "participants table with a header alone",
    MATRICES,
    REFUSED,
    "cohort: none of its 3 recordings is usable (3 unknown-participant). The first: sub-A01: no "
    "participant of that name is in the participants table. Add the row, or rename it.",
)(table_bytes(b"participant_id\tage\tsex\n"))
case(
    "participants table that is a spreadsheet's file",
    MATRICES,
    REFUSED,
    "participants.tsv: cannot be read as a table; expected UTF-8 text with a header row, columns "
    "separated by tabs (.tsv) or commas (.csv). Save it so.",
)(table_bytes(b"PK\x03\x04" + bytes(range(256))))
case(
    "participants table in Latin-1",
    MATRICES,
    REFUSED,
    "participants.tsv: cannot be read as a table; expected UTF-8 text with a header row, columns "
    "separated by tabs (.tsv) or commas (.csv). Save it so.",
)(table_bytes("participant_id\tort\nsub-A01\tKöln\n".encode("latin-1")))


@case(
    "participants table that is a named pipe",
    MATRICES,
    REFUSED,
    "participants.tsv: cannot be read as a table; expected UTF-8 text with a header row, columns "
    "separated by tabs (.tsv) or commas (.csv). Save it so.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / "participants.tsv").unlink()
    os.mkfifo(folder / "participants.tsv")


@case(
    "participants.json that is a named pipe",
    MATRICES,
    REFUSED,
    "participants.json: cannot be read; expected a JSON object that describes each column. Correct it, "
    "or move it away.",
)
def _(folder: Path) -> None:
    matrices(folder)
    os.mkfifo(folder / "participants.json")


@case(
    "participants.json that is broken",
    MATRICES,
    REFUSED,
    "participants.json: cannot be read; expected a JSON object that describes each column. Correct it, "
    "or move it away.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / "participants.json").write_text('{"age": ')


@case(
    "participants.tsv of the source, a link that leads nowhere",
    NIFTI,
    REFUSED,
    "source/participants.tsv: no such participants table. Check the path.",
)
def _(folder: Path) -> None:
    nifti(folder)
    (folder / "source/participants.tsv").symlink_to("gone.tsv")


# --- NIfTI files ---------------------------------------------------------------------------------------------------


def replaced(content: Callable[[bytes], bytes], path: Path = BOLD) -> Callable[[Path], None]:
    """Make a builder of NIfTI images of which the second file has other bytes."""

    def build(folder: Path) -> None:
        nifti(folder)
        (folder / path).write_bytes(content((folder / path).read_bytes()))

    return build


def volumes(seed: int = 1, n_frames: int = N_FRAMES) -> np.ndarray:
    return paint(noise(n_frames, seed=seed))


def saved(save: Callable[[Path], object]) -> Callable[[Path], None]:
    """Make a builder of NIfTI images of which the second is saved anew."""

    def build(folder: Path) -> None:
        nifti(folder)
        save(folder / BOLD)

    return build


def header_of(**fields: object) -> Callable[[Path], None]:
    return saved(lambda path: change_header(path, **fields))


case(
    "truncated gzip",
    NIFTI,
    "truncated",
    "sub-A02_task-rest_bold.nii.gz: ends before all of its volumes. Copy it again from where it was made.",
)(replaced(lambda data: data[: len(data) // 2]))
case(
    "damaged gzip",
    NIFTI,
    "corrupt",
    "sub-A02_task-rest_bold.nii.gz: its numbers are damaged, or more than its header declares. Copy or "
    "export it again.",
)(replaced(lambda data: data[:-6] + bytes(6)))
case(
    "empty image",
    NIFTI,
    "empty-file",
    "sub-A02_task-rest_bold.nii.gz: is empty; expected a NIfTI image. Copy it again.",
)(replaced(lambda data: b""))
case(
    "text as NIfTI",
    NIFTI,
    "not-nifti",
    "sub-A02_task-rest_bold.nii.gz: is not a NIfTI file; expected .nii or .nii.gz. Export or copy it again.",
)(replaced(lambda data: gzip.compress(b"This is no image.\n" * 100)))
case(
    "a .nii.gz that is not compressed",
    NIFTI,
    "not-nifti",
    "sub-A02_task-rest_bold.nii.gz: is not a NIfTI file; expected .nii or .nii.gz. Export or copy it again.",
)(replaced(gzip.decompress))
case(
    "gzip bomb: zeros without end behind the numbers",
    NIFTI,
    "corrupt",
    "sub-A02_task-rest_bold.nii.gz: its numbers are damaged, or more than its header declares. Copy or "
    "export it again.",
)(replaced(lambda data: data + gzip.compress(bytes(2**26))))
case(
    "header of huge dimensions",
    NIFTI,
    "too-large",
    "sub-A02_task-rest_bold.nii.gz: its header declares 30000 x 30000 x 30000 x 1000 voxels, 100582838 "
    "GiB; expected at most 8 GiB a file. Check the file, or split the run.",
)(header_of(dim=[4, 30000, 30000, 30000, 1000, 1, 1, 1]))
case(
    "header of negative dimensions",
    NIFTI,
    "broken-header",
    "sub-A02_task-rest_bold.nii.gz: its NIfTI header is broken (dimensions, type or scaling); expected a "
    "valid one. Export it again.",
)(header_of(dim=[4, -10, 12, 8, 80, 1, 1, 1]))
case(
    "header without an affine",
    NIFTI,
    "broken-affine",
    "sub-A02_task-rest_bold.nii.gz: its header does not say where its voxels lie (no sform or qform, "
    "NaN, or no volume); expected an affine into its template space. Export it again.",
)(header_of(sform_code=0, qform_code=0))
case(
    "affine of NaN",
    NIFTI,
    "broken-affine",
    "sub-A02_task-rest_bold.nii.gz: its header does not say where its voxels lie (no sform or qform, "
    "NaN, or no volume); expected an affine into its template space. Export it again.",
)(header_of(srow_x=[np.nan] * 4))
case(
    "unknown data type in the header",
    NIFTI,
    "broken-header",
    "sub-A02_task-rest_bold.nii.gz: its NIfTI header is broken (dimensions, type or scaling); expected a "
    "valid one. Export it again.",
)(header_of(datatype=1234))
case(
    "header with a repetition time in milliseconds as seconds",
    NIFTI,
    ACCEPTED,
    "Of 1 of 3 recordings: the header of their file states another repetition time than their sidecar or --tr, which "
    "counts.",
)(header_of(pixdim=[1, 4, 4, 4, 2000, 0, 0, 0]))
case(
    "header with another repetition time than the sidecar",
    NIFTI,
    ACCEPTED,
    "Of 1 of 3 recordings: the header of their file states another repetition time than their sidecar or --tr, which "
    "counts.",
)(header_of(pixdim=[1, 4, 4, 4, 1, 0, 0, 0]))
case(
    "--tr that contradicts a sidecar",
    (*NIFTI, "--tr", "3"),
    REFUSED,
    "cohort: none of its 3 recordings is usable (3 tr-contradicts). The first: sub-A01_task-rest_bold.nii.gz: "
    "sub-A01_task-rest_bold.json says 2 s, and 3 s are given (--tr); expected the same repetition time. Find out which "
    "holds, and correct it.",
)(nifti)
case(
    "one volume",
    NIFTI,
    "one-volume",
    "sub-A02_task-rest_bold.nii.gz: holds one volume; expected a run of many. Name the BOLD image of the run.",
)(saved(lambda path: save_nifti(path, volumes(n_frames=1), t_r=2)))
case(
    "3D image in place of a run",
    NIFTI,
    "not-4d",
    "sub-A02_task-rest_bold.nii.gz: has 3 dimensions; expected 4, volumes over time. Name the BOLD image.",
)(saved(lambda path: save_nifti(path, volumes()[..., 0])))
case(
    "complex image",
    NIFTI,
    "not-numbers",
    "sub-A02_task-rest_bold.nii.gz: holds colours or complex numbers; expected real numbers. Export the "
    "BOLD signal alone.",
)(saved(lambda path: save_nifti(path, volumes().astype(np.complex64), t_r=2)))
case(
    "image that lies elsewhere than the atlas",
    NIFTI,
    "no-coverage",
    "sub-A02_task-rest_bold.nii.gz: no parcel of labels has 50% of its voxels with signal; expected a "
    "run and a brain mask that cover the brain. Check its space, orientation and mask.",
)(saved(lambda path: save_nifti(path, volumes(), AFFINE + np.eye(4, k=3) * 900, t_r=2)))
case(
    "image of NaN in one volume",
    NIFTI,
    "nan-voxels",
    "sub-A02_task-rest_bold.nii.gz: 216 voxels of parcels are NaN or infinite in some volumes and not in "
    "others; expected finite numbers. Find out which step of the preprocessing made them.",
)(saved(lambda path: save_nifti(path, put(volumes(), (..., 5), np.nan), t_r=2)))
case(
    "image of zeros",
    NIFTI,
    "no-coverage",
    "sub-A02_task-rest_bold.nii.gz: no parcel of labels has 50% of its voxels with signal; expected a "
    "run and a brain mask that cover the brain. Check its space, orientation and mask.",
)(saved(lambda path: save_nifti(path, volumes() * 0, t_r=2)))


@case(
    "bytes after the numbers of a .nii", NIFTI, ACCEPTED, "result/cohort: 3 recordings of 3 participants, from nifti."
)
def _(folder: Path) -> None:
    nifti(folder)
    data = gzip.decompress((folder / BOLD).read_bytes())
    (folder / BOLD).unlink()
    (folder / BOLD).with_suffix("").write_bytes(data + bytes(100))


@case("scaled int16 image", NIFTI, ACCEPTED, "result/cohort: 3 recordings of 3 participants, from nifti.")
def _(folder: Path) -> None:
    nifti(folder)
    image = nib.Nifti1Image(volumes(), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((4, 4, 4, 2))
    image.set_data_dtype(np.int16)
    nib.save(image, folder / BOLD)


@case("big-endian image", NIFTI, ACCEPTED, "result/cohort: 3 recordings of 3 participants, from nifti.")
def _(folder: Path) -> None:
    nifti(folder)
    image = nib.load(folder / BOLD)
    swapped = nib.Nifti1Image(np.asarray(image.dataobj).astype(">f4"), None, image.header.as_byteswapped(">"))
    nib.save(swapped, folder / BOLD)


@case("NIfTI-2 image", NIFTI, ACCEPTED, "result/cohort: 3 recordings of 3 participants, from nifti.")
def _(folder: Path) -> None:
    nifti(folder)
    image = nib.load(folder / BOLD)
    nib.save(
        nib.Nifti2Image(image.get_fdata(dtype=np.float32), AFFINE, nib.Nifti2Header.from_header(image.header)),
        folder / BOLD,
    )


@case(
    "the same run as .nii and .nii.gz",
    NIFTI,
    REFUSED,
    "source/sub-A02_task-rest_bold.nii.gz: stands there twice, since "
    "source/sub-A02_task-rest_bold.nii is of sub-A02_task-rest, too. Leave one image a run.",
)
def _(folder: Path) -> None:
    nifti(folder)
    (folder / BOLD).with_suffix("").write_bytes(gzip.decompress((folder / BOLD).read_bytes()))


@case(
    "image in another space",
    NIFTI,
    "wrong-space",
    "sub-A02_task-rest_space-MNI152NLin2009cAsym_bold.nii.gz: lies in space MNI152NLin2009cAsym, but "
    "labels.nii.gz in MNI152NLin6Asym. Take the run's MNI152NLin6Asym image, or a label image in "
    "MNI152NLin2009cAsym; or allow the space by its name (--allow-space).",
)
def _(folder: Path) -> None:
    nifti(folder)
    for path in sorted((folder / "source").glob("sub-A02*")):
        path.rename(path.with_name(path.name.replace("task-rest", "task-rest_space-MNI152NLin2009cAsym")))


@case(
    "image in a space that nothing names",
    IMAGES,
    REFUSED,
    "cohort: none of its 3 recordings is usable (3 no-space). The first: sub-A01_task-rest_bold.nii.gz: "
    "nothing says which template space it lies in; expected MNI152NLin6Asym, that of labels.nii.gz. Name "
    "its space.",
)
def _(folder: Path) -> None:
    nifti(folder)


def sidecar(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        nifti(folder)
        (folder / "source/sub-A02_task-rest_bold.json").write_text(text)

    return build


case(
    "sidecar without a repetition time",
    NIFTI,
    "no-tr",
    "sub-A02_task-rest_bold.nii.gz: no sidecar states its RepetitionTime, and the 2 s of its header are "
    "not to be trusted: software that does not know it writes one, too; expected the seconds between two volumes, "
    "which are never guessed. Give --tr SECONDS, or add it to the JSON sidecar of the run.",
)(sidecar("{}"))
case(
    "sidecar with a repetition time in milliseconds",
    NIFTI,
    "tr-milliseconds",
    "sub-A02_task-rest_bold.json: says a repetition time of 2000 s; expected seconds, at most 20. If "
    "these are milliseconds, write 2.",
)(sidecar('{"RepetitionTime": 2000}'))
case(
    "sidecar with a repetition time as text",
    NIFTI,
    "no-tr",
    "sub-A02_task-rest_bold.json: states '2 s' as RepetitionTime; expected seconds, above 0. Correct it.",
)(sidecar('{"RepetitionTime": "2 s"}'))
case(
    "broken sidecar",
    NIFTI,
    "sidecar",
    "sub-A02_task-rest_bold.json: is not readable; expected a JSON object in UTF-8. Restore the sidecar.",
)(sidecar('{"RepetitionTime": 2.0'))


@case(
    "sidecar that is a named pipe",
    NIFTI,
    "no-tr",
    "sub-A02_task-rest_bold.nii.gz: no sidecar states its RepetitionTime, and the 2 s of its header are "
    "not to be trusted: software that does not know it writes one, too; expected the seconds between two volumes, "
    "which are never guessed. Give --tr SECONDS, or add it to the JSON sidecar of the run.",
)
def _(folder: Path) -> None:
    nifti(folder)
    (folder / "source/sub-A02_task-rest_bold.json").unlink()
    os.mkfifo(folder / "source/sub-A02_task-rest_bold.json")


@case(
    "broken sidecar of a session that is a date",
    NIFTI,
    "sidecar",
    "sub-A02_ses-20190304_bold.json: is not readable; expected a JSON object in UTF-8. Restore the sidecar.",
)
def _(folder: Path) -> None:
    nifti(folder)
    for path in sorted((folder / "source").glob("sub-A02*")):
        path.rename(path.with_name(path.name.replace("A02_task-rest", "A02_ses-20190304_task-rest")))
    (folder / "source/sub-A02_ses-20190304_task-rest_bold.json").unlink()
    (folder / "source/sub-A02_ses-20190304_bold.json").write_text("{")


def confounds(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Make a builder of NIfTI images of which the second has other confounds."""

    def build(folder: Path) -> None:
        nifti(folder)
        path = folder / "source/sub-A02_task-rest_confounds.tsv"
        path.write_text(change(path.read_text()))

    return build


case(
    "plain confounds of another run",
    NIFTI,
    "confounds-length",
    "sub-A02_task-rest_confounds.tsv: has 79 rows, but the run has 80 volumes; expected one row a "
    "volume. Find the confounds of this run.",
)(confounds(lambda text: text.rpartition("\n")[0].rpartition("\n")[0]))
case(
    "plain confounds with NaN",
    NIFTI,
    "confounds-nan",
    "sub-A02_task-rest_confounds.tsv: column 'trans_x' has no number for volume 80; expected n/a in the "
    "first row alone. Take another strategy, or run the step that made it again.",
)(confounds(lambda text: text.rstrip().rpartition("\n")[0] + "\nn/a\t1\n"))
case(
    "plain confounds without a column asked for",
    (*NIFTI, "--confound", "trans_x"),
    "confounds-missing",
    "sub-A02_task-rest_confounds.tsv: has no column 'trans_x' (columns: X, rot_x). Correct the name.",
)(confounds(lambda text: text.replace("trans_x", "X")))
case(
    "plain confounds of text",
    NIFTI,
    "confounds-missing",
    "sub-A02_task-rest_confounds.tsv: has no column of numbers; expected a header and numbers, one row a "
    "volume. Export it again.",
)(confounds(lambda text: "a\n" + "moved\n" * N_FRAMES))


@case(
    "confounds that are a named pipe",
    NIFTI,
    "confounds-unreadable",
    "sub-A02_task-rest_confounds.tsv: cannot be read as a table of confounds (a pipe or a device, not a "
    "file). Export it as tab-separated UTF-8 text.",
)
def _(folder: Path) -> None:
    nifti(folder)
    (folder / "source/sub-A02_task-rest_confounds.tsv").unlink()
    os.mkfifo(folder / "source/sub-A02_task-rest_confounds.tsv")


@case(
    "mask of another shape",
    NIFTI,
    "low-coverage",
    "sub-A02_task-rest: 12.5% of the parcels have a signal, the others are NaN or constant but for rounding; "
    "expected at least 80%. Check its field of view and atlas, or lower min_coverage.",
)
def _(folder: Path) -> None:
    nifti(folder)
    save_nifti(folder / "source/sub-A02_task-rest_mask.nii.gz", np.ones((3, 3, 3), np.uint8))


@case(
    "mask without a voxel",
    NIFTI,
    "no-coverage",
    "sub-A02_task-rest_bold.nii.gz: no parcel of labels has 50% of its voxels with signal; expected a "
    "run and a brain mask that cover the brain. Check its space, orientation and mask.",
)
def _(folder: Path) -> None:
    nifti(folder)
    save_nifti(folder / "source/sub-A02_task-rest_mask.nii.gz", np.zeros((10, 12, 8), np.uint8))


# --- Label images and atlases ------------------------------------------------------------------------------------


def labels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Make a builder of NIfTI images with another label image."""

    def build(folder: Path) -> None:
        nifti(folder)
        save_nifti(folder / "labels.nii.gz", change(block_labels()).astype(np.float32))

    return build


case("label image in 4D", NIFTI, REFUSED, "labels.nii.gz: has 4 dimensions; expected a 3D image. Export one volume.")(
    labels(lambda data: data[..., None].repeat(2, axis=3))
)
case(
    "label image of fractions",
    NIFTI,
    REFUSED,
    "labels.nii.gz: holds values that are no labels (fractions or negative numbers); expected whole "
    "numbers. Resample label images with nearest neighbours.",
)(labels(lambda data: data * np.float32(0.3)))
case(
    "label image with a label too few",
    NIFTI,
    REFUSED,
    "labels.nii.gz: lacks 1 of the 8 labels of its table (such as 3). Give the image and the table that "
    "belong to this atlas.",
)(labels(lambda data: data * (data != 3)))
case(
    "label image with a label too many",
    NIFTI,
    REFUSED,
    "labels.nii.gz: lacks 1 of the 8 labels of its table (such as 8) and has 1 that its table does not "
    "know (such as 20). Give the image and the table that belong to this atlas.",
)(labels(lambda data: data + (data == 8) * 12))
case(
    "label image without a label",
    NIFTI,
    REFUSED,
    "labels.nii.gz: lacks 8 of the 8 labels of its table (such as 1). Give the image and the table that "
    "belong to this atlas.",
)(labels(lambda data: data * 0))


@case(
    "label image that does not fit the named atlas",
    (*NIFTI, "--atlas", "schaefer100"),
    REFUSED,
    "labels.nii.gz: its table of labels is not that of schaefer100; it does not name 7Networks_LH_Vis_1. "
    "Give the table of this atlas, or leave the atlas's name out to take the table's own parcels.",
)
def _(folder: Path) -> None:
    nifti(folder)


@case(
    "label image that is a named pipe",
    NIFTI,
    REFUSED,
    "labels.nii.gz: is empty; expected a NIfTI image. Copy it again.",
)
def _(folder: Path) -> None:
    nifti(folder)
    (folder / "labels.nii.gz").unlink()
    os.mkfifo(folder / "labels.nii.gz")


@case(
    "table of labels that is a named pipe",
    NIFTI,
    REFUSED,
    "labels.tsv: cannot be read as a table of labels (a pipe or a device, not a file). Export it again.",
)
def _(folder: Path) -> None:
    nifti(folder)
    (folder / "labels.tsv").unlink()
    os.mkfifo(folder / "labels.tsv")


@case(
    "table of labels with a name twice",
    NIFTI,
    REFUSED,
    "labels.tsv: 'brick-1' stands twice in column name; expected one row a parcel. Correct the table.",
)
def _(folder: Path) -> None:
    nifti(folder)
    (folder / "labels.tsv").write_text((folder / "labels.tsv").read_text().replace("brick-2", "brick-1"))


@case(
    "table of labels without numbers",
    NIFTI,
    REFUSED,
    "labels.tsv: has columns region; expected index (the label's number) and name. Name the columns so, "
    "and separate them by tabs in .tsv and by commas in .csv files.",
)
def _(folder: Path) -> None:
    nifti(folder)
    (folder / "labels.tsv").write_text("region\n" + "\n".join(f"brick-{n}" for n in range(1, 9)))


def atlas(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        matrices(folder)
        (folder / "atlas.tsv").write_text(text)

    return build


case(
    "atlas that is not known",
    (*MATRICES, "--atlas", "brodmann"),
    REFUSED,
    "Atlas 'brodmann' is not known. Name one of a424, aal116, schaefer100, schaefer200, schaefer400, or "
    "a table file (.json, .csv or .tsv with name, x, y, z).",
)(matrices)
case(
    "atlas table that is not there",
    (*MATRICES, "--atlas", "mine.tsv"),
    REFUSED,
    "mine.tsv: no such atlas table. Check the path, or name one of a424, aal116, schaefer100, "
    "schaefer200, schaefer400.",
)(matrices)
case(
    "atlas table with a name twice",
    MATRICES,
    REFUSED,
    "atlas.tsv: is not an atlas table. Expected one row a parcel with columns name, x, y, z "
    "(millimetres) and unique names. Correct the table.",
)(atlas("name\tx\ty\tz\n" + "a\t1\t2\t3\n" * 8))
case(
    "atlas table without coordinates",
    MATRICES,
    REFUSED,
    "atlas.tsv: is not an atlas table. Expected one row a parcel with columns name, x, y, z "
    "(millimetres) and unique names. Correct the table.",
)(atlas("name\na\nb\n"))
case(
    "atlas table with NaN",
    MATRICES,
    REFUSED,
    "atlas.tsv: is not an atlas table. Expected one row a parcel with columns name, x, y, z "
    "(millimetres) and unique names. Correct the table.",
)(atlas("name\tx\ty\tz\na\t1\t2\tn/a\n"))
case(
    "atlas table without a row",
    MATRICES,
    REFUSED,
    "atlas.tsv: is not an atlas table. Expected one row a parcel with columns name, x, y, z "
    "(millimetres) and unique names. Correct the table.",
)(atlas("name\tx\ty\tz\n"))


@case(
    "atlas table that is broken JSON",
    (*MATRICES, "--atlas", "atlas.json"),
    REFUSED,
    "atlas.json: is not an atlas table. Expected one row a parcel with columns name, x, y, z "
    "(millimetres) and unique names. Correct the table.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / "atlas.json").write_text("[" * 100000)


@case("atlas of one parcel", MATRICES, ACCEPTED, "result/cohort: 3 recordings of 3 participants, from matrices.")
def _(folder: Path) -> None:
    matrices(folder)
    write_atlas(folder / "atlas.tsv", ["whole"])
    for path in (folder / "source").iterdir():
        np.save(path, np.load(path)[:, :1])


# --- Trees of fMRIPrep -------------------------------------------------------------------------------------------


@case(
    "confounds missing",
    IMAGES,
    "confounds-missing",
    "sub-02_task-rest_desc-confounds_timeseries.tsv: is not there; expected the run's confounds. Restore it.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    (folder / CONFOUNDS).unlink()


@case(
    "confounds of another run: another number of rows",
    IMAGES,
    "confounds-length",
    "sub-02_task-rest_desc-confounds_timeseries.tsv: has 77 rows, but the run has 80 volumes; expected "
    "one row a volume. Find the confounds of this run.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    (folder / CONFOUNDS).write_text("".join((folder / CONFOUNDS).read_text().splitlines(keepends=True)[:-3]))


def regressed(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        fmriprep(folder)
        table = pd.read_csv(folder / CONFOUNDS, sep="\t", na_values="n/a")
        change(table).to_csv(folder / CONFOUNDS, sep="\t", na_rep="n/a", index=False)

    return build


case(
    "NaN in confounds",
    IMAGES,
    "confounds-nan",
    "sub-02_task-rest_desc-confounds_timeseries.tsv: column 'csf' has no number for volume 31; expected "
    "n/a in the first row alone. Take another strategy, or run the step that made it again.",
)(regressed(lambda table: table.assign(csf=table["csf"].where(table.index != 30))))
case(
    "confounds without the columns of the strategy",
    IMAGES,
    "confounds-missing",
    "sub-02_task-rest_desc-confounds_timeseries.tsv: cannot be used for strategy 'simple': The following "
    "keywords or parameters are missing: [] ['wm_csf']. Expected fMRIPrep's confounds from version 1.4 "
    "on, tab-separated UTF-8. Take another strategy, or run fMRIPrep again.",
)(regressed(lambda table: table.drop(columns=["csf", "white_matter"])))
case(
    "all frames scrubbed",
    (*IMAGES, "--confounds", "scrubbing"),
    "all-censored",
    "sub-02_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz: all of its 80 frames are censored "
    "for motion; expected some to be left. Leave it out, or raise the thresholds.",
)(regressed(lambda table: table.assign(framewise_displacement=3.0)))
case(
    "high motion",
    IMAGES,
    "high-motion",
    "sub-02_task-rest: mean FD is 0.900 mm; expected at most 0.550 mm. Leave it out, or raise max_mean_fd.",
)(regressed(lambda table: table.assign(framewise_displacement=0.9)))


@case(
    "confounds separated by commas",
    IMAGES,
    "confounds-unreadable",
    "sub-02_task-rest_desc-confounds_timeseries.tsv: is not tab-separated UTF-8 text, as fMRIPrep writes "
    "it; some program has saved it anew. Take fMRIPrep's own file.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    (folder / CONFOUNDS).write_text((folder / CONFOUNDS).read_text().replace("\t", ","))


@case(
    "confounds of fMRIPrep that are a named pipe",
    IMAGES,
    "confounds-unreadable",
    "sub-02_task-rest_desc-confounds_timeseries.tsv: cannot be read as a table of confounds (a pipe or a "
    "device, not a file). Export it as tab-separated UTF-8 text.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    (folder / CONFOUNDS).unlink()
    os.mkfifo(folder / CONFOUNDS)


@case(
    "confounds that are a folder",
    IMAGES,
    "confounds-unreadable",
    "sub-02_task-rest_desc-confounds_timeseries.tsv: cannot be read as a table of confounds (Is a "
    "directory). Export it as tab-separated UTF-8 text.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    (folder / CONFOUNDS).unlink()
    (folder / CONFOUNDS).mkdir()


@case(
    "brain mask of another run's shape",
    IMAGES,
    "no-coverage",
    "sub-02_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz: no parcel of labels has 50% of its "
    "voxels with signal; expected a run and a brain mask that cover the brain. Check its space, "
    "orientation and mask.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    save_nifti(
        folder / FUNC / "sub-02_task-rest_space-MNI152NLin6Asym_desc-brain_mask.nii.gz", np.ones((3, 3, 3), np.uint8)
    )


@case(
    "tree in another space than the atlas",
    IMAGES,
    REFUSED,
    "source: has no images in space MNI152NLin6Asym, that of labels.nii.gz (found: MNI152NLin2009cAsym). "
    "Name one of these spaces, and a label image in it.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    for path in sorted((folder / "source").rglob("*_space-*")):
        path.rename(path.with_name(path.name.replace("6Asym", "2009cAsym")))


@case(
    "tree with several resolutions",
    IMAGES,
    REFUSED,
    "source: has images of several resolutions (res: 2, native). Name one.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    shutil.copy(folder / PREP, folder / FUNC / PREP.name.replace("_desc", "_res-2_desc"))


case(
    "ICA-AROMA of fMRIPrep 23.1 on",
    (*IMAGES, "--confounds", "ica_aroma"),
    REFUSED,
    "source: holds no sub-*_desc-smoothAROMAnonaggr_bold.nii.gz; fMRIPrep has not run ICA-AROMA since 23.1, and before "
    "only with --use-aroma. Take --confounds simple, scrubbing or compcor; or give the images that fMRIPost-AROMA "
    "cleaned, in a folder of their own, as --kind nifti.",
)(fmriprep)


@case(
    "run of fMRIPrep in another space than the others",
    IMAGES,
    "no-image",
    "sub-02_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz: its run has no image in the space of the "
    "others, or none that was cleaned like theirs; expected all alike. Run fMRIPrep again for it, or leave it out "
    "(--task, --session).",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    (folder / PREP).rename(folder / str(PREP).replace("MNI152NLin6Asym", "MNI152NLin2009cAsym"))


@case(
    "tree without a run of the task",
    (*IMAGES, "--task", "nback"),
    REFUSED,
    "source: has no task-nback (found: rest). Correct it.",
)
def _(folder: Path) -> None:
    fmriprep(folder)


@case(
    "a participant's folder that is a link to itself",
    IMAGES,
    ACCEPTED,
    "result/cohort: 3 recordings of 3 participants, from fmriprep.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    (folder / "source/sub-04").symlink_to("sub-04")


@case(
    "links that go round in circles", IMAGES, ACCEPTED, "result/cohort: 3 recordings of 3 participants, from fmriprep."
)
def _(folder: Path) -> None:
    fmriprep(folder)
    (folder / FUNC / "again").symlink_to("../..")


@case(
    "dataset_description.json that is broken",
    IMAGES,
    REFUSED,
    "source/dataset_description.json: is not readable; expected a JSON object in UTF-8. Restore it.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    (folder / "source/dataset_description.json").write_text("{")


# --- Trees of XCP-D ----------------------------------------------------------------------------------------------


@case(
    "several atlases in a tree of XCP-D",
    XCPD,
    REFUSED,
    "source: has series of more than one atlas: 4S156Parcels, 4S256Parcels. Name the one to take.",
)
def _(folder: Path) -> None:
    xcpd(folder)
    shutil.copy(folder / SERIES, str(folder / SERIES).replace("4S156", "4S256"))


@case(
    "several spaces in a tree of XCP-D",
    XCPD,
    REFUSED,
    "source: has series of more than one space: MNI152NLin2009cAsym, MNI152NLin6Asym. Name the one to take.",
)
def _(folder: Path) -> None:
    xcpd(folder)
    shutil.copy(folder / SERIES, str(folder / SERIES).replace("6Asym", "2009cAsym"))


@case(
    "series of XCP-D that fit neither the frames nor the kept ones",
    XCPD,
    "frames-mismatch",
    "sub-02_task-rest_space-MNI152NLin6Asym_seg-4S156Parcels_stat-mean_timeseries.tsv: has 73 frames; "
    "expected 80, as the tables of motion and outliers beside it, or the 79 that those keep. Use the "
    "files of one run of XCP-D.",
)
def _(folder: Path) -> None:
    xcpd(folder)
    (folder / SERIES).write_text("".join((folder / SERIES).read_text().splitlines(keepends=True)[:-7]))


@case(
    "series of XCP-D in the 17-network order",
    XCPD,
    "wrong-atlas",
    "sub-02_task-rest_space-MNI152NLin6Asym_seg-4S156Parcels_stat-mean_timeseries.tsv: names parcels in "
    "the 17-network order of Schaefer's atlas; expected slabs, which has other names and another order. "
    "Name the atlas table of the 17-network order.",
)
def _(folder: Path) -> None:
    xcpd(folder)
    (folder / SERIES).write_text((folder / SERIES).read_text().replace("LH_Vis_", "LH_VisCent_ExStr_"))


@case(
    "series of XCP-D of another atlas",
    (*XCPD, "--atlas", "schaefer100"),
    REFUSED,
    "cohort: none of its 3 recordings is usable (3 wrong-atlas). The first: "
    "sub-01_task-rest_space-MNI152NLin6Asym_seg-4S156Parcels_stat-mean_timeseries.tsv: has 8 columns, "
    "and 92 of the 100 parcels of schaefer100 are not among them, such as '7Networks_LH_Vis_5'. Name the "
    "atlas that these series were made with; a parcel without data keeps its column, of n/a.",
)
def _(folder: Path) -> None:
    xcpd(folder)


@case(
    "series of XCP-D separated by commas",
    XCPD,
    ACCEPTED,
    "result/cohort: 3 recordings of 3 participants, from xcpd.",
)
def _(folder: Path) -> None:
    xcpd(folder)
    (folder / SERIES).write_text((folder / SERIES).read_text().replace("\t", ","))


@case(
    "series of XCP-D of which every frame is censored",
    (*XCPD, "--censoring", "drop"),
    "all-censored",
    "sub-02_task-rest_space-MNI152NLin6Asym_seg-4S156Parcels_stat-mean_timeseries.tsv: each of its 80 "
    "frames is of high motion; expected some to keep. Leave it out, or let XCP-D tolerate more motion.",
)
def _(folder: Path) -> None:
    xcpd(folder)
    (folder / FUNC / "sub-02_task-rest_outliers.tsv").write_text("framewise_displacement\n" + "1\n" * N_FRAMES)


@case(
    "tree of XCP-D without a repetition time",
    XCPD,
    "no-tr",
    "sub-02_task-rest_space-MNI152NLin6Asym_seg-4S156Parcels_stat-mean_timeseries.tsv: no sidecar "
    "states its RepetitionTime; expected the seconds between two volumes, which are never guessed. Give "
    "--tr SECONDS, or add it to the JSON sidecar of the run.",
)
def _(folder: Path) -> None:
    xcpd(folder)
    next((folder / FUNC).glob("*desc-denoised_bold.json")).unlink()


# --- Sources, outputs, keys and settings -------------------------------------------------------------------------


def to(out: str, command: tuple[str, ...] = MATRICES) -> tuple[str, ...]:
    return (*command[:3], out, *command[4:])


def of(source: str, command: tuple[str, ...] = MATRICES) -> tuple[str, ...]:
    return (*command[:2], source, *command[3:])


case(
    "source that is not there",
    of("sourse"),
    REFUSED,
    "sourse: does not exist; expected a folder of fMRIPrep or XCP-D, of NIfTI images or of matrices, or "
    "an .npz. Check the path.",
)(matrices)
case(
    "source that is a file of another kind",
    of("participants.tsv"),
    REFUSED,
    "participants.tsv: is a file of another kind; expected a folder of fMRIPrep or XCP-D, of NIfTI "
    "images or of matrices, or an .npz. Check the path.",
)(matrices)
case(
    "output that is the source",
    to("source"),
    REFUSED,
    "source: is, holds or lies in its source source; expected a folder elsewhere, since a source stays "
    "as it is. Choose another.",
)(matrices)
case(
    "output in the source",
    to("source/cohort"),
    REFUSED,
    "source/cohort: is, holds or lies in its source source; expected a folder elsewhere, since a source "
    "stays as it is. Choose another.",
)(matrices)
case(
    "output in the source, by way of a link",
    to("linked/cohort"),
    REFUSED,
    "linked/cohort: is, holds or lies in its source source; expected a folder elsewhere, since a source "
    "stays as it is. Choose another.",
)(lambda folder: matrices(folder) or (folder / "linked").symlink_to("source"))
case(
    "output below a file",
    to("participants.tsv/cohort"),
    REFUSED,
    "participants.tsv/cohort: cannot be made, since …/participants.tsv is no folder. Choose another place.",
)(matrices)
case(
    "output under /proc",
    to("/proc/cohort"),
    REFUSED,
    "/proc/pseudonyms.key: cannot be read or made (No such file or directory). Use the account that owns "
    "it, or choose another place.",
)(matrices)
case(
    "output whose name is no name",
    to("result/.."),
    REFUSED,
    "result/..: is, holds or lies in its source source; expected a folder elsewhere, since a source "
    "stays as it is. Choose another.",
)(matrices)
case(
    "output with a space in its name",
    to("result/my cohort"),
    REFUSED,
    "cohort name 'my cohort': expected letters, digits, '.', '_' or '-', starting with a letter or digit. Rename it.",
)(matrices)
case(
    "--name that climbs out of the output",
    (*MATRICES, "--name", "../../elsewhere"),
    REFUSED,
    "cohort name '../../elsewhere': expected letters, digits, '.', '_' or '-', starting with a letter or "
    "digit. Rename it.",
)(matrices)
case(
    "repetition time not given",
    MATRICES[:-2],
    REFUSED,
    "cohort: none of its 3 recordings is usable (3 no-tr). The first: sub-A01: its repetition time is "
    "unknown; it is never guessed. Give --tr SECONDS, or fill in column t_r of the participants table.",
)(matrices)
case(
    "repetition time given in milliseconds",
    (*MATRICES[:-1], "2000"),
    REFUSED,
    "--tr 2000: expected seconds, above 0 and at most 20. If it is in milliseconds, give 2.",
)(matrices)
case(
    "repetition time of 0",
    (*MATRICES[:-1], "0"),
    REFUSED,
    "--tr 0: expected seconds, above 0 and at most 20. Correct it.",
)(matrices)
case(
    "repetition time of nan",
    (*MATRICES[:-1], "nan"),
    REFUSED,
    "Invalid value for '--tr': nan is not a number that can be used. Give",
)(matrices)
case(
    "repetition time given in milliseconds for images",
    (*NIFTI, "--tr", "2000"),
    REFUSED,
    "--tr 2000: expected seconds, above 0 and at most 20. If it is in milliseconds, give 2.",
)(nifti)
case(
    "option of another kind of source",
    (*MATRICES, "--high-pass", "0.01"),
    REFUSED,
    "--high-pass: has no meaning for a source of kind matrices, only for fmriprep and nifti. Leave it out.",
)(matrices)
case(
    "filter above the Nyquist frequency",
    (*NIFTI, "--low-pass", "3"),
    REFUSED,
    "cohort: none of its 3 recordings is usable (3 filter). The first: sub-A01_task-rest_bold.nii.gz: a "
    "cutoff of 3 Hz needs more than 6 volumes a second; expected a cutoff below 0.25 Hz at a repetition "
    "time of 2 s. Lower it.",
)(nifti)
case(
    "--columns the wrong way round",
    (*MATRICES, "--columns", "9-3"),
    REFUSED,
    "--columns 9-3: expected FIRST-LAST counted from 1, such as 1-400. Correct it.",
)(matrices)


@case(
    "source in a form that is not read",
    MATRICES,
    REFUSED,
    "source: holds no recordings in a form that is read. sub-A02.dtseries.nii: is a CIFTI file, but no parcellated "
    "series (.ptseries.nii); expected frames by parcels. Make one with wb_command -cifti-parcellate, or with XCP-D.",
)
def _(folder: Path) -> None:
    matrices(folder)
    shutil.rmtree(folder / "source")
    (folder / "source").mkdir()
    (folder / "source/sub-A02.dtseries.nii").write_bytes(b"CIFTI")


@case(
    "source without a file",
    MATRICES,
    REFUSED,
    "source: holds no recordings; expected files such as *_desc-preproc_bold.nii.gz, *_timeseries.tsv, "
    "*.nii.gz or .npy, .npz, .mat, .ptseries.nii, .tsv, .csv, .1d, .tsv.gz, .csv.gz, .1d.gz. Name another folder.",
)
def _(folder: Path) -> None:
    matrices(folder)
    shutil.rmtree(folder / "source")
    (folder / "source").mkdir()


@case(
    "source that is a link to itself",
    MATRICES,
    REFUSED,
    "source: does not exist; expected a folder of fMRIPrep or XCP-D, of NIfTI images or of matrices, or "
    "an .npz. Check the path.",
)
def _(folder: Path) -> None:
    matrices(folder)
    shutil.rmtree(folder / "source")
    (folder / "source").symlink_to("source")


@case(
    "source that is a named pipe",
    MATRICES,
    REFUSED,
    "source: is a file of another kind; expected a folder of fMRIPrep or XCP-D, of NIfTI images or of "
    "matrices, or an .npz. Check the path.",
)
def _(folder: Path) -> None:
    matrices(folder)
    shutil.rmtree(folder / "source")
    os.mkfifo(folder / "source")


@case(
    "output that is another folder",
    MATRICES,
    REFUSED,
    "result/cohort: exists already, and is no cohort; expected a new folder. Choose another.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / "result/cohort").mkdir(parents=True)
    (folder / "result/cohort/thesis.txt").write_text("mine")


@case(
    "output that is a link to nowhere",
    MATRICES,
    REFUSED,
    "result/cohort: exists already, and is no cohort; expected a new folder. Choose another.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / "result").mkdir()
    (folder / "result/cohort").symlink_to("gone")


@case(
    "output prepared in another way",
    (*MATRICES, "--preprocessing", "other"),
    REFUSED,
    "result/cohort: was prepared in another way (preprocessing was unspecified, and is other). Choose a new folder, or "
    "prepare it as before.",
)
def _(folder: Path) -> None:
    matrices(folder)
    run_command(list(MATRICES))


@case(
    "another key than before",
    (*MATRICES, "--key", "other.key"),
    REFUSED,
    "result/cohort: its pseudonyms are of another key. Give the key that it was prepared with (--key), "
    "or choose a new folder.",
)
def _(folder: Path) -> None:
    matrices(folder)
    run_command(list(MATRICES))
    (folder / "other.key").write_text("0" * 64)
    (folder / "other.key").chmod(0o600)


@case(
    "key that others may read",
    (*MATRICES, "--key", "my.key"),
    REFUSED,
    "my.key: others than its owner may use this key (mode 644; expected 600). Run 'chmod 600 my.key'; if "
    "somebody may have read it, it should be replaced.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / "my.key").write_text("0" * 64)
    (folder / "my.key").chmod(0o644)


@case(
    "key file that holds no key",
    (*MATRICES, "--key", "my.key"),
    REFUSED,
    "my.key: does not hold a key of 64 hexadecimal digits. Restore it from a backup.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / "my.key").write_text("secret")
    (folder / "my.key").chmod(0o600)


@case(
    "key file that is a named pipe",
    (*MATRICES, "--key", "my.key"),
    REFUSED,
    "my.key: cannot be read or made (a pipe or a device, not a file). Use the account that owns it, or "
    "choose another place.",
)
def _(folder: Path) -> None:
    matrices(folder)
    os.mkfifo(folder / "my.key", 0o600)


@case("two commands at once", MATRICES, REFUSED, "result/cohort: another command is changing it. Wait until it ends.")
def _(folder: Path) -> CleanUp:
    matrices(folder)
    run_command(list(MATRICES))
    descriptor = os.open(folder / "result/cohort", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return lambda: os.close(descriptor)


def mounted(folder: Path, options: str) -> CleanUp:
    """Mount a small disk on ``result``, or skip the case where that is not allowed."""
    (folder / "result").mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder / "result")], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting is not allowed here")
    return lambda: subprocess.run(["umount", str(folder / "result")], check=True)


@case(
    "read-only output",
    MATRICES,
    REFUSED,
    "…/result/pseudonyms.key: cannot be read or made (Read-only file system). Use the account that owns "
    "it, or choose another place.",
)
def _(folder: Path) -> CleanUp:
    matrices(folder)
    return mounted(folder, "ro,size=1m")


@case(
    "read-only output with the key elsewhere",
    (*MATRICES, "--key", "my.key"),
    REFUSED,
    "result/cohort: cannot be written (Read-only file system). Make room or choose another place, and "
    "repeat the command: it goes on where it stopped.",
)
def _(folder: Path) -> CleanUp:
    matrices(folder)
    return mounted(folder, "ro,size=1m")


@case(
    "disk full",
    (*MATRICES, "--key", "my.key"),
    STOPPED,
    "result/cohort: cannot be written (No space left on device). Make room or choose another place, and "
    "repeat the command: it goes on where it stopped.",
)
def _(folder: Path) -> CleanUp:
    matrices(folder)
    return mounted(folder, "size=16k")


@case(
    "read-only cohort when its report is written",
    ("cohort", "check", "result/cohort"),
    REFUSED,
    "result/cohort/site-only/…: cannot be written (Read-only file system). Make room or choose another place, and "
    "repeat the command.",
)
def _(folder: Path) -> CleanUp:
    matrices(folder)
    clean_up = mounted(folder, "size=4m")
    run_command([*MATRICES, "--key", str(folder / "my.key")])
    subprocess.run(["mount", "-o", "remount,ro", str(folder / "result")], check=True)
    return clean_up


def settings(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        matrices(folder)
        (folder / "quality.yaml").write_text(text)

    return build


QUALITY = (*MATRICES, "--quality", "quality.yaml")
case("thresholds that are not there", QUALITY, REFUSED, "quality.yaml: no such file. Check the path.")(matrices)
case(
    "thresholds with an unknown field",
    QUALITY,
    REFUSED,
    "quality.yaml: 'min_frame' is not a known field. Did you mean 'min_frames'?",
)(settings("min_frame: 40\n"))
case(
    "thresholds of nan",
    QUALITY,
    REFUSED,
    "quality.yaml: 'max_mean_fd' is nan: input should be greater than 0. Correct it.",
)(settings("max_mean_fd: .nan\n"))
case(
    "thresholds of text",
    QUALITY,
    REFUSED,
    "quality.yaml: 'max_mean_fd' is 'low': input should be a valid number, unable to parse string as a "
    "number. Correct it.",
)(settings("max_mean_fd: low\n"))
case("thresholds that are no YAML", QUALITY, REFUSED, "quality.yaml: is not valid YAML near line 2. Correct the file.")(
    settings("min_frames: [40\n")
)
case("thresholds nested too deep", QUALITY, REFUSED, "quality.yaml: is not valid YAML. Correct the file.")(
    settings("[" * 3000)
)
case("thresholds with an impossible date", QUALITY, REFUSED, "quality.yaml: is not valid YAML. Correct the file.")(
    settings("min_frames: 2020-13-45\n")
)


@case(
    "thresholds that are a named pipe",
    QUALITY,
    REFUSED,
    "quality.yaml: cannot be read (a pipe or a device, not a file). Check the path and its permissions.",
)
def _(folder: Path) -> None:
    matrices(folder)
    os.mkfifo(folder / "quality.yaml")


@case("session that is a date", (*NIFTI,), ACCEPTED, "result/cohort: 3 recordings of 3 participants, from nifti.")
def _(folder: Path) -> None:
    nifti(folder)
    for path in sorted((folder / "source").iterdir()):
        path.rename(path.with_name(path.name.replace("_task-rest", "_ses-20190304_task-rest")))


@case(
    "--session that is a date",
    (*IMAGES, "--session", "20190304"),
    ACCEPTED,
    "result/cohort: 3 recordings of 3 participants, from fmriprep.",
)
def _(folder: Path) -> None:
    fmriprep(folder)
    for path in sorted((folder / "source").rglob("*task-rest*")):
        path.rename(path.with_name(path.name.replace("_task-rest", "_ses-20190304_task-rest")))


@case(
    "participant whom two ids of the table fit",
    MATRICES,
    "ambiguous-participant",
    "A01 and A02: fits 2 participants of the table; expected one. Name it after its participant, such as sub-01_ses-1.",
)
def _(folder: Path) -> None:
    matrices(folder)
    (folder / NPY).rename(folder / "source/A01 and A02.npy")


@case(
    "session label that climbs out of the output",
    (*NIFTI, "--keep-ids"),
    "bad-id",
    "recording id 'sub-A02_ses-..%2f.._task-rest': expected letters, digits, '.', '_' or '-', starting "
    "with a letter or digit. Rename it.",
)
def _(folder: Path) -> None:
    nifti(folder)
    for path in sorted((folder / "source").glob("sub-A02*")):
        path.rename(path.with_name(path.name.replace("_task-rest", "_ses-..%2f.._task-rest")))


if __name__ == "__main__":
    print(readme_table(), end="")
