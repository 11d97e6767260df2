import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohorts.errors import CohortError, RecordingError
from cohorts.sources.bids import Tree, generated_by, header_notices, parse_name, repetition_time, run_of, walk

LABELS = st.text("abcXYZ019+", min_size=1, max_size=8)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "tree"


def touch(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@given(
    st.dictionaries(st.text("abcxyz", min_size=1, max_size=6), LABELS, min_size=1, max_size=6),
    st.sampled_from(["bold", "timeseries", "T1w"]),
    st.sampled_from(["", ".nii.gz", ".ptseries.nii", ".tsv"]),
)
def test_a_name_says_what_it_was_made_of(entities, suffix, extension):
    text = "_".join(f"{key}-{value}" for key, value in entities.items()) + f"_{suffix}{extension}"
    name = parse_name(f"/some/where/sub-9/{text}")
    assert name
    assert (list(name.entities.items()), name.suffix, name.extension) == (list(entities.items()), suffix, extension)


@pytest.mark.parametrize(
    "text",
    [
        "participants.tsv",
        "dataset_description.json",
        "sub-01",
        "sub-01_.tsv",
        "sub-_bold.nii",
        "sub-01__bold.nii",
        "sub-01_sub-02_bold.nii",
        "sub-01_rest_bold.nii",
        "sub-0 1_bold.nii",
        "",
    ],
)
def test_other_names_are_none_of_bids(text):
    assert parse_name(text) is None


def test_a_run_is_named_by_what_tells_acquisitions_apart():
    name = parse_name("sub-01_space-fsLR_ses-b_run-02_task-rest_atlas-X_den-91k_stat-mean_timeseries.ptseries.nii")
    run = run_of(Path("x.nii"), name)
    assert (run.name, run.participant) == ("sub-01_ses-b_task-rest_run-02", "sub-01")
    assert (run.session, run.task, run.run) == ("b", "rest", "02")


def test_a_walk_ends_and_visits_every_folder_once(root):
    touch(root, "sub-02/func/b.tsv", "sub-02/func/a.tsv", "sub-01/c.tsv", "top.tsv")
    touch(root, ".git/x.tsv", "sub-01/.DS_Store", "sourcedata/x.tsv", "logs/x.tsv", "sub-01/figures/x.svg")
    touch(root.parent / "elsewhere", "sub-03/d.tsv")
    (root / "sub-03").symlink_to(root.parent / "elsewhere" / "sub-03")
    (root / "loop").symlink_to(root)
    (root / "sub-01" / "up").symlink_to("../..")
    (root / "self").symlink_to(root / "self")
    (root / "gone.tsv").symlink_to(root / "nothing")
    (root / "sub-02" / "linked.tsv").symlink_to(root / "top.tsv")
    os.mkfifo(root / "sub-02" / "pipe.tsv")
    assert [str(path.relative_to(root)) for path in walk(root)] == [
        "sub-01/c.tsv",
        "sub-02/func/a.tsv",
        "sub-02/func/b.tsv",
        "sub-02/linked.tsv",
        "sub-03/d.tsv",
        "top.tsv",
    ]


@pytest.mark.parametrize("what", ["missing", "loop"])
def test_a_root_that_cannot_be_listed_is_refused(root, what):
    if what == "loop":
        root.symlink_to(root)
    with pytest.raises(CohortError, match=f"{root}: cannot be"):
        list(walk(root))


def test_files_of_a_run_are_found_in_any_order_of_entities(root):
    bold = "sub-01/func/sub-01_task-rest_space-X_desc-preproc_bold.nii.gz"
    mask = "sub-01/func/task-rest_sub-01_desc-brain_space-X_mask.nii.gz"
    confounds = "sub-01/func/task-rest_sub-01_desc-confounds_timeseries.tsv"
    touch(root, bold, mask, confounds, "sub-01/func/sub-01_desc-brain_mask.nii.gz")
    touch(root, "sub-01/func/sub-01_task-rest_run-2_desc-confounds_timeseries.tsv")
    touch(root, "sub-01/func/sub-01_desc-confounds_timeseries.tsv", "sub-01/func/sub-01_space-X_timeseries.tsv")
    tree = Tree(root)
    assert tree.select("bold", ".nii.gz", space="X") == [root / bold]
    assert tree.beside(root / bold, "mask", ".nii.gz", desc="brain") == root / mask
    assert tree.beside(root / bold, "mask", ".nii.gz") is None
    assert tree.confounds(root / bold) == root / confounds


def test_a_sidecar_inherits_from_above_and_the_nearest_counts(root):
    bold = "sub-01/ses-1/func/sub-01_ses-1_task-rest_space-X_bold.nii.gz"
    speaking = {"task-rest_bold.json": 1, "sub-01/sub-01_task-rest_bold.json": 2}
    nearest = "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.json"
    others = ("sub-01_task-motor_bold.json", "ses-1/func/sub-01_ses-1_task-rest_run-1_bold.json", "sub-01_events.json")
    touch(root, bold, *(f"sub-01/{name}" for name in others), text='{"RepetitionTime": 9}')
    touch(root.parent, "task-rest_bold.json", text='{"RepetitionTime": 9}')
    for name, t_r in speaking.items():
        touch(root, name, text=f'{{"RepetitionTime": {t_r}}}')
    touch(root, nearest, text="{}")
    sidecars = Tree(root).sidecars(root / bold)
    assert sidecars == tuple(root / name for name in (*speaking, nearest))
    assert repetition_time(sidecars, "x") == 2
    touch(root, nearest, text='{"RepetitionTime": 2.5}')
    assert repetition_time(sidecars, "x") == 2.5


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"RepetitionTime": "2.0"}', "no-tr"),
        ('{"RepetitionTime": true}', "no-tr"),
        ('{"RepetitionTime": 0}', "no-tr"),
        ('{"RepetitionTime": NaN}', "no-tr"),
        ('{"RepetitionTime": [2]}', "no-tr"),
        ('{"RepetitionTime": 1e999}', "no-tr"),
        ('{"RepetitionTime": 1' + "0" * 400 + "}", "no-tr"),
        ('{"RepetitionTime": 2000}', "tr-milliseconds"),
        ("[2]", "sidecar"),
        ("", "sidecar"),
        ('{"RepetitionTime": 2', "sidecar"),
        ("[" * 100_000, "sidecar"),
        ('{"Padding": "' + " " * 2**24 + '"}', "sidecar"),
    ],
)
def test_a_repetition_time_is_never_guessed(tmp_path, text, code):
    path = tmp_path / "sub-01_bold.json"
    path.write_text(text)
    with pytest.raises(RecordingError, match=r"^sub-01_bold\.json: ", check=lambda fault: fault.code == code):
        repetition_time((path,), "sub-01_bold.nii.gz")


