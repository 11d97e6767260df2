"""What ended a simulation, where Flower says no more than that it ended."""

import re
from pathlib import Path

_NO_MEMORY = re.compile(r"low on memory\. Memory on the node .*? was ([\d.]+)GB / ([\d.]+)GB")
_NO_MEMORY_HERE = re.compile("MemoryError|an't allocate memory|annot allocate memory|CUDA out of memory|std::bad_alloc")
_DIED = re.compile("The actor died unexpectedly|died or was killed|Raylet is terminated|SuperLink is unavailable")
_RAISED = re.compile("An exception occured!! (.+)")
"""What Ray and Flower say where their log says it."""
_LONGEST = 300
"""Characters of others' words that are repeated."""


def oom_kills() -> int:
    """How many processes the kernel has ended for lack of memory since the boot; 0 where it does not say."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))


class Postmortem:
    """What ended a simulation, judged by what was logged since this was made.

    Parameters
    ----------
    *logs : Path
        Where Flower, Ray and the sites log.
    """

    def __init__(self, *logs: Path) -> None:
        self._begun = {log: log.stat().st_size if log.is_file() else 0 for log in logs}
        self._killed_before = oom_kills()

    def cause(self, remedy: str) -> str:
        """Say in a sentence what ended it, and of memory the `remedy`; nothing if Flower's own word is all there is."""
        written = {log: begun for log, begun in self._begun.items() if log.is_file()}
        said = "".join(log.read_bytes()[begun:].decode(errors="replace") for log, begun in written.items())
        died = _DIED.search(said)
        if found := _NO_MEMORY.search(said):
            return f"the machine ran out of memory, of which {found[1]} of {found[2]} GB were taken. {remedy}"
        if died and oom_kills() > self._killed_before:
            return f"the machine ran out of memory, and its kernel ended processes for it. {remedy}"
        if _NO_MEMORY_HERE.search(said):
            return f"the machine has not enough memory for what a site computes. {remedy}"
        if "No space left on device" in said:
            return "a disk is full: that of the run's folder, or of temporary files (TMPDIR). Make room."
        if died:
            return "a process of the simulation died, or was killed by somebody."
        if found := _RAISED.search(said):
            return f"the simulation ended with: {found[1].strip()[:_LONGEST]}"
        return ""
