import re
import signal
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from base.files import locked
from brainlm.config import WindowConfig
from brainlm.windows import split_participants, usable_recordings
from cli.main import run_command
from cohorts import Cohort, load_atlas
from cohorts.tables import read_text_table
from tests.support.cohorts import contents
from tests.support.derivatives import KnownTree, make_fmriprep_tree, make_xcpd_tree
from tests.support.programs import processes_of, start, wait_until

OWN_ID = re.compile(rb"sub-0\d(?![0-9a-f])")
"""An id of the trees; a pseudonym may begin like one, but goes on."""
FAST = ("--workers", "0", "--no-report")


@pytest.fixture
def fmriprep(tmp_path) -> KnownTree:
    """A tree of 3 people and 2 runs each."""
    return make_fmriprep_tree(tmp_path / "fmriprep", runs=2, n_frames=80)


def of_images(tree: KnownTree, out: Path, *more: str) -> list[str]:
    labels = ["--atlas-image", str(tree.label_image.path), "--atlas-labels", str(tree.label_table)]
    return ["cohort", "prepare", str(tree.root), str(out), *labels, "--atlas-space", "MNI152NLin6Asym", *more]


def test_an_fmriprep_tree_becomes_a_cohort_and_a_second_time_nothing_is_read(fmriprep, tmp_path, capsys):
    command = of_images(fmriprep, tmp_path / "data" / "oslo", *FAST, "--confounds", "none", "--keep-ids")
    assert run_command(command) == 0
    assert "6 recordings of 3 participants, from fmriprep" in capsys.readouterr().out

    cohort = Cohort.open(tmp_path / "data" / "oslo")
    for name, run in fmriprep.runs.items():
        np.testing.assert_allclose(cohort.read(name).signal, run.signal, rtol=1e-5)
    assert cohort.covariates()["age"].notna().all()
    assert run_command(command) == 0
    assert "Read now: 0; there already: 6" in capsys.readouterr().out
    assert run_command([*command, "--high-pass", "0.02"]) == 2
    assert re.search(r"high_pass was .+, and is 0\.02", capsys.readouterr().err)


def test_a_tree_of_xcpd_becomes_a_cohort(tmp_path):
    tree = make_xcpd_tree(tmp_path / "xcpd", generation="26", kind="cifti", n_frames=80)
    (tmp_path / "atlas.json").write_text(tree.atlas.to_json())
    command = ["cohort", "prepare", str(tree.root), str(tmp_path / "oslo"), "--atlas", str(tmp_path / "atlas.json")]

    assert run_command([*command, *FAST, "--keep-ids"]) == 0

    cohort = Cohort.open(tmp_path / "oslo")
    assert cohort.recordings["recording_id"].tolist() == sorted(tree.runs)
    assert cohort.preprocessing.startswith("xcp_d-")


def test_the_cortex_of_a_4s_atlas_is_taken_by_the_names_of_any_generation(tmp_path, real_data, capsys):
    table = read_text_table(real_data / "atlases" / "tables" / "atlas-4S456Parcels_dseg.tsv")
    former = [label.removeprefix("7Networks_") for label in load_atlas("schaefer400").former_labels]
    for number, names in enumerate((table["label"].tolist(), [*former, *table["label"][400:]])):
        tree = make_xcpd_tree(tmp_path / f"xcpd-{number}", names=names, atlases=("4S456Parcels",), n_frames=80)
        out = tmp_path / f"oslo-{number}"
        command = ["cohort", "prepare", str(tree.root), str(out), "--atlas", "schaefer400", *FAST, "--keep-ids"]
        assert run_command(command) == 0

        said = capsys.readouterr().out
        assert "Of 2 of 2 recordings: their files have further columns" in said
        assert ("names that the atlas had before" in said) == (number == 1)
        for recording in Cohort.open(out):
            known = tree.runs[recording.recording_id].signal[:, :400]
            np.testing.assert_allclose(recording.signal, known, rtol=1e-6)


def test_ids_stay_at_the_site_and_messages_speak_of_them_there(fmriprep, tmp_path, capsys):
    bad = next(fmriprep.root.rglob("sub-02*run-2*confounds*.tsv"))
    bad.write_text("a,b\n1,2\n")

    assert run_command(of_images(fmriprep, tmp_path / "data" / "oslo", *FAST)) == 0

    assert "1 quarantined:\n  sub-02_task-rest_run-2_desc-confounds" in capsys.readouterr().out
    told = [path for path, data in contents(tmp_path / "data" / "oslo").items() if OWN_ID.search(data)]
    assert told in ([], ["site-only/linkage.tsv"])
    assert run_command(["cohort", "show", str(tmp_path / "data" / "oslo")]) == 0
    assert "  sub-02_task-rest_run-2_desc-confounds" in capsys.readouterr().out


