"""What the sites answered to a question: added, and kept on the disk until the run is completed.

A run that was killed goes through its stages again, and finds here what was answered before; so it knows again all that
it had solved, and asks the sites only for what is missing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.errors import FileError
from base.files import read_arrays, save_arrays
from exchange.messages import Arrays, SumReply, join, part_of


@dataclass(frozen=True)
class Answers:
    """What the sites answered to one question."""

    replies: dict[str, Any]
    """Site → reply of the question's kind, in the order of names. Under masks only what is public of it can be read."""
    total: Arrays
    """Name → sum over the sites that send it."""
    masked: bool
    """Whether it was a secure sum."""

    def save(self, path: Path, question: str) -> None:
        """Write the answers, whole or not at all; of masked ones the words are left out, which are of no more use."""
        parts = {f"replies/{site}": self._readable(reply) for site, reply in self.replies.items()}
        header = {
            "question": question,
            "masked": self.masked,
            # As text: what is asked next must not depend on the order of names, which a header sorts.
            "replies": {site: reply.model_dump_json() for site, reply in self.replies.items()},
        }
        save_arrays(path, join(total=self.total, **parts), header)

    def _readable(self, reply: SumReply) -> Arrays:
        return join(shown=reply.part("shown")) if self.masked else reply.arrays


def read_answers(path: Path, question: str, kind: type[SumReply]) -> Answers | None:
    """Read what `Answers.save` wrote; None if the file is absent or damaged, or answers another question."""
    try:
        arrays, header = read_arrays(path)
    except FileError:
        return None
    if not header or header["question"] != question:
        return None
    replies = {
        site: kind(**json.loads(fields), arrays=part_of(arrays, f"replies/{site}"))
        for site, fields in header["replies"].items()
    }
    return Answers(dict(sorted(replies.items())), part_of(arrays, "total"), header["masked"])
