import pickle
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cohorts.errors import CohortError, RecordingError
from cohorts.sources.censoring import interpolate_censored
from cohorts.sources.xcpd import XCPDSource
from tests.support.derivatives import make_fmriprep_tree, make_xcpd_tree

GENERATIONS = ("0.6", "0.7", "26")
FIRST = "sub-01_task-rest"


def source(tree, **options) -> XCPDSource:
    return XCPDSource(tree.root, tree.atlas, **options)


def files(tree, pattern, name=FIRST):
    """Files of the first run."""
    found = sorted(tree.root.rglob(f"{name}*{pattern}"))
    assert found
    return found


def refused(tree, **options) -> RecordingError:
    """Error of reading the first run; the second is read as if nothing were."""
    opened = source(tree, **options)
    first, second = opened.runs()
    assert opened.read(second).signal.shape[1] == tree.atlas.n_parcels
    with pytest.raises(RecordingError, match=r"^\S+: .+\. \S") as caught:
        opened.read(first)
    named = str(caught.value).split(":")[0]
    assert named in {path.name for path in first.files}
    assert str(tree.root) not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("kind", ["nifti", "cifti"])
@pytest.mark.parametrize("mode", ["abcd", "linc"])
def test_every_generation_reads_as_what_is_known(tmp_path, generation, kind, mode):
    tree = make_xcpd_tree(
        tmp_path / "xcp_d", generation=generation, kind=kind, mode=mode, sessions=("a", "b"), runs=2, uncovered=(3,)
    )
    opened = pickle.loads(pickle.dumps(source(tree)))
    runs = opened.runs()
    assert [run.name for run in runs] == sorted(tree.runs)
    for run in runs:
        known, reading = tree.runs[run.name], opened.read(run)
        assert (run.participant, run.session, run.task) == (run.name[:6], run.name[11], "rest")
        written = known.signal if mode == "abcd" else known.signal[~known.censored]
        np.testing.assert_allclose(reading.signal, written, rtol=1e-6)
        assert reading.signal.dtype == np.float32
        assert np.isnan(reading.signal[:, 3]).all()
        assert reading.t_r == 2.0
        assert np.isnan(reading.tsnr)
        np.testing.assert_array_equal(reading.censored, known.censored)
        np.testing.assert_allclose(reading.framewise_displacement, known.framewise_displacement, rtol=1e-6)
    version = {"0.6": "0.6.3", "0.7": "0.10.6", "26": "26.1.1"}[generation]
    space = "fsLR" if kind == "cifti" else "MNI152NLin6Asym"
    fate = "interpolated" if mode == "abcd" else "censored"
    assert opened.preprocessing == f"xcp_d-{version}_space-{space}_atlas-4S156Parcels_{fate}"


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_ptseries_is_read_where_there_is_no_table(tmp_path, generation):
    tree = make_xcpd_tree(tmp_path / "xcp_d", generation=generation, kind="cifti", mode="linc")
    table, *_ = files(tree, "timeseries.tsv")
    table.unlink()
    opened = source(tree)
    first, second = opened.runs()
    assert first.files[0].name.endswith(".ptseries.nii")
    assert second.files[0].name.endswith(".tsv")
    known = tree.runs[FIRST]
    np.testing.assert_allclose(opened.read(first).signal, known.signal[~known.censored], rtol=1e-6)


@pytest.mark.parametrize("mode", ["abcd", "linc"])
def test_censoring_can_be_asked_for_whatever_xcp_d_did(tmp_path, mode):
    tree = make_xcpd_tree(tmp_path / "xcp_d", mode=mode, spikes=(0, 20, 21, 59))
    known = tree.runs[FIRST]
    dropped = source(tree, censoring="drop")
    np.testing.assert_allclose(dropped.read(dropped.runs()[0]).signal, known.signal[~known.censored], rtol=1e-6)
    assert dropped.preprocessing.endswith("_censored")
    filled = source(tree, censoring="interpolate")
    signal = filled.read(filled.runs()[0]).signal
    if mode == "abcd":
        np.testing.assert_allclose(signal, known.signal, rtol=1e-6)
        assert filled.preprocessing.endswith("_interpolated")
    else:
        expected = interpolate_censored(known.signal[~known.censored], ~known.censored)
        np.testing.assert_allclose(signal, expected, rtol=1e-5, atol=1e-5)
        assert filled.preprocessing.endswith("_refilled")


