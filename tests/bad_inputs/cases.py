"""The corpus of bad inputs: README.md tells what becomes of each kind, and `RECIPES` how it is made."""

import fcntl
import gzip
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from cli.main import run_command
from tests.bad_inputs.sources import (
    ALONE,
    ARCHIVE,
    FMRIPREP,
    MATRICES,
    N_FRAMES,
    NIFTI,
    NO_SPACE,
    NO_TR,
    PARCELS,
    PEOPLE,
    TABLES,
    XCPD,
    Good,
    change_header,
    signal,
    write_atlas,
    write_people,
)
from tests.support.derivatives import write_ptseries
from tests.support.disks import remount, small_disk
from tests.support.mat73 import write_mat73
from tests.support.volumes import AFFINE, block_labels, noise, paint, save_nifti

REFUSED = "refused, exit code 2"
"""The command leaves nothing."""
STOPPED = "stopped, exit code 2; goes on when repeated"
"""The command leaves what it had done, for the next one to go on."""
ACCEPTED = "accepted"
"""It looks bad and is not: every recording is in."""
README = Path(__file__).with_name("README.md")

Change = Callable[[], object]
"""Breaks one thing of the source in the current folder; may return what is to be called afterwards."""


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes
    ----------
    name : str
        What is wrong.
    good : Good
        The source before it is broken.
    command : tuple of str
        The arguments, to be run in the folder of the source.
    changes : tuple of callable
        What breaks it.
    outcome : str
        `REFUSED`, `STOPPED`, `ACCEPTED`, or the code that the bad recording of sub-A02 is quarantined with, while
        the other two are in the cohort.
    says : str
        What the user sees; … stands for what differs from run to run.
    """

    name: str
    good: Good
    command: tuple[str, ...]
    changes: tuple[Change, ...]
    outcome: str = ""
    says: str = ""

    def build(self) -> list[Callable[[], object]]:
        """Make it in the current folder, and return what is to be called afterwards."""
        self.good.make(Path())
        return [undo for change in self.changes if callable(undo := change())]


def readme_rows() -> list[tuple[str, str, str]]:
    """Kind, outcome and sentence of each row of the table."""
    rows = [
        line.strip("| ").split(" | ") for line in README.read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    return [(name, outcome.removeprefix("quarantined, ").strip("`"), says) for name, outcome, says in rows[2:]]


def of(good: Good, *changes: Change, more: str = "", source: str = "", out: str = "result/cohort") -> dict[str, Any]:
    """Prepare a good source that was changed, with more options, or from and to elsewhere."""
    command = ("cohort", "prepare", source or good.source, out, *good.options, *more.split())
    return {"good": good, "command": command, "changes": changes}


# --- What is changed ------------------------------------------------------------------------------------------------

NPY = Path("source/sub-A02.npy")
TSV = Path("source/sub-A02.tsv")
NPZ = Path("source.npz")
TABLE = Path("participants.tsv")
BOLD = Path("source/sub-A02_task-rest_bold.nii.gz")
SIDECAR = Path("source/sub-A02_task-rest_bold.json")
MOTION = Path("source/sub-A02_task-rest_confounds.tsv")
MASK = Path("source/sub-A02_task-rest_mask.nii.gz")
FUNC = Path("source/sub-02/func")
PREP = FUNC / "sub-02_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
CONFOUNDS = FUNC / "sub-02_task-rest_desc-confounds_timeseries.tsv"
SERIES = FUNC / "sub-02_task-rest_space-MNI152NLin6Asym_seg-4S156Parcels_stat-mean_timeseries.tsv"
KEY = Path("my.key")


def write(path: str | Path, content: str | bytes, mode: int | None = None) -> Change:
    """Write a file anew."""

    def change() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
        if mode is not None:
            Path(path).chmod(mode)

    return change


def text(edit: Callable[[str], str | bytes], path: Path = TSV) -> Change:
    """Edit a file as text."""
    return lambda: write(path, edit(path.read_text()))()


def content(edit: Callable[[bytes], bytes], path: Path = BOLD) -> Change:
    """Edit a file as bytes."""
    return lambda: write(path, edit(path.read_bytes()))()


def cut(path: Path, n_rows: int) -> Change:
    """Leave out the last rows of a table."""
    return text(lambda table: "".join(table.splitlines(keepends=True)[:-n_rows]), path)


def gone(path: str | Path) -> Change:
    """Remove a file or a folder, if it is there."""
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)


def instead(path: str | Path, make: Callable[[Path], object], old: str | Path | None = None) -> Change:
    """Put what a function makes in the place of a file or folder, or of another one."""

    def change() -> None:
        gone(path if old is None else old)()
        make(Path(path))

    return change


def pipe(path: str | Path, mode: int = 0o666) -> Change:
    return instead(path, partial(os.mkfifo, mode=mode))


def link(path: str | Path, target: str | Path) -> Change:
    return instead(path, lambda link: link.parent.mkdir(exist_ok=True) or link.symlink_to(target))


def renamed(pattern: str, old: str, new: str) -> Change:
    """Replace a part of the name of files of the source."""

    def change() -> None:
        for path in sorted(Path("source").rglob(pattern)):
            path.rename(path.with_name(path.name.replace(old, new)))

    return change


def copied(path: Path, old: str, new: str) -> Change:
    return lambda: shutil.copy(path, str(path).replace(old, new)) and None


def array(edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Make another of the second matrix [80, 8]."""
    return lambda: np.save(NPY, edit(signal(1)), allow_pickle=True)


