"""Tiny trees of fMRIPrep and XCP-D derivatives, named and filled as those write them, with signals that are known."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.cifti2.cifti2_axes import ParcelsAxis, SeriesAxis

from cohorts.atlas import Atlas
from cohorts.sources.volumes import LabelImage, load_label_image
from tests.support.volumes import SHAPE, SPACE, save_nifti, write_labels

FD_THRESHOLD = 0.5
T_R = 2.0
SLABS = tuple(f"{side}_Vis_{number}" for side in ("LH", "RH") for number in range(1, 5))
"""Names of a label image's parcels where no others are given."""
Generation = Literal["0.6", "0.7", "26"]


@dataclass(frozen=True)
class KnownRun:
    """What is true of one run."""

    bold: Path
    """The 4D image, or of XCP-D the table of time series."""
    signal: np.ndarray
    """[A, P] float32, the mean of each parcel in every frame as acquired."""
    framewise_displacement: np.ndarray
    """[A] mm, the first NaN."""
    censored: np.ndarray
    """[A] bool, frames that move more than `FD_THRESHOLD`."""


@dataclass(frozen=True)
class KnownTree:
    """A tree of derivatives, its label image, and what is true of each of its runs (``sub-01[_ses-1]_task-rest…``)."""

    root: Path
    label_image: LabelImage
    label_table: Path
    runs: dict[str, KnownRun] = field(default_factory=dict)

    @property
    def atlas(self) -> Atlas:
        return self.label_image.atlas


def make_label_image(folder: Path, names: Sequence[str] = SLABS) -> tuple[LabelImage, Path]:
    """Write a label image of slabs of equal size inside `brain_mask`; return it, and the path of its table.

    Labels count from 1 in the order of the atlas.
    """
    labels = np.zeros(SHAPE, np.int16)
    for number, parcel in enumerate(np.array_split(np.flatnonzero(brain_mask()), len(names)), start=1):
        labels.flat[parcel] = number
    image, table = write_labels(folder, labels, names, "Slabs")
    return load_label_image(image=image, labels=table), table


def brain_mask() -> np.ndarray:
    """Whether each voxel is in the brain: all but the outermost."""
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    return mask


def make_fmriprep_tree(
    root: Path,
    *,
    participants: int = 3,
    runs: int = 1,
    n_frames: int = 60,
    spikes: Sequence[int] = (20, 40),
) -> KnownTree:
    """Write what fMRIPrep leaves of a few people's functional runs.

    The mean over each parcel's voxels is ``1000 + signal`` to float32's precision, and signal is neural activity plus
    three of the motion parameters and the global signal of the confounds table.

    Parameters
    ----------
    root : Path
        Folder of the tree; the label image and its atlas's truth lie beside it.
    participants, runs : int
        How many people, and runs of each (one: no ``run-``).
    spikes : sequence of int
        Frames at which the head jumps by 1.5 mm; it stays there, so that each is one frame of high motion.
    """
    tree = KnownTree(root, *make_label_image(root.parent / f"{root.name}_atlas"))
    _describe(root, "fMRIPrep - fMRI PREProcessing workflow", "fMRIPrep", "24.1.1")
    _write_people(root, participants)
    rng = np.random.default_rng(0)
    for folder, name in _acquisitions(root, participants, (), runs, "rest"):
        tree.runs[name] = make_fmriprep_run(folder, name, tree.label_image, rng, n_frames=n_frames, spikes=spikes)
    return tree


def make_fmriprep_run(
    folder: Path,
    name: str,
    label_image: LabelImage,
    rng: np.random.Generator,
    *,
    n_frames: int = 60,
    spaces: Sequence[str] = (SPACE,),
    spikes: Sequence[int] = (20, 40),
) -> KnownRun:
    """Write one run of `make_fmriprep_tree` into its folder.

    Spaces are as fMRIPrep's ``--output-spaces`` names them (``MNI152NLin6Asym:res-2``), or empty as of images in none.
    """
    motion = _motion(rng, n_frames, spikes)
    neural = _smooth(rng, n_frames, label_image.atlas.n_parcels)
    confounds, about = _confounds(rng, motion, neural)
    nuisance = motion[:, :3].sum(axis=1) + (confounds["global_signal"] - confounds["global_signal"].mean())
    signal = (1000 + neural + nuisance.to_numpy()[:, None]).astype(np.float32)
    volumes = _volumes(rng, signal, nib.load(label_image.path).get_fdata().astype(int))
    stems = [name + (f"_space-{space.replace(':', '_')}" if space else "") for space in spaces]
    for stem in stems:
        save_nifti(folder / f"{stem}_desc-preproc_bold.nii.gz", volumes, t_r=T_R)
        about_image = {"RepetitionTime": T_R, "SkullStripped": False, "Sources": []}
        _write_json(folder / f"{stem}_desc-preproc_bold.json", about_image)
        save_nifti(folder / f"{stem}_desc-brain_mask.nii.gz", brain_mask().astype(np.uint8))
    _write_table(confounds, folder / f"{name}_desc-confounds_timeseries.tsv")
    _write_json(folder / f"{name}_desc-confounds_timeseries.json", about)
    displacement = _displacement(motion)
    bold = folder / f"{stems[0]}_desc-preproc_bold.nii.gz"
    return KnownRun(bold, signal, displacement, displacement > FD_THRESHOLD)