def test_a_run_without_high_motion_is_whole_either_way(tmp_path):
    tree = make_xcpd_tree(tmp_path / "xcp_d", mode="linc", spikes=())
    for censoring in ("as-is", "interpolate", "drop"):
        opened = source(tree, censoring=censoring)
        reading = opened.read(opened.runs()[0])
        np.testing.assert_allclose(reading.signal, tree.runs[FIRST].signal, rtol=1e-6)
        assert not reading.censored.any()


def test_a_tree_without_outliers_was_not_censored(tmp_path):
    tree = make_xcpd_tree(tmp_path / "xcp_d")
    for path in tree.root.rglob("*_outliers.tsv"):
        path.unlink()
    opened = source(tree)
    reading = opened.read(opened.runs()[0])
    assert reading.censored.size == 0
    assert reading.framewise_displacement.size == len(reading.signal)
    assert opened.preprocessing == "xcp_d-0.10.6_space-MNI152NLin6Asym_atlas-4S156Parcels"


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_filter_of_motion_changes_names_only(tmp_path, generation):
    tree = make_xcpd_tree(tmp_path / "xcp_d", generation=generation, filtered=True)
    opened = source(tree)
    displacement = opened.read(opened.runs()[0]).framewise_displacement
    np.testing.assert_allclose(displacement, tree.runs[FIRST].framewise_displacement, rtol=1e-6)


def test_a_concatenation_of_runs_is_not_a_further_run(tmp_path):
    tree = make_xcpd_tree(tmp_path / "xcp_d", sessions=("a",), runs=2, combined=True)
    assert len(list(tree.root.rglob("*_timeseries.tsv"))) == 6
    assert [run.name for run in source(tree).runs()] == sorted(tree.runs)


def test_columns_are_put_in_the_atlas_order_and_others_left_out(tmp_path):
    names = ("RH-Pu", "RH_Vis_1", "LH_Vis_2", "Cerebellar_Region1", "LH_Vis_1")
    tree = make_xcpd_tree(tmp_path / "xcp_d", names=names, uncovered=(2,))
    atlas = replace(
        tree.atlas,
        labels=("7Networks_LH_Vis_1", "7Networks_LH_Vis_2", "7Networks_RH_Vis_1"),
        coordinates=np.zeros((3, 3)),
    )
    opened = XCPDSource(tree.root, atlas)
    signal = opened.read(opened.runs()[0]).signal
    np.testing.assert_allclose(signal, tree.runs[FIRST].signal[:, [4, 2, 1]], rtol=1e-6)
    assert np.isnan(signal[:, 1]).all()


def test_parcels_below_the_coverage_asked_for_are_missing(tmp_path):
    tree = make_xcpd_tree(tmp_path / "xcp_d")
    path, *_ = files(tree, "stat-coverage_bold.tsv")
    table = pd.read_csv(path, sep="\t")
    table["coverage"] = [0.9, 0.7, np.nan, 0.5, 0.49, 1, 1, 1]
    table.iloc[::-1].to_csv(path, sep="\t", index=False, na_rep="n/a")
    for least, missing in ((0.5, [2, 4]), (0.8, [1, 2, 3, 4])):
        opened = source(tree, min_parcel_coverage=least)
        signal = opened.read(opened.runs()[0]).signal
        assert np.flatnonzero(np.isnan(signal).all(axis=0)).tolist() == missing
        assert not np.isnan(np.delete(signal, missing, axis=1)).any()


def test_several_atlases_or_spaces_have_to_be_named(tmp_path):
    tree = make_xcpd_tree(tmp_path / "xcp_d", atlases=("4S156Parcels", "Tian"))
    with pytest.raises(CohortError, match="more than one atlas: 4S156Parcels, Tian"):
        source(tree)
    with pytest.raises(CohortError, match="no series of atlas 'Glasser'; it has 4S156Parcels, Tian"):
        source(tree, atlas_name="Glasser")
    assert len(source(tree, atlas_name="Tian").runs()) == 2
    surfaces = make_xcpd_tree(tmp_path / "surfaces", kind="cifti", atlases=("Tian",))
    shutil.copytree(surfaces.root, tree.root, dirs_exist_ok=True)
    with pytest.raises(CohortError, match="more than one space: MNI152NLin6Asym, fsLR"):
        source(tree, atlas_name="Tian")
    opened = source(tree, atlas_name="Tian", space="fsLR")
    assert "_space-fsLR_seg-Tian" in opened.runs()[0].files[0].name
    assert source(tree, atlas_name="4S156Parcels").space == "MNI152NLin6Asym"


