"""Confounds are those of nilearn's strategies, of this run, and numbers."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds_strategy

from cohorts.errors import CohortError, RecordingError
from cohorts.sources.confounds import MODELS, STRATEGIES, ConfoundStrategy, load_strategy, load_table

N_FRAMES = 40
MOTION = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
EXPANSIONS = ("", "_derivative1", "_power2", "_derivative1_power2")


def fmriprep_table(n_frames: int = N_FRAMES, moved: tuple[int, ...] = (10, 11)) -> pd.DataFrame:
    """Confounds as fMRIPrep writes them: derivatives, displacement and DVARS start with n/a."""
    rng = np.random.default_rng(0)
    names = [f"{name}{end}" for name in (*MOTION, "csf", "white_matter", "global_signal") for end in EXPANSIONS]
    names += ["cosine00", "cosine01", "a_comp_cor_00", "a_comp_cor_01"]
    table = pd.DataFrame({name: rng.standard_normal(n_frames) for name in names})
    table["framewise_displacement"] = np.where(np.isin(np.arange(n_frames), moved), 3.0, 0.1)
    table["std_dvars"] = 1.0
    table["non_steady_state_outlier00"] = [1.0] + [0.0] * (n_frames - 1)
    late = [name for name in table if "derivative1" in name or name in ("framewise_displacement", "std_dvars")]
    table.loc[0, late] = np.nan
    return table


@pytest.fixture
def run(tmp_path):
    """A run's image, by name alone, and its confounds."""
    stem = tmp_path / "sub-01_task-rest_"
    path = stem.with_name(f"{stem.name}desc-confounds_timeseries.tsv")
    fmriprep_table().to_csv(path, sep="\t", index=False, na_rep="n/a")
    components = {f"a_comp_cor_0{n}": {"Mask": "combined", "Method": "aCompCor"} for n in (0, 1)}
    path.with_suffix(".json").write_text(json.dumps(components))
    return stem.with_name(f"{stem.name}space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"), path


@pytest.mark.parametrize(
    "strategy",
    [
        ConfoundStrategy(),
        ConfoundStrategy("simple", motion="basic", wm_csf="full", global_signal="basic"),
        ConfoundStrategy("scrubbing"),
        ConfoundStrategy("scrubbing", fd_threshold=5, std_dvars_threshold=3, scrub=0),
        ConfoundStrategy("compcor", global_signal="derivatives"),
    ],
    ids=lambda strategy: strategy.id,
)
def test_strategies_are_nilearn_s(run, strategy):
    image, path = run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, kept = load_confounds_strategy(str(image), denoise_strategy=strategy.name, **strategy.options)
    ours = load_strategy(image, path, strategy, N_FRAMES)
    assert np.array_equal(ours.regressors, theirs.to_numpy())
    assert np.array_equal(np.flatnonzero(~ours.censored), kept)
    assert np.isnan(ours.framewise_displacement[0])
    assert ours.framewise_displacement[[1, 10]] == pytest.approx([0.1, 3.0])


def test_moved_frames_are_censored_by_scrubbing_alone(run):
    image, path = run
    simple = load_strategy(image, path, ConfoundStrategy(), N_FRAMES)
    assert list(np.flatnonzero(simple.censored)) == [0]
    scrubbed = load_strategy(image, path, ConfoundStrategy("scrubbing", scrub=0), N_FRAMES)
    assert list(np.flatnonzero(scrubbed.censored)) == [0, 10, 11]


def test_without_a_strategy_motion_is_known_and_nothing_regressed(run):
    confounds = load_strategy(*run, ConfoundStrategy("none"), N_FRAMES)
    assert confounds.regressors.shape == (N_FRAMES, 0)
    assert confounds.censored.size == 0
    assert confounds.framewise_displacement[10] == 3


def edited(change) -> str:
    """Table of fMRIPrep after a change, as text."""
    return change(fmriprep_table()).to_csv(sep="\t", index=False, na_rep="n/a")