def test_headers_with_another_repetition_time_are_counted_in_the_report_which_names_nobody(fmriprep, tmp_path, capsys):
    for number, run in enumerate(fmriprep.runs.values()):
        image = nib.load(run.bold)
        image.header.set_zooms((*image.header.get_zooms()[:3], 1.0 if number % 2 else 2.0))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), run.bold)

    assert run_command(of_images(fmriprep, tmp_path / "oslo", "--workers", "0", "--confounds", "scrubbing")) == 0

    said = "the header of their file states another repetition time"
    assert f"Of 3 of 6 recordings: {said}" in capsys.readouterr().out
    assert Cohort.open(tmp_path / "oslo").about.t_r == (2.0,)
    page = (tmp_path / "oslo" / "site-only" / "quality.html").read_text()
    assert all(words in page for words in (said, "3 of 6", "Recordings worth a look"))
    assert not OWN_ID.search(page.encode())


def test_stricter_thresholds_set_aside_and_looser_ones_take_back(fmriprep, tmp_path, capsys):
    assert run_command(of_images(fmriprep, tmp_path / "oslo", *FAST)) == 0
    fd = Cohort.open(tmp_path / "oslo").recordings["mean_fd"]
    before = contents(tmp_path / "oslo")
    (tmp_path / "strict.yaml").write_text(f"max_mean_fd: {fd.median()}\n")
    check = ["cohort", "check", str(tmp_path / "oslo"), "--no-report", "--quality"]

    assert run_command([*check, str(tmp_path / "strict.yaml")]) == 0
    assert "3 quarantined, 0 taken back" in capsys.readouterr().out
    assert len(Cohort.open(tmp_path / "oslo")) == 3
    assert run_command([*check, str(Path(__file__).parents[2] / "configs" / "quality.yaml")]) == 0
    assert "0 quarantined, 3 taken back" in capsys.readouterr().out
    assert contents(tmp_path / "oslo") == before


