"""What commands print: text that no terminal obeys. All output of commands goes through here."""

from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from base.plain import printable


def say(text: object = "", *, err: bool = False) -> None:
    """Print a line or several. Names, titles and messages in it may be anybody's.

    What may hold a line break and must not look like a line of ours goes through `printable` first.
    """
    typer.echo("\n".join(map(printable, str(text).split("\n"))), err=err)


class PlainConsole(Console):
    """A console whose texts reach the terminal without what it would obey: they may be anybody's.

    Nor does rich obey them: brackets in a name are no markup, which could forge a line or end the command.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, whose own control codes are segments of their own kind."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                text = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(text, segment.style)