def make_xcpd_tree(
    root: Path,
    *,
    generation: Generation = "0.7",
    kind: Literal["nifti", "cifti"] = "nifti",
    mode: Literal["abcd", "linc"] = "abcd",
    atlases: Sequence[str] = ("4S156Parcels",),
    names: Sequence[str] = SLABS,
    participants: int = 2,
    sessions: Sequence[str] = (),
    runs: int = 1,
    combined: bool = False,
    task: str = "rest",
    n_frames: int = 60,
    spikes: Sequence[int] = (20, 40),
    uncovered: Sequence[int] = (),
    filtered: bool = False,
) -> KnownTree:
    """Write what XCP-D leaves of a few people's functional runs, but for images and figures.

    Parameters
    ----------
    generation : {"0.6", "0.7", "26"}
        Whose file names: those of 0.6, of 0.7 to 0.14, or of 26.0 on.
    kind : {"nifti", "cifti"}
        Volumes in MNI152NLin6Asym, or surfaces in fsLR with ``.ptseries.nii`` beside the tables.
    mode : {"abcd", "linc"}
        Whether frames of high motion are interpolated in the time series, or dropped from them. (0.6 knew only linc.)
    names : sequence of str
        Parcels of every atlas, in the order of the columns.
    combined : bool
        As with ``--combine-runs``: a concatenation of each person's runs stands beside the runs.
    uncovered : sequence of int
        Columns of low coverage, 0.2, which are n/a throughout.
    filtered : bool
        As with a motion filter: names and columns of the motion tables say so.
    """
    tree = KnownTree(root, *make_label_image(root.parent / f"{root.name}_atlas", names))
    atlas = tree.atlas
    version = {"0.6": "0.6.3", "0.7": "0.10.6", "26": "26.1.1"}[generation]
    _describe(root, "XCP-D: A Robust Postprocessing Pipeline of fMRI data", "xcp_d", version)
    _write_json(root / "desc-linc_qc.json", {"num_censored_volumes": {"Description": "Number of high-motion volumes"}})
    layout = _XCPDNames(generation, kind)
    for label in atlases:
        table = pd.DataFrame({"index": range(1, atlas.n_parcels + 1), "label": atlas.labels})
        _write_table(table, root / layout.atlas_table(label))
    rng = np.random.default_rng(0)
    for folder, name in _acquisitions(root, participants, sessions, runs, task):
        motion = _motion(rng, n_frames, spikes)
        signal = _smooth(rng, n_frames, atlas.n_parcels).astype(np.float32)
        signal[:, list(uncovered)] = np.nan
        displacement = _displacement(motion)
        censored = displacement > FD_THRESHOLD
        written = signal if mode == "abcd" else signal[~censored]
        _write_xcpd_run(folder, name, layout, atlases, atlas, written, motion, filtered)
        bold = folder / layout.timeseries(name, atlases[0], ".tsv")
        tree.runs[name] = KnownRun(bold, signal, displacement, censored)
    if combined:
        _combine_runs(tree, layout, atlases, mode)
    return tree


@dataclass(frozen=True)
class _XCPDNames:
    """How a generation of XCP-D names its files."""

    generation: Generation
    kind: Literal["nifti", "cifti"]

    @property
    def space(self) -> str:
        return "fsLR" if self.kind == "cifti" else "MNI152NLin6Asym"

    def timeseries(self, name: str, atlas: str, extension: str) -> str:
        density = "_den-91k" if extension == ".ptseries.nii" else ""
        mean = "" if self.generation == "0.6" else "_stat-mean"
        return f"{self._stem(name, atlas)}{density}{mean}_timeseries{extension}"

    def coverage(self, name: str, atlas: str) -> str:
        return self._stem(name, atlas) + ("_coverage.tsv" if self.generation == "0.6" else "_stat-coverage_bold.tsv")

    def motion(self, name: str, filtered: bool) -> str:
        return f"{name}{'_desc-filtered' if filtered and self.generation == '0.6' else ''}_motion.tsv"

    def denoised(self, name: str) -> str:
        return f"{name}_space-{self.space}_{'den-91k' if self.kind == 'cifti' else 'res-2'}_desc-denoised_bold.json"

    def quality(self, name: str) -> str:
        density = "_den-91k" if self.kind == "cifti" else ""
        return f"{name}_space-{self.space}{density}_desc-linc_qc.{'csv' if self.generation == '0.6' else 'tsv'}"

    def atlas_table(self, atlas: str) -> str:
        if self.generation == "26":
            return f"sourcedata/atlases/tpl-{self.space}/tpl-{self.space}_atlas-{atlas}_dseg.tsv"
        return f"atlases/atlas-{atlas}/atlas-{atlas}_dseg.tsv"

    def _stem(self, name: str, atlas: str) -> str:
        return f"{name}_space-{self.space}_{'seg' if self.generation == '0.7' else 'atlas'}-{atlas}"