def test_tasks_and_sessions_are_filtered(tmp_path):
    tree = make_xcpd_tree(tmp_path / "xcp_d", sessions=("a", "b"))
    make_xcpd_tree(tmp_path / "xcp_d", sessions=("b",), task="motor")
    assert {run.session for run in source(tree, sessions=("b",)).runs()} == {"b"}
    assert [run.name for run in source(tree, tasks=("motor",)).runs()] == [
        "sub-01_ses-b_task-motor",
        "sub-02_ses-b_task-motor",
    ]
    with pytest.raises(CohortError, match="without 'task-'"):
        source(tree, tasks=("task-rest",)).runs()


def test_other_trees_and_options_are_refused(tmp_path):
    other = make_fmriprep_tree(tmp_path / "fmriprep", participants=1)
    with pytest.raises(CohortError, match="no time series of XCP-D"):
        source(other)
    with pytest.raises(CohortError, match="cannot be read"):
        XCPDSource(tmp_path / "nothing", other.atlas)


def test_two_series_of_a_run_are_refused(tmp_path):
    tree = make_xcpd_tree(tmp_path / "xcp_d", generation="0.7")
    make_xcpd_tree(tmp_path / "xcp_d", generation="26")
    with pytest.raises(CohortError, match="both are of sub-01_task-rest"):
        source(tree).runs()


@pytest.mark.parametrize(
    ("pattern", "change", "code"),
    [
        ("mean_timeseries.tsv", lambda text: "", "unreadable"),
        ("mean_timeseries.tsv", lambda text: text.split("\n")[0] + "\n", "empty"),
        ("mean_timeseries.tsv", lambda text: text.split("\n", 1)[1], "no-header"),
        ("mean_timeseries.tsv", lambda text: text.replace("LH_Vis_2", "LH_Aud_2"), "wrong-atlas"),
        ("mean_timeseries.tsv", lambda text: text.replace("LH_Vis_2", "LH_Vis_1"), "unreadable"),
        ("mean_timeseries.tsv", lambda text: text.replace("_Vis_", "_VisCent_"), "wrong-atlas"),
        ("mean_timeseries.tsv", lambda text: text.rsplit("\n", 6)[0] + "\n", "frames-mismatch"),
        ("mean_timeseries.tsv", lambda text: text + text.split("\n")[3] + "\n", "frames-mismatch"),
        ("outliers.tsv", lambda text: text + "0\n", "frames-mismatch"),
        ("outliers.tsv", lambda text: text.replace("1", "0.5"), "outliers"),
        ("outliers.tsv", lambda text: text.replace("framewise", "x"), "outliers"),
        ("outliers.tsv", lambda text: text.replace("0\n", "n/a\n"), "outliers"),
        ("outliers.tsv", lambda text: "", "unreadable"),
        ("motion.tsv", lambda text: text.replace("framewise", "x"), "motion"),
        ("motion.tsv", lambda text: text.rsplit("\n", 2)[0] + "\n", "frames-mismatch"),
        ("motion.tsv", lambda text: text.rstrip().rpartition("\t")[0] + "\t-1\n", "motion"),
        ("motion.tsv", lambda text: text.replace("\n", "\n-", 9).replace("\t", "\t-"), "text"),
        ("coverage_bold.tsv", lambda text: text.replace("Node", "x"), "text"),
        ("coverage_bold.tsv", lambda text: text.replace("coverage", "x"), "coverage"),
        ("coverage_bold.tsv", lambda text: text.replace("LH_Vis_2", "LH_Aud_2"), "wrong-atlas"),
    ],
)
def test_broken_tables_refuse_their_run_alone(tmp_path, pattern, change, code):
    tree = make_xcpd_tree(tmp_path / "xcp_d")
    path, *_ = files(tree, pattern)
    path.write_text(change(path.read_text()))
    error = refused(tree)
    assert error.code == code
    assert str(error).startswith(path.name) or code == "frames-mismatch"


def test_a_series_that_is_gone_is_refused_and_one_of_huge_values_left_to_the_check_of_signals(tmp_path):
    opened = source(make_xcpd_tree(tmp_path / "xcp_d"))
    path = opened.runs()[0].files[0]
    header, _, rest = path.read_text().split("\n", 2)
    path.write_text("\n".join([header, "\t".join(["1e300"] * 8), rest]))
    assert np.isinf(opened.read(opened.runs()[0]).signal).any()
    run = opened.runs()[0]
    path.unlink()
    with pytest.raises(RecordingError, match=f"^{path.name}: cannot be read"):
        opened.read(run)
