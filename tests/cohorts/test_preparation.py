import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohorts import Cohort, CohortError, load_atlas
from cohorts.identities import KeyedNames
from cohorts.participants import ParticipantsTable
from cohorts.preparation import prepare_cohort
from cohorts.quality import QualityRules
from cohorts.settings import Preparation
from cohorts.sources.matrices import MatrixSource
from tests.support.cohorts import contents
from tests.support.disks import remount, small_disk
from tests.support.runs import MadeSource


@pytest.fixture
def source(tmp_path) -> MadeSource:
    folder = tmp_path / "source"
    folder.mkdir()
    for n in range(12):
        (folder / f"sub-{n:04d}_ses-{1 + n % 2}_task-rest.txt").write_text(f"seed {n}")
    (folder / "sub-0003_ses-2_task-rest.txt").write_text("refuse")
    (folder / "sub-0005_ses-2_task-rest.txt").write_text("moved 5")
    return MadeSource(folder)


def people(n: int = 12, **columns: object) -> ParticipantsTable:
    """The participants table of the first n people."""
    ids = [f"sub-{number:04d}" for number in range(12)]
    table = pd.DataFrame({"participant_id": ids, "age": np.arange(12.0) + 20, **columns})
    return ParticipantsTable(table.iloc[:n], pd.DataFrame({"participant_id": [], "session_id": []}))


def test_good_runs_go_in_and_bad_ones_are_quarantined(source, tmp_path):
    report = prepare_cohort(source, tmp_path / "out", participants=people())

    cohort = Cohort.open(tmp_path / "out")
    assert (report.n_recordings, report.n_participants, report.n_done, report.n_unchanged) == (10, 10, 12, 0)
    assert dict(cohort.quarantined[["recording_id", "code"]].to_numpy()) == {
        "sub-0003_ses-2_task-rest": "refused",
        "sub-0005_ses-2_task-rest": "high-motion",
    }
    row = cohort.recordings.iloc[1]
    assert (row["session"], row["task"], row["run"], row["t_r"], row["n_acquired"]) == ("2", "rest", "", 2.0, 80)
    np.testing.assert_array_equal(cohort.read("sub-0001_ses-2_task-rest").signal, source.read(source.runs()[1]).signal)
    assert cohort.covariates()["age"].tolist() == [20, 21, 22, 24, 26, 27, 28, 29, 30, 31]


def test_a_second_run_does_what_is_missing_or_changed(source, tmp_path):
    prepare_cohort(source, tmp_path / "out", participants=people())
    (source.folder / "sub-0003_ses-2_task-rest.txt").write_text("seed 3")
    (source.folder / "sub-0004_ses-1_task-rest.txt").write_text("seed 44")
    (source.folder / "sub-0006_ses-1_task-rest.txt").write_text("refuse")
    (source.folder / "sub-0000_ses-2_task-rest.txt").write_text("seed 100")

    report = prepare_cohort(source, tmp_path / "out", participants=people())

    assert (report.n_done, report.n_unchanged, report.n_recordings) == (4, 9, 11)
    shutil.rmtree(tmp_path / "out" / "quarantine")  # the moved one is there in both
    prepare_cohort(source, tmp_path / "anew", participants=people())
    shutil.rmtree(tmp_path / "anew" / "quarantine")
    same = contents(tmp_path / "out") | {"cohort.yaml": (tmp_path / "anew" / "cohort.yaml").read_bytes()}
    assert same == contents(tmp_path / "anew")


