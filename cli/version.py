"""Which FedBrainLM this is: the version that a tag gave it, and the commit that it was made of."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

COMMIT = Path(__file__).with_name("commit.txt")
"""Written into a wheel when it is built; a checkout asks git, since it moves on without being installed anew."""
_PROJECT = Path(__file__).parents[1]
_DESCRIBE = ("git", "-C", str(_PROJECT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty")


def version_and_commit() -> str:
    """Return the version, and the commit in brackets where it is known."""
    commit = _commit()
    return f"{version('fedbrainlm')} ({commit})" if commit else version("fedbrainlm")


def _commit() -> str:
    if not (_PROJECT / ".git").exists():
        return COMMIT.read_text(encoding="utf-8").strip().removeprefix("g")[:12] if COMMIT.is_file() else ""
    try:
        # A hook of another repository, for one, says by these which it is of.
        own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        return subprocess.run(_DESCRIBE, capture_output=True, text=True, check=True, env=own).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a repository that is somebody else's
        return ""
