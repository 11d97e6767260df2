import io
import json
import re
import socket

import pytest
import yaml

from cli.main import run_command
from client.door.audit import AuditLog
from exchange.key_roster import KeyRoster

NAMES = ("aalborg", "bergen", "coimbra")


@pytest.fixture
def sites(tmp_path):
    """Three folders, each with a site.yaml; their cohorts are never opened."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        settings = {"name": name, "cohort": "cohort", "state": "state"}
        (tmp_path / name / "site.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


@pytest.fixture
def roster(sites, capsys):
    """The roster's file, made as a coordinator makes it."""
    for name in NAMES:
        assert run_command(["site", "key", str(sites / name / "site.yaml"), "--out", str(sites / f"{name}.json")]) == 0
    bundles = [str(sites / f"{name}.json") for name in reversed(NAMES)]
    command = ["federation", "roster", *bundles, "--out", str(sites / "roster.json"), "--name", "north"]
    assert run_command(command) == run_command(command) == 0
    capsys.readouterr()
    return sites / "roster.json"


@pytest.fixture
def log(sites) -> AuditLog:
    log = AuditLog(sites / "aalborg" / "state" / "audit.jsonl", "aalborg")
    for number in range(5):
        log.append("release", message="train", run=number, bytes=100 + number, items=[{"name": "weights"}])
    log.append("refusal", message="embed", run=9, code="policy.small-group")
    return log


def refused(capsys, *command: object) -> str:
    assert run_command([*map(str, command)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert "fault of FedBrainLM" not in error
    return error.replace("\n", " ")


def test_a_key_is_shown_the_same_whenever_asked(sites, capsys):
    said = []
    for _ in range(2):
        command = ["site", "key", str(sites / "bergen" / "site.yaml"), "--out", str(sites / "b.json")]
        assert run_command(command) == 0
        said.append(capsys.readouterr().out)

    bundle = json.loads((sites / "b.json").read_text())
    assert said[0] == said[1]
    assert list(bundle) == ["site", "public_key", "fingerprint", "supernode_key", "supernode_fingerprint"]
    assert said[0].splitlines() == [f"{name.replace('_', ' ')}: {value}" for name, value in bundle.items()]

    (sites / "b.json").write_text("{}")
    assert "holds something else" in refused(capsys, *command)
    (sites / "bergen" / "state" / "x25519.key").chmod(0o644)
    assert "chmod 600" in refused(capsys, *command)


def test_a_roster_shows_what_is_compared_by_telephone(sites, roster, capsys):
    bundles = [sites / f"{name}.json" for name in NAMES]
    assert run_command(["federation", "roster", *map(str, bundles), "--out", str(sites / "again.json")]) == 0

    said = capsys.readouterr().out
    assert KeyRoster.read(sites / "again.json").hash in said
    for path in bundles:
        assert json.loads(path.read_text())["fingerprint"] in said

    make = ["federation", "roster", "--out", sites / "new.json"]
    assert "at least 3" in refused(capsys, *make, *bundles[:2])
    assert "lists aalborg more than once" in refused(capsys, *make, *bundles, bundles[0])
    assert "cannot be read" in refused(capsys, *make, *bundles, sites / "none.json")
    assert "'name' is 'a b'" in refused(capsys, *make, *bundles, "--name", "a b")
    assert not (sites / "new.json").exists()
    assert "holds something else" in refused(capsys, "federation", "roster", *bundles, "--out", roster)


def test_a_roster_is_approved_listed_and_revoked(sites, roster, capsys, monkeypatch):
    site, given = str(sites / "aalborg" / "site.yaml"), KeyRoster.read(roster)

    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert "is not approved" in refused(capsys, "site", "approve-roster", site, roster)
    assert run_command(["site", "rosters", site]) == 0
    assert "aalborg has approved no roster" in capsys.readouterr().out

    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run_command(["site", "approve-roster", site, str(roster), "--by", "Anna Berg"]) == 0
    said = capsys.readouterr().out
    for entry in given.sites:
        assert entry.fingerprint in said
    assert run_command(["site", "rosters", site]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{given.hash} approved by Anna Berg, ")
    assert "north: aalborg, bergen, coimbra" in said

    assert run_command(["site", "revoke-roster", site, given.hash, "--by", "Bo"]) == 0
    assert "is not approved at aalborg" in refused(capsys, "site", "revoke-roster", site, given.hash)
    assert run_command(["site", "audit", "show", site]) == 0
    said = capsys.readouterr().out
    assert said.index("roster-approved") < said.index("roster-revoked")


def test_a_roster_that_is_not_the_site_s_is_refused(sites, roster, capsys):
    site = sites / "aalborg" / "site.yaml"
    site.write_text(site.read_text().replace("aalborg", "oslo"))
    assert "does not list the site oslo" in refused(capsys, "site", "approve-roster", site, roster, "--yes")
    assert "is not a JSON object" in refused(capsys, "site", "approve-roster", site, site, "--yes")
    assert "no such file" in refused(capsys, "site", "approve-roster", sites / "none.yaml", roster, "--yes")
    assert not (sites / "aalborg" / "state" / "audit.jsonl").exists()


def test_the_audit_log_is_shown(sites, log, capsys):
    for source in (sites / "aalborg" / "site.yaml", log.path):
        assert run_command(["site", "audit", "show", str(source), "--last", "2", "--event", "release"]) == 0
        said = capsys.readouterr().out
        assert "run 3, bytes 103" in said
        assert "run 4, bytes 104" in said
        assert "run 2" not in said
        assert "refusal" not in said

    log.append("refusal", message="\x1b[31m[bold]train")
    assert run_command(["site", "audit", "show", str(log.path), "--event", "refusal"]) == 0
    said = capsys.readouterr().out
    assert "policy.small-group" in said
    assert "\x1b" not in said
    assert "[bold]train" in said


def test_the_audit_log_is_verified(sites, log, capsys):
    head = log.append("release", message="train", run=10)
    log.append("release", message="train", run=11)
    command = ["site", "audit", "verify", str(sites / "aalborg" / "site.yaml")]

    assert run_command(command) == 0
    assert "intact: 9 lines" in capsys.readouterr().out
    assert run_command([*command, "--head", head]) == 0
    assert "The head that was given is line 8; 1 came since." in capsys.readouterr().out

    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:7]))
    assert run_command(command) == 0
    assert "unless you give the head" in capsys.readouterr().out
    assert run_command([*command, "--head", head]) == 1
    assert "broken: no line has the head that was given" in capsys.readouterr().out

    log.path.write_bytes(b"".join([*lines[:3], re.sub(rb'"bytes": ?102', b'"bytes":2', lines[3]), *lines[4:]]))
    assert run_command(command) == 1
    assert "broken: line 4 is not the line after which line 5 was written: it was changed." in capsys.readouterr().out