def put(matrix: np.ndarray, where: object, value: float) -> np.ndarray:
    matrix[where] = value
    return matrix


def named(name: str, make: Callable[[Path], object]) -> Change:
    """Put another file, of this name, in the place of the second matrix."""
    return instead(f"source/{name}", make, NPY)


def people(header: str = "participant_id\tage\tsex", *rows: str) -> Change:
    return lambda: write_people(Path(), header, rows or tuple(f"{name}\t30\tF" for name in PEOPLE)) and None


ROW1, ROW3 = "sub-A01\t30\tF", "sub-A03\t30\tF"


def second(*rows: str) -> Change:
    """Put other rows in the place of the second participant's."""
    return people("participant_id\tage\tsex", ROW1, *rows, ROW3)


def column(name: str, *cells: object) -> Change:
    """Let the three people have this column alone."""
    return people(f"participant_id\t{name}", *(f"{person}\t{cell}" for person, cell in zip(PEOPLE, cells, strict=True)))


def aged(cell: str) -> Change:
    return second(f"sub-A02\t{cell}\tM")


def volumes(n_frames: int = N_FRAMES) -> np.ndarray:
    return paint(noise(n_frames, seed=1))


def image(data: Callable[[], np.ndarray], *affine: np.ndarray, t_r: float | None = 2, path: Path = BOLD) -> Change:
    """Save another image in the place of the second run."""
    return lambda: save_nifti(path, data(), *affine, t_r=t_r) and None


def header(**fields: object) -> Change:
    """Write other values into the header of the second run."""
    return lambda: change_header(BOLD, **fields)


