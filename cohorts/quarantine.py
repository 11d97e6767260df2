"""What a cohort refused, and why: a line each in ``quarantine.jsonl``, and in ``quarantine/`` what could be read."""

import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from base.files import naming, write_text
from cohorts.recording import is_identifier

Refusal = dict[str, str]
"""recording_id, code, message, and source, the fingerprint of the files that it was made from."""


class Quarantine:
    """The refused recordings of the cohort in a folder."""

    def __init__(self, cohort: Path) -> None:
        self._list, self._folder = cohort / "quarantine.jsonl", cohort / "quarantine"
        self.refusals: dict[str, Refusal] = {}

    def load(self) -> None:
        """Read the list; the last line that names a recording counts, and one that a crash cut off does not."""
        text = self._list.read_text(encoding="utf-8", errors="replace") if self._list.is_file() else ""
        for line in text.splitlines():
            with suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if isinstance(entry, dict) and {"recording_id", "code", "message", "source"} <= entry.keys():
                    self.refusals[entry["recording_id"]] = entry

    def note(self, recording_id: str, code: str, message: str, source: str) -> None:
        """Add a line to the list, on the disk before this returns."""
        entry = {"recording_id": recording_id, "code": code, "message": message, "source": source}
        self.refusals[recording_id] = entry
        with naming(self._list), self._list.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def without(self, kept: Collection[str]) -> list[Refusal]:
        """Return the refusals in order of recording_id, but for recordings that are in the cohort by now."""
        return [self.refusals[one] for one in sorted(self.refusals) if one not in kept]

    def save(self, kept: Collection[str]) -> None:
        """Write the list anew, `without` those."""
        self.refusals = {entry["recording_id"]: entry for entry in self.without(kept)}
        if self.refusals:
            write_text(self._list, "".join(json.dumps(entry) + "\n" for entry in self.refusals.values()))
        else:
            self._list.unlink(missing_ok=True)

    def file(self, recording_id: str) -> Path:
        """Where a refused recording lies, if it could be read."""
        return self._folder / f"{recording_id}.safetensors"

    def files(self) -> list[Path]:
        """All that lie there, in order of recording_id."""
        return sorted(self._folder.glob("*.safetensors"))

    def take_in(self, recording_id: str, path: Path) -> None:
        """Move a recording's file here."""
        self._folder.mkdir(exist_ok=True)
        os.replace(path, self.file(recording_id))

    def remove_file(self, recording_id: str) -> None:
        """Remove a recording's file. Of an id that is no file's name, such as ../../mine, there never was one."""
        if is_identifier(recording_id):
            self.file(recording_id).unlink(missing_ok=True)