def _write_xcpd_run(
    folder: Path,
    name: str,
    layout: _XCPDNames,
    atlases: Iterable[str],
    atlas: Atlas,
    written: np.ndarray,
    motion: np.ndarray,
    filtered: bool,
) -> None:
    missing = np.isnan(written).all(axis=0)
    for label in atlases:
        table = folder / layout.timeseries(name, label, ".tsv")
        _write_table(pd.DataFrame(written, columns=atlas.labels), table)
        _write_json(table.with_suffix(".json"), {"SamplingFrequency": "TR", "Sources": []})
        coverage = pd.DataFrame({"Node": atlas.labels, "coverage": np.where(missing, 0.2, 0.9)})
        _write_table(coverage, folder / layout.coverage(name, label))
        if layout.kind == "cifti":
            write_ptseries(folder / layout.timeseries(name, label, ".ptseries.nii"), written, atlas.labels, T_R)
    _write_json(folder / layout.denoised(name), {"RepetitionTime": T_R, "TaskName": "resting state"})
    displacement = _displacement(motion)
    censored = displacement > FD_THRESHOLD
    columns = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    # XCP-D takes the displacement of the first frame as 0.
    motions = pd.DataFrame(motion, columns=columns).assign(framewise_displacement=np.nan_to_num(displacement))
    if filtered and layout.generation != "0.6":
        motions = motions.join((motions * 0.8).add_suffix("_filtered"))
    _write_table(motions, folder / layout.motion(name, filtered))
    _write_table(pd.DataFrame({"framewise_displacement": censored.astype(int)}), folder / f"{name}_outliers.tsv")
    quality = {
        "mean_fd": np.nanmean(displacement),
        "num_censored_volumes": censored.sum(),
        "num_retained_volumes": (~censored).sum(),
    }
    comma = layout.generation == "0.6"
    pd.DataFrame([quality]).to_csv(folder / layout.quality(name), sep="," if comma else "\t", index=False)


def _combine_runs(tree: KnownTree, layout: _XCPDNames, atlases: Sequence[str], mode: Literal["abcd", "linc"]) -> None:
    """Write beside the runs of each person and session the one series of all of them, without ``run-`` in its name."""
    together: dict[str, list[KnownRun]] = {}
    for name, run in tree.runs.items():
        together.setdefault(name.split("_run-")[0], []).append(run)
    for name, parts in together.items():
        folder = parts[0].bold.parent
        kept = [part.signal if mode == "abcd" else part.signal[~part.censored] for part in parts]
        motion = np.zeros((sum(len(part.signal) for part in parts), 6))
        _write_xcpd_run(folder, name, layout, atlases, tree.atlas, np.concatenate(kept), motion, False)


def write_ptseries(path: Path, signal: np.ndarray, names: Sequence[str], t_r: float) -> None:
    """Write [T, P] as CIFTI-2: each parcel is a few vertices of the left cortex."""
    vertices = [{"CIFTI_STRUCTURE_CORTEX_LEFT": np.arange(4 * k, 4 * k + 4)} for k in range(len(names))]
    parcels = ParcelsAxis(
        names,
        [np.empty((0, 3), int)] * len(names),
        vertices,
        nvertices={"CIFTI_STRUCTURE_CORTEX_LEFT": 32492},
    )
    series = SeriesAxis(start=0, step=t_r, size=len(signal))
    nib.save(nib.Cifti2Image(signal.astype(np.float32), header=(series, parcels)), path)


def _acquisitions(
    root: Path, participants: int, sessions: Sequence[str], runs: int, task: str
) -> Iterator[tuple[Path, str]]:
    """Make the folder of each run; yield it and the run's name."""
    for number in range(1, participants + 1):
        for session in sessions or ("",):
            subject = f"sub-{number:02d}"
            folder = root / subject / (f"ses-{session}" if session else "") / "func"
            folder.mkdir(parents=True, exist_ok=True)
            for run in range(1, runs + 1):
                parts = [subject, f"ses-{session}" * bool(session), f"task-{task}", f"run-{run}" * (runs > 1)]
                yield folder, "_".join(filter(None, parts))


