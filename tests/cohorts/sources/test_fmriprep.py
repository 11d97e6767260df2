"""An fMRIPrep tree: which images are runs, what belongs to each, and what is refused."""

import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.interfaces.fmriprep import load_confounds_strategy
from nilearn.maskers import NiftiLabelsMasker

from cohorts import Cohort
from cohorts.errors import CohortError, RecordingError
from cohorts.preparation import prepare_cohort
from cohorts.quality import QualityRules
from cohorts.sources.confounds import ConfoundStrategy
from cohorts.sources.fmriprep import FMRIPrepSource
from cohorts.sources.parcellation import Cleaning
from tests.support.derivatives import KnownRun, make_fmriprep_run, make_label_image
from tests.support.volumes import SHAPE, SPACE, save_nifti

N_FRAMES = 60
SPIKE = 30
IN_SPACE = f"{SPACE}:res-2"
OTHER_SPACE = "MNI152NLin2009cAsym"


def write_run(source: FMRIPrepSource, name: str, spaces: tuple[str, ...] = (IN_SPACE,), seed: int = 0) -> KnownRun:
    sub, *_ = parts = name.split("_")
    session = [part for part in parts if part.startswith("ses-")]
    folder = source.root.joinpath(sub, *session, "func")
    rng = np.random.default_rng(seed)
    return make_fmriprep_run(folder, name, source.label_image, rng, n_frames=N_FRAMES, spaces=spaces, spikes=(SPIKE,))


