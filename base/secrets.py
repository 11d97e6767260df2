"""Secrets of a site: files that are made once, stay the same, and are nobody else's to read."""

import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from base.errors import SecretError
from base.files import new_path, read_bytes


def secret_once(path: Path, make: Callable[[], str]) -> str:
    """Return the secret in a file; make it the first time, with mode 600.

    Processes that ask at the same moment get the same secret: that of the first whose file is in place. A SecretError
    says that the file cannot be read or made.
    """
    try:
        if not path.is_file():
            with suppress(FileExistsError), new_path(path) as temporary:
                temporary.write_text(make(), encoding="utf-8")
        return read_bytes(path).decode("utf-8", errors="replace")
    except OSError as error:
        raise SecretError(
            f"{path}: cannot be read or made ({error.strerror}). Use the account that owns it, or choose another place."
        ) from None


def key_once(path: Path) -> bytes:
    """Return the key in a file, 32 bytes in hexadecimal; draw it the first time.

    A SecretError says that the file's group or others may do anything with it, or that it holds no key.
    """
    text = secret_once(path, lambda: secrets.token_hex(32)).strip()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise SecretError(
            f"{path}: others than its owner may use this key (mode {mode:o}; expected 600). Run 'chmod 600 {path}'; if "
            "somebody may have read it, it should be replaced."
        )
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise SecretError(f"{path}: does not hold a key of 64 hexadecimal digits. Restore it from a backup.")
    return bytes.fromhex(text)
