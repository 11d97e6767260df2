"""Pseudonyms: what a participant is called where the site's own id must not stand."""

import hashlib
import hmac
from functools import cached_property
from pathlib import Path

from base.secrets import key_once


class Pseudonyms:
    """Keyed hashes of ids (HMAC-SHA256, RFC 2104), whose key stays at the site.

    Without the key nobody can compute the pseudonym of an id that he knows or guesses. With it, the site finds its
    participant again. Who has the key but not the ids can only guess them.

    Parameters
    ----------
    key_file : Path
        Where the key lies. It is drawn when first needed, mode 600.
    """

    def __init__(self, key_file: Path) -> None:
        self._path = key_file

    @cached_property
    def _key(self) -> bytes:
        return key_once(self._path)

    def pseudonym(self, identifier: str, length: int = 16) -> str:
        """Return the pseudonym of an id, the same at any time: `length` hexadecimal digits.

        A key's file that is damaged, or that others can read, is a SecretError.
        """
        return hmac.new(self._key, identifier.encode(), hashlib.sha256).hexdigest()[:length]
