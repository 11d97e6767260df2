import pytest

from client.door.audit import AuditLog
from client.errors import JoinError
from client.keys.joining import authority_path, join, joined
from deployment.authority import Authority
from exchange.bundle import JoinPackage


def package(tmp_path, name: str, address: str = "localhost:443") -> JoinPackage:
    authority = Authority(tmp_path / name)
    authority.make(name, "localhost")
    return JoinPackage(federation=name, address=address, ca_certificate=authority.ca_certificate.read_text())


def test_a_package_is_kept_and_an_unchanged_one_written_down_once(tmp_path):
    state, given = tmp_path / "state", package(tmp_path, "north")
    audit = AuditLog(state / "audit.jsonl")
    with pytest.raises(JoinError, match="has joined no federation"):
        joined(state)

    for _ in range(2):
        join(state, audit, given, "Anna")
    assert joined(state) == given
    assert authority_path(state).read_text() == given.ca_certificate

    join(state, audit, package(tmp_path, "north", "localhost:8443"), "Bo")
    assert joined(state).port == 8443
    assert [(event["event"], event["by"]) for event in audit.read()] == [("joined", "Anna"), ("joined", "Bo")]


def test_a_site_is_in_one_federation(tmp_path):
    state = tmp_path / "state"
    join(state, AuditLog(state / "audit.jsonl"), package(tmp_path, "north"), "Anna")

    with pytest.raises(JoinError, match="is in federation north"):
        join(state, AuditLog(state / "audit.jsonl"), package(tmp_path, "south"), "Anna")
    (state / "federation.json").write_text("{}")
    with pytest.raises(JoinError, match="no join package"):
        joined(state)