def prepare_until_killed(source: MadeSource, out: Path, after: int, rules: QualityRules | None = None) -> None:
    """Prepare in a process that is killed at the moment in which its n-th file takes or loses its place."""
    program = f"""
        import os
        from pathlib import Path
        from cohorts.preparation import prepare_cohort
        from cohorts.quality import QualityRules
        from tests.cohorts.test_preparation import people
        from tests.support.runs import MadeSource
        left = [{after}]
        def until_killed(act):
            def wrapped(*given, **options):
                if not left[0]:
                    os.kill(os.getpid(), 9)
                left[0] -= os.path.exists(given[0])
                return act(*given, **options)
            return wrapped
        os.replace, os.unlink = until_killed(os.replace), until_killed(os.unlink)
        rules = {rules and f"QualityRules(**{rules.model_dump()})"}
        prepare_cohort(MadeSource(Path({str(source.folder)!r})), {str(out)!r}, participants=people(), rules=rules)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after", [0, 1, 5, 9])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(source, tmp_path, after):
    prepare_until_killed(source, tmp_path / "b" / "out", after)
    assert not (tmp_path / "b" / "out").exists()

    prepare_cohort(source, tmp_path / "b" / "out", participants=people())

    prepare_cohort(source, tmp_path / "a" / "out", participants=people())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("after", [0, 1, 3, 5, 8, 11, 14, 17])
def test_killed_while_an_existing_cohort_changes_it_goes_on_to_the_same_bytes(source, tmp_path, after):
    out = tmp_path / "b" / "out"
    prepare_cohort(source, out, participants=people())
    changed = {"0001_ses-2": "refuse", "0004_ses-1": "moved 4", "0005_ses-2": "seed 5", "0006_ses-1": "seed 66"}
    for name, what in changed.items():
        (source.folder / f"sub-{name}_task-rest.txt").write_text(what)
    rules = QualityRules(max_mean_fd=0.55, fd_threshold=0.1)
    prepare_until_killed(source, out, after, rules)
    for recording in Cohort.open(out):
        assert Cohort.open(out).recordings.set_index("recording_id").loc[recording.recording_id, "n_frames"] == 80
    # Other thresholds in between: what was measured by them must not stay.
    if after % 2:
        prepare_cohort(source, out, participants=people())

    prepare_cohort(source, out, participants=people(), rules=rules)

    prepare_cohort(source, tmp_path / "a" / "out", participants=people(), rules=rules)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_a_killed_command_left_aside_does_not_take_the_place_of_its_successor(source, tmp_path):
    prepare_cohort(source, tmp_path / "out")
    (source.folder / "sub-0005_ses-2_task-rest.txt").write_text("seed 5")
    shutil.copytree(tmp_path / "out" / "quarantine", tmp_path / "aside")
    prepare_cohort(source, tmp_path / "out")
    shutil.copytree(tmp_path / "aside", tmp_path / "out" / "quarantine", dirs_exist_ok=True)

    Cohort.open(tmp_path / "out").judge(QualityRules())

    np.testing.assert_array_equal(
        Cohort.open(tmp_path / "out").read("sub-0005_ses-2_task-rest").signal, source.read(source.runs()[5]).signal
    )
    assert not list((tmp_path / "out" / "quarantine").iterdir())


def test_reasons_are_those_of_the_rules_that_judged_last(source, tmp_path):
    prepare_cohort(source, tmp_path / "out")

    prepare_cohort(source, tmp_path / "out", rules=QualityRules(max_mean_fd=0.9))

    (message,) = Cohort.open(tmp_path / "out").quarantined.query("code == 'high-motion'")["message"]
    assert "at most 0.900 mm" in message


def test_who_is_not_selected_any_more_is_forgotten(source, tmp_path):
    names = KeyedNames(tmp_path / "key")
    table = people(site=["OSLO"] * 4 + ["BERGEN"] * 8)
    prepare_cohort(source, tmp_path / "b" / "out", participants=table, names=names)

    at_oslo = Preparation(select=("site=OSLO",))
    report = prepare_cohort(source, tmp_path / "b" / "out", participants=table, names=names, settings=at_oslo)

    assert (report.n_recordings, report.n_not_selected) == (3, 8)
    prepare_cohort(source, tmp_path / "a" / "out", participants=table, names=names, settings=at_oslo)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_recordings_whose_runs_vanished_stay_and_are_counted_unless_the_table_names_them_no_more(source, tmp_path):
    prepare_cohort(source, tmp_path / "out", participants=people())
    for number in (0, 3, 5):  # a good one, an unreadable one, and one that was set aside
        next(source.folder.glob(f"sub-{number:04d}*")).unlink()

    report = prepare_cohort(source, tmp_path / "out", participants=people())

    assert (report.n_recordings, report.n_gone) == (10, 2)
    assert report.quarantined["recording_id"].tolist() == ["sub-0005_ses-2_task-rest"]

    left = people()
    without = ParticipantsTable(left.participants.drop(index=[0, 5]), left.sessions)
    report = prepare_cohort(source, tmp_path / "out", participants=without)
    assert (report.n_recordings, report.n_gone, len(report.quarantined)) == (9, 0, 0)
    assert not [path for path in contents(tmp_path / "out") if "sub-0000" in path or "sub-0005" in path]


def test_a_table_that_has_lost_its_visits_leaves_none_in_the_cohort(source, tmp_path):
    visits = pd.DataFrame({"participant_id": ["sub-0000"], "session_id": ["1"], "age": [20.5]})
    table = ParticipantsTable(people().participants, visits)
    prepare_cohort(source, tmp_path / "out", participants=table)
    assert (tmp_path / "out" / "sessions.tsv").is_file()

    prepare_cohort(source, tmp_path / "out", participants=people())

    assert not (tmp_path / "out" / "sessions.tsv").exists()
    assert Cohort.open(tmp_path / "out").sessions.empty


def test_another_spelling_in_the_table_is_followed_and_two_people_are_never_taken_for_one(source, tmp_path):
    prepare_cohort(source, tmp_path / "out", participants=people())
    table = people()
    ids = table.participants["participant_id"].str.replace("sub-000", "")
    ids[8] = "08"  # beside 8: neither is sub-0008
    respelled = table.participants.assign(participant_id=ids)
    respelled = pd.concat([respelled, pd.DataFrame({"participant_id": ["8"], "age": [99.0]})], ignore_index=True)

    report = prepare_cohort(source, tmp_path / "out", participants=ParticipantsTable(respelled, table.sessions))

    assert dict(report.quarantined[["recording_id", "code"]].to_numpy())["sub-0008_ses-1_task-rest"] == (
        "unknown-participant"
    )
    covariates = Cohort.open(tmp_path / "out").recording_covariates().set_index("recording_id")
    assert covariates.loc["sub-0001_ses-2_task-rest", "age"] == 21
    assert covariates["age"].notna().all()


def test_a_run_that_kills_its_process_is_quarantined_alone(source, tmp_path):
    (source.folder / "sub-0002_ses-1_task-rest.txt").write_text("crash")
    (source.folder / "sub-0007_ses-2_task-rest.txt").write_text("fail")

    report = prepare_cohort(source, tmp_path / "out", workers=2)

    assert report.quarantined["code"].tolist() == ["died", "refused", "high-motion", "unreadable"]
    assert report.n_recordings == 8


def test_pseudonyms_leave_no_name_behind_but_in_the_site_only_folder(source, tmp_path):
    (source.folder / "sub-0002_ses-20190304_task-rest.txt").write_text("seed 20")
    names = KeyedNames(tmp_path / "key")

    report = prepare_cohort(source, tmp_path / "out", participants=people(), names=names, workers=1)

    # A pseudonym may begin as an id does, but goes on.
    own = re.compile(rb"sub-\d{4}(?![0-9a-f])|20190304")
    told = [path for path, data in contents(tmp_path / "out").items() if own.search(data)]
    assert told == ["site-only/linkage.tsv"]
    assert (tmp_path / "out" / "site-only").stat().st_mode & 0o777 == 0o700
    assert report.n_participants == 10
    cohort = Cohort.open(tmp_path / "out")
    pseudonym = names.participant("sub-0001")
    assert cohort.covariates().set_index("participant_id").loc[pseudonym, "age"] == 21
    assert (
        cohort.recordings.set_index("recording_id").loc[f"{pseudonym}_ses-2_task-rest", "participant_id"] == pseudonym
    )
    linkage = pd.read_csv(tmp_path / "out" / "site-only" / "linkage.tsv", sep="\t", index_col="recording_id")
    assert linkage.loc[f"{pseudonym}_ses-2_task-rest"].tolist() == ["sub-0001_ses-2_task-rest", "sub-0001"]


def test_another_preparation_begins_anew_where_nothing_was_finished(source, tmp_path):
    prepare_cohort(source, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / ".new.partial")
    prepare_cohort(MadeSource(source.folder, n_frames=70), tmp_path / "new")
    assert set(Cohort.open(tmp_path / "new").recordings["n_frames"]) == {70}


def test_an_option_that_is_new_and_not_given_changes_nothing(source, tmp_path):
    prepare_cohort(source, tmp_path / "out")
    about = tmp_path / "out" / "cohort.yaml"
    assert "n_frames" in about.read_text()
    about.write_text(about.read_text().replace("options:\n", "options:\n  an_old_one: null\n"))
    assert prepare_cohort(source, tmp_path / "out").n_done == 0


def test_other_thresholds_of_motion_are_measured_again(source, tmp_path):
    prepare_cohort(source, tmp_path / "out")
    cohort = Cohort.open(tmp_path / "out")
    assert (cohort.recordings["fd_over"] == 0).all()

    cohort.judge(QualityRules(fd_threshold=0.1))

    fd = cohort.read("sub-0000_ses-1_task-rest").framewise_displacement
    row = Cohort.open(tmp_path / "out").recordings.set_index("recording_id").loc["sub-0000_ses-1_task-rest"]
    assert row["fd_over"] == pytest.approx((fd > 0.1).mean())


def test_unknown_people_and_contradictions_with_the_table_are_quarantined(source, tmp_path):
    table = people(11, t_r=[2.0, 3.0] + [np.nan] * 10)

    report = prepare_cohort(source, tmp_path / "out", participants=table)

    codes = dict(report.quarantined[["recording_id", "code"]].to_numpy())
    assert codes["sub-0001_ses-2_task-rest"] == "tr-contradicts"
    assert codes["sub-0011_ses-2_task-rest"] == "unknown-participant"
    # The two, and the first, of which the table no longer states a TR.
    assert prepare_cohort(source, tmp_path / "out", participants=people()).n_done == 3


def test_two_runs_of_one_pseudonym_are_refused_once_and_stay_so(tmp_path):
    (tmp_path / "source").mkdir()
    for name in ("01", "sub-01", "sub-02"):
        np.save(tmp_path / "source" / f"{name}.npy", np.random.default_rng(len(name)).normal(size=(90, 100)))
    source = MatrixSource(tmp_path / "source", load_atlas("schaefer100"), t_r=2.0)

    first = prepare_cohort(source, tmp_path / "out", names=KeyedNames(tmp_path / "key"))
    before = contents(tmp_path / "out")
    second = prepare_cohort(source, tmp_path / "out", names=KeyedNames(tmp_path / "key"))

    assert (first.n_recordings, first.quarantined["code"].tolist()) == (1, ["duplicate"])
    assert second.n_done == 0
    assert contents(tmp_path / "out") == before


def test_nothing_is_left_of_a_cohort_without_recordings(source, tmp_path):
    for path in source.folder.iterdir():
        path.write_text("refuse")

    with pytest.raises(CohortError, match="none of its 12 recordings is usable") as refused:
        prepare_cohort(source, tmp_path / "out", names=KeyedNames(tmp_path / "key"))

    assert "sub-0000_ses-1_task-rest.txt: is of sub-0000" in str(refused.value)  # in the site's own words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "source"]


def test_a_full_disk_is_said_and_what_was_done_stays(source, tmp_path):
    with small_disk(tmp_path / "disk", "160k") as disk:
        with pytest.raises(CohortError, match=r"No space left on device.*goes on where it stopped"):
            prepare_cohort(source, disk / "out", workers=1)
        assert not (disk / "out").exists()
        remount(disk, "size=4m")
        assert prepare_cohort(source, disk / "out").n_unchanged > 0
        prepare_cohort(source, tmp_path / "out")
        assert contents(disk / "out") == contents(tmp_path / "out")


def test_a_link_in_the_place_of_the_folder_in_the_making_is_refused(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "mine")

    with pytest.raises(CohortError, match="is a link"):
        prepare_cohort(source, tmp_path / "out")

    assert contents(tmp_path / "mine") == {"precious.txt": b"keep"}


def test_one_goes_on_from_within_but_does_not_begin_there(source, tmp_path, monkeypatch):
    prepare_cohort(source, tmp_path / "cohort")
    before = contents(tmp_path / "cohort")
    monkeypatch.chdir(tmp_path / "cohort")
    assert prepare_cohort(source, ".").n_done == 0
    assert contents(tmp_path / "cohort") == before

    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for settings in (Preparation(), Preparation(name="other")):
        with pytest.raises(CohortError, match=r"^\.: is where the command stands; expected a new folder\."):
            prepare_cohort(source, ".", settings)


def test_a_place_below_a_file_is_refused_by_its_own_name_and_no_key_is_drawn(source, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(CohortError, match=r"file/a/out: cannot be made, since .*file is no folder"):
        prepare_cohort(source, tmp_path / "file" / "a" / "out", names=KeyedNames(tmp_path / "key"))

    assert not (tmp_path / "key").exists()


def test_a_script_that_its_processes_would_run_again_is_told_so(source, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom cohorts.preparation import prepare_cohort\n"
        "from tests.support.runs import MadeSource\n"
        f"prepare_cohort(MadeSource(Path({str(source.folder)!r})), {str(tmp_path / 'out')!r}, workers=1)\n"
    )
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False
    )

    assert "CohortError: The processes that were to read recordings ended at their start" in ended.stderr
    assert not (tmp_path / "out").exists()
