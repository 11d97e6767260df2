"""Paths of sockets, of which Linux takes 107 bytes, in folders whose paths are longer. Needs nothing but Python."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_PATH = 107
"""Bytes of a path that Linux binds a socket to (unix(7))."""
_BELOW = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""Bytes of the longest path that a program makes below its temporary folder: Ray's."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """Yield a path by which a socket can be bound to or reached; a long one goes by way of its folder, held open.

    Raises
    ------
    OSError
        If the folder is not there.
    """
    if _fits(path) or not Path("/proc/self/fd").is_dir():
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def temporary_paths_are_short() -> bool:
    """Whether programs can make sockets below the folder for temporary files."""
    return _fits(tempfile.gettempdir(), _BELOW)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for temporary files, with room for the paths of sockets, and delete it with all that is in it.

    It lies where ``TMPDIR`` says; where that is too long, a shorter link to it is yielded.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="fedbrainlm-", ignore_cleanup_errors=True) as folder:
        if _fits(folder, _BELOW):
            yield Path(folder)
            return
        place = next((place for place in _SHORT if os.access(place, os.W_OK | os.X_OK)), None)
        if place is None:
            raise OSError(f"TMPDIR {tempfile.gettempdir()}: is too long for the paths of sockets. Set it to another.")
        with tempfile.TemporaryDirectory(prefix="fedbrainlm-", dir=place, ignore_cleanup_errors=True) as holder:
            link = Path(holder) / "t"
            link.symlink_to(folder)
            yield link


def _fits(path: Path | str, below: int = 0) -> bool:
    return len(os.fsencode(path)) + below <= LONGEST_PATH
