"""The fault matrix: real processes are killed, cut off and starved.

A run ends as one that nobody disturbed, or says why and is resumed. Faults share a run where it stays plain which did
what: a run takes minutes. What outsiders may not do is tried in ``tests/integration/test_federation.py``, which ``make
chaos`` runs, too.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from flwr.app import Message

from base.files import save_arrays
from client.site import load_site
from deployment.supervisor import running
from exchange.messages import TrainRequest
from server.journal import Journal
from tests.chaos import network
from tests.chaos.conftest import LASTING
from tests.chaos.watching import (
    Run,
    assert_nothing_lost_or_leaked,
    await_or_fail,
    cohort_of,
    is_online,
    restart_node,
)
from tests.support.deployment import Deployment, needs_nginx
from tests.support.disks import filled
from tests.support.federation import PLAIN, run_study, write_sites
from tests.support.local_grid import LocalGrid
from tests.support.programs import wait_until

pytestmark = [pytest.mark.slow, needs_nginx]
CUT_S = 120
LOCKED_S = 30
DEADLINE_S = 150
"""Enough for a round of the wide model, and too little to move it to a site and back at 256 kbit/s."""
WIDE = {**PLAIN["model"], "width": 160, "heads": 4, "decoder_width": 160, "decoder_heads": 4}
SLOW = {
    **LASTING,
    "study": "slow",
    "model": WIDE,
    "training": PLAIN["training"],
    "privacy": PLAIN["privacy"],
    "averaging": {**LASTING["averaging"], "rounds": 2, "quorum": 2, "sites": 3, "deadline_s": DEADLINE_S},
}
"""In the clear, where two of three sites are enough."""


def test_what_befalls_sites_is_waited_for_where_all_are_needed(begin, lasting, deployment, matrix, undisturbed):
    """A SuperNode is killed, then an app, then a site's link is cut: one fault a round, and none is lost."""
    counted = rounds_counted(deployment)
    run = begin(lasting)

    run.await_training(deployment, "coimbra", 1)
    deployment.nodes["coimbra"].kill()
    online = restart_node(deployment, "coimbra")
    back = online + await_or_fail(lambda: run.journal.rounds_done() >= 1)

    run.await_training(deployment, "bergen", 2).kill()
    again = await_or_fail(lambda: run.journal.rounds_done() >= 2)

    run.await_training(deployment, "coimbra", 3)
    with network.cut():
        wait_until(lambda: False, CUT_S)
        assert run.journal.rounds_done() == 2
    healed = await_or_fail(lambda: run.journal.rounds_done() >= 3)

    assert run.end()[0] == 0
    first, *_, last = run.outcomes(1)
    assert first["coimbra"] != "ok"
    assert last == {"coimbra": "ok"}
    first, *_, last = run.outcomes(2)
    assert first["bergen"] != "ok"
    assert last == {"bergen": "ok"}
    assert_same_weights(run, undisturbed, 3)
    assert rounds_counted(deployment) == [3 + n for n in counted]
    assert_nothing_lost_or_leaked(deployment)
    matrix.record("SuperNode killed in training", "asked again; same weights", online=online, round_done=back)
    matrix.record("app of a site killed in training", "asked again; same weights", round_done=again)
    matrix.record(f"link cut for {CUT_S} s in training", "same weights", round_done_after_healing=healed)


def test_a_run_that_dies_of_one_fault_after_another_is_resumed_to_the_same_weights(
    begin, lasting, deployment, matrix, undisturbed
):
    """A damaged recording and a full disk at sites; the ServerApp killed twice, and the SuperLink."""
    counted = rounds_counted(deployment)

    run = begin(lasting)
    run.await_training(deployment, "aalborg", 1)
    psutil.Process(run.server).kill()
    failed = assert_fails(run, "--resume")
    matrix.record("ServerApp killed in training", "run fails; resumed to the same weights", until_failed=failed)

    with damaged_recording(deployment, "aalborg"):
        run = begin(resume=run)
        assert_fails(run, "aalborg: site.internal-error")
    log = (deployment.folder / "aalborg" / "state" / "site.log").read_text()
    assert "KeyError: 'participant_id'" in log
    matrix.record("a handler raises", "site.internal-error, and no word more; resumed to the same weights")

    run = begin(resume=run)
    run.await_training(deployment, "bergen", 3)
    with filled(deployment.folder / "bergen" / "state"):
        assert_fails(run, "bergen: ")
    matrix.record("disk full at a site", "run fails and names the site; resumed to the same weights")

    run = begin(resume=run)
    run.await_exchange("pretraining", 3)
    superlink = running(deployment.federation, "superlink")
    assert superlink is not None
    superlink.kill()
    back = await_or_fail(lambda: run.journal.rounds_done() >= 3)
    matrix.record("SuperLink killed in a round", "started again; the run goes on", round_done=back)

    run.await_exchange("harmonization")
    psutil.Process(run.server).kill()
    failed = assert_fails(run, "--resume")
    resumed = time.monotonic()
    run = begin(resume=run)
    assert run.end()[0] == 0
    resumed = time.monotonic() - resumed
    matrix.record(
        "ServerApp killed in harmonization", "run fails; resumed to its end", until_failed=failed, to_the_end=resumed
    )

    assert_same_weights(run, undisturbed, 3)
    assert (run.folder / "report.html").is_file()
    assert rounds_counted(deployment) == [3 + n for n in counted]
    assert_nothing_lost_or_leaked(deployment, "KeyError: 'participant_id'", "No space left")


