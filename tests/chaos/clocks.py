"""Clocks of single programs, which can be set wrong while they run."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("clock.c")


@dataclass(frozen=True)
class Clock:
    """The clock of what is started behind the words of `within`.

    Parameters
    ----------
    library : Path
        As `build` makes it.
    file : Path
        Where the clock's error will lie.
    """

    library: Path
    file: Path

    @property
    def within(self) -> list[str]:
        """What goes before a command."""
        return ["env", f"LD_PRELOAD={self.library}", f"WRONG_BY={self.file}"]

    def set(self, seconds: int) -> None:
        """Set it that much ahead of the right time."""
        written = self.file.with_suffix(".new")
        written.write_text(f"{seconds}\n")
        written.replace(self.file)


def build(folder: Path) -> Path:
    """Build the library that stands before the C library's clocks of the day."""
    if shutil.which("gcc") is None:
        pytest.skip("wrong clocks take gcc: apt install gcc libc6-dev")
    library = folder / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, _SOURCE, "-ldl"], check=True)
    return library
