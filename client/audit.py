"""The audit log: one line for everything that left the site, and for everything that it refused."""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import RecordDict


def describe_records(records: RecordDict) -> list[dict[str, Any]]:
    """List what a reply carries: name, dtype, shape, bytes and SHA-256 of each array and of the header."""
    items: list[dict[str, Any]] = []
    for record in records.array_records.values():
        for name, array in record.items():
            items.append(
                {
                    "name": name,
                    "dtype": array.dtype,
                    "shape": list(array.shape),
                    "bytes": len(array.data),
                    "sha256": hashlib.sha256(array.data).hexdigest(),
                }
            )
    for name, record in records.config_records.items():
        text = json.dumps(dict(record), sort_keys=True)
        items.append(
            {"name": name, "bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text}
        )
    return items


class AuditLog:
    """An append-only file of JSON lines.

    Parameters
    ----------
    path : Path
        Made with its folder if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **fields: Any) -> None:
        """Write one event and wait until it is on the disk, so that nothing leaves unrecorded."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return all events, oldest first."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
