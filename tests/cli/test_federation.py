import io
import json
import tomllib

import pytest
import yaml

from base.errors import InputError
from cli.main import run_command
from deployment.coordinator import Federation
from deployment.serving import heartbeats, sent_key
from exchange.bundle import JoinPackage
from tests.support.cohorts import contents

NAMES = ("aalborg", "bergen", "coimbra")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's FLWR_HOME, and a working folder."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "flwr"


@pytest.fixture
def federation(home) -> Federation:
    assert run_command(["federation", "init", "north", "--name", "north", "--host", "coordinator.example.org"]) == 0
    return Federation(home.parent / "north")


@pytest.fixture
def bundles(tmp_path, home) -> dict[str, str]:
    for name in NAMES:
        assert run_command(["site", "init", name, "--name", name, "--cohort", "cohort"]) == 0
    return {name: f"{name}/{name}.bundle.json" for name in NAMES}


@pytest.fixture
def package(federation, bundles) -> str:
    """What the hospitals join with."""
    for bundle in bundles.values():
        assert run_command(["federation", "add-site", "north", bundle]) == 0
    assert run_command(["federation", "package", "north", "--out", "join.json"]) == 0
    return "join.json"


def refused(capsys, *command: object, code: int = 2) -> str:
    capsys.readouterr()
    assert run_command([*map(str, command)]) == code
    error = capsys.readouterr().err
    assert "fault of FedBrainLM" not in error
    return " ".join(error.split())


def test_a_federation_is_made_once(federation, home, capsys):
    before = contents(federation.folder)

    assert run_command(["federation", "init", "north", "--name", "north", "--host", "coordinator.example.org"]) == 0

    assert contents(federation.folder) == before
    assert federation.package().fingerprint in capsys.readouterr().out
    said = refused(capsys, "federation", "init", "north", "--name", "south", "--host", "coordinator.example.org")
    assert "holds federation north" in said
    assert "name" in refused(capsys, "federation", "init", "new", "--name", "a b", "--host", "localhost")
    assert "host" in refused(capsys, "federation", "init", "new", "--name", "new", "--host", "https://x")
    assert not (home.parent / "new").exists()


def test_nobody_else_may_read_the_coordinator_s_secrets(federation):
    for path in (federation.folder / "keys").iterdir():
        assert path.stat().st_mode & 0o077 == 0 or path.suffix == ".crt"
    assert federation.folder.stat().st_mode & 0o077 == 0


def test_flower_knows_the_connection_and_others_stay(federation, home, capsys):
    wanted = {"address": "127.0.0.1:8000", "root-certificates": str(federation.authority.ca_certificate)}
    assert tomllib.loads((home / "config.toml").read_text())["superlink"] == {"default": "north", "north": wanted}

    (home / "config.toml").write_text((home / "config.toml").read_text() + '\n[superlink.other]\naddress = "x:1"\n')
    path = federation.folder / "federation.yaml"
    path.write_text(path.read_text().replace("8000", "8010"))
    Federation(federation.folder).write_configuration()
    assert tomllib.loads((home / "config.toml").read_text())["superlink"] == {
        "default": "north",
        "north": {**wanted, "address": "127.0.0.1:8010"},
        "other": {"address": "x:1"},
    }

    said = refused(capsys, "federation", "init", "new", "--name", "other", "--host", "localhost")
    assert "has another connection [superlink.other]" in said
    assert run_command(["federation", "init", "new", "--name", "third", "--host", "localhost"]) == 0


def test_the_superlink_listens_on_loopback_with_all_its_locks(federation, monkeypatch):
    monkeypatch.setattr("deployment.coordinator.program", lambda name, *_: name)
    programs = federation.programs()

    link = " ".join(programs["superlink"])
    for option in ("--host 127.0.0.1", "--enable-supernode-auth", "--isolation process", "--ssl-certfile"):
        assert option in link
    for option in ("--superexec-auth-secret-file", "--database", "--disable-runtime-dependency-installation"):
        assert option in link
    assert "--insecure" not in " ".join(map(" ".join, programs.values()))
    assert tuple(programs) == federation.program_names == ("superlink", "superexec", "edge")


def test_a_hospital_makes_its_keys_once_and_safe_settings(home, bundles, capsys):
    before = contents(home.parent / "bergen")

    assert run_command(["site", "init", "bergen", "--name", "bergen", "--cohort", "cohort"]) == 0

    assert contents(home.parent / "bergen") == before
    settings = yaml.safe_load((home.parent / "bergen" / "site.yaml").read_text())
    assert (settings["name"], settings["cohort"]) == ("bergen", str(home.parent / "cohort"))
    assert settings["policy"]["studies"] == []
    assert settings["policy"]["secure_sum_required"] is True
    for name in ("supernode.key", "x25519.key"):
        assert (home.parent / "bergen" / "state" / name).stat().st_mode & 0o077 == 0

    capsys.readouterr()
    assert run_command(["site", "init", "bergen", "--name", "bergen", "--cohort", "other"]) == 0
    assert f"keeps its cohort, {home.parent / 'cohort'}" in " ".join(capsys.readouterr().out.split())
    assert contents(home.parent / "bergen") == before

    assert "is of the site bergen" in refused(capsys, "site", "init", "bergen", "--name", "oslo", "--cohort", "cohort")
    assert "'name' is 'a b'" in refused(capsys, "site", "init", "oslo", "--name", "a b", "--cohort", "cohort")


