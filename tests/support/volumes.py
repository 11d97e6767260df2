"""Tiny NIfTI files: label images with their tables, and runs whose parcels' means are known."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

AFFINE = np.array([[4.0, 0, 0, -20], [0, 4, 0, -24], [0, 0, 4, -16], [0, 0, 0, 1]])
SHAPE = (10, 12, 8)
SPACE = "MNI152NLin6Asym"


def save_nifti(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, t_r: float | None = None) -> Path:
    """Write an image; with `t_r`, in seconds, into its header."""
    image = nib.Nifti1Image(data, affine)
    if t_r is not None:
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((*image.header.get_zooms()[:3], t_r))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def block_labels(n_parcels: int = 8) -> np.ndarray:
    """Labels 1 to P [10, 12, 8]: bricks of 3 x 3 x 3 voxels with background between them."""
    labels = np.zeros(SHAPE, np.int16)
    corners = [(x, y, z) for z in (0, 4) for y in (0, 4, 8) for x in (0, 4)]
    for number, (x, y, z) in enumerate(corners[:n_parcels], start=1):
        labels[x : x + 3, y : y + 3, z : z + 3] = number
    return labels


def write_labels(
    folder: Path, labels: np.ndarray | None = None, names: Sequence[str] = (), atlas: str = "Bricks"
) -> tuple[Path, Path]:
    """Write a label image, of bricks if no labels are given, and its table; return both paths."""
    labels = block_labels() if labels is None else labels
    image = save_nifti(folder / f"tpl-{SPACE}_atlas-{atlas}_dseg.nii.gz", labels)
    table = folder / f"atlas-{atlas}_dseg.tsv"
    names = names or [f"brick-{number}" for number in range(1, labels.max() + 1)]
    table.write_text("index\tname\n" + "".join(f"{n}\t{name}\n" for n, name in enumerate(names, start=1)))
    return image, table


def paint(signals: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Run [X, Y, Z, T] float32 whose voxels hold their parcel's signal [T, P]; background 0."""
    labels = block_labels(signals.shape[1]) if labels is None else labels
    with_background = np.concatenate([np.zeros((len(signals), 1)), signals], axis=1)
    return np.moveaxis(with_background[:, labels], 0, -1).astype(np.float32)


def noise(n_frames: int, n_parcels: int = 8, seed: int = 0) -> np.ndarray:
    """Signals [T, P] around 1000, as BOLD has them."""
    rng = np.random.default_rng(seed)
    return 1000 + 10 * rng.standard_normal((n_frames, n_parcels))
