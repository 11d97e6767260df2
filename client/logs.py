"""The site's own log."""

import logging
from pathlib import Path
from typing import Any

from base.plain import printable

_LONGEST = 4000
"""Characters of an entry: what it quotes of a message may be as long as messages are."""


def site_log(name: str, state: Path) -> logging.Logger:
    """Return the log where details go that must not leave: ``site.log`` in the state folder."""
    logger = logging.getLogger(f"fedbrainlm.site.{name}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(state / "site.log", encoding="utf-8")
    handler.setFormatter(_Entries("%(asctime)s %(levelname)s %(message)s"))
    for older in logger.handlers:  # of an earlier message, where one process answers many
        older.close()
    logger.handlers = [handler]
    return logger


def one_line(text: str) -> str:
    """Text that holds somebody else's words, as one line that no reader takes for several, and not without end."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
    return printable(" ".join(shown.splitlines()))


class _Entries(logging.Formatter):
    """Entries that quote messages, and yet are a line each; the lines of a traceback are set in."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, exc_info: Any) -> str:  # noqa: N802
        lines = super().formatException(exc_info).splitlines()
        return "\n".join(f"    {one_line(line)}" for line in lines)
