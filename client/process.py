"""What a process that works for a site must not leave behind for others of the machine."""

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OTHERS = 0o077
"""What the file system would let others than the owner do."""


def keep_private() -> None:
    """Let this process, and those that it starts, write files for their owner alone, and no image of their memory.

    Memory holds recordings, keys and what is masked later. A limit of one byte keeps Linux from writing a core file and
    from handing it to a program, such as systemd-coredump, which no limit of nothing does.
    """
    os.umask(OTHERS)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 1 if most == resource.RLIM_INFINITY else min(1, most)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, most))


@contextmanager
def private_files() -> Iterator[None]:
    """Write files for their owner alone, in this block."""
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def make_private(folder: Path) -> None:
    """Take from others what they may do with a folder and all in it, as an earlier version, or a copy, left it."""
    for place, folders, files in os.walk(folder):
        for path in (Path(place), *(Path(place, name) for name in (*folders, *files))):
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode) and mode & OTHERS:
                path.chmod(stat.S_IMODE(mode) & ~OTHERS)