@pytest.mark.parametrize("text", [None, "{}", '{"RepetitionTime": null}'])
@pytest.mark.parametrize(
    ("header", "said"),
    [(1.0, "the 1 s of its header are not to be trusted"), (float("nan"), "nor does its header"), (None, "; expected")],
)
def test_a_run_whose_repetition_time_only_a_header_says_is_named(tmp_path, text, header, said):
    path = tmp_path / "sub-01_bold.json"
    path.write_text(text or "")
    with pytest.raises(RecordingError, match=rf"^sub-01_bold\.nii\.gz: no sidecar states .*{said}") as caught:
        repetition_time([path] if text else [], "sub-01_bold.nii.gz", header=header)
    assert caught.value.code == "no-tr"
    assert str(caught.value).endswith("Give --tr SECONDS, or add it to the JSON sidecar of the run.")
    assert repetition_time([path] if text else [], "sub-01_bold.nii.gz", header=header, given=2.0) == 2.0


@pytest.mark.parametrize(
    ("header", "noticed"),
    [(2.0, False), (2.01, False), (float("nan"), False), (1.0, True), (2.1, True), (2000.0, True), (0.002, True)],
)
def test_a_header_contradicts_a_sidecar_or_the_user_in_vain(tmp_path, header, noticed):
    path = tmp_path / "sub-01_bold.json"
    path.write_text('{"RepetitionTime": 2}', encoding="utf-16")
    for sidecars, user in (([path], None), ([path], 1.99), ([], 2.0)):
        assert repetition_time(sidecars, "sub-01_bold.nii.gz", header=header, given=user) == 2
    assert header_notices(header, 2.0) == ("header-tr",) * noticed


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        ('{"GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1.1"}, {"Name": "x"}]}', "fmriprep-24.1.1"),
        ('{"PipelineDescription": {"Name": "fmriprep", "Version": "1.5"}}', "fmriprep-1.5"),
        ('{"GeneratedBy": [{"Name": "my tool", "Version": "/data/patients/x y"}]}', "mytool-datapatientsxy"),
        ('{"GeneratedBy": [{"Name": "xcp_d"}]}', "xcp_d"),
        ('{"GeneratedBy": [], "PipelineDescription": []}', ""),
        ('{"GeneratedBy": "me"}', ""),
        ("{}", ""),
    ],
)
def test_the_software_of_a_tree_is_named_without_paths(tmp_path, text, maker):
    (tmp_path / "dataset_description.json").write_text(text)
    assert generated_by(tmp_path) == maker
