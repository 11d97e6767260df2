"""Runs that are killed, at whatever point, and go on: they end as one that was not."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pandas as pd
import pytest
from flwr.app import Message

from client.site import load_site
from cohorts.simulation import simulate_cohorts, simulated_hospitals
from server.errors import JournalError, QuorumError
from server.journal import Journal
from tests.support import disks
from tests.support.federation import STUDY, run_study, write_sites
from tests.support.local_grid import LocalGrid

QUICK = {"batch_size": 4, "steps_per_round": 1, "warmup_steps": 1, "precision": "float32"}
Tamper = Callable[[int, Message], Message | bool | None]


def never(node: int, message: Message) -> None:
    """Let every site answer."""


def silent_from_training_on(node: int, message: Message) -> bool | None:
    """Let the fourth site fall silent, under way."""
    return False if node == 4 and message.metadata.message_type in ("train", "query.embed") else None


def until_embedding(node: int, message: Message) -> bool | None:
    """End the process when training is over."""
    if message.metadata.message_type == "query.embed":
        os._exit(9)
    return silent_from_training_on(node, message)


def dies_after(messages: int, tamper: Tamper) -> Tamper:
    """End the process, as by SIGKILL, when so many messages were answered."""
    left = count(messages, -1)

    def between(node: int, message: Message) -> Message | bool | None:
        if next(left) == 0:
            os._exit(9)
        return tamper(node, message)

    return between


def die_at_file(number: int, monkeypatched: Callable = os.replace) -> None:
    """End the process when it is about to put the file of this number in its place, or has just done it."""
    left = count(number, -1)

    def replace(source: object, target: object) -> None:
        now = next(left)
        if now == 0 and number % 2:
            os._exit(9)
        monkeypatched(source, target)
        if now == 0:
            os._exit(9)

    os.replace = replace


def life(folder: Path, sites: list[Path], study: dict, tamper: Tamper, files: int | None = None) -> bool:
    """Begin or go on with a run in a process of its own; return whether it came to its end."""

    def run() -> None:
        if files is not None:
            die_at_file(files)
        run_study(folder, LocalGrid(sites, tamper), study)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, 9)
    return process.exitcode == 0


def assert_same(folder: Path, whole: Path) -> None:
    """Compare everything that a run leaves, byte for byte where masks and ids have no part in it."""
    for pattern in ("checkpoints/*", "harmonization/*", "moments/*"):
        names = sorted(path.relative_to(whole) for path in whole.glob(pattern))
        assert names == sorted(path.relative_to(folder) for path in folder.glob(pattern))
        assert all((folder / name).read_bytes() == (whole / name).read_bytes() for name in names), pattern
    for name in ("metrics", "parcels", "reconstruction"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(path / f"{name}.parquet") for path in (folder, whole)))
    left, right = (json.loads((path / "summary.json").read_text()) for path in (folder, whole))
    for part in ("status", "rounds", "left_out", "pretraining", "harmonization", "probes"):
        assert left[part] == right[part], part
    assert list(left["sites"]) == list(right["sites"])
    assert not (folder / "answers").exists()


def test_a_run_that_is_killed_in_every_exchange_ends_as_one_that_was_not(finished_run, tmp_path, small_cohorts):
    sites = write_sites(tmp_path / "s", small_cohorts)
    lives = 1
    # Each life asks three sites what they are, is answered once or twice, and dies before, within or after an exchange.
    while not life(tmp_path / "run", sites, STUDY, dies_after(6 + lives % 3, never)):
        lives += 1

    assert_same(tmp_path / "run", finished_run.folder)
    exchanges = finished_run.journal.table("exchanges")
    assert lives >= len(exchanges) - 2
    steps = Journal(tmp_path / "run").table("exchanges")["step"].dropna()
    assert steps.max() == exchanges["step"].max()  # a question that was asked again kept its number
    assert steps.is_monotonic_increasing


@pytest.fixture(scope="module")
def with_moments(tmp_path_factory) -> tuple[dict, list[Path], Path]:
    """A study whose optimizers remember, at the sites and here, with a site that falls silent; and its whole run."""
    folder = tmp_path_factory.mktemp("moments")
    cohorts = simulate_cohorts(folder / "c", simulated_hospitals(4, 12, minutes=2.2), atlas="schaefer100", seed=4)
    study = {
        **STUDY,
        "training": {**QUICK, "keep_optimizer_state": True},
        "averaging": {**STUDY["averaging"], "rounds": 3, "optimizer": "fedadam"},
        "analyses": {"targets": [], "folds": 3, "permutations": 0, "bootstrap": 0},
    }
    sites = write_sites(folder / "s", cohorts)
    run_study(folder / "run", LocalGrid(sites, silent_from_training_on), study)
    return study, cohorts, folder / "run"


def test_a_run_that_is_killed_while_it_writes_ends_as_one_that_was_not(with_moments, tmp_path):
    """Coordinator and sites die together, at ever later files, half of them with the file in its place."""
    study, cohorts, whole = with_moments
    sites = write_sites(tmp_path / "s", cohorts)
    lives = 1
    while not life(tmp_path / "run", sites, study, silent_from_training_on, files=3 * lives):
        lives += 1

    assert lives > 5
    assert_same(tmp_path / "run", whole)
    left_out = Journal(tmp_path / "run").facts()["left_out"]
    assert left_out == "delft"


def test_epsilon_after_kills_is_that_of_a_run_that_was_not_killed(tmp_path, small_cohorts):
    """Killed within both private rounds, after one site or two had answered, and in the file that a site writes."""
    study = {
        **STUDY,
        "training": {**QUICK, "privacy": {"noise_multiplier": 1.0}, "keep_optimizer_state": True},
        "analyses": {"targets": [], "folds": 3, "permutations": 0, "bootstrap": 0, "gaussian_baseline": False},
    }
    killed, whole = (write_sites(tmp_path / name, small_cohorts) for name in ("killed", "whole"))
    folder = tmp_path / "run"

    for messages, file in ((5, None), (7, None), (99, 2), (99, 5), (99, 8), (99, 11), (99, None)):
        assert not life(folder, killed, study, dies_after(messages, until_embedding), file)
    assert not life(tmp_path / "w", whole, study, until_embedding)

    assert Journal(folder).rounds_done() == 2
    spent = [[load_site(site).spending("small").epsilon for site in sites] for sites in (killed, whole)]
    assert spent[0] == spent[1]
    assert all(epsilon > 0 for epsilon in spent[0])
    assert [load_site(site).ledger.rounds("small") for site in killed] == [2, 2, 2]


def cut_off(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn_a_bit(path: Path) -> None:
    """Change a file so that it can still be read."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def trained(with_moments, tmp_path_factory) -> Path:
    """A folder with the sites of that study and its run, which was killed when training was over."""
    study, cohorts, _ = with_moments
    folder = tmp_path_factory.mktemp("trained")
    assert not life(folder / "run", write_sites(folder / "s", cohorts), study, until_embedding)
    return folder


