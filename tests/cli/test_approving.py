import hashlib
import io

import pytest
import yaml

from cli.main import run_command
from runtime.fab import pack_fab, stage_app
from study.settings import load_study
from tests.support.apps import Signer
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


def small_fab(site, capsys) -> str:
    """Build the study's app; return its hash."""
    said(capsys, "study", "build", "study.yaml", "--out", "small.fab")
    return hashlib.sha256((site.parent / "small.fab").read_bytes()).hexdigest()


def other_fab(site) -> None:
    """Make an app of ours whose code is another than this installation's."""
    folder = stage_app(site.parent / "app", load_study(site.parent / "study.yaml"))
    (folder / "client" / "app.py").write_text("app = None\n")
    (site.parent / "other.fab").write_bytes(pack_fab(folder))


def test_what_is_built_is_approved_listed_and_withdrawn(site, capsys):
    built = said(capsys, "study", "build", "study.yaml", "--out", "small.fab")
    code_hash = small_fab(site, capsys)
    assert built.endswith(f"sha256: {code_hash}")
    assert said(capsys, "study", "build", "study.yaml", "--out", "small.fab") == built
    assert "aalborg has approved no app" in said(capsys, "site", "approved", "site.yaml")

    shown = said(capsys, "site", "approve", "site.yaml", "small.fab", "--by", "Anna Berg", "--yes")
    assert "that of this installation" in shown
    assert "A small study" in shown
    assert shown.endswith(f"{code_hash} may run.")

    assert f"{code_hash} small by Anna Berg, 20" in said(capsys, "site", "approved", "site.yaml")
    said(capsys, "site", "withdraw", "site.yaml", code_hash, "--by", "Bo")
    assert "aalborg has approved no app" in said(capsys, "site", "approved", "site.yaml")
    assert "is not approved" in said(capsys, "site", "withdraw", "site.yaml", code_hash, code=2)


def test_looking_approves_nothing(site, capsys):
    small_fab(site, capsys)
    site_yaml = yaml.safe_load(site.read_text())

    assert "that of this installation" in said(capsys, "site", "show", "small.fab")
    assert not (site.parent / "state").exists()
    shown = said(capsys, "site", "show", "small.fab", "site.yaml")
    assert "The policy of aalborg refuses this study, approved or not" in shown
    assert "study 'small' is not in policy.studies" in shown
    policy = {"studies": ["small"], "columns": ["age"], "max_rounds": 1}
    site.write_text(yaml.safe_dump({**site_yaml, "policy": policy}))
    shown = said(capsys, "site", "show", "small.fab", "site.yaml")
    assert "column 'sex' is not in policy.columns" in shown
    assert "policy.max_rounds is 1" in shown
    site.write_text(yaml.safe_dump({**site_yaml, "policy": {"studies": ["small"]}}))
    assert "has nothing against this study" in said(capsys, "site", "show", "small.fab", "site.yaml")
    assert "aalborg has approved no app" in said(capsys, "site", "approved", "site.yaml")


@pytest.mark.parametrize(("answer", "code"), [("n\n", 2), ("y\n", 0)])
def test_who_approves_is_asked(site, capsys, monkeypatch, answer, code):
    small_fab(site, capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))

    shown = said(capsys, "site", "approve", "site.yaml", "small.fab", "--by", "Anna Berg", code=code)

    assert "May this app run at aalborg?" in shown
    assert ("may run." in shown) == (code == 0)
    assert ("has approved no app" in said(capsys, "site", "approved", "site.yaml")) == (code == 2)


def test_other_code_takes_a_word_of_its_own(site, capsys):
    other_fab(site)

    refused = said(capsys, "site", "approve", "site.yaml", "other.fab", "--by", "Anna Berg", "--yes", code=2)
    assert "changed: client/app.py" in refused
    assert "is not that of this installation. Read what differs; then give --other-code" in refused
    assert "has approved no app" in said(capsys, "site", "approved", "site.yaml")

    accepted = said(capsys, "site", "approve", "site.yaml", "other.fab", "--by", "Anna Berg", "--yes", "--other-code")
    assert accepted.endswith("may run.")


def test_a_hash_takes_a_word_of_its_own(site, capsys):
    code_hash = "ab" * 32

    assert "with --unseen" in said(capsys, "site", "approve", "site.yaml", code_hash, "--yes", code=2)
    given = said(capsys, "site", "approve", "site.yaml", code_hash, "--by", "Anna Berg", "--unseen", "--yes")
    assert given.endswith(f"{code_hash} may run.")
    again = said(capsys, "site", "approve", "site.yaml", code_hash, "--by", "anna  berg", "--unseen", "--yes", code=2)
    assert "has approved it before" in again


def test_two_sign_where_the_policy_says_so(site, capsys):
    code_hash = small_fab(site, capsys)
    people = {name: Signer(site.parent, name) for name in ("anna", "bo")}
    for name, person in people.items():
        (site.parent / f"{name}.sig").write_text(person.sign((site.parent / "small.fab").read_bytes()))
    policy = {"approvers": [person.line for person in people.values()], "min_approvers": 2}
    site.write_text(yaml.safe_dump({**yaml.safe_load(site.read_text()), "policy": policy}))
    approve = ("site", "approve", "site.yaml", "small.fab", "--yes")

    assert "an approval is a signature" in said(capsys, *approve, "--by", "Anna", code=2)
    assert "may run when 1 more has signed it" in said(capsys, *approve, "--by", "Anna", "--signature", "anna.sig")
    assert "may not run: 1 more must sign it" in said(capsys, "site", "approved", "site.yaml")
    assert "approved it before" in said(capsys, *approve, "--by", "Bo", "--signature", "anna.sig", code=2)
    assert said(capsys, *approve, "--by", "Bo", "--signature", "bo.sig").endswith(f"{code_hash} may run.")


def test_what_is_no_app_is_not_approved(site, capsys):
    assert "no such file" in said(capsys, "site", "approve", "site.yaml", "nowhere.fab", code=2)
    unseen = said(capsys, "site", "approve", "site.yaml", "nowhere.fab", "--unseen", "--yes", code=2)
    assert "'nowhere.fab' is no app" in unseen
    assert "is no FAB" in said(capsys, "site", "approve", "site.yaml", "study.yaml", code=2)
    assert not (site.parent / "state" / "code").exists()
