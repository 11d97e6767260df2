"""Connections passed on between two containers that share a folder and no network.

The SuperNode offers its apps their messages over TCP, and needs the coordinator's network; apps see the recordings, and
are to reach nothing but their SuperNode. So the one container listens at a Unix socket in the state folder and passes
connections on to its SuperNode, and the other listens on its own loopback and passes them on to the socket.
"""

import asyncio
import socket
import threading
from contextlib import suppress
from pathlib import Path

from client.errors import RelayError
from runtime.sockets import reachable

_PIECE = 2**16


def start(listen: Path | int, onward: Path | int) -> None:
    """Pass connections on for as long as this process lives.

    Parameters
    ----------
    listen, onward : Path or int
        Where they come in, and where they go to: a Unix socket, or a port of this machine's loopback.

    Raises
    ------
    RelayError
        If it cannot listen there.
    """
    listener = _listen(listen)
    threading.Thread(target=lambda: asyncio.run(_serve(listener, onward)), name="relay", daemon=True).start()


def _listen(where: Path | int) -> socket.socket:
    try:
        if isinstance(where, int):
            return socket.create_server(("127.0.0.1", where))
        where.unlink(missing_ok=True)  # of a process that was killed
        listener = socket.socket(socket.AF_UNIX)
        with reachable(where) as path:
            listener.bind(path)
        listener.listen()
        return listener
    except OSError as error:
        raise RelayError(
            f"{where}: cannot be listened at ({error.strerror or error}). End what uses it, or correct it."
        ) from None


async def _serve(listener: socket.socket, onward: Path | int) -> None:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await _connect(onward)
        except OSError:  # not there yet, or no longer: whoever asks tries again
            writer.close()
            return
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    is_unix = listener.family == socket.AF_UNIX
    serve = asyncio.start_unix_server if is_unix else asyncio.start_server
    async with await serve(pass_on, sock=listener) as server:
        await server.serve_forever()


async def _connect(where: Path | int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(where, int):
        return await asyncio.open_connection("127.0.0.1", where)
    with reachable(where) as path:
        return await asyncio.open_unix_connection(path)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until one side is gone, then let the other one know."""
    with suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    writer.close()
