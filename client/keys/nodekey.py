"""The key that the site's SuperNode signs its requests with."""

import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from base.errors import SecretError
from base.secrets import secret_once

NAME = "supernode.key"
"""Its file in the state folder."""


class NodeKey:
    """The site's ECDSA P-384 key, in OpenSSH's format: made the first time, and never again."""

    def __init__(self, state: Path) -> None:
        self.path = state / NAME

    @property
    def private(self) -> EllipticCurvePrivateKey:
        """The private key; a SecretError if others may read its file, or it holds no such key."""
        text = secret_once(self.path, _new_key)
        if (mode := stat.S_IMODE(self.path.stat().st_mode)) & 0o077:
            raise SecretError(
                f"{self.path}: others than its owner may use this key (mode {mode:o}; expected 600). Run "
                f"'chmod 600 {self.path}'; if somebody may have read it, it should be replaced."
            )
        try:
            key = load_ssh_private_key(text.encode(), None)
        except ValueError:
            key = None
        if not isinstance(key, EllipticCurvePrivateKey):
            raise SecretError(f"{self.path}: holds no ECDSA key of OpenSSH's format. Restore it from a backup.")
        return key

    def public(self, site: str) -> str:
        """Return the public key as a line of OpenSSH's format, with the site's name as its comment."""
        line = self.private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return f"{line.decode()} {site}"


def _new_key() -> str:
    key = generate_private_key(SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
