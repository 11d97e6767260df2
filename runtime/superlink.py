"""The SuperLink, which has its clients try again while its database cannot be used.

Flower answers 500 when another program locks the database for more than five seconds, or the disk is full: on that a
run's ServerApp ends, and SuperNodes too. After 503 both try again. Here Flower's translation of exceptions into answers
is wrapped, and the four of its handlers that would lose a message or a part of it, were they stopped halfway:
each becomes one transaction. And each of up to fifteen connections to the database keeps less of it in memory than the
64 MB that Flower sets. ``runtime/pins.py`` holds what this rests on by its hash.

Run as ``python -m runtime.superlink ARGUMENTS``, those of ``flower-superlink``, as ``fedbrainlm federation start``
does.
"""

import sqlite3
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from fastapi import HTTPException, Request, Response, status
from flwr.supercore import sql_mixin
from flwr.superlink import main as flower
from flwr.superlink.cli.flower_superlink import flower_superlink
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import OperationalError

from base.output import say

_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
"""What another program, or whoever makes room on the disk, puts right."""
_PRIMARY = 0xFF
"""The bits of an error's code that say its kind (https://sqlite.org/rescode.html)."""
_SWALLOWED = "fedbrainlm: swallowed"
"""Where a connection keeps the last error that passes."""
_CACHE_KB = 2000
"""Of the database, for each connection: SQLite's own default. What Flower maps of the file is read without it."""
_translate = flower.http_error_translator


async def have_try_again(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Stand in for Flower's ``http_error_translator``: answer 503 where the database cannot be used now."""

    async def answer(request: Request) -> Response:
        try:
            return await call_next(request)
        except OperationalError as error:
            if not _passes(error.orig):
                raise
            say(f"fedbrainlm: the database cannot be used: {error.orig}. Clients try again.")
            raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE) from None

    return await _translate(request, answer)


def whole_or_not_at_all(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Let a handler of Flower's be one transaction, which is undone also where it swallows that the database failed."""

    @wraps(handler)
    def handle(request: Any, state: Any, *others: Any, **named: Any) -> Any:
        with state.session() as session:
            noted = session.connection().info
            noted.pop(_SWALLOWED, None)  # of an earlier request
            answer = handler(request, state, *others, **named)
            if (error := noted.pop(_SWALLOWED, None)) is not None:
                raise error
            return answer

    return handle


def _note(context: ExceptionContext) -> None:
    """Keep an error that passes with its connection, for Flower's ``store_object`` makes it a mere False."""
    error = context.sqlalchemy_exception
    if context.connection is not None and isinstance(error, OperationalError) and _passes(error.orig):
        context.connection.info[_SWALLOWED] = error


def _passes(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY in _PASSING


def install() -> None:
    """Wrap what is Flower's, for this process."""
    event.listen(Engine, "handle_error", _note)
    # One more than the tuple of Flower's eight may hold by its type.
    sql_mixin.SQLITE_PRAGMAS = (*sql_mixin.SQLITE_PRAGMAS, ("cache_size", f"-{_CACHE_KB}"))  # type: ignore[assignment]
    flower.http_error_translator = have_try_again
    for handlers in (fleet_handlers, runtime_handlers):
        for name in ("pull_messages", "push_object"):
            setattr(handlers, name, whole_or_not_at_all(getattr(handlers, name)))


def main() -> None:
    """Run the SuperLink until it is told to end."""
    install()
    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
