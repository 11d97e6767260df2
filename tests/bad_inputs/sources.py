"""Small good sources of three people each, in which the cases break one thing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

from tests.support.derivatives import make_fmriprep_tree, make_xcpd_tree
from tests.support.volumes import SPACE, noise, paint, save_nifti, write_labels

PEOPLE = ("sub-A01", "sub-A02", "sub-A03")
N_FRAMES = 80
PARCELS = [f"parcel-{number}" for number in range(8)]
_templates = TemporaryDirectory()


@dataclass(frozen=True)
class Good:
    """How a good source is made in a folder, and the options that it is prepared with."""

    make: Callable[[Path], object]
    options: tuple[str, ...]
    source: str = "source"


def matrices(folder: Path) -> None:
    """Write ``source/sub-A01.npy`` to ``sub-A03.npy`` [80, 8], with an atlas and a participants table beside it."""
    (folder / "source").mkdir()
    for number, name in enumerate(PEOPLE):
        np.save(folder / "source" / f"{name}.npy", signal(number))
    write_atlas(folder / "atlas.tsv", PARCELS)
    write_people(folder)


def tables(folder: Path) -> None:
    """Write the same as ``.tsv`` with a header of the parcels."""
    matrices(folder)
    header = "\t".join(PARCELS)
    for path in sorted((folder / "source").iterdir()):
        np.savetxt(path.with_suffix(".tsv"), np.load(path), delimiter="\t", header=header, comments="", fmt="%.6g")
        path.unlink()


def archive(folder: Path) -> None:
    """Write the same as ``source.npz``."""
    matrices(folder)
    members = {path.stem: np.load(path) for path in sorted((folder / "source").iterdir())}
    np.savez(folder / "source.npz", **members)
    shutil.rmtree(folder / "source")


def signal(seed: int, n_frames: int = N_FRAMES, n_parcels: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(50, 1, (n_frames, n_parcels)).astype(np.float32)


def write_people(folder: Path, header: str = "participant_id\tage\tsex", rows: tuple[str, ...] = ()) -> Path:
    """Write ``participants.tsv``; as it should be, if nothing else is given."""
    path = folder / "participants.tsv"
    rows = rows or tuple(f"{name}\t{30 + n}\t{'FM'[n % 2]}" for n, name in enumerate(PEOPLE))
    path.write_text("\n".join([header, *rows, ""]))
    return path


def write_atlas(path: Path, names: list[str]) -> None:
    rows = [f"{name}\t{10 * number}\t{number % 3}\t{-number}" for number, name in enumerate(names)]
    path.write_text("\n".join(["name\tx\ty\tz", *rows, ""]))


def _made_once(make: Callable[[Path], None]) -> Callable[[Path], object]:
    """Let a source be made the first time, and be copied from then on."""

    @cache
    def made() -> Path:
        folder = Path(_templates.name) / make.__name__
        folder.mkdir()
        make(folder)
        return folder

    return lambda folder: shutil.copytree(made(), folder, dirs_exist_ok=True)


@_made_once
def nifti(folder: Path) -> None:
    """Write ``source/sub-A01_task-rest_bold.nii.gz`` and so on, with sidecars and confounds, and a label image."""
    image, table = write_labels(folder)
    image.rename(folder / "labels.nii.gz")
    table.rename(folder / "labels.tsv")
    for number, name in enumerate(PEOPLE):
        stem = f"{name}_task-rest"
        save_nifti(folder / "source" / f"{stem}_bold.nii.gz", paint(noise(N_FRAMES, seed=number)), t_r=2.0)
        (folder / "source" / f"{stem}_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
        motion = np.random.default_rng(number).normal(size=(N_FRAMES, 2))
        rows = ["trans_x\trot_x", *("\t".join(f"{value:.4f}" for value in row) for row in motion), ""]
        (folder / "source" / f"{stem}_confounds.tsv").write_text("\n".join(rows))


@_made_once
def fmriprep(folder: Path) -> None:
    """Write the tree of fMRIPrep ``source`` with sub-01 to sub-03, and a label image."""
    tree = make_fmriprep_tree(folder / "source", n_frames=N_FRAMES, spikes=(20,))
    tree.label_image.path.rename(folder / "labels.nii.gz")
    tree.label_table.rename(folder / "labels.tsv")


@_made_once
def xcpd(folder: Path) -> None:
    """Write the tree of XCP-D ``source`` with sub-01 to sub-03, and the table of its atlas."""
    tree = make_xcpd_tree(folder / "source", n_frames=N_FRAMES, participants=3, spikes=(20,))
    tree.label_image.path.unlink()
    tree.label_table.unlink()
    (folder / "atlas.json").write_text(tree.atlas.to_json())


def change_header(path: Path, **fields: object) -> None:
    """Write other values into the header of a NIfTI-1 file, and leave the rest as it is."""
    opened = nib.openers.ImageOpener
    with opened(path) as stream:
        content = stream.read()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    with opened(path, "wb") as stream:
        stream.write(header.binaryblock + content[348:])


_FAST = ("--workers", "0", "--no-report")
_ATLAS = (*_FAST, "--atlas", "atlas.tsv")
_PEOPLE = ("--participants", "participants.tsv")
_LABELS = (*_FAST, "--atlas-image", "labels.nii.gz", "--atlas-labels", "labels.tsv", "--atlas-space", SPACE)
MATRICES = Good(matrices, (*_ATLAS, *_PEOPLE, "--tr", "2"))
ALONE = Good(matrices, (*_ATLAS, "--tr", "2"))
NO_TR = Good(matrices, (*_ATLAS, *_PEOPLE))
TABLES = Good(tables, MATRICES.options)
ARCHIVE = Good(archive, MATRICES.options, "source.npz")
NIFTI = Good(nifti, (*_LABELS, "--space", SPACE))
NO_SPACE = Good(nifti, _LABELS)
FMRIPREP = Good(fmriprep, _LABELS)
XCPD = Good(xcpd, (*_FAST, "--atlas", "atlas.json"))
