import hashlib
import json

import pytest

from client.door.audit import AuditLog
from client.door.policy import Policy
from client.errors import AppError, ApprovalError, SignatureError
from client.keys.approvals import Approvals
from client.keys.signatures import key_fingerprint, public_key
from exchange.refusals import Refusal, RefusalCode
from tests.support.apps import Signer, app_of

FAB = app_of("app = None\n")
ALONE = "approved by Anna alone; policy.min_approvers is 2"
HASH = hashlib.sha256(FAB).hexdigest()


def site(tmp_path, **policy: object) -> Approvals:
    return Approvals(tmp_path / "state", AuditLog(tmp_path / "state" / "audit.jsonl"), Policy(**policy))


def refused(approvals: Approvals, fab: bytes = FAB) -> str:
    with pytest.raises(Refusal) as refusal:
        approvals.check(fab)
    assert refusal.value.code is RefusalCode.CODE
    return refusal.value.detail


def test_only_the_very_bytes_that_were_approved_may_run(tmp_path):
    approvals = site(tmp_path)
    assert "is not approved" in refused(approvals)

    approvals.approve(FAB, "Anna", "small")

    assert approvals.check(FAB).hash == HASH
    assert "is not approved" in refused(approvals, FAB + b"\0")
    assert site(tmp_path).check(FAB).study == "small"  # on the disk


def test_what_was_withdrawn_may_run_no_more_and_the_audit_log_says_who_did_what(tmp_path):
    approvals = site(tmp_path)
    approvals.approve(FAB, "Anna", "small")
    approvals.withdraw(HASH, "Bo")

    assert "is not approved" in refused(approvals)
    assert list(approvals.listed()) == []
    with pytest.raises(ApprovalError, match="is not approved"):
        approvals.withdraw(HASH, "Bo")
    events = AuditLog(tmp_path / "state" / "audit.jsonl").read()
    assert [(event["event"], event["by"], event["hash"]) for event in events] == [
        ("code-approved", "Anna", HASH),
        ("code-withdrawn", "Bo", HASH),
    ]


@pytest.fixture
def people(tmp_path) -> dict[str, Signer]:
    return {name: Signer(tmp_path, name) for name in ("anna", "bo", "eve")}


def test_two_people_are_two_keys_and_not_two_names(tmp_path, people):
    keys = [people[name].line for name in ("anna", "bo")]
    approvals = site(tmp_path, approvers=keys, min_approvers=2)
    with pytest.raises(ApprovalError, match="an approval is a signature"):
        approvals.approve(FAB, "Anna", "small")

    first = approvals.approve(FAB, "Anna", "small", people["anna"].sign(FAB))
    assert approvals.missing(first) == 1
    assert ALONE in refused(approvals)
    with pytest.raises(ApprovalError, match="approved it before"):
        approvals.approve(FAB, "Bo", "small", people["anna"].sign(FAB))
    with pytest.raises(SignatureError, match="nobody's"):
        approvals.approve(FAB, "Bo", "small", people["eve"].sign(FAB))
    with pytest.raises(ApprovalError, match="Give the file"):
        approvals.approve_unseen(HASH, "Bo")
    assert ALONE in refused(approvals)

    second = approvals.approve(FAB, "Bo", "small", people["bo"].sign(FAB))
    assert approvals.missing(second) == 0
    assert approvals.check(FAB).hash == HASH


def test_whoever_writes_to_the_state_folder_cannot_approve_for_others(tmp_path, people):
    keys = [people[name].line for name in ("anna", "bo")]
    approvals = site(tmp_path, approvers=keys, min_approvers=2)
    approvals.approve(FAB, "Anna", "small", people["anna"].sign(FAB))
    (path,) = (tmp_path / "state" / "code").iterdir()
    record = json.loads(path.read_text())
    anna = record["approvers"][0]
    bo = key_fingerprint(public_key(people["bo"].line))

    for forged in (anna, {**anna, "by": "Bo"}, {**anna, "key": bo}, {"by": "Bo", "time": "", "key": bo}):
        path.write_text(json.dumps({**record, "approvers": [anna, forged]}))
        said = refused(approvals)
        assert "alone; policy.min_approvers is 2" in said or "this is no signature of an app" in said


def test_a_key_that_the_policy_no_longer_lists_counts_no_more(tmp_path, people):
    site(tmp_path, approvers=[people["anna"].line]).approve(FAB, "Anna", "small", people["anna"].sign(FAB))
    assert site(tmp_path, approvers=[people["anna"].line]).check(FAB).hash == HASH

    assert "is approved by Anna alone" in refused(site(tmp_path, approvers=[people["bo"].line]))
    site(tmp_path).approve_unseen("ab" * 32, "Anna")
    assert not site(tmp_path).missing(site(tmp_path).find("ab" * 32))
    assert site(tmp_path, approvers=[people["bo"].line]).missing(site(tmp_path).find("ab" * 32)) == 1


def test_an_app_that_is_none_of_ours_is_not_approved_and_does_not_run(tmp_path):
    bad = app_of("app = None\n", **{"evil.py": b""})
    with pytest.raises(AppError, match=r"the app holds 'evil\.py'"):
        site(tmp_path).approve(bad, "Anna", "small")
    assert list(site(tmp_path).listed()) == []

    site(tmp_path).approve_unseen(hashlib.sha256(bad).hexdigest(), "Anna")
    assert "the app holds 'evil.py'" in refused(site(tmp_path), bad)


def test_a_hash_is_64_digits_and_no_path(tmp_path):
    for wrong in ("12", HASH[:-1], HASH.upper(), "../" + HASH):
        with pytest.raises(ApprovalError, match="is no app"):
            site(tmp_path).approve_unseen(wrong, "Anna")
    assert not (tmp_path / "state" / "code").exists()


def test_a_damaged_record_approves_nothing(tmp_path):
    approvals = site(tmp_path)
    approvals.approve(FAB, "Anna", "small")
    (path,) = (tmp_path / "state" / "code").iterdir()
    for text in ("", "{}", json.dumps({"study": "", "approvers": ["Anna"]})):
        path.write_text(text)
        assert "is damaged" in refused(approvals)
