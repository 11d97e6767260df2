import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from base.errors import InputError, RunFailedError
from runtime import flower
from runtime.control import Outcome
from runtime.fab import stage_app
from runtime.flower import _outcome, _stop, connections, flower_home, flwr_run, free_port
from study.settings import load_study
from tests.support.federation import STUDY


def test_connections_come_from_flower_s_configuration(tmp_path):
    assert connections(tmp_path) == {}
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "prod"\n[superlink.prod]\naddress = "a:1"\n[superlink.test]\naddress = "b:1"\n'
    )
    assert connections(tmp_path) == {"prod": {"address": "a:1"}, "test": {"address": "b:1"}}


@pytest.mark.parametrize("named", ["/srv/flower", ""])
def test_flowers_folder_needs_no_home_where_it_is_named(monkeypatch, named):
    """A user without a home folder, as in many containers."""
    monkeypatch.setenv("FLWR_HOME", named)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    if named:
        assert flower_home() == Path(named)
        return
    with pytest.raises(InputError, match="Set FLWR_HOME to a folder"):
        flower_home()


def test_what_flower_said_of_a_run_before_it_was_resumed_stays_and_is_not_taken_for_what_it_says_now(tmp_path):
    home, log = tmp_path / "home", tmp_path / "flower.log"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "gone"\n\n[superlink.gone]\naddress = "127.0.0.1:{free_port()}"\ninsecure = true\n'
    )
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    app = stage_app(tmp_path / "app", load_study(tmp_path / "study.yaml"))
    before = "Successfully started run 12\nthe ServerApp was killed\n"
    log.write_text(before)

    with pytest.raises(RunFailedError, match="'flwr run' did not start") as failed:
        flwr_run(app, "gone", tmp_path, home)

    assert "killed" not in str(failed.value)
    said = log.read_text().removeprefix(before)
    assert re.match(r"=== \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: submitted to gone ===\n.", said)


class Clock:
    """Time that passes as a program waits, and by a little as it looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(flower, "time", made)
    return made


def answers(monkeypatch, clock: Clock, *spans: tuple[float, str | None]) -> list[float]:
    """Let a SuperLink say these, each until a time, and nothing for None; return when it will have been asked."""
    asked: list[float] = []

    def say(_connection: object, _run_id: int) -> Outcome:
        asked.append(clock.now)
        status = next(status for until, status in spans if clock.now < until)
        if status is None:
            raise RunFailedError("the SuperLink is not there")
        return Outcome(status, "")

    monkeypatch.setattr(flower, "run_outcome", say)
    monkeypatch.setattr(flower, "stop_run", say)
    return asked


def test_a_run_that_goes_on_after_its_stream_broke_is_asked_after_ever_less_often_and_shown_all_the_while(
    clock, monkeypatch
):
    asked = answers(monkeypatch, clock, (60, None), (3600, "running"), (1e9, "finished:completed"))
    shown: list[float] = []

    assert _outcome({}, 12, lambda: shown.append(clock.now), lambda: True).status == "finished:completed"

    assert 3600 < clock.now < 3606
    assert len(asked) < 3600 / 4
    assert max(later - earlier for earlier, later in pairwise(shown)) < 1


def test_a_superlink_that_is_gone_is_given_up(clock, monkeypatch):
    answers(monkeypatch, clock, (1000, "running"), (1e9, None))

    assert _outcome({}, 12, lambda: None, lambda: True).status == "unknown"

    assert 1000 < clock.now < 1200
    assert _outcome({}, 12, lambda: None, lambda: False).status == "unknown"
    assert clock.now < 1200  # at once, where it is known to have ended


@pytest.mark.parametrize(
    ("spans", "stopped"),
    [
        ([(1e9, None)], False),
        ([(1e9, "running")], False),
        ([(5, None), (1e9, "finished:stopped")], True),
    ],
)
def test_a_run_counts_as_stopped_only_when_flower_says_so(clock, monkeypatch, spans, stopped):
    answers(monkeypatch, clock, *spans)
    assert _stop({}, 12) is stopped
