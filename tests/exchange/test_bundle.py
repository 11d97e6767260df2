import json
import subprocess

import pytest

from client.door.audit import AuditLog
from client.keys.keyring import Keyring
from deployment.authority import Authority
from exchange.bundle import JoinPackage, SiteBundle
from exchange.key_roster import KeyRoster, RosterError


@pytest.fixture
def bundle(tmp_path) -> dict[str, str]:
    state = tmp_path / "state"
    return Keyring("aalborg", state, AuditLog(state / "audit.jsonl")).public_bundle()


@pytest.fixture
def package(tmp_path) -> dict[str, object]:
    authority = Authority(tmp_path / "keys")
    authority.make("north", "localhost")
    pem = authority.ca_certificate.read_text()
    return {"federation": "north", "address": "localhost:443", "ca_certificate": pem, "roster": None}


def read(model, tmp_path, content):
    (tmp_path / "sent.json").write_text(json.dumps(content))
    return model.read(tmp_path / "sent.json")


def test_a_bundle_comes_back_as_it_was_sent_and_holds_nothing_private(tmp_path, bundle):
    assert read(SiteBundle, tmp_path, bundle).model_dump() == bundle
    assert "PRIVATE" not in json.dumps(bundle)
    assert (tmp_path / "state" / "x25519.key").read_text() not in json.dumps(bundle)


def test_the_fingerprint_is_what_openssh_shows(tmp_path, bundle):
    (tmp_path / "node.pub").write_text(bundle["supernode_key"])

    said = subprocess.run(["ssh-keygen", "-lf", tmp_path / "node.pub"], capture_output=True, text=True, check=True)

    assert bundle["supernode_fingerprint"] in said.stdout


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("supernode_fingerprint", "SHA256:0", "was changed on its way"),
        ("fingerprint", "0000", "was changed on its way"),
        ("supernode_key", "ssh-ed25519 AAAA", "no ECDSA P-384"),
        ("public_key", "0" * 64, "makes no secret"),
        ("site", "../x", "'site' is '../x'; expected 1 to 64 letters"),
        ("private", "x", "'private' is not a known field"),
    ],
)
def test_a_bundle_that_was_changed_is_refused(tmp_path, bundle, field, value, said):
    with pytest.raises(RosterError, match=said):
        read(SiteBundle, tmp_path, {**bundle, field: value})


def test_a_package_says_where_and_whose_authority(tmp_path, package):
    given = read(JoinPackage, tmp_path, package)

    assert (given.host, given.port) == ("localhost", 443)
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", tmp_path / "keys" / "ca.crt"],
        capture_output=True,
        text=True,
        check=True,
    )
    digits = shown.stdout.split("=")[1].replace(":", "").lower()
    assert digits.startswith(given.fingerprint.replace(" ", ""))


def test_a_package_without_an_authority_is_refused(tmp_path, package):
    server = (tmp_path / "keys" / "server.crt").read_text()
    for change in ({"ca_certificate": server}, {"ca_certificate": "none"}, {"address": "nowhere"}, {"roster": {}}):
        with pytest.raises(RosterError, match="Ask the coordinator"):
            read(JoinPackage, tmp_path, {**package, **change})


def test_a_roster_is_made_of_bundles(tmp_path):
    rings = [Keyring(name, tmp_path / name, AuditLog(tmp_path / name / "a")) for name in ("a", "b", "c")]

    roster = KeyRoster.from_bundles("north", [ring.public_bundle() for ring in rings])

    assert [roster.site(ring.name) for ring in rings] == [ring.public for ring in rings]