def test_the_audit_log_is_exported(sites, log, capsys):
    site, out = sites / "aalborg" / "site.yaml", sites / "given" / "copy.jsonl"

    assert run_command(["site", "audit", "export", str(site), str(out)]) == 0
    assert log.verify().head in capsys.readouterr().out
    assert run_command(["site", "audit", "verify", str(out), "--head", log.verify().head]) == 0
    capsys.readouterr()

    out.write_text("nothing of ours\n")
    assert "cannot be copied there (File exists)" in refused(capsys, "site", "audit", "export", site, out)
    assert "cannot be copied there" in refused(capsys, "site", "audit", "export", site, out / "below")
    assert "no such audit log" in refused(capsys, "site", "audit", "verify", sites / "none.jsonl")
    assert "no such audit log" in refused(capsys, "site", "audit", "show", sites / "bergen" / "site.yaml")
    assert "expected 64 hexadecimal digits" in refused(capsys, "site", "audit", "verify", site, "--head", "12")
    assert out.read_text() == "nothing of ours\n"
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert "line 1 is damaged" in refused(capsys, "site", "audit", "show", out)


def test_apps_are_started_by_one_program_alone(sites, capsys):
    said = refused(capsys, "site", "execute", sites / "aalborg" / "site.yaml")
    assert "supernode.executor is here" in said


def test_a_supernode_is_not_started_with_another_flower(sites, monkeypatch, capsys):
    """Whose inner parts the guard was not made for."""
    monkeypatch.setattr("deployment.checks.version", lambda _name: "1.40.0")
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it was started"))
    said = refused(capsys, "site", "start", sites / "aalborg" / "site.yaml")
    assert "this version needs Flower 1.41.0 or 1.42.0. Use 'make install'" in " ".join(said.split())


def test_a_supernode_is_not_started_where_its_port_is_taken(sites, monkeypatch, capsys):
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it was started"))
    settings = sites / "aalborg" / "site.yaml"
    assert run_command(["site", "key", str(settings)]) == 0
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings.write_text(f"{settings.read_text()}supernode: {{port: {port}}}\n")
        said = refused(capsys, "site", "start", settings)
    assert f"supernode.port {port} is taken" in " ".join(said.split())
