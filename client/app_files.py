"""What an app may hold, whoever sent it: sources of our packages and one study, and nothing else that Flower would run.

Flower ships an app as a FAB, a zip. Whatever lies in it is put where the app's code is imported from, and its
``pyproject.toml`` says what is run. So every entry has a name that is allowed here, or the app is refused by that name.
"""

import io
import re
import tomllib
import zipfile
import zlib
from pathlib import Path
from typing import Any

from client.errors import AppError

PACKAGES = ("base", "brainlm", "client", "cohorts", "exchange", "harmonization", "server", "study")
"""Packages that an app is made of."""
STUDY = "study.yaml"
"""The study that an app was built for, beside its packages; the source tree has none."""
PROJECT_FILE = "pyproject.toml"
MANIFEST = ".info/CONTENT"
"""Flower's own list of a FAB's files, which it removes once it has unpacked them."""
NOT_SHIPPED = ("__pycache__", "report")
"""Folders of the packages that stay at home: reports are written where their data lie."""

_SOURCE = re.compile(rf"({'|'.join(PACKAGES)})(/[a-z_][a-z0-9_]*)+\.(py|json)")
_FLOWER = {
    "publisher": "fedbrainlm",
    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
    "config": {"run-directory": ""},
}
"""What Flower may be told: which objects to run, and the only setting that a run may override."""
_LARGEST_FAB, _LARGEST_UNPACKED, _MOST_FILES = 10 * 2**20, 50 * 2**20, 2000
"""Bytes that Flower takes; bytes unpacked, and files, that are looked at."""
_PACKED, _ENCRYPTED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), 1
"""How Flower packs files; and the bit that says that one is encrypted."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)
"""What Python makes of bytes that are no zip, or of one that is damaged."""


def read_fab(content: bytes) -> dict[str, bytes]:
    """Return the files of a FAB by name, after checking that it holds nothing but an app of ours.

    Parameters
    ----------
    content : bytes
        As it was received.

    Raises
    ------
    AppError
        Naming the entry that no app of ours has.
    """
    if len(content) > _LARGEST_FAB:
        raise AppError(f"the app has {len(content)} bytes; expected at most {_LARGEST_FAB}. Ask for another.")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as fab:
            _check_entries(fab.infolist())
            files = {entry.filename: fab.read(entry) for entry in fab.infolist()}
    except _DAMAGED:
        raise AppError("the app is no FAB, or is damaged. Ask the coordinator to send it again.") from None
    for name in (PROJECT_FILE, STUDY):
        if name not in files:
            raise AppError(f"the app has no '{name}'. Ask for what 'fedbrainlm study build' made.")
    _check_project(files[PROJECT_FILE])
    return files


def may_hold(name: str) -> bool:
    """Whether an app may hold a file of that name, relative to its folder."""
    if name in (PROJECT_FILE, STUDY, MANIFEST):
        return True
    return bool(_SOURCE.fullmatch(name)) and not set(name.split("/")) & set(NOT_SHIPPED)


def files_of(folder: Path) -> list[str]:
    """Names of an app's files, in order: all there are where it was unpacked; in the source tree those it ships."""
    everything = (folder / STUDY).is_file()
    found = folder.rglob("*") if everything else (path for name in PACKAGES for path in (folder / name).rglob("*"))
    names = sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())
    return [name for name in names if "__pycache__" not in name.split("/") and (everything or may_hold(name))]


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    """Refuse what no app of ours has, before anything is unpacked."""
    names = [entry.filename for entry in entries]
    if len(names) > _MOST_FILES or sum(entry.file_size for entry in entries) > _LARGEST_UNPACKED:
        raise AppError("the app unpacks to more than an app of ours has. Ask the coordinator for another.")
    for entry in entries:
        name = entry.filename
        if not may_hold(name):
            raise AppError(f"the app holds '{name}', which no app of ours does. Ask the coordinator what it is for.")
        if names.count(name) > 1:
            raise AppError(f"the app holds '{name}' more than once. Ask the coordinator for another.")
        if entry.compress_type not in _PACKED or entry.flag_bits & _ENCRYPTED:
            raise AppError(f"the app holds '{name}' packed as Flower packs nothing. Ask the coordinator for another.")


def _check_project(content: bytes) -> None:
    """Refuse an app that tells Flower to run anything but our two objects."""
    try:
        project: dict[str, Any] = tomllib.loads(content.decode())
        told = dict(project["tool"]["flwr"]["app"]), project["project"]["name"]
    except (KeyError, TypeError, ValueError):
        raise AppError(f"the app's {PROJECT_FILE} is none of ours. Ask the coordinator for another.") from None
    if told != (_FLOWER, "fedbrainlm") or set(project["tool"]["flwr"]) != {"app"}:
        raise AppError(
            f"the app's {PROJECT_FILE} tells Flower {str(told[0])[:200]!r}; expected {_FLOWER}. Ask the coordinator "
            "what it is for."
        )
