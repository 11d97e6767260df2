import hashlib
import hmac
import re
import stat

import pytest

from base.errors import SecretError
from cohorts.pseudonyms import Pseudonyms


def test_a_pseudonym_stays_and_is_known_to_the_site_alone(tmp_path):
    first = Pseudonyms(tmp_path / "a" / "key").pseudonym("sub-01")

    assert re.fullmatch("[0-9a-f]{16}", first)
    assert Pseudonyms(tmp_path / "a" / "key").pseudonym("sub-01") == first
    assert Pseudonyms(tmp_path / "b" / "key").pseudonym("sub-01") != first
    assert len({Pseudonyms(tmp_path / "a" / "key").pseudonym(f"sub-{n}") for n in range(1000)}) == 1000
    assert stat.S_IMODE((tmp_path / "a" / "key").stat().st_mode) == 0o600
    key = bytes.fromhex((tmp_path / "a" / "key").read_text())
    keyed = hmac.new(key, "sub-é".encode(), hashlib.sha256).hexdigest()[:16]
    assert Pseudonyms(tmp_path / "a" / "key").pseudonym("sub-é") == keyed


def test_a_damaged_or_open_key_is_not_used(tmp_path):
    (tmp_path / "key").write_text("0" * 63)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(SecretError, match="Restore it from a backup"):
        Pseudonyms(tmp_path / "key").pseudonym("sub-01")

    (tmp_path / "key").chmod(0o640)
    with pytest.raises(SecretError, match="chmod 600"):
        Pseudonyms(tmp_path / "key").pseudonym("sub-01")
