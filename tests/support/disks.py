"""Small disks of their own, which are soon full."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """Make a folder with a disk of its own, until the end of a block; skip the test where that is not allowed."""
    folder.mkdir(parents=True)
    options = f"size={size},mode=0700"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes rights that are missing here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a small disk: its ``size=…``, or ``ro``."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fill the disk of a folder, until the end of a block."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    assert shutil.disk_usage(folder).free == 0
    yield
    ballast.unlink()