def test_a_slow_site_is_left_out_at_the_deadline_and_a_locked_database_waited_for(
    begin, deployment, matrix, tmp_path, small_cohorts
):
    study = deployment.study("slow", **SLOW)
    deployment.approve(study)
    run = begin(study)
    run.await_exchange("pretraining", 1)
    with network.slow("256kbit"):
        slow = await_or_fail(lambda: run.journal.rounds_done() >= 1)
    assert slow < DEADLINE_S + 30  # though its answer was on its way
    run.await_exchange("pretraining", 2)
    with locked(deployment.folder / "nordic" / "superlink.sqlite"):
        wait_until(lambda: False, LOCKED_S)
    unlocked = await_or_fail(lambda: run.journal.rounds_done() >= 2)
    assert run.end()[0] == 0

    assert run.outcomes(1) == [{"aalborg": "ok", "bergen": "ok", "coimbra": "no reply"}]
    assert run.outcomes(2)[-1] == {"aalborg": "ok", "bergen": "ok", "coimbra": "ok"}
    grid = LocalGrid(write_sites(tmp_path / "sites", small_cohorts), third_is_silent_in_round_1)
    assert_same_weights(run, run_study(tmp_path / "run", grid, SLOW), 2)
    assert_nothing_lost_or_leaked(deployment)
    matrix.record("link of 256 kbit/s", "left out of the round at its deadline; takes part in the next", round=slow)
    matrix.record(f"database locked for {LOCKED_S} s", "the run waits; same weights", round_done=unlocked)


def test_a_site_whose_clock_is_ahead_is_refused_until_it_is_right(deployment, matrix, clocks):
    clocks["aalborg"].set(600)
    try:
        assert "fail clock" in deployment.check("aalborg")
        deployment.nodes["aalborg"].wait(timeout=120)
    finally:
        clocks["aalborg"].set(0)

    online = restart_node(deployment, "aalborg")
    assert_nothing_lost_or_leaked(deployment)
    matrix.record("a site's clock 10 minutes ahead", "refused; its SuperNode ends", online=online)


def test_a_run_that_the_coordinators_clock_ends_is_resumed_to_the_same_weights(
    begin, lasting, deployment, matrix, clocks, undisturbed
):
    """Flower goes by the time of day: ahead, nobody seems to be there; back, sites' signatures are of later."""
    run = begin(lasting)
    run.await_training(deployment, "bergen", 1)
    clocks["nordic"].set(600)
    failed = assert_fails(run, "No heartbeat")
    clocks["nordic"].set(0)
    online = bring_back(deployment)
    matrix.record("the coordinator's clock 10 minutes ahead", "run fails", until_failed=failed, online=online)

    run = begin(resume=run)
    run.await_training(deployment, "bergen", 2)
    clocks["nordic"].set(-600)
    ended = await_or_fail(lambda: all(node.poll() is not None for node in deployment.nodes.values()))
    assert run.journal.rounds_done() == 1
    clocks["nordic"].set(0)
    failed = assert_fails(run, "No heartbeat")
    online = bring_back(deployment)
    matrix.record(
        "the coordinator's clock 10 minutes back, and right again",
        "SuperNodes end, then the run fails; resumed to the same weights",
        until_nodes_ended=ended,
        until_failed=failed,
        online=online,
    )

    run = begin(resume=run)
    assert run.end()[0] == 0
    assert_same_weights(run, undisturbed, 3)
    assert_nothing_lost_or_leaked(deployment)


def bring_back(deployment: Deployment) -> float:
    """Start the SuperNodes that have ended: those that were refused. Return the seconds until all are online."""

    def all_back() -> bool:
        deployment.start_ended_nodes()
        return all(is_online(deployment, name) for name in deployment.sites)

    return await_or_fail(all_back)


def assert_fails(run: Run, *words: str) -> float:
    """Wait until a run fails, and has said these words; return the seconds that it took."""
    began = time.monotonic()
    code, said = run.end()
    assert code == 1, said
    assert [word for word in words if word not in said] == [], said
    return time.monotonic() - began


def assert_same_weights(run: Run, undisturbed: Journal, rounds: int) -> None:
    for number in range(rounds + 1):
        assert run.journal.checkpoint(number).read_bytes() == undisturbed.checkpoint(number).read_bytes(), number


def rounds_counted(deployment: Deployment) -> list[int]:
    """Rounds of training that each site counted of the lasting study."""
    return [load_site(deployment.folder / site / "site.yaml").ledger.rounds("lasting") for site in deployment.sites]


def third_is_silent_in_round_1(node: int, message: Message) -> bool | None:
    """What the slow link makes of the third site."""
    training = message.metadata.message_type == "train"
    return False if node == 3 and training and TrainRequest.from_records(message.content).round_number == 1 else None


@contextmanager
def damaged_recording(deployment: Deployment, site: str) -> Iterator[None]:
    """Leave a file in the place of a recording that can be opened, and is none."""
    recording = min((cohort_of(deployment, site) / "recordings").rglob("*.safetensors"))
    aside = recording.with_suffix(".aside")
    recording.rename(aside)
    save_arrays(recording, {}, {})
    yield
    aside.replace(recording)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a SQLite database for oneself."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.execute("ROLLBACK")
