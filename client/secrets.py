"""Secrets of a site: files that are made once, stay the same, and are nobody else's to read."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from client.errors import SecretError
from cohorts.files import new_path


def secret_once(path: Path, make: Callable[[], str]) -> str:
    """Return the secret in a file; make it the first time, with mode 600.

    Processes that ask at the same moment get the same secret: that of the first whose file is in place.
    """
    if not path.is_file():
        with suppress(FileExistsError), new_path(path) as temporary:
            temporary.write_text(make(), encoding="ascii")
    return path.read_text(encoding="ascii")


def require_private(path: Path) -> None:
    """Refuse a secret that others can read.

    Raises
    ------
    SecretError
        If the file's group or others may do anything with it.
    """
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        raise SecretError(
            f"{path}: others than its owner may use this secret (mode {mode:o}; expected 600). Run 'chmod 600 {path}', "
            "and make a new one if somebody may have read it."
        )