BAD = {
    "old fMRIPrep": ("confounds-missing", edited(lambda table: table.rename(columns={"csf": "CSFMean"})).encode()),
    "text": ("confounds-missing", edited(lambda table: table.assign(trans_x="large")).encode()),
    "UTF-16": ("confounds-unreadable", edited(lambda table: table).encode("utf-16")),
    "Latin-1": ("confounds-unreadable", "µ\n".encode("latin-1") * 41),
    "ragged": ("confounds-unreadable", b"a\tb\n" + b"1\t2\t3\t4\n" * 40),
    "empty": ("confounds-unreadable", b""),
    "binary": ("confounds-unreadable", bytes(1000)),
}


@pytest.mark.parametrize("fault", BAD)
def test_confounds_that_cannot_be_used_are_refused(run, fault):
    image, path = run
    code, content = BAD[fault]
    path.write_bytes(content)
    with pytest.raises(RecordingError) as refused:
        load_strategy(image, path, ConfoundStrategy("simple", motion="basic"), N_FRAMES)
    assert refused.value.code == code
    assert str(refused.value).startswith(f"{path.name}: ")
    assert str(path.parent) not in str(refused.value)


def test_windows_line_ends_change_nothing(run):
    image, path = run
    expected = load_strategy(image, path, ConfoundStrategy(), N_FRAMES).regressors
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert np.array_equal(load_strategy(image, path, ConfoundStrategy(), N_FRAMES).regressors, expected)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "magic"}, "'magic' is not known"),
        ({"name": "simple", "fd_threshold": 0.2}, "has no option fd_threshold"),
        ({"name": "compcor", "wm_csf": "basic"}, "has no option wm_csf"),
        ({"name": "none", "motion": "basic"}, "'none' has no option motion"),
        ({"motion": "some"}, "motion 'some' is not known"),
        ({"name": "scrubbing", "fd_threshold": -1}, "fd_threshold of -1"),
        ({"name": "scrubbing", "std_dvars_threshold": float("nan")}, "std_dvars_threshold of nan"),
    ],
)
def test_a_strategy_that_does_not_exist_is_refused(wrong, says):
    with pytest.raises(CohortError, match=says):
        ConfoundStrategy(**wrong)


def test_a_strategy_s_id_says_what_was_changed():
    assert ConfoundStrategy("scrubbing", fd_threshold=0.2).id == "scrubbing_fd-0.2"
    assert {ConfoundStrategy(name).id for name in STRATEGIES} == {name.replace("_", "") for name in STRATEGIES}
    assert {ConfoundStrategy(motion=model).id for model in MODELS} == {f"simple_motion-{model}" for model in MODELS}


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: text.replace("\t", ",").encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-8-sig"),
    ],
    ids=["tabs", "commas", "Windows line ends", "UTF-16", "byte order mark"],
)
def test_a_plain_table_is_read_whatever_program_wrote_it(tmp_path, encode):
    path = tmp_path / "confounds.tsv"
    path.write_bytes(encode("a\tb\tnote\tframewise_displacement\n1\tn/a\tx\tn/a\n2\t5\ty\t0.5\n3\t6\tz\t0.25\n"))
    everything = load_table(path, 3)
    assert everything.regressors == pytest.approx(np.array([[1, 5, 0.5], [2, 5, 0.5], [3, 6, 0.25]]))
    assert everything.censored.size == 0
    assert everything.framewise_displacement == pytest.approx([np.nan, 0.5, 0.25], nan_ok=True)
    assert load_table(path, 3, ("b",)).regressors == pytest.approx(np.array([[5], [5], [6]]))


@pytest.mark.parametrize(
    ("code", "text", "columns"),
    [
        ("confounds-missing", "a\nx\ny\nz\n", ("a",)),
        ("confounds-nan", "a\n1\nn/a\n3\n", ()),
        ("confounds-nan", "a\nn/a\nn/a\n3\n", ()),
        ("confounds-nan", "a\n1\ninf\n3\n", ()),
    ],
)
def test_a_plain_table_that_cannot_be_used_is_refused(tmp_path, code, text, columns):
    path = tmp_path / "confounds.tsv"
    path.write_text(text)
    with pytest.raises(RecordingError, match=r"^confounds.tsv: ", check=lambda fault: fault.code == code):
        load_table(path, 3, columns)
