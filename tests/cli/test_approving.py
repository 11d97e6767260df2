import hashlib

import pytest
import yaml

from cli.main import run_command
from tests.support.federation import STUDY


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"name": "aalborg", "cohort": "cohort", "state": "state"}))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path / "site.yaml"


def said(capsys, *command: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run_command([*command]) == code
    shown = capsys.readouterr()
    return " ".join((shown.out + shown.err).replace("│", " ").split())


def test_what_is_built_is_approved_listed_and_withdrawn(site, capsys):
    built = said(capsys, "study", "build", "study.yaml", "--out", "small.fab")
    code_hash = hashlib.sha256((site.parent / "small.fab").read_bytes()).hexdigest()
    assert built.endswith(f"sha256: {code_hash}")
    assert said(capsys, "study", "build", "study.yaml", "--out", "small.fab") == built
    assert "aalborg has approved no app" in said(capsys, "site", "approved", "site.yaml")

    shown = said(capsys, "site", "approve", "site.yaml", "small.fab", "--by", "Anna Berg")
    assert "that of this installation" in shown
    assert "A small study" in shown
    assert shown.endswith(f"{code_hash} may run.")

    assert f"{code_hash} small by Anna Berg, 20" in said(capsys, "site", "approved", "site.yaml")
    said(capsys, "site", "withdraw", "site.yaml", code_hash, "--by", "Bo")
    assert "aalborg has approved no app" in said(capsys, "site", "approved", "site.yaml")
    assert "is not approved" in said(capsys, "site", "withdraw", "site.yaml", code_hash, code=2)


def test_two_approve_where_the_policy_says_so(site, capsys):
    site.write_text(site.read_text() + "policy: {approvers: 2}\n")
    code_hash = "ab" * 32

    first = said(capsys, "site", "approve", "site.yaml", code_hash, "--by", "Anna Berg")
    assert "may run when 1 more has approved it" in first
    assert "may not run: policy.approvers is 2" in said(capsys, "site", "approved", "site.yaml")
    again = said(capsys, "site", "approve", "site.yaml", code_hash, "--by", "anna berg", code=2)
    assert "has approved it before" in again

    assert said(capsys, "site", "approve", "site.yaml", code_hash, "--by", "Bo").endswith("may run.")


def test_what_is_no_app_is_not_approved(site, capsys):
    assert "is no app" in said(capsys, "site", "approve", "site.yaml", "nowhere.fab", code=2)
    assert "is no FAB" in said(capsys, "site", "approve", "site.yaml", "study.yaml", code=2)
    assert not (site.parent / "state" / "code").exists()
