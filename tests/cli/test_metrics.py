import shutil
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cli.main import run_command
from deployment.coordinator import Federation
from deployment.serving import heartbeats, sent_key
from server.journal import Journal
from tests.support.programs import free_port, start, wait_until

NAMES = ("aalborg", "bergen", "coimbra")


@pytest.fixture
def federation(tmp_path, monkeypatch) -> Federation:
    """A federation without an edge of its own, and three sites."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.chdir(tmp_path)
    assert run_command(["federation", "init", "north", "--name", "north", "--host", "localhost"]) == 0
    path = tmp_path / "north" / "federation.yaml"
    settings = {"run_edge": False, "superlink_port": free_port(), "health_port": free_port()}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings}))
    for name in NAMES:
        assert run_command(["site", "init", name, "--name", name, "--cohort", "cohort"]) == 0
        assert run_command(["federation", "add-site", "north", f"{name}/{name}.bundle.json"]) == 0
    return Federation(tmp_path / "north")


@pytest.fixture
def scrape(federation, tmp_path):
    """The real command, and a function that scrapes it: the samples, by name and label."""
    port = free_port()
    process = start("fedbrainlm", "federation", "metrics", "north", "--port", port, folder=tmp_path)

    def samples() -> dict[str, dict[str, float]]:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60)
        assert answer.status_code == 200
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                found.setdefault(sample.name, {})["/".join(sample.labels.values())] = sample.value
        return found

    def is_up() -> bool:
        try:
            return bool(samples())
        except httpx.TransportError:
            return False

    assert wait_until(is_up, 60)
    yield samples
    process.terminate()
    assert process.wait(timeout=30) == 130


def beat(federation: Federation, name: str, status: int = 200) -> str:
    key = sent_key(federation.member(name).bundle.supernode_key)
    return (
        f'{{"time":1800000000.5,"status":{status},"address":"10.0.0.1","key":"{key}",'
        '"signed":"2027-01-15T08:00:10.500000+00:00","version":"1.41.0"}\n'
    )


def make_run(folder: Path, *, rounds: int, status: str) -> Journal:
    folder.mkdir(parents=True)
    journal = Journal(folder)
    journal.note(status=status, rounds=rounds, sites=3)
    for number, answered in enumerate(("ok", "no reply"), start=1):
        exchange = journal.begin_exchange("pretraining", "train", number, asked=3, bytes_down=300)
        journal.end_exchange(exchange, {"aalborg": "ok", "bergen": "ok", "coimbra": answered}, bytes_up=70)
        journal.checkpoint(number).parent.mkdir(exist_ok=True)
        journal.checkpoint(number).write_bytes(b"weights")
        journal.seal(journal.checkpoint(number))
    journal.begin_exchange("pretraining", "train", 3, asked=3, bytes_down=300)
    return journal


def test_a_federation_that_is_not_running_and_the_newest_run_of_each_study_are_scraped(federation, scrape, tmp_path):
    (federation.logs / "heartbeats.log").write_text(beat(federation, "bergen") + beat(federation, "coimbra", 401))
    (federation.folder / "superlink.sqlite").write_bytes(b"x" * 1000)
    (federation.folder / "superlink.sqlite-wal").write_bytes(b"x" * 234)
    assert run_command(["federation", "revoke-site", "north", "coimbra"]) == 0

    found = scrape()

    assert found["fedbrainlm_program_up"] == {"supervisor": 0, "superlink": 0, "superexec": 0}
    assert found["fedbrainlm_superlink_up"] == {"": 0}
    ends = found["fedbrainlm_certificate_expiry_timestamp_seconds"]
    assert {name: (end - time.time()) // 86400 for name, end in ends.items()} == {"ca.crt": 3649, "server.crt": 396}
    assert found["fedbrainlm_site_online"] == {"aalborg": 0, "bergen": 0}  # who was revoked is nobody to wait for
    assert found["fedbrainlm_site_last_seen_timestamp_seconds"] == {"bergen": 1_800_000_000.5}
    assert found["fedbrainlm_site_clock_skew_seconds"] == {"bergen": 10}
    assert found["fedbrainlm_database_bytes"] == {"": 1234}
    assert found["fedbrainlm_disk_free_bytes"][""] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)
    assert not any(name.startswith("fedbrainlm_run") for name in found)

    make_run(tmp_path / "runs" / "small" / "20260101-000000", rounds=9, status="completed")
    going_on = make_run(tmp_path / "runs" / "small" / "20260102-000000", rounds=5, status="running")
    make_run(tmp_path / "runs" / "other" / "20260101-120000", rounds=2, status="running")  # nobody holds it: killed

    with going_on.at_work():
        found = scrape()

    assert {name for name, is_it in found["fedbrainlm_run_status"].items() if is_it} == {
        "running/small",
        "failed/other",
    }
    assert found["fedbrainlm_run_round"] == {"small": 2, "other": 2}
    assert found["fedbrainlm_run_rounds"] == {"small": 5, "other": 2}
    assert found["fedbrainlm_run_sites"] == {"small": 3, "other": 3}
    assert found["fedbrainlm_run_sites_answered"] == {"small": 2, "other": 2}
    assert found["fedbrainlm_run_up_bytes"] == {"small": 140, "other": 140}
    assert found["fedbrainlm_run_down_bytes"] == {"small": 900, "other": 900}


@pytest.mark.slow
def test_a_scrape_says_what_status_says(federation, scrape, capsys):
    assert run_command(["federation", "start", "north"]) == 0
    try:
        (federation.logs / "heartbeats.log").write_text(beat(federation, "bergen"))
        found = scrape()
        capsys.readouterr()
        assert run_command(["federation", "status", "north"]) == 0
    finally:
        run_command(["federation", "stop", "north"])

    said = capsys.readouterr().out
    assert found["fedbrainlm_superlink_up"] == {"": 1}
    for name, up in found["fedbrainlm_program_up"].items():
        assert up == (f"{name}: running" in said) == 1
    for name, end in found["fedbrainlm_certificate_expiry_timestamp_seconds"].items():
        assert f"{name}: expires {datetime.fromtimestamp(end, UTC):%Y-%m-%d}" in said
    assert found["fedbrainlm_site_online"] == dict.fromkeys(NAMES, 0)
    assert said.count("│ registered │") == 3
    assert f"{heartbeats(federation)['bergen'].time:%Y-%m-%d %H:%M:%S}" in said
    assert scrape()["fedbrainlm_superlink_up"] == {"": 0}


def test_a_port_that_is_taken_is_said(federation, capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_command(["federation", "metrics", "north", "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}: cannot be served at" in " ".join(capsys.readouterr().err.split())