def test_sites_are_added_and_make_the_roster_of_the_package(federation, bundles, capsys):
    assert run_command(["federation", "package", "north", "--out", "early.json"]) == 0
    assert JoinPackage.read(federation.folder.parent / "early.json").roster is None

    for _ in range(2):
        for bundle in bundles.values():
            assert run_command(["federation", "add-site", "north", bundle]) == 0
    assert run_command(["federation", "package", "north", "--out", "join.json"]) == 0

    given = JoinPackage.read(federation.folder.parent / "join.json")
    assert [site.name for site in given.roster.sites] == list(NAMES)
    assert given.address == "coordinator.example.org:443"
    assert [member.node for member in federation.members()] == [None] * 3
    capsys.readouterr()
    assert run_command(["federation", "status", "north"]) == 0
    said = capsys.readouterr().out
    assert "superlink: not running" in said
    assert "waits for start" in " ".join(said.split())
    assert "server.crt: expires" in said


def test_status_needs_no_program_installed(federation, monkeypatch, capsys):
    def missing(name, *_):
        raise InputError(f"'{name}' is not installed.")

    monkeypatch.setattr("deployment.coordinator.program", missing)
    assert run_command(["federation", "status", "north"]) == 0
    assert "edge: not running" in capsys.readouterr().out


def test_other_keys_under_a_known_name_and_revoked_ones_are_refused(federation, bundles, capsys):
    first = json.loads((federation.folder.parent / bundles["aalborg"]).read_text())
    second = json.loads((federation.folder.parent / bundles["bergen"]).read_text())
    assert run_command(["federation", "add-site", "north", bundles["aalborg"]]) == 0

    def add(**changes: str) -> str:
        (federation.folder.parent / "sent.json").write_text(json.dumps({**first, **changes}))
        return refused(capsys, "federation", "add-site", "north", "sent.json")

    other = {name: second[name] for name in ("supernode_key", "supernode_fingerprint")}
    assert "is in federation north with other keys" in add(**other)
    assert "has the SuperNode key of aalborg" in add(site="oslo")
    assert "was changed on its way" in add(supernode_fingerprint="SHA256:0")

    assert run_command(["federation", "revoke-site", "north", "aalborg"]) == 0
    assert "its SuperNode key was revoked" in add()
    assert federation.active() == []
    assert "is no site of federation north" in refused(capsys, "federation", "revoke-site", "north", "oslo")
    (federation.folder.parent / "new.json").write_text(json.dumps({**first, **other}))
    assert run_command(["federation", "add-site", "north", "new.json"]) == 0


def test_joining_is_confirmed_once_and_approves_the_roster(federation, package, capsys, monkeypatch):
    command = ["site", "join", "aalborg/site.yaml", package, "--by", "Anna Berg"]
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert "has not joined" in refused(capsys, *command)
    assert not (federation.folder.parent / "aalborg" / "state" / "federation.json").exists()

    for _ in range(2):
        assert run_command([*command, "--yes"]) == 0
    assert federation.package().fingerprint in capsys.readouterr().out
    assert run_command(["site", "rosters", "aalborg/site.yaml"]) == 0
    assert f"{federation.package().roster.hash} approved by Anna Berg" in capsys.readouterr().out
    log = (federation.folder.parent / "aalborg" / "state" / "audit.jsonl").read_text()
    assert log.count('"event": "joined"') == log.count('"event": "roster-approved"') == 1


def test_a_site_that_is_not_listed_with_its_key_does_not_join(federation, package, capsys):
    assert run_command(["site", "init", "oslo", "--name", "oslo", "--cohort", "cohort"]) == 0

    assert "does not list the site oslo" in refused(capsys, "site", "join", "oslo/site.yaml", package, "--yes")
    assert not (federation.folder.parent / "oslo" / "state" / "federation.json").exists()
    assert "has joined no federation" in refused(capsys, "site", "start", "oslo/site.yaml")


def test_the_edge_s_log_says_when_each_site_was_seen_and_how_its_clock_goes(federation, bundles):
    assert run_command(["federation", "add-site", "north", bundles["bergen"]]) == 0
    (member,) = federation.members()
    line = {"time": 1_800_000_000.5, "status": 200, "address": "10.0.0.1", "version": "1.41.0"}
    line |= {"key": sent_key(member.bundle.supernode_key), "signed": "2027-01-15T08:00:10.500000+00:00"}
    lines = [line, {**line, "status": 401, "signed": "x"}, {**line, "key": "stranger"}, {"status": 200}]
    text = "cut off\n" + "\n".join(map(json.dumps, lines)) + "\n"
    (federation.logs / "heartbeats.log").write_text(text)

    (beat,) = heartbeats(federation).values()

    assert beat.time.isoformat() == "2027-01-15T08:00:00.500000+00:00"
    assert beat.skew_s == 10
    assert beat.version == "1.41.0"


def test_certificates_are_renewed(federation, capsys):
    before = contents(federation.folder / "keys")

    assert run_command(["federation", "renew", "north"]) == 0

    after = contents(federation.folder / "keys")
    assert [path for path in after if after[path] != before[path]] == ["server.crt"]
    assert "Restart" in capsys.readouterr().out
