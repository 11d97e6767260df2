"""What the benchmarks share: running the command line, Markdown tables, and the machine they ran on."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class TimedRun:
    """A `fedbrainlm` command that made a run: the run's folder, and when the command began and ended (Unix time)."""

    folder: Path
    began: float
    ended: float


def fedbrainlm(*arguments: object) -> str:
    """Run a command, show its progress, and return what it said on standard output; end here if it fails."""
    command = [str(Path(sys.executable).parent / "fedbrainlm"), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def timed_run(*arguments: object) -> TimedRun:
    """Run a command that ends by saying where its report is."""
    began = time.time()
    out = fedbrainlm(*arguments)
    ended = time.time()
    report = re.search(r"^Report: (.+)$", out, re.MULTILINE)
    assert report, f"no report: {out}"
    return TimedRun(Path(report.group(1)).parent, began, ended)


def markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> str:
    """Say what the numbers were measured on."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    processor = names[0] if names else platform.processor() or platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "flwr", "numpy"))
    return f"{os.cpu_count()} cores of {processor}; Python {platform.python_version()}, {versions}"


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""