def labels(edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    return image(lambda: edit(block_labels()).astype(np.float32), t_r=None, path=Path("labels.nii.gz"))


def regressed(edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Change:
    """Edit the confounds of fMRIPrep."""

    def change() -> None:
        table = pd.read_csv(CONFOUNDS, sep="\t", na_values="n/a")
        edit(table).to_csv(CONFOUNDS, sep="\t", na_rep="n/a", index=False)

    return change


def cut_off(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def zip_bomb() -> None:
    with zipfile.ZipFile(NPZ) as made:
        members = {name: made.read(name) for name in made.namelist()}
    members["sub-A02.npy"] = npy("(100000000, 8)") + bytes(2**25)
    with zipfile.ZipFile(NPZ, "w", zipfile.ZIP_DEFLATED) as made:
        for name, member in members.items():
            made.writestr(name, member)


def npy(shape: str) -> bytes:
    """Return the header of an array of numpy."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def flipped(content: bytes) -> bytes:
    """Damage the byte in the middle."""
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :]


def leading_out(path: Path) -> None:
    write_mat73(path, tr=2.0)
    with h5py.File(path, "r+") as file:
        file["x"] = h5py.ExternalLink("/etc/passwd", "/x")


def huge(path: Path) -> None:
    write_mat73(path, tr=2.0)
    with h5py.File(path, "r+") as file:
        file.create_dataset("x", (8, 10**10), "f8", chunks=(8, 64), compression="gzip")


def as_int16() -> None:
    scaled = nib.Nifti1Image(volumes(), AFFINE)
    scaled.header.set_xyzt_units("mm", "sec")
    scaled.header.set_zooms((4, 4, 4, 2))
    scaled.set_data_dtype(np.int16)
    nib.save(scaled, BOLD)


def as_big_endian() -> None:
    run = nib.load(BOLD)
    nib.save(nib.Nifti1Image(np.asarray(run.dataobj).astype(">f4"), None, run.header.as_byteswapped(">")), BOLD)


def as_nifti2() -> None:
    run = nib.load(BOLD)
    fields = nib.Nifti2Header.from_header(run.header)
    nib.save(nib.Nifti2Image(run.get_fdata(dtype=np.float32), AFFINE, fields), BOLD)


def one_parcel() -> None:
    write_atlas(Path("atlas.tsv"), ["whole"])
    for path in Path("source").iterdir():
        np.save(path, np.load(path)[:, :1])


def not_for_root() -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")


def prepared(more: str = "") -> Change:
    """Prepare the cohort once before, while the source is good."""
    return lambda: run_command([*of(MATRICES)["command"], *more.split()]) and None


def locked() -> Callable[[], object]:
    descriptor = os.open("result/cohort", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return lambda: os.close(descriptor)


def mounted(size: str) -> Change:
    """Mount a small disk on ``result``."""

    def change() -> Callable[[], object]:
        disk = ExitStack()
        disk.enter_context(small_disk(Path("result").absolute(), size))
        return disk.close

    return change


def read_only() -> None:
    remount(Path("result"), "ro")


def quality(content: str) -> dict[str, Any]:
    return of(MATRICES, write("quality.yaml", content), more="--quality quality.yaml")


DATED = renamed("*task-rest*", "_task-rest", "_ses-20190304_task-rest")
CUT_OFF = gzip.compress(b"1,2\n" * 999)[:-9]
OF_PEOPLE = {"sub-A01": signal(0), "sub-A03": signal(2)}

# --- Every kind -----------------------------------------------------------------------------------------------------

RECIPES: dict[str, dict[str, Any]] = {
    # --- Matrices: what is in them
    "matrix transposed": of(MATRICES, array(lambda m: m.T)),
    "matrix of another atlas": of(MATRICES, array(lambda m: signal(1, n_parcels=12))),
    "parcels missing, as columns left out": of(MATRICES, array(lambda m: m[:, :7])),
    "parcels missing, as columns of NaN": of(MATRICES, array(lambda m: put(m, (slice(None), 0), np.nan))),
    "half of the parcels missing": of(MATRICES, array(lambda m: put(m, (slice(None), slice(4)), np.nan))),
    "all zero": of(MATRICES, array(lambda m: m * 0)),
    "constant": of(MATRICES, array(lambda m: m * 0 + 7)),
    "half of the parcels residue of rounding": of(
        MATRICES, array(lambda m: np.hstack([m[:, :4], 1e-13 * (m[:, 4:] - 50)]))
    ),
    "nothing but residue of rounding": of(MATRICES, array(lambda m: 1e-13 * (m - 50))),
    "some NaN": of(MATRICES, array(lambda m: put(m, (3, 2), np.nan))),
    "infinite": of(MATRICES, array(lambda m: put(m, (3, 2), np.inf))),
    "numbers too large for float32": of(MATRICES, array(lambda m: m.astype(np.float64) * 1e300)),
    "numbers too large to square in float32": of(MATRICES, array(lambda m: put(m, (3, 2), 1e30))),
    "too few frames": of(MATRICES, array(lambda m: m[:20])),
    "too few seconds": of(NO_TR, more="--tr 1.4"),
    "connectivity instead of time series": of(MATRICES, array(np.corrcoef)),
    "as many frames as parcels": of(MATRICES, array(lambda m: m[:8])),
    "complex numbers": of(MATRICES, array(lambda m: m * 1j)),
    "strings in an array": of(MATRICES, array(lambda m: m.astype("U8"))),
    "one-dimensional array": of(MATRICES, array(lambda m: m[:, 0])),
    "three-dimensional array": of(MATRICES, array(lambda m: m[None])),
    "no frames at all": of(MATRICES, array(lambda m: m[:0])),
    "one frame": of(MATRICES, array(lambda m: m[:1])),
    "big-endian float64 array": of(MATRICES, array(lambda m: m.astype(">f8"))),
    "pickled objects in an .npy": of(MATRICES, array(lambda m: np.array([[{"run": "me"}]], dtype=object))),
    "a pickle named .npy": of(MATRICES, write(NPY, pickle.dumps(signal(1)))),
    "an .npy that declares huge dimensions": of(MATRICES, write(NPY, npy("(10000000000, 8)"))),
    "truncated .npy": of(MATRICES, lambda: os.truncate(NPY, 1000)),
    "empty file": of(MATRICES, write(NPY, b"")),
    "folder named like a file": of(MATRICES, instead(NPY, Path.mkdir)),
    "named pipe in place of a file": of(MATRICES, pipe(NPY)),
    "link that leads nowhere": of(MATRICES, link(NPY, "gone.npy")),
    "link to itself": of(MATRICES, link(NPY, NPY.name)),
    "unreadable file": of(MATRICES, not_for_root, lambda: NPY.chmod(0)),
    "the same recording as .npy and .csv": of(
        MATRICES, lambda: np.savetxt("source/sub-A02.csv", signal(1), delimiter=",")
    ),
    "name with spaces and umlauts": of(ALONE, renamed(NPY.name, "sub-A02", "Messung für sub A02 (2)")),
    "name with a line break": of(ALONE, renamed(NPY.name, "sub-A02", "A02\nMueller")),
    "name that is not UTF-8": of(MATRICES, renamed(NPY.name, "sub-A02", os.fsdecode(b"A02\xff"))),
    # --- Archives and other files of matrices
    "zip bomb: an .npz member of gigabytes": of(ARCHIVE, zip_bomb),
    "an .npz key that climbs out of the output": of(
        ALONE,
        gone("source"),
        lambda: np.savez(NPZ, **OF_PEOPLE, **{"../../../sub-A02": signal(1)}),
        source="source.npz",
    ),
    "truncated .npz": of(ARCHIVE, lambda: os.truncate(NPZ, 3000)),
    "damaged member of an .npz": of(ARCHIVE, content(flipped, NPZ)),
    "an .npz that is no archive": of(ARCHIVE, write(NPZ, "sub-A01,1,2,3\n")),
    "an .npz that is a named pipe": of(ARCHIVE, pipe(NPZ), more="--kind matrices"),
    "MATLAB 7.3": of(MATRICES, named("sub-A02.mat", lambda path: write_mat73(path, x=signal(1), tr=2.0))),
    "truncated MATLAB 7.3 file": of(
        MATRICES, named("sub-A02.mat", lambda path: cut_off(write_mat73(path, x=signal(1)), 3000))
    ),
    "MATLAB 7.3 file that declares huge dimensions": of(MATRICES, named("sub-A02.mat", huge)),
    "MATLAB 7.3 file that leads to another file": of(MATRICES, named("sub-A02.mat", leading_out)),
    "MATLAB file of several matrices, named by people": of(
        MATRICES, named("sub-A02.mat", lambda path: write_mat73(path, **OF_PEOPLE))
    ),
    "an .npz in a folder": of(MATRICES, named("sub-A02.npz", lambda path: np.savez(path, signal(1), tr=2.0))),
    "an .npz of several arrays in a folder, named by people": of(
        MATRICES, named("sub-A02.npz", lambda path: np.savez(path, **OF_PEOPLE))
    ),
    "CIFTI series in a folder": of(
        MATRICES, named("sub-A02.ptseries.nii", lambda path: write_ptseries(path, signal(1), PARCELS, 2.0))
    ),
    "packed table": of(MATRICES, named("sub-A02.csv.gz", lambda path: np.savetxt(path, signal(1), delimiter=","))),
    "packed table that is cut off": of(MATRICES, gone(NPY), write("source/sub-A02.csv.gz", CUT_OFF)),
    "spreadsheet among matrices": of(MATRICES, gone(NPY), write("source/sub-A02.xlsx", b"PK")),
    # --- Tables of numbers
    "header of the 17-network order": of(
        TABLES, text(lambda table: table.replace("parcel-0", "17Networks_LH_VisCent_ExStr_1"))
    ),
    "a column left out": of(
        TABLES, text(lambda table: "\n".join(line.rpartition("\t")[0] for line in table.splitlines()))
    ),
    "header that names a parcel twice": of(TABLES, text(lambda table: table.replace("parcel-1", "parcel-0"))),
    "columns sorted as text: roi_1, roi_10, roi_2": of(
        TABLES, text(lambda table: table.replace("parcel-", "roi_").replace("roi_1", "roi_10"))
    ),
    "commas in a .tsv": of(TABLES, text(lambda table: table.replace("\t", ","))),
    "semicolons in a .tsv": of(TABLES, text(lambda table: table.replace("\t", ";"))),
    "decimal commas": of(TABLES, text(lambda table: table.replace(".", ","))),
    "rows of different lengths": of(TABLES, text(lambda table: table + "1\t2\n")),
    "text between the numbers": of(TABLES, text(lambda table: table + "\t".join(["Mueller", *"1234567"]) + "\n")),
    "a table that is binary": of(TABLES, write(TSV, bytes(range(256)) * 4)),
    "UTF-16, as spreadsheets save it": of(TABLES, text(lambda table: table.encode("utf-16"))),
    "Windows line ends": of(TABLES, text(lambda table: table.replace("\n", "\r\n"))),
    "byte-order mark before the header": of(TABLES, text(lambda table: table.encode("utf-8-sig"))),
    "only a header": of(TABLES, text(lambda table: table.partition("\n")[0] + "\n")),
    # --- The participants table
    "participant twice in the table": of(MATRICES, second("sub-A02\t31\tM", "A02\t32\tM")),
    "participant not in the table": of(MATRICES, second()),
    "age as text": of(MATRICES, aged("forty")),
    "ages as text": of(MATRICES, column("age", *["thirty"] * 3)),
    "age with a decimal comma": of(MATRICES, aged("40,5")),
    "age with its unit": of(MATRICES, aged("P40Y6M")),
    "age at the top, as 89+": of(MATRICES, aged("89+")),
    "age as a range": of(MATRICES, aged("35-40")),
    "age that is a code for a missing value": of(MATRICES, aged("-9999")),
    "code for a missing value in another column": of(MATRICES, column("iq", 98, -9999, 110)),
    "what may be a code for a missing value": of(MATRICES, column("score", 5, -1, 7)),
    "--missing-value of an unknown column": of(MATRICES, more="--missing-value fiq=-9999"),
    "rules for a table that is not there": of(ALONE, more="--top-coded bound"),
    "age in months": of(MATRICES, aged("480")),
    "sex that is neither F nor M": of(MATRICES, second("sub-A02\t40\tO")),
    "sex as 1 and 2 without levels": of(MATRICES, column("sex", 1, 2, 1)),
    "tab at the end of each line": of(
        MATRICES, people("participant_id\tage\tsex\t", f"{ROW1}\t", "sub-A02\t31\tM\t", f"{ROW3}\t")
    ),
    "column without a name": of(
        MATRICES, people("\tparticipant_id\tage\tsex", f"0\t{ROW1}", "1\tsub-A02\t31\tM", f"2\t{ROW3}")
    ),
    "comments in participants.tsv": of(MATRICES, second("# moved", "sub-A02\t31\tM")),
    "a rule in participants.json that there is not": of(
        MATRICES, write("participants.json", '{"age": {"TopCoded": "keep"}}')
    ),
    "--participant-pattern that is no regular expression": of(MATRICES, more="--participant-pattern (sub"),
    "--participant-pattern that finds no person": of(MATRICES, more="--participant-pattern A0"),
    "recording that --participant-pattern does not fit": of(ALONE, more="--participant-pattern (A0[13])"),
    "--participant-column that is not there": of(MATRICES, more="--participant-column person"),
    "commas in participants.tsv": of(MATRICES, people("participant_id,age,sex", *(f"{name},30,F" for name in PEOPLE))),
    "no column participant_id": of(MATRICES, people("subject\tage\tsex")),
    "participants table with a column twice": of(MATRICES, people("participant_id\tage\tage")),
    "participants table with rows of different lengths": of(MATRICES, second("sub-A02\t31")),
    "participant without an id": of(MATRICES, second("n/a\t31\tF")),
    "participants' id that climbs out of the output": of(
        MATRICES, people("participant_id\tage\tsex", ROW1, "sub-A02\t31\tF", "../../A03\t31\tF"), more="--keep-ids"
    ),
    "repetition time in milliseconds in the table": of(NO_TR, column("t_r", 2000, 2000, 2000)),
    "repetition time that contradicts the table": of(MATRICES, column("t_r", 2, 3, 2)),
    "value missing that is required": of(MATRICES, aged("n/a"), more="--require age"),
    "value missing, and the rule is to refuse": of(MATRICES, aged("n/a"), more="--require age --missing refuse"),
    "required column that is not there": of(MATRICES, more="--require agee"),
    "--select of an unknown column": of(MATRICES, more="--select sexx=F"),
    "--select of a value that nobody has": of(MATRICES, more="--select sex=female"),
    "--select without =": of(MATRICES, more="--select sex"),
    "participants table in UTF-16": of(MATRICES, text(lambda table: table.encode("utf-16"), TABLE)),
    "participants table without a byte": of(MATRICES, write(TABLE, b"")),
    "participants table with a header alone": of(MATRICES, write(TABLE, "participant_id\tage\tsex\n")),
    "participants table that is a spreadsheet's file": of(MATRICES, write(TABLE, b"PK\x03\x04" + bytes(range(256)))),
    "participants table in Latin-1": of(
        MATRICES, write(TABLE, "participant_id\tort\nsub-A01\tKöln\n".encode("latin-1"))
    ),
    "participants table that is a named pipe": of(MATRICES, pipe(TABLE)),
    "participants.json that is a named pipe": of(MATRICES, pipe("participants.json")),
    "participants.json that is broken": of(MATRICES, write("participants.json", '{"age": ')),
    "participants.tsv of the source, a link that leads nowhere": of(NIFTI, link("source/participants.tsv", "gone.tsv")),
    # --- NIfTI files
    "truncated gzip": of(NIFTI, content(lambda data: data[: len(data) // 2])),
    "damaged gzip": of(NIFTI, content(lambda data: data[:-6] + bytes(6))),
    "empty image": of(NIFTI, write(BOLD, b"")),
    "text as NIfTI": of(NIFTI, write(BOLD, gzip.compress(b"This is no image.\n" * 100))),
    "a .nii.gz that is not compressed": of(NIFTI, content(gzip.decompress)),
    "gzip bomb: zeros without end behind the numbers": of(
        NIFTI, content(lambda data: data + gzip.compress(bytes(2**26)))
    ),
    "header of huge dimensions": of(NIFTI, header(dim=[4, 30000, 30000, 30000, 1000, 1, 1, 1])),
    "header of negative dimensions": of(NIFTI, header(dim=[4, -10, 12, 8, 80, 1, 1, 1])),
    "header without an affine": of(NIFTI, header(sform_code=0, qform_code=0)),
    "affine of NaN": of(NIFTI, header(srow_x=[np.nan] * 4)),
    "unknown data type in the header": of(NIFTI, header(datatype=1234)),
    "header with a repetition time in milliseconds as seconds": of(NIFTI, header(pixdim=[1, 4, 4, 4, 2000, 0, 0, 0])),
    "header with another repetition time than the sidecar": of(NIFTI, header(pixdim=[1, 4, 4, 4, 1, 0, 0, 0])),
    "--tr that contradicts a sidecar": of(NIFTI, more="--tr 3"),
    "one volume": of(NIFTI, image(lambda: volumes(n_frames=1))),
    "3D image in place of a run": of(NIFTI, image(lambda: volumes()[..., 0], t_r=None)),
    "complex image": of(NIFTI, image(lambda: volumes().astype(np.complex64))),
    "image that lies elsewhere than the atlas": of(NIFTI, image(volumes, AFFINE + np.eye(4, k=3) * 900)),
    "image of NaN in one volume": of(NIFTI, image(lambda: put(volumes(), (..., 5), np.nan))),
    "image of zeros": of(NIFTI, image(lambda: volumes() * 0)),
    "bytes after the numbers of a .nii": of(
        NIFTI, content(lambda data: gzip.decompress(data) + bytes(100)), lambda: BOLD.rename(BOLD.with_suffix(""))
    ),
    "scaled int16 image": of(NIFTI, as_int16),
    "big-endian image": of(NIFTI, as_big_endian),
    "NIfTI-2 image": of(NIFTI, as_nifti2),
    "the same run as .nii and .nii.gz": of(
        NIFTI, lambda: BOLD.with_suffix("").write_bytes(gzip.decompress(BOLD.read_bytes()))
    ),
    "image in another space": of(NIFTI, renamed("sub-A02*", "task-rest", "task-rest_space-MNI152NLin2009cAsym")),
    "image in a space that nothing names": of(NO_SPACE),
    "sidecar without a repetition time": of(NIFTI, write(SIDECAR, "{}")),
    "sidecar with a repetition time in milliseconds": of(NIFTI, write(SIDECAR, '{"RepetitionTime": 2000}')),
    "sidecar with a repetition time as text": of(NIFTI, write(SIDECAR, '{"RepetitionTime": "2 s"}')),
    "broken sidecar": of(NIFTI, write(SIDECAR, '{"RepetitionTime": 2.0')),
    "sidecar that is a named pipe": of(NIFTI, pipe(SIDECAR)),
    "broken sidecar of a session that is a date": of(
        NIFTI,
        gone(SIDECAR),
        renamed("sub-A02*", "A02_task-rest", "A02_ses-20190304_task-rest"),
        write("source/sub-A02_ses-20190304_bold.json", "{"),
    ),
    "plain confounds of another run": of(NIFTI, cut(MOTION, 1)),
    "plain confounds with NaN": of(
        NIFTI, text(lambda table: table.rstrip().rpartition("\n")[0] + "\nn/a\t1\n", MOTION)
    ),
    "plain confounds without a column asked for": of(
        NIFTI, text(lambda table: table.replace("trans_x", "X"), MOTION), more="--confound trans_x"
    ),
    "plain confounds of text": of(NIFTI, write(MOTION, "a\n" + "moved\n" * N_FRAMES)),
    "confounds that are a named pipe": of(NIFTI, pipe(MOTION)),
    "mask of another shape": of(NIFTI, image(lambda: np.ones((3, 3, 3), np.uint8), t_r=None, path=MASK)),
    "mask without a voxel": of(NIFTI, image(lambda: np.zeros((10, 12, 8), np.uint8), t_r=None, path=MASK)),
    # --- Label images and atlases
    "label image in 4D": of(NIFTI, labels(lambda data: data[..., None].repeat(2, axis=3))),
    "label image of fractions": of(NIFTI, labels(lambda data: data * np.float32(0.3))),
    "label image with a label too few": of(NIFTI, labels(lambda data: data * (data != 3))),
    "label image with a label too many": of(NIFTI, labels(lambda data: data + (data == 8) * 12)),
    "label image without a label": of(NIFTI, labels(lambda data: data * 0)),
    "label image that does not fit the named atlas": of(NIFTI, more="--atlas schaefer100"),
    "label image that is a named pipe": of(NIFTI, pipe("labels.nii.gz")),
    "table of labels that is a named pipe": of(NIFTI, pipe("labels.tsv")),
    "table of labels with a name twice": of(
        NIFTI, text(lambda table: table.replace("brick-2", "brick-1"), Path("labels.tsv"))
    ),
    "table of labels without numbers": of(
        NIFTI, write("labels.tsv", "region\n" + "\n".join(f"brick-{n}" for n in range(1, 9)))
    ),
    "atlas that is not known": of(MATRICES, more="--atlas brodmann"),
    "atlas table that is not there": of(MATRICES, more="--atlas mine.tsv"),
    "atlas table with a name twice": of(MATRICES, write("atlas.tsv", "name\tx\ty\tz\n" + "a\t1\t2\t3\n" * 8)),
    "atlas table without coordinates": of(MATRICES, write("atlas.tsv", "name\na\nb\n")),
    "atlas table with NaN": of(MATRICES, write("atlas.tsv", "name\tx\ty\tz\na\t1\t2\tn/a\n")),
    "atlas table without a row": of(MATRICES, write("atlas.tsv", "name\tx\ty\tz\n")),
    "atlas table that is broken JSON": of(MATRICES, write("atlas.json", "[" * 100000), more="--atlas atlas.json"),
    "atlas of one parcel": of(MATRICES, one_parcel),
    # --- Trees of fMRIPrep and XCP-D
    "confounds missing": of(FMRIPREP, gone(CONFOUNDS)),
    "confounds of another run: another number of rows": of(FMRIPREP, cut(CONFOUNDS, 3)),
    "NaN in confounds": of(FMRIPREP, regressed(lambda table: table.assign(csf=table["csf"].where(table.index != 30)))),
    "confounds without the columns of the strategy": of(
        FMRIPREP, regressed(lambda table: table.drop(columns=["csf", "white_matter"]))
    ),
    "all frames scrubbed": of(
        FMRIPREP,
        regressed(lambda table: table.assign(framewise_displacement=3.0)),
        more="--confounds scrubbing",
    ),
    "high motion": of(FMRIPREP, regressed(lambda table: table.assign(framewise_displacement=0.9))),
    "confounds separated by commas": of(FMRIPREP, text(lambda table: table.replace("\t", ","), CONFOUNDS)),
    "confounds of fMRIPrep that are a named pipe": of(FMRIPREP, pipe(CONFOUNDS)),
    "confounds that are a folder": of(FMRIPREP, instead(CONFOUNDS, Path.mkdir)),
    "brain mask of another run's shape": of(
        FMRIPREP,
        image(
            lambda: np.ones((3, 3, 3), np.uint8),
            t_r=None,
            path=PREP.with_name(PREP.name.replace("preproc_bold", "brain_mask")),
        ),
    ),
    "tree in another space than the atlas": of(FMRIPREP, renamed("*_space-*", "6Asym", "2009cAsym")),
    "tree with several resolutions": of(FMRIPREP, copied(PREP, "_desc", "_res-2_desc")),
    "ICA-AROMA of fMRIPrep 23.1 on": of(FMRIPREP, more="--confounds ica_aroma"),
    "run of fMRIPrep in another space than the others": of(
        FMRIPREP, renamed(PREP.name, "MNI152NLin6Asym", "MNI152NLin2009cAsym")
    ),
    "tree without a run of the task": of(FMRIPREP, more="--task nback"),
    "a participant's folder that is a link to itself": of(FMRIPREP, link("source/sub-04", "sub-04")),
    "links that go round in circles": of(FMRIPREP, link(FUNC / "again", "../..")),
    "dataset_description.json that is broken": of(FMRIPREP, write("source/dataset_description.json", "{")),
    "several atlases in a tree of XCP-D": of(XCPD, copied(SERIES, "4S156", "4S256")),
    "several spaces in a tree of XCP-D": of(XCPD, copied(SERIES, "6Asym", "2009cAsym")),
    "series of XCP-D that fit neither the frames nor the kept ones": of(XCPD, cut(SERIES, 7)),
    "series of XCP-D in the 17-network order": of(
        XCPD, text(lambda table: table.replace("LH_Vis_", "LH_VisCent_ExStr_"), SERIES)
    ),
    "series of XCP-D of another atlas": of(XCPD, more="--atlas schaefer100"),
    "series of XCP-D separated by commas": of(XCPD, text(lambda table: table.replace("\t", ","), SERIES)),
    "series of XCP-D of which every frame is censored": of(
        XCPD,
        write(FUNC / "sub-02_task-rest_outliers.tsv", "framewise_displacement\n" + "1\n" * N_FRAMES),
        more="--censoring drop",
    ),
    "tree of XCP-D without a repetition time": of(XCPD, lambda: next(FUNC.glob("*desc-denoised_bold.json")).unlink()),
    # --- Sources, outputs, keys and settings
    "source that is not there": of(MATRICES, source="sourse"),
    "source that is a file of another kind": of(MATRICES, source="participants.tsv"),
    "output that is the source": of(MATRICES, out="source"),
    "output in the source": of(MATRICES, out="source/cohort"),
    "output in the source, by way of a link": of(MATRICES, link("linked", "source"), out="linked/cohort"),
    "output below a file": of(MATRICES, out="participants.tsv/cohort"),
    "output under /proc": of(MATRICES, out="/proc/cohort"),
    "output whose name is no name": of(MATRICES, out="result/.."),
    "output with a space in its name": of(MATRICES, out="result/my cohort"),
    "--name that climbs out of the output": of(MATRICES, more="--name ../../elsewhere"),
    "repetition time not given": of(NO_TR),
    "repetition time given in milliseconds": of(NO_TR, more="--tr 2000"),
    "repetition time of 0": of(NO_TR, more="--tr 0"),
    "repetition time of nan": of(NO_TR, more="--tr nan"),
    "repetition time given in milliseconds for images": of(NIFTI, more="--tr 2000"),
    "option of another kind of source": of(MATRICES, more="--high-pass 0.01"),
    "filter above the Nyquist frequency": of(NIFTI, more="--low-pass 3"),
    "--columns the wrong way round": of(MATRICES, more="--columns 9-3"),
    "source in a form that is not read": of(MATRICES, gone("source"), write("source/sub-A02.dtseries.nii", "CIFTI")),
    "source without a file": of(MATRICES, instead("source", Path.mkdir)),
    "source that is a link to itself": of(MATRICES, link("source", "source")),
    "source that is a named pipe": of(MATRICES, pipe("source")),
    "output that is another folder": of(MATRICES, write("result/cohort/thesis.txt", "mine")),
    "output that is a link to nowhere": of(MATRICES, link("result/cohort", "gone")),
    "output prepared in another way": of(MATRICES, prepared(), more="--preprocessing other"),
    "another key than before": of(MATRICES, prepared(), write("other.key", "0" * 64, 0o600), more="--key other.key"),
    "key that others may read": of(MATRICES, write(KEY, "0" * 64, 0o644), more="--key my.key"),
    "key file that holds no key": of(MATRICES, write(KEY, "secret", 0o600), more="--key my.key"),
    "key file that is a named pipe": of(MATRICES, pipe(KEY, 0o600), more="--key my.key"),
    "two commands at once": of(MATRICES, prepared(), locked),
    "read-only output": of(MATRICES, mounted("1m"), read_only),
    "read-only output with the key elsewhere": of(MATRICES, mounted("1m"), read_only, more="--key my.key"),
    "disk full": of(MATRICES, mounted("16k"), more="--key my.key"),
    "read-only cohort when its report is written": of(MATRICES, mounted("4m"), prepared("--key my.key"), read_only)
    | {"command": ("cohort", "check", "result/cohort")},
    "thresholds that are not there": of(MATRICES, more="--quality quality.yaml"),
    "thresholds with an unknown field": quality("min_frame: 40\n"),
    "thresholds of nan": quality("max_mean_fd: .nan\n"),
    "thresholds of text": quality("max_mean_fd: low\n"),
    "thresholds that are no YAML": quality("min_frames: [40\n"),
    "thresholds nested too deep": quality("[" * 3000),
    "thresholds with an impossible date": quality("min_frames: 2020-13-45\n"),
    "thresholds that are a named pipe": of(MATRICES, pipe("quality.yaml"), more="--quality quality.yaml"),
    "session that is a date": of(NIFTI, DATED),
    "--session that is a date": of(FMRIPREP, DATED, more="--session 20190304"),
    "participant whom two ids of the table fit": of(MATRICES, renamed(NPY.name, "sub-A02", "A01 and A02")),
    "session label that climbs out of the output": of(
        NIFTI, renamed("sub-A02*", "_task-rest", "_ses-..%2f.._task-rest"), more="--keep-ids"
    ),
}
CASES = [Case(name, **RECIPES[name], outcome=outcome, says=says) for name, outcome, says in readme_rows()]
