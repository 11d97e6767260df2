"""How a run ends: one outcome in its journal, its summary and its report, and on the terminal."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from base.errors import RunFailedError, StoppedError
from server.errors import ServerError
from server.journal import Journal, Status
from server.summary import sites_of, write_summary
from study.settings import Study

_STOPPED = "stopped by the user"


@contextmanager
def end_noted(study: Study, folder: Path) -> Iterator[None]:
    """Write down how a run ends that the user stops, that breaks while it is set up, or that Flower does not start.

    Raises
    ------
    StoppedError
        If the user stops it, with how to go on.
    RunFailedError
        If Flower does not start it; the same.
    """
    journal = Journal(folder)
    try:
        yield
    except KeyboardInterrupt:
        with suppress(ServerError):
            if journal.progress().status == "completed":
                raise StoppedError(f"But the study was completed. Its report: fedbrainlm report {folder}") from None
        settle(study, journal, "stopped", _STOPPED)
        raise StoppedError(how_to_go_on(journal)) from None
    except RunFailedError as error:
        settle(study, journal, "failed", str(error))
        raise RunFailedError(f"{error}\n{how_to_go_on(journal)}") from None
    except Exception as error:
        settle(study, journal, "failed", str(error) or type(error).__name__)
        raise


def note_stopping(journal: Journal) -> None:
    """Tell the ServerApp that what breaks now breaks because the user stops the run, as far as it can be told."""
    with suppress(ServerError):
        journal.note(stopped=_STOPPED)


def settle(study: Study, journal: Journal, status: Status, reason: str) -> None:
    """Write into journal and summary how a run ended that was not completed; a full disk takes neither."""
    with suppress(ServerError, OSError):
        journal.note(status=status, reason=reason)
        if _end_in_summary(journal.folder) != (status, reason):
            write_summary(study, journal, sites_of(journal), None)


def _end_in_summary(folder: Path) -> tuple[str, str] | None:
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return summary["status"], summary["reason"]
    except (OSError, ValueError, KeyError):
        return None


def how_to_go_on(journal: Journal) -> str:
    """Say how to go on with a run that was not completed."""
    if not journal.is_set_up:
        return "Begin it again: its sites were not set up yet."
    return f"Go on with it: fedbrainlm run --resume {journal.folder}"