def test_check_finds_what_was_damaged(fmriprep, tmp_path, capsys):
    assert run_command(of_images(fmriprep, tmp_path / "oslo", *FAST, "--keep-ids")) == 0
    path = tmp_path / "oslo" / "recordings" / "sub-01_task-rest_run-1.safetensors"
    other = path.with_name("sub-02_task-rest_run-1.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    other.write_bytes(path.with_name("sub-02_task-rest_run-2.safetensors").read_bytes())
    bits = path.with_name("sub-03_task-rest_run-1.safetensors")
    data = bytearray(bits.read_bytes())
    data[-100] ^= 1  # in the signal, which comes last
    bits.write_bytes(data)

    assert run_command(["cohort", "check", str(tmp_path / "oslo")]) == 2

    said = capsys.readouterr().err
    assert "sub-01_task-rest_run-1.safetensors: is damaged" in said
    assert "2 more are damaged" in said


@pytest.mark.parametrize("names", [["--keep-ids"], []])
def test_what_was_lost_or_damaged_is_read_again(fmriprep, tmp_path, names):
    command = of_images(fmriprep, tmp_path / "oslo", *FAST, *names)
    assert run_command(command) == 0
    before = contents(tmp_path / "oslo")
    next((tmp_path / "oslo" / "recordings").glob("*.safetensors")).unlink()
    assert run_command(["cohort", "show", str(tmp_path / "oslo")]) == 2

    assert run_command(command) == 0

    assert contents(tmp_path / "oslo") == before


def test_a_lost_key_is_not_replaced_and_none_lies_in_the_cohort(fmriprep, tmp_path, capsys):
    command = of_images(fmriprep, tmp_path / "oslo", *FAST)
    assert run_command([*command, "--key", str(tmp_path / "oslo" / "key")]) == 2
    assert "lies in the cohort" in capsys.readouterr().err
    assert not (tmp_path / "oslo").exists()
    assert run_command(command) == 0
    (tmp_path / "pseudonyms.key").rename(tmp_path / "moved.key")

    assert run_command(command) == 2

    assert "pseudonyms.key: is not there" in capsys.readouterr().err
    assert not (tmp_path / "pseudonyms.key").exists()
    assert run_command([*command, "--key", str(tmp_path / "moved.key")]) == 0


def test_killed_with_its_processes_at_work_it_goes_on_to_the_same_bytes(fmriprep, tmp_path):
    out = tmp_path / "b" / "oslo"
    command = of_images(fmriprep, out, "--workers", "2", "--no-report", "--key", str(tmp_path / "key"))
    process = start("fedbrainlm", *command, folder=tmp_path)
    assert wait_until(lambda: len(list(out.parent.glob(".*/recordings/*.safetensors"))) >= 2, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: not processes_of(tmp_path), 30)

    assert run_command(command) == 0

    assert run_command(of_images(fmriprep, tmp_path / "a" / "oslo", *FAST, "--key", str(tmp_path / "key"))) == 0
    assert contents(out) == contents(tmp_path / "a" / "oslo")


def test_names_of_files_do_not_reach_the_terminal_as_orders(tmp_path, capsys):
    folder = tmp_path / "matrices"
    folder.mkdir()
    np.save(folder / "sub-01.npy", np.random.default_rng(0).normal(size=(90, 100)))
    np.save(folder / "a\x1b[2J\nb.npy", np.zeros((90, 100)))
    command = ["cohort", "prepare", str(folder), str(tmp_path / "oslo"), "--atlas", "schaefer100", "--tr", "2", *FAST]

    assert run_command(command) == 0
    said = capsys.readouterr().out
    (folder / "sub-01.npy").unlink()
    assert run_command([*command[:3], str(tmp_path / "bergen"), *command[4:]]) == 2
    said += capsys.readouterr().err

    assert "\x1b" not in said
    assert said.count("\N{REPLACEMENT CHARACTER}[2J") == 2


VISITS = tuple(f"P{n}_V{visit}" for n in range(1, 5) for visit in (1, 2))


def of_matrices(folder: Path, names: Sequence[str], *more: str, people: Sequence[str] = ()) -> list[str]:
    """Write matrices of these names, and return the command that prepares a cohort of them at ``oslo``.

    `people` are the lines of the participants table.
    """
    (folder / "matrices").mkdir(exist_ok=True)
    for number, name in enumerate(names):
        signal = np.random.default_rng(number).normal(50, 1, size=(90, 100)).astype(np.float32)
        np.save(folder / "matrices" / f"{name}.npy", signal)
    command = ["cohort", "prepare", str(folder / "matrices"), str(folder / "oslo"), "--atlas", "schaefer100"]
    if people:
        (folder / "people.tsv").write_text("\n".join([*people, ""]))
        more = ("--participants", str(folder / "people.tsv"), *more)
    return [*command, "--tr", "2", "--workers", "0", *more]


def test_what_was_not_taken_as_it_stood_is_said_by_prepare_show_check_and_the_report(tmp_path, capsys):
    rows = ("sub-1\t89+\tF\t98", "sub-2\t70\tO\t-9999", "sub-3\t71\tM\t110", "sub-4\t72\tM\t101")
    people = ["participant_id\tage\tsex\tiq", *rows]
    said = ("age: 1 of 4 rows has '89+'", "sex: 1 of 4 rows has 'O'", "iq: 1 of 4 rows has -9999")
    said += ("1 of 4 participants have no recording that can be used",)

    assert run_command(of_matrices(tmp_path, ("sub-1", "sub-2", "sub-3"), people=people)) == 0
    prepared = capsys.readouterr().out
    assert run_command(["cohort", "check", str(tmp_path / "oslo")]) == 0
    checked = capsys.readouterr().out
    assert run_command(["cohort", "show", str(tmp_path / "oslo")]) == 0
    shown = capsys.readouterr().out
    page = (tmp_path / "oslo" / "site-only" / "quality.html").read_text()

    for sentence in said:
        assert all(sentence in text for text in (prepared, checked, shown))
        assert sentence.replace("'", "&#39;") in page
    covariates = Cohort.open(tmp_path / "oslo").covariates()
    assert covariates[["age", "sex", "iq"]].isna().sum().tolist() == [1, 1, 1]


def test_ids_of_visits_are_said_and_a_pattern_puts_each_person_on_one_side_of_the_holdout(tmp_path, capsys):
    command = of_matrices(tmp_path, VISITS)
    assert run_command(command) == 0
    assert "8 ids look like visits of 4 people" in capsys.readouterr().out
    assert run_command(["cohort", "check", str(tmp_path / "oslo"), "--no-report"]) == 0
    pattern = re.search(r"--participant-pattern '(\S+)'", capsys.readouterr().out).group(1)
    assert "8 ids look like visits" in (tmp_path / "oslo" / "site-only" / "quality.html").read_text()
    assert not any(name in (tmp_path / "oslo" / "cohort.yaml").read_text() for name in VISITS)
    assert Cohort.open(tmp_path / "oslo").visits.n_ids == 8  # what describe counts

    assert run_command([*command, "--participant-pattern", pattern]) == 2
    assert "participant_pattern was none, and is" in capsys.readouterr().err
    command[3] = str(tmp_path / "bergen")
    assert run_command([*command, "--participant-pattern", pattern, "--keep-ids", "--no-report"]) == 0

    assert "look like visits" not in capsys.readouterr().out
    assert Cohort.open(tmp_path / "bergen").visits is None
    cohort = Cohort.open(tmp_path / "bergen")
    usable = usable_recordings(cohort, WindowConfig(n_frames=40))
    training, held_out = split_participants(list(usable), 0.5, seed=0)
    assert usable == {f"P{n}": [f"P{n}_V1", f"P{n}_V2"] for n in range(1, 5)}
    assert (len(training), len(held_out)) == (2, 2)
    assert cohort.recordings["session"].tolist() == ["V1", "V2"] * 4


@pytest.mark.parametrize("option", [("--participant-pattern", r"(P\d)_(V\d)"), ("--participant-column", "person")])
def test_a_table_of_visits_tells_of_people_and_sessions(tmp_path, option):
    rows = [f"{name}\tX{name[1]}\t{20 + number}\tF" for number, name in enumerate(VISITS)]
    people = ["participant_id\tperson\tage\tsex", *rows]

    assert run_command(of_matrices(tmp_path, VISITS, *option, "--no-report", people=people)) == 0

    cohort = Cohort.open(tmp_path / "oslo")
    assert (len(cohort), cohort.recordings["participant_id"].nunique(), len(cohort.sessions)) == (8, 4, 8)
    assert sorted(cohort.covariates()["age"]) == [20, 22, 24, 26]  # at the first visit
    assert sorted(cohort.recording_covariates()["age"]) == list(range(20, 28))
    assert "person" not in cohort.participants or cohort.participants["person"].nunique() == 4


def test_what_is_said_to_be_a_value_stays_one_in_the_cohort(tmp_path):
    rows = [f"{name}\t{-9999 if number == 3 else number}" for number, name in enumerate(VISITS)]
    (tmp_path / "people.json").write_text('{"change": {"MissingValues": []}}')
    options = ("--participant-pattern", r"(P\d)_(V\d)", "--no-report")

    assert run_command(of_matrices(tmp_path, VISITS, *options, people=["participant_id\tchange", *rows])) == 0

    cohort = Cohort.open(tmp_path / "oslo")
    assert sorted(cohort.sessions["change"]) == [-9999, 0, 1, 2, 4, 5, 6, 7]
    assert sorted(cohort.recording_covariates()["change"]) == [-9999, 0, 1, 2, 4, 5, 6, 7]


def test_rules_for_cells_are_options(tmp_path):
    people = ("participant_id\tage\tiq", "sub-1\t89+\t98", "sub-2\t35-40\t55", "sub-3\t71\t110")
    rules = ("--top-coded", "bound", "--ranges", "midpoint", "--missing-value", "iq=55", "--no-report", "--keep-ids")

    assert run_command(of_matrices(tmp_path, ("sub-1", "sub-2", "sub-3"), *rules, people=people)) == 0

    covariates = Cohort.open(tmp_path / "oslo").covariates()
    assert covariates["age"].tolist() == [89, 37.5, 71]
    assert covariates["iq"].isna().tolist() == [False, True, False]


def test_thresholds_are_not_changed_while_another_command_prepares_the_cohort(fmriprep, tmp_path, capsys):
    assert run_command(of_images(fmriprep, tmp_path / "oslo", *FAST)) == 0
    quality = Path(__file__).parents[2] / "configs" / "quality.yaml"

    with locked(tmp_path / "oslo"):
        assert run_command(["cohort", "check", str(tmp_path / "oslo"), "--no-report", "--quality", str(quality)]) == 2

    assert "another command is changing it" in capsys.readouterr().err
