"""Plain NIfTI files: which are runs, whose they are, and what lies beside them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cohorts.errors import CohortError, RecordingError
from cohorts.sources.nifti import NiftiSource
from cohorts.sources.parcellation import Cleaning, clean_signals
from cohorts.sources.volumes import load_label_image
from tests.support.volumes import SHAPE, SPACE, block_labels, noise, paint, save_nifti, write_labels

N_FRAMES = 50


@pytest.fixture
def source(tmp_path) -> NiftiSource:
    image, table = write_labels(tmp_path / "atlas")
    (tmp_path / "site").mkdir()
    return NiftiSource(tmp_path / "site", load_label_image(image=image, labels=table), t_r=2.0, space=SPACE)


def add(source: NiftiSource, name: str, seed: int = 0, t_r: float | None = None) -> Path:
    return save_nifti(source.root / name, paint(noise(N_FRAMES, seed=seed)), t_r=t_r)


def test_files_of_a_folder_are_read_as_they_are(source):
    add(source, "P002.nii", seed=1)
    add(source, "P001.nii.gz")
    save_nifti(source.root / "P001_mask.nii.gz", (block_labels() != 5).astype(np.uint8))
    (source.root / "notes.txt").write_text("not a run")
    runs = replace(source, participants=frozenset({"P001", "sub-P002"})).runs()
    assert [(run.name, run.participant) for run in runs] == [("P001", "P001"), ("P002", "sub-P002")]
    one, two = (source.read(run) for run in runs)
    assert two.signal == pytest.approx(noise(N_FRAMES, seed=1), rel=1e-6)
    assert list(np.flatnonzero(np.isnan(one.signal).all(axis=0))) == [4]
    assert one.t_r == 2.0


def test_folders_a_participant_are_told_apart(source):
    add(source, "P001/rest.nii.gz")
    add(source, "P002/rest.nii.gz", seed=1)
    runs = replace(source, participants=frozenset({"P001", "P002"})).runs()
    assert [(run.name, run.participant) for run in runs] == [("P001_rest", "P001"), ("P002_rest", "P002")]
    assert [run.participant for run in source.runs()] == ["P001_rest", "P002_rest"]


def test_a_tree_after_bids_inherits_its_repetition_time(source):
    add(source, "sub-01/ses-1/func/sub-01_ses-1_task-rest_run-2_bold.nii.gz", t_r=1.5)
    add(source, "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    add(source, "derivatives/x/sub-01_task-rest_bold.nii.gz")
    add(source, ".trash/sub-01_task-rest_bold.nii.gz")
    (source.root / "task-rest_bold.json").write_text('{"RepetitionTime": 1.5}')
    (source.root / "task-faces_bold.json").write_text('{"RepetitionTime": 3}')
    [run] = source.runs()
    assert (run.name, run.participant) == ("sub-01_ses-1_task-rest_run-2", "sub-01")
    assert (run.session, run.task, run.run) == ("1", "rest", "2")
    assert replace(source, t_r=None).read(run).t_r == 1.5
    with pytest.raises(RecordingError, match=r"task-rest_bold.json says 1.5 s, and 2 s are given") as refused:
        source.read(run)
    assert refused.value.code == "tr-contradicts"
    nearest = source.root / "sub-01" / "ses-1" / "func" / "sub-01_ses-1_task-rest_bold.json"
    nearest.write_text('{"RepetitionTime": 1.505}')
    assert replace(source, t_r=None).read(source.runs()[0]).t_r == 1.505


@pytest.mark.parametrize(
    "name", ["P001_confounds.tsv", "P001_motion.txt", "sub-01_task-rest_desc-confounds_timeseries.tsv"]
)
def test_confounds_beside_a_run_are_regressed(source, name):
    add(source, "sub-01_task-rest_bold.nii.gz" if name.startswith("sub-") else "P001.nii.gz")
    confounds = np.random.default_rng(2).standard_normal((N_FRAMES, 2))
    rows = ["a\tb\tframewise_displacement", *(f"{a}\t{b}\t0.1" for a, b in confounds)]
    (source.root / name).write_text("\n".join(rows) + "\n")
    suffix = "_motion.txt" if name.endswith("txt") else "_confounds.tsv"
    source = replace(source, confounds_suffix=suffix, confound_columns=("a", "b"))
    reading = source.read(source.runs()[0])
    signals = noise(N_FRAMES).astype(np.float32)
    expected = clean_signals(signals, np.zeros(N_FRAMES, bool), Cleaning(), name="run", regressors=confounds)
    assert reading.signal == pytest.approx(expected, rel=1e-6)
    assert reading.framewise_displacement[1] == pytest.approx(0.1)


def test_if_one_run_has_confounds_every_run_must(source):
    add(source, "P001.nii.gz")
    add(source, "P002.nii.gz")
    (source.root / "P001_confounds.tsv").write_text("a\n" + "1\n2\n" * (N_FRAMES // 2))
    one, two = source.runs()
    source.read(one)
    with pytest.raises(RecordingError, match=r"^P002_confounds.tsv: is not there") as refused:
        source.read(two)
    assert refused.value.code == "confounds-missing"


@pytest.mark.parametrize(
    ("header", "notices"), [(1.0, ("header-tr",)), (2000.0, ("header-tr",)), (2.0, ()), (None, ())]
)
def test_what_the_user_says_stands_above_the_header(source, header, notices):
    """Nilearn writes a TR of 1 into images whose TR it does not know."""
    add(source, "P001.nii.gz", t_r=header)
    reading = source.read(source.runs()[0])
    assert (reading.t_r, reading.notices) == (2.0, notices)


def test_a_space_that_is_allowed_is_read(source):
    add(source, "P001_space.nii.gz")
    source = replace(source, space="MNI152NLin2009cAsym", allow_space="MNI152NLin2009cAsym")
    assert source.read(source.runs()[0]).signal.shape == (N_FRAMES, 8)


def test_a_folder_without_runs_is_refused(source, tmp_path):
    save_nifti(source.root / "P001_mask.nii.gz", np.ones(SHAPE, np.uint8))
    for root in (source.root, tmp_path / "missing"):
        with pytest.raises(CohortError):
            replace(source, root=root).runs()


def test_the_preprocessing_is_short(source):
    assert source.preprocessing == f"nifti_space-{SPACE}_confounds-own"
    named = replace(source, pipeline="spm12", confound_columns=("a", "b"), cleaning=Cleaning(high_pass=0.01))
    assert named.preprocessing == f"spm12_space-{SPACE}_confounds-2_highpass-0.01"
