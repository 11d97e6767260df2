import hashlib
import json

import pytest

from client.approvals import Approvals
from client.audit import AuditLog
from client.errors import ApprovalError
from exchange.refusals import Refusal, RefusalCode

FAB = b"the app"
HASH = hashlib.sha256(FAB).hexdigest()


def site(tmp_path, needed: int = 1) -> Approvals:
    return Approvals(tmp_path / "state", AuditLog(tmp_path / "state" / "audit.jsonl"), needed)


def refused(approvals: Approvals, fab: bytes = FAB) -> str:
    with pytest.raises(Refusal) as refusal:
        approvals.check(fab)
    assert refusal.value.code is RefusalCode.CODE
    return refusal.value.detail


def test_only_the_very_bytes_that_were_approved_may_run(tmp_path):
    approvals = site(tmp_path)
    assert "is not approved" in refused(approvals)

    approvals.approve(HASH, "Anna", "small")

    assert approvals.check(FAB) == HASH
    assert "is not approved" in refused(approvals, FAB + b"\0")
    assert site(tmp_path).check(FAB) == HASH  # on the disk


def test_what_was_withdrawn_may_run_no_more(tmp_path):
    approvals = site(tmp_path)
    approvals.approve(HASH, "Anna")
    approvals.withdraw(HASH, "Bo")

    refused(approvals)
    assert list(approvals.listed()) == []
    with pytest.raises(ApprovalError, match="is not approved"):
        approvals.withdraw(HASH, "Bo")


def test_two_people_are_two_people(tmp_path):
    approvals = site(tmp_path, needed=2)
    approvals.approve(HASH, "Anna Berg")
    assert "approved by Anna Berg alone; policy.approvers is 2" in refused(approvals)

    with pytest.raises(ApprovalError, match="approved it before"):
        approvals.approve(HASH, " anna  BERG")
    refused(approvals)

    approvals.approve(HASH, "Bo")
    assert approvals.check(FAB) == HASH


def test_the_audit_log_says_who_approved_and_who_withdrew(tmp_path):
    approvals = site(tmp_path)
    approvals.approve(HASH, "Anna", "small")
    approvals.withdraw(HASH, "Bo")

    events = AuditLog(tmp_path / "state" / "audit.jsonl").read()

    assert [(event["event"], event["by"], event["hash"]) for event in events] == [
        ("code-approved", "Anna", HASH),
        ("code-withdrawn", "Bo", HASH),
    ]


def test_a_hash_is_64_digits_and_no_path(tmp_path):
    for wrong in ("12", HASH[:-1], HASH.upper(), "../" + HASH):
        with pytest.raises(ApprovalError, match="is no app"):
            site(tmp_path).approve(wrong, "Anna")
    assert not (tmp_path / "state" / "code").exists()


def test_a_damaged_record_approves_nothing(tmp_path):
    approvals = site(tmp_path)
    approvals.approve(HASH, "Anna")
    (path,) = (tmp_path / "state" / "code").iterdir()
    for text in ("", "{}", json.dumps({"study": "", "approvers": ["Anna"]})):
        path.write_text(text)
        assert "is damaged" in refused(approvals)
