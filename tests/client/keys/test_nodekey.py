import stat
import subprocess

import pytest

from base.errors import SecretError
from client.keys.nodekey import NodeKey


def test_the_key_is_made_once_for_its_owner_alone_in_openssh_s_format(tmp_path):
    first = NodeKey(tmp_path).public("aalborg")

    assert NodeKey(tmp_path).public("aalborg") == first
    assert stat.S_IMODE((tmp_path / "supernode.key").stat().st_mode) == 0o600
    said = subprocess.run(
        ["ssh-keygen", "-y", "-f", tmp_path / "supernode.key"], capture_output=True, text=True, check=True
    )
    assert said.stdout.split()[:2] == first.split()[:2]
    assert first.startswith("ecdsa-sha2-nistp384 ")


def test_a_key_that_others_may_read_or_that_is_none_is_refused(tmp_path):
    _ = NodeKey(tmp_path).private
    (tmp_path / "supernode.key").chmod(0o640)
    with pytest.raises(SecretError, match="chmod 600"):
        _ = NodeKey(tmp_path).private

    (tmp_path / "supernode.key").chmod(0o600)
    (tmp_path / "supernode.key").write_text("no key")
    with pytest.raises(SecretError, match="holds no ECDSA key"):
        _ = NodeKey(tmp_path).private