def _describe(root: Path, title: str, tool: str, version: str) -> None:
    about = {"Name": title, "BIDSVersion": "1.4.0", "DatasetType": "derivative"}
    _write_json(root / "dataset_description.json", {**about, "GeneratedBy": [{"Name": tool, "Version": version}]})


def _write_people(root: Path, participants: int) -> None:
    people = pd.DataFrame({"participant_id": [f"sub-{number:02d}" for number in range(1, participants + 1)]})
    people["age"] = 30 + 5 * people.index
    people["sex"] = ["FM"[number % 2] for number in people.index]
    _write_table(people, root / "participants.tsv")


def _smooth(rng: np.random.Generator, n_frames: int, n_parcels: int) -> np.ndarray:
    """Signals [T, P] of a few slow waves each, of variance about 25."""
    time = np.arange(n_frames)[:, None, None] / n_frames
    cycles, phase = rng.uniform(1, n_frames / 8, (2, 4, n_parcels))
    return 3.5 * np.sin(2 * np.pi * (cycles * time + phase)).sum(axis=1)


def _motion(rng: np.random.Generator, n_frames: int, spikes: Sequence[int]) -> np.ndarray:
    """Translations (mm) and rotations (rad) [T, 6] of a head that drifts a little, and jumps at `spikes`."""
    steps = rng.normal(scale=[0.02] * 3 + [0.0003] * 3, size=(n_frames, 6))
    for number, frame in enumerate(spikes):
        steps[frame, 0] = 1.5 * (-1) ** number
    return np.cumsum(steps, axis=0)


def _displacement(motion: np.ndarray) -> np.ndarray:
    """Framewise displacement after Power et al. (2012), with a head of 50 mm; the first frame's is NaN."""
    steps = np.abs(np.diff(motion, axis=0)) * [1, 1, 1, 50, 50, 50]
    return np.concatenate([[np.nan], steps.sum(axis=1)]).astype(np.float32)


def _volumes(rng: np.random.Generator, signal: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Volumes [X, Y, Z, T] whose mean over each parcel is its signal; outside of parcels they are noise about 100."""
    volumes = rng.normal(100, 1, (*SHAPE, len(signal))).astype(np.float32)
    for number in range(1, signal.shape[1] + 1):
        inside = labels == number
        texture = rng.normal(scale=20, size=(int(inside.sum()), 1))
        volumes[inside] = signal[:, number - 1] + texture - texture.mean()
    return volumes


def _confounds(
    rng: np.random.Generator, motion: np.ndarray, neural: np.ndarray
) -> tuple[pd.DataFrame, dict[str, dict[str, object]]]:
    """Return the confounds table, n/a in the first frame of every difference, and its sidecar."""
    n_frames = len(motion)
    columns: dict[str, np.ndarray] = {}
    for tissue in ("global_signal", "csf", "white_matter"):
        columns |= _expanded(tissue, 800 + np.cumsum(rng.normal(size=n_frames)) + neural.mean(axis=1))
    displacement = _displacement(motion)
    spiked = np.nan_to_num(displacement) > FD_THRESHOLD
    dvars = rng.normal(25, 1, n_frames) + 20 * spiked
    dvars[0] = np.nan
    columns["std_dvars"] = dvars / 25
    columns["dvars"] = dvars
    columns["framewise_displacement"] = displacement
    columns["rmsd"] = displacement * 0.6
    about: dict[str, dict[str, object]] = {}
    masks = {"t": None, "a": "combined", "c": "CSF", "w": "WM"}
    for prefix, mask in masks.items():
        for number in range(3):
            name = f"{prefix}_comp_cor_{number:02d}"
            columns[name] = rng.normal(size=n_frames) / n_frames**0.5
            about[name] = {
                "Method": "aCompCor" if mask else "tCompCor",
                "Retained": True,
                "VarianceExplained": 0.3 / (number + 1),
            }
            if mask:
                about[name]["Mask"] = mask
    for order in range(1, max(2, int(2 * n_frames * T_R / 128) + 1)):
        columns[f"cosine{order - 1:02d}"] = np.cos(np.pi * order * (np.arange(n_frames) + 0.5) / n_frames)
    for axis, values in zip(("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"), motion.T, strict=True):
        columns |= _expanded(axis, values)
    for number, frame in enumerate(np.flatnonzero(spiked)):
        columns[f"motion_outlier{number:02d}"] = np.eye(n_frames)[frame]
    return pd.DataFrame(columns), about


def _expanded(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return a parameter, its difference, and the square of each."""
    difference = np.concatenate([[np.nan], np.diff(values)])
    return {
        name: values,
        f"{name}_derivative1": difference,
        f"{name}_derivative1_power2": difference**2,
        f"{name}_power2": values**2,
    }


def _write_table(table: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", na_rep="n/a", index=False)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