@pytest.fixture
def source(tmp_path) -> FMRIPrepSource:
    """Two participants; the first with two sessions, two runs and images in two spaces, some in none."""
    label_image, _ = make_label_image(tmp_path / "atlas")
    source = FMRIPrepSource(tmp_path / "derivatives", label_image)
    spaces = (IN_SPACE, f"{OTHER_SPACE}:res-2")
    write_run(source, "sub-01_ses-1_task-rest_run-1", spaces)
    write_run(source, "sub-01_ses-1_task-rest_run-2", spaces, seed=1)
    write_run(source, "sub-01_ses-2_task-rest", (*spaces, ""), seed=2)
    write_run(source, "sub-02_task-faces_acq-fast", seed=3)
    about = {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1.1"}]}
    (source.root / "dataset_description.json").write_text(json.dumps(about))
    return source


def names(source: FMRIPrepSource) -> list[str]:
    return [run.name for run in source.runs()]


def first(source: FMRIPrepSource) -> tuple[Path, Path]:
    """Image and confounds of the first run."""
    return source.runs()[0].files[:2]


def test_a_run_is_one_image_of_each_recording(source):
    runs = source.runs()
    assert [run.name for run in runs] == [
        "sub-01_ses-1_task-rest_run-1",
        "sub-01_ses-1_task-rest_run-2",
        "sub-01_ses-2_task-rest",
        "sub-02_task-faces_acq-fast",
    ]
    assert (runs[0].participant, runs[0].session, runs[0].task, runs[0].run) == ("sub-01", "1", "rest", "1")
    assert (runs[3].participant, runs[3].session, runs[3].task, runs[3].run) == ("sub-02", "", "faces", "")
    stem = f"sub-01_ses-1_task-rest_run-1_space-{SPACE}_res-2_desc-"
    assert [path.name for path in runs[0].files] == [
        f"{stem}preproc_bold.nii.gz",
        "sub-01_ses-1_task-rest_run-1_desc-confounds_timeseries.tsv",
        f"{stem}brain_mask.nii.gz",
        "sub-01_ses-1_task-rest_run-1_desc-confounds_timeseries.json",
        f"{stem}preproc_bold.json",
    ]


def test_a_reading_is_what_nilearn_makes_of_the_same_files(source):
    source = replace(
        source,
        strategy=ConfoundStrategy("scrubbing", wm_csf="basic", scrub=0),
        cleaning=Cleaning(censoring="drop", standardize="zscore_sample"),
    )
    run = source.runs()[0]
    reading = pickle.loads(pickle.dumps(source)).read(run)
    bold = str(run.files[0])
    confounds, kept = load_confounds_strategy(bold, denoise_strategy="scrubbing", wm_csf="basic", scrub=0)
    masker = NiftiLabelsMasker(
        source.label_image.path, mask_img=run.files[2], standardize="zscore_sample", reports=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = masker.fit_transform(bold, confounds=confounds, sample_mask=kept)
    assert np.abs(reading.signal - theirs).max() < 1e-6
    assert reading.t_r == 2.0
    assert list(np.flatnonzero(reading.censored)) == [SPIKE]
    known = write_run(source, run.name)
    np.testing.assert_allclose(reading.framewise_displacement, known.framewise_displacement, rtol=1e-6)


def test_tasks_and_sessions_are_chosen(source):
    assert names(replace(source, tasks=("faces",))) == ["sub-02_task-faces_acq-fast"]
    assert names(replace(source, sessions=("2",))) == ["sub-01_ses-2_task-rest"]
    with pytest.raises(CohortError, match=r"has no task-sleep \(found: faces, rest\)"):
        replace(source, tasks=("sleep",)).runs()


def test_another_space_is_taken_only_if_it_is_allowed(source):
    with pytest.raises(CohortError, match=f"lies in space {OTHER_SPACE}, but .* in {SPACE}"):
        replace(source, space=OTHER_SPACE).runs()
    allowed = replace(source, space=OTHER_SPACE, allow_space=OTHER_SPACE)
    assert OTHER_SPACE in allowed.runs()[0].files[0].name
    with pytest.raises(CohortError, match=rf"no images in space T1w \(found: {OTHER_SPACE}, {SPACE}, none\)"):
        replace(source, space="T1w").runs()


def test_several_resolutions_must_be_told_apart(source):
    write_run(source, "sub-03_task-rest", (SPACE,))
    with pytest.raises(CohortError, match=r"several resolutions \(res: 2, native\)"):
        source.runs()
    assert names(replace(source, res="native")) == ["sub-03_task-rest"]
    assert len(names(replace(source, res="2"))) == 4
    with pytest.raises(CohortError, match=r"resolution 1 \(found: 2, native\)"):
        replace(source, res="1").runs()


def test_a_template_with_cohorts_is_told_by_both(tmp_path, source):
    infant = replace(source.label_image, space="MNIInfant:cohort-1")
    source = replace(source, root=tmp_path / "infants", label_image=infant)
    write_run(source, "sub-01_task-rest", ("MNIInfant:cohort-1:res-2", "MNIInfant:cohort-2:res-2"))
    runs = source.runs()
    assert "_space-MNIInfant_cohort-1_" in source.preprocessing
    assert [run.files[0].name.split("_")[3] for run in runs] == ["cohort-1"]


def test_each_echo_is_a_run(tmp_path, source):
    source = replace(source, root=tmp_path / "echoes")
    for echo in (1, 2):
        write_run(source, f"sub-01_task-rest_echo-{echo}")
    assert names(source) == ["sub-01_task-rest_echo-1", "sub-01_task-rest_echo-2"]


def test_echoes_beside_what_was_made_of_them_are_not_missed(source):
    expected = names(source)
    write_run(source, "sub-02_task-faces_acq-fast_echo-1", ("",))
    assert names(source) == expected


def test_confounds_of_the_old_name_are_found(source):
    _, confounds = first(source)
    confounds.rename(confounds.with_name(confounds.name.replace("timeseries", "regressors")))
    assert first(source)[1].name.endswith("_desc-confounds_regressors.tsv")
    source.read(source.runs()[0])


def test_aroma_takes_the_images_that_aroma_cleaned(source):
    aroma = replace(source, strategy=ConfoundStrategy("ica_aroma"))
    with pytest.raises(CohortError, match=r"not run ICA-AROMA since 23\.1.* Take --confounds simple"):
        aroma.runs()
    for path in (first(source)[0], first(source)[0].with_name(first(source)[0].name.replace(".nii.gz", ".json"))):
        path.rename(path.with_name(path.name.replace("preproc", "smoothAROMAnonaggr")))
    assert aroma.read(aroma.runs()[0]).signal.shape == (N_FRAMES, 8)
    # ICA-AROMA can fail on a run, which is then named.
    assert names(aroma) == names(source)
    with pytest.raises(RecordingError, match=r"run-2.*: its run has no image") as refused:
        aroma.read(aroma.runs()[1])
    assert refused.value.code == "no-image"


def test_a_run_without_an_image_in_the_space_of_the_others_is_named(source):
    write_run(source, "sub-03_task-rest", (OTHER_SPACE,))
    [run] = [run for run in source.runs() if run.participant == "sub-03"]
    with pytest.raises(RecordingError, match=f"^sub-03_task-rest_space-{OTHER_SPACE}_.*: its run has no image"):
        source.read(run)
    assert names(replace(source, tasks=("faces",))) == ["sub-02_task-faces_acq-fast"]
    assert "sub-03_task-rest" not in names(replace(source, space=SPACE))


def test_a_tree_of_surfaces_alone_is_told_what_it_lacks(tmp_path, source):
    surfaces = tmp_path / "surfaces" / "sub-01" / "func" / "sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii"
    surfaces.parent.mkdir(parents=True)
    surfaces.write_bytes(b"CIFTI")
    with pytest.raises(CohortError, match=rf"its \.dtseries\.nii are of surfaces\. Run fMRIPrep with .*{SPACE}"):
        replace(source, root=tmp_path / "surfaces").runs()


def test_the_preprocessing_says_everything_and_no_path(source):
    assert source.preprocessing == f"fmriprep-24.1.1_space-{SPACE}_confounds-simple_interpolated"
    cleaning = Cleaning(high_pass=0.01, low_pass=0.1, standardize="zscore_sample", censoring="drop")
    other = replace(source, strategy=ConfoundStrategy("scrubbing", fd_threshold=0.2), cleaning=cleaning, res="2")
    assert other.preprocessing == (
        f"fmriprep-24.1.1_space-{SPACE}_res-2_confounds-scrubbing_fd-0.2_censored_highpass-0.01_lowpass-0.1_zscore"
    )
    about = source.root / "dataset_description.json"
    about.write_text('{"PipelineDescription": {"Name": "fMRIPrep", "Version": "/home/me/1.4"}}')
    assert source.preprocessing.startswith("fmriprep-homeme1.4_")
    about.write_text('{"GeneratedBy": "fMRIPrep"}')
    assert source.preprocessing.startswith("fmriprep_")


def test_signals_that_are_standardized_here_are_stored_as_such(source, tmp_path):
    standardized = replace(source, cleaning=Cleaning(standardize="zscore_sample"))
    prepare_cohort(standardized, tmp_path / "oslo", rules=QualityRules(min_frames=2))
    assert Cohort.open(tmp_path / "oslo").scaling == "zscore"
    with pytest.raises(CohortError, match="scaling was zscore, and is raw"):
        prepare_cohort(source, tmp_path / "oslo")


BAD = {
    "no sidecar": ("no-tr", lambda sidecar, mask: sidecar.unlink()),
    "sidecar a list": ("sidecar", lambda sidecar, mask: sidecar.write_text("[2.0]")),
    "mask broken": ("not-nifti", lambda sidecar, mask: mask.write_text("mask")),
    "mask 4D": ("not-3d", lambda sidecar, mask: save_nifti(mask, np.ones((*SHAPE, 2), np.uint8))),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_run_with_a_fault_is_refused_and_the_others_stay(source, fault):
    code, spoil = BAD[fault]
    files = source.runs()[0].files
    spoil(files[4], files[2])
    run, other, *_ = source.runs()
    with pytest.raises(RecordingError) as refused:
        source.read(run)
    assert refused.value.code == code
    assert any(str(refused.value).startswith(f"{path.name}: ") for path in run.files)
    assert str(source.root) not in str(refused.value)
    assert source.read(other).signal.shape == (N_FRAMES, 8)


def test_the_repetition_time_of_every_header_counts_for_nothing(source):
    """FMRIPrep 23.2 writes 1 s into the headers of all images of a tree."""
    for run in source.runs():
        image = nib.load(run.files[0])
        save_nifti(run.files[0], np.asarray(image.dataobj), image.affine, t_r=1.0)
    readings = [source.read(run) for run in source.runs()]
    assert [(reading.t_r, reading.notices) for reading in readings] == [(2.0, ("header-tr",))] * 4

    for path in source.root.rglob("*_bold.json"):
        path.unlink()
    with pytest.raises(RecordingError, match=r"the 1 s of its header are not to be trusted.*Give --tr SECONDS"):
        source.read(source.runs()[0])
    said = replace(source, t_r=2.5)
    assert {said.read(run).t_r for run in said.runs()} == {2.5}


def test_a_recording_that_stands_twice_is_refused(source):
    folder = first(source)[0].parent
    (source.root / "copy").mkdir()
    for path in folder.iterdir():
        (source.root / "copy" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CohortError, match=r"stands there twice, since .* is of sub-01_ses-1_task-rest_run-1"):
        source.runs()