@pytest.mark.parametrize(
    ("name", "damage"),
    [("round-0003", cut_off), ("round-0003", turn_a_bit), ("outer-0003", cut_off), ("outer-0003", Path.unlink)],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(with_moments, trained, tmp_path, name, damage):
    study, cohorts, whole = with_moments
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    sites, folder = [tmp_path / "s" / cohort.name / "site.yaml" for cohort in cohorts], tmp_path / "run"

    damage(folder / "checkpoints" / f"{name}.safetensors")
    asked_before = len(Journal(folder).table("exchanges").query("message == 'train'"))
    assert not life(folder, sites, study, until_embedding)

    journal = Journal(folder)
    for made in ("round-0003", "outer-0003"):
        path = Path("checkpoints") / f"{made}.safetensors"
        assert (folder / path).read_bytes() == (whole / path).read_bytes()
    assert len(journal.table("exchanges").query("message == 'train'")) == asked_before  # averaged from kept answers
    notes = list(journal.table("notes")["text"])
    assert "the checkpoint of round 3 is not whole: going on from the one before it" in notes


def test_a_run_that_is_still_going_on_is_not_begun_twice(finished_run, tmp_path, small_cohorts):
    journal = Journal(tmp_path)
    with journal.at_work():
        assert Journal(tmp_path).is_worked_on
        with pytest.raises(JournalError, match="still going on"):
            run_study(tmp_path, LocalGrid(write_sites(tmp_path / "s", small_cohorts)))
    assert not Journal(tmp_path).is_worked_on


def test_a_site_that_is_missing_when_a_run_is_resumed_is_named(tmp_path, small_cohorts):
    sites, folder = write_sites(tmp_path / "s", small_cohorts), tmp_path / "run"
    study = {**STUDY, "averaging": {**STUDY["averaging"], "start_deadline_s": 0.1}}
    assert not life(folder, sites, study, dies_after(5, never))

    with pytest.raises(QuorumError, match=r"2 of 3 sites of the run were back .* Missing: bergen"):
        run_study(folder, LocalGrid([sites[0], sites[2]]), study)

    assert Journal(folder).end().status == "failed"
    assert "bergen" in json.loads((folder / "summary.json").read_text())["reason"]


def test_a_site_whose_people_changed_does_not_go_on(tmp_path, small_cohorts, finished_run):
    sites, folder = write_sites(tmp_path / "s", small_cohorts), tmp_path / "run"
    study = {**STUDY, "averaging": {**STUDY["averaging"], "start_deadline_s": 0.1}}
    assert not life(folder, sites, study, dies_after(5, never))
    sites[1].write_text(sites[1].read_text().replace(str(small_cohorts[1]), str(small_cohorts[0])))

    with pytest.raises(QuorumError, match="Missing: bergen"):
        run_study(folder, LocalGrid(sites), study)

    notes = list(Journal(folder).table("notes")["text"])
    assert "bergen is left out: its n_participants, n_windows changed since the run began" in notes


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own that is soon full."""
    with disks.small_disk(tmp_path / "disk") as folder:
        yield folder


def test_a_full_disk_ends_the_run_with_the_reason_and_more_room_lets_it_go_on(
    small_disk, tmp_path, small_cohorts, finished_run, capsys
):
    sites = write_sites(tmp_path / "s", small_cohorts)

    with pytest.raises((OSError, JournalError)):
        run_study(small_disk / "run", LocalGrid(sites))
    said = capsys.readouterr().out
    disks.remount(small_disk, "size=100m")
    run_study(small_disk / "run", LocalGrid(sites))

    assert "fedbrainlm: the disk is full" in said or "database or disk is full" in said
    assert_same(small_disk / "run", finished_run.folder)
