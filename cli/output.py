"""What commands print and write: text that no terminal obeys, and files that take no other's place."""

from collections.abc import Iterable
from pathlib import Path

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from cli.errors import InputError, printable
from cohorts.files import atomic_path


def say(text: object = "", *, err: bool = False) -> None:
    """Print a line or several. Names, titles and messages in it may be anybody's."""
    typer.echo("\n".join(map(printable, str(text).split("\n"))), err=err)


class PlainConsole(Console):
    """A console whose texts reach the terminal without what it would obey: they may be anybody's."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, whose own control codes are segments of their own kind."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                text = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(text, segment.style)


def write_once(path: Path, content: bytes) -> None:
    """Write a file, unless it is there already with this content; never over another.

    Raises
    ------
    InputError
        If the file holds something else, or cannot be written.
    """
    try:
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        elif path.read_bytes() != content:
            raise InputError(f"{path}: exists already and holds something else. Choose another name, or move it away.")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from None
