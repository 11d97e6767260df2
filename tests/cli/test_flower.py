import re

import pytest
import yaml

from cli.errors import RunFailedError
from cli.fab import stage_app
from cli.flower import _stop, connections, explained, flwr_run, free_port
from server.study import load_study
from tests.support.federation import STUDY


def test_connections_come_from_flower_s_configuration(tmp_path):
    assert connections(tmp_path) == {}
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "prod"\n[superlink.prod]\naddress = "a:1"\n[superlink.test]\naddress = "b:1"\n'
    )
    assert connections(tmp_path) == {"prod": {"address": "a:1"}, "test": {"address": "b:1"}}


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


def test_a_run_counts_as_stopped_only_when_flower_says_so(tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "gone"\n\n[superlink.gone]\naddress = "127.0.0.1:{free_port()}"\ninsecure = true\n'
    )
    monkeypatch.setattr("cli.flower._STOP_TRIES", 1)
    assert not _stop("gone", "12", tmp_path)


def test_a_locked_database_is_explained_and_nothing_else():
    assert explained("Error: no such run") == "Error: no such run"
    assert explained("Error: Service Unavailable") == (
        "Error: Service Unavailable Another program holds the SuperLink's database: end it, and repeat."
    )
