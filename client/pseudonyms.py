"""Pseudonyms: what a participant is called where an id must be shown or kept outside the cohort."""

import hashlib
import hmac
from functools import cached_property
from pathlib import Path

from client.secrets import key_once


class Pseudonyms:
    """The site's own pseudonyms: keyed hashes of ids (HMAC-SHA256, RFC 2104).

    Without the key nobody can compute the pseudonym of an id that he knows or guesses. With it, the site finds its
    participant again. Who has the key but not the ids can only guess them.

    Parameters
    ----------
    state : Path
        The site's state folder; the key is its file ``pseudonym_key``, made when first needed.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / "pseudonym_key"

    @cached_property
    def _key(self) -> bytes:
        return key_once(self._path)

    def pseudonym(self, participant_id: str) -> str:
        """Return the participant's pseudonym, the same at any time: ``p-`` and 16 hexadecimal digits.

        Raises
        ------
        SecretError
            If the key's file can be read by others, or is damaged.
        """
        return "p-" + hmac.new(self._key, participant_id.encode(), hashlib.sha256).hexdigest()[:16]
