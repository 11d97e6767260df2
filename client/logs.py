"""The site's own log."""

import logging
from pathlib import Path


def site_log(name: str, state: Path) -> logging.Logger:
    """Return the log where details go that must not leave: ``site.log`` in the state folder."""
    logger = logging.getLogger(f"fedbrainlm.site.{name}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(state / "site.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for older in logger.handlers:  # of an earlier message, where one process answers many
        older.close()
    logger.handlers = [handler]
    return logger
