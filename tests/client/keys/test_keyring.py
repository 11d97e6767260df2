import json
import stat

import pytest

from base.errors import SecretError
from client.door.audit import AuditLog
from client.errors import ApprovalError, AuditError
from client.keys.keyring import Keyring
from exchange.key_roster import KeyRoster
from exchange.refusals import Refusal, RefusalCode
from tests.support.programs import run_at_once

NAMES = ("aalborg", "bergen", "coimbra")


@pytest.fixture
def rings(tmp_path) -> dict[str, Keyring]:
    return {name: Keyring(name, tmp_path / name, AuditLog(tmp_path / name / "audit.jsonl", name)) for name in NAMES}


@pytest.fixture
def roster(rings) -> KeyRoster:
    return KeyRoster.from_bundles("north", [ring.public_bundle() for ring in rings.values()])


def refused(ring: Keyring, roster_hash: str) -> str:
    with pytest.raises(Refusal) as refusal:
        ring.approved(roster_hash)
    assert refusal.value.code is RefusalCode.ROSTER
    return refusal.value.detail


def test_the_key_is_made_once_and_two_sites_share_a_secret(rings, roster, tmp_path):
    own, other = rings["aalborg"], rings["bergen"]
    path = tmp_path / "aalborg" / "x25519.key"
    text = path.read_bytes()

    again = Keyring("aalborg", tmp_path / "aalborg", own.audit)

    assert again.public_bundle() == own.public_bundle()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (text, 0o600)
    mine = own.private_key.exchange(roster.public_key("bergen"))
    assert mine == other.private_key.exchange(roster.public_key("aalborg"))


def test_processes_that_ask_at_a_time_get_one_key(tmp_path):
    program = """
import sys
from pathlib import Path
from base.secrets import key_once
sys.stdin.readline()
print(key_once(Path(sys.argv[1])).hex())
"""
    assert len(set(run_at_once(program, *[(tmp_path / "state" / "key",)] * 4))) == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["key"]


def test_a_key_that_others_may_read_is_not_used(rings, roster, tmp_path):
    path = tmp_path / "aalborg" / "x25519.key"
    for mode in (0o644, 0o620, 0o601):
        path.chmod(mode)
        with pytest.raises(SecretError, match=f"chmod 600 {path}"):
            Keyring("aalborg", path.parent, rings["aalborg"].audit).public_bundle()

    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(SecretError, match="does not hold a key"):
        Keyring("aalborg", path.parent, rings["aalborg"].audit).public_bundle()
    assert path.read_text() == "no key"


def test_only_an_approved_roster_is_used_until_it_is_revoked(rings, roster):
    ring = rings["aalborg"]
    assert "is not approved" in refused(ring, roster.hash)

    ring.approve(roster, "anna")

    assert ring.approved(roster.hash) == roster
    assert [(approval.hash, approval.by) for approval in ring.approvals()] == [(roster.hash, "anna")]
    assert "is not approved" in refused(rings["bergen"], roster.hash)

    ring.revoke(roster.hash, "bo")

    assert "is not approved" in refused(ring, roster.hash)
    with pytest.raises(ApprovalError, match="is not approved at aalborg"):
        ring.revoke(roster.hash, "bo")
    approved, revoked = ring.audit.read()
    assert (approved["event"], approved["hash"], approved["name"], approved["by"]) == (
        "roster-approved",
        roster.hash,
        "north",
        "anna",
    )
    assert approved["sites"] == [{"site": site.name, "fingerprint": site.fingerprint} for site in roster.sites]
    assert (revoked["event"], revoked["hash"], revoked["by"]) == ("roster-revoked", roster.hash, "bo")


def test_a_roster_without_the_site_s_own_key_is_not_approved(rings, roster, tmp_path):
    stranger = Keyring("oslo", tmp_path / "oslo", AuditLog(tmp_path / "oslo" / "audit.jsonl"))
    with pytest.raises(ApprovalError, match="does not list the site oslo"):
        stranger.approve(roster, "anna")

    double = Keyring("aalborg", tmp_path / "double", AuditLog(tmp_path / "double" / "audit.jsonl"))
    with pytest.raises(ApprovalError, match=r"own has ([0-9a-f]{4} ?){8}\."):
        double.approve(roster, "anna")

    assert list(stranger.approvals()) == list(double.approvals()) == []
    assert double.audit.read() == []


def test_what_changed_since_the_approval_is_refused(rings, roster, tmp_path):
    ring, path = rings["aalborg"], tmp_path / "aalborg" / "rosters" / f"{roster.hash}.json"
    ring.approve(roster, "anna")

    content = json.loads(roster.canonical())
    content["sites"][1]["public_key"] = "09" + 31 * "00"
    path.write_text(json.dumps(content))
    assert "was changed since it was approved" in refused(ring, roster.hash)
    path.unlink()
    assert "cannot be read" in refused(ring, roster.hash)

    ring.approve(roster, "anna")
    (tmp_path / "aalborg" / "x25519.key").unlink()
    anew = Keyring("aalborg", tmp_path / "aalborg", ring.audit)
    assert "the site's own has" in refused(anew, roster.hash)


def test_after_a_change_of_keys_the_site_names_only_rosters_with_its_new_one(rings, tmp_path):
    """The coordinator takes any roster that all sites name; the old one would be refused in the first sum."""
    bundles = {name: ring.public_bundle() for name, ring in rings.items()}
    rings["aalborg"].approve(KeyRoster.from_bundles("north", list(bundles.values())), "anna")
    (tmp_path / "aalborg" / "x25519.key").unlink()
    anew = Keyring("aalborg", tmp_path / "aalborg", rings["aalborg"].audit)
    assert anew.usable() == []

    roster = KeyRoster.from_bundles("north", [*({**bundles, "aalborg": anew.public_bundle()}).values()])
    anew.approve(roster, "anna")

    assert anew.usable() == [roster.hash]
    assert len(list(anew.approvals())) == 2


@pytest.mark.parametrize("name", ["", "../../x25519", "0" * 63, "0" * 64 + "\n", "A" * 64, "*"])
def test_a_message_cannot_name_another_file(rings, roster, name):
    rings["aalborg"].approve(roster, "anna")

    assert "is not approved" in refused(rings["aalborg"], name)


def test_nothing_is_approved_that_cannot_be_written_down(rings, roster, tmp_path):
    ring = rings["aalborg"]
    ring.audit.path.write_text("damaged\n")

    with pytest.raises(AuditError):
        ring.approve(roster, "anna")

    assert "is not approved" in refused(ring, roster.hash)
