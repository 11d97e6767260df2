"""The SuperLink, which has its clients try again while its database cannot be used.

Flower answers 500 when another program locks the database for more than five seconds, or the disk is full: on that a
run's ServerApp ends, and SuperNodes too. After 503 both try again. Here one private function of Flower is wrapped: the
one that turns exceptions into answers. ``tests/cli/test_superlink.py`` holds what this rests on by its hash.

Run as ``python -m cli.superlink ARGUMENTS``, those of ``flower-superlink``, as ``fedbrainlm federation start`` does.
"""

import sqlite3
import sys
from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request, Response, status
from flwr.superlink import main as flower
from flwr.superlink.cli.flower_superlink import flower_superlink
from sqlalchemy.exc import OperationalError

_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
"""What another program, or whoever makes room on the disk, puts right."""
_PRIMARY = 0xFF
"""The bits of an error's code that say its kind (https://sqlite.org/rescode.html)."""
_translate = flower.http_error_translator


async def have_try_again(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Stand in for Flower's ``http_error_translator``: answer 503 where the database cannot be used now.

    What a request had begun to write is undone by then: it can be made again.
    """

    async def answer(request: Request) -> Response:
        try:
            return await call_next(request)
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", 0) & _PRIMARY not in _PASSING:
                raise
            print(f"fedbrainlm: the database cannot be used: {error.orig}. Clients try again.", flush=True)
            raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE) from None

    return await _translate(request, answer)


def main() -> None:
    """Run the SuperLink until it is told to end."""
    flower.http_error_translator = have_try_again
    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
