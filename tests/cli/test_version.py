import subprocess

import pytest

from cli import version


@pytest.mark.skipif(not version._commit(), reason="no repository of ours here")
def test_the_commit_is_ours_whatever_repository_the_caller_works_in(tmp_path, monkeypatch):
    ours = version.version_and_commit()
    made = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "another")
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    subprocess.run(["git", "-C", tmp_path, *made], check=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as git sets it for hooks
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))

    assert version.version_and_commit() == ours
