"""A page of figures and tables: no scripts, no network. The coordinator's report is made with it, too.

The page needs nothing beside it. Beside it lies a folder of its tables as CSV, which it links.
"""

import base64
import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib as mpl
import yaml
from matplotlib.figure import Figure

from base.files import write_text
from cohorts.report.style import STYLE


class Shown(NamedTuple):
    """A value, and what the page shows of it: with its unit, or rounded in its own way."""

    value: str | int | float | None
    text: str


_LETTERS_A_LINE = 110
"""Letters of a table that fit into the width of the text, with the space between its columns."""
_LETTERS_OF_SENTENCES = 30
_LONG_WORD = 14
"""Longer words of a cell are broken where there is no room, shorter ones are not."""

Cell = str | int | float | Shown | None
"""Text, a number, or None for what is not known."""
Rows = list[list[Cell]]
Title = str | tuple[str, str]
"""Title of a column; (group, title) where neighbours stand under a common title."""


@dataclass(frozen=True)
class Table:
    """A table: on the page numbers are rounded, in its CSV they are as they are."""

    header: Sequence[Title]
    """One a column."""
    rows: Sequence[Sequence[Cell]]
    """The table."""
    note: str = ""
    """Stands below it."""
    most: int | None = None
    """Rows that the page shows; the CSV has all."""

    @property
    def _named(self) -> list[tuple[str, str]]:
        return [title if isinstance(title, tuple) else ("", title) for title in self.header]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Common titles in order, each with its number of columns; empty where no column has one."""
        found = [(group, len(list(columns))) for group, columns in groupby(group for group, _ in self._named)]
        return found if any(group for group, _ in found) else []

    @property
    def titles(self) -> list[tuple[str, bool]]:
        """Title of each column under its common title, and whether the column holds numbers."""
        named = enumerate(self._named)
        return [(name, any(_is_number(row[column]) for row in self.rows)) for column, (_, name) in named]

    @property
    def shown(self) -> list[list[tuple[str, str]]]:
        """Cells of the page: their text, and its class: among numbers, or with a word that may have to be broken."""
        numbers = [number for _, number in self.titles]
        texts = [map(_text_of, row) for row in self.rows[: self.most]]
        return [[(text, _class_of(text, n)) for text, n in zip(row, numbers, strict=True)] for row in texts]

    @property
    def size(self) -> str:
        """Class of the table: ``wide`` if its lines are longer than those of the text, ``small`` if much shorter."""
        lines = [[name for name, _ in self.titles], *([text for text, _ in row] for row in self.shown)]
        letters = sum(max(map(_room_of, column)) + 2 for column in zip(*lines, strict=True))
        return "wide" if letters > _LETTERS_A_LINE else "small" if letters < _LETTERS_A_LINE / 2 else ""

    def to_csv(self) -> str:
        """Return the table with all its rows, and numbers with all their digits; unknown ones are empty."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f"{group} {name}".lstrip() for group, name in self._named])
        writer.writerows([_stored(cell) for cell in row] for row in self.rows)
        return file.getvalue()


def _is_number(cell: Cell) -> bool:
    return isinstance(cell.value if isinstance(cell, Shown) else cell, int | float)


def _text_of(cell: Cell) -> str:
    """Text of a cell: numbers to three decimals, counts in groups of three digits."""
    if isinstance(cell, Shown):
        return cell.text
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.3f}".replace("-", "−")


def _class_of(text: str, among_numbers: bool) -> str:
    longest = max(map(len, text.split()), default=0)
    return "number" if among_numbers else "long" if longest > _LONG_WORD else ""


def _room_of(text: str) -> int:
    """Letters of a cell beside each other: sentences are broken into lines."""
    longest = max(map(len, text.split()), default=0)
    return min(len(text), max(longest, _LETTERS_OF_SENTENCES))


def _stored(cell: Cell) -> str | int | float | None:
    """Value of a cell; text that a spreadsheet would run as a formula begins with an apostrophe."""
    value = cell.value if isinstance(cell, Shown) else cell
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value


def write_page(path: Path, package: str, sections: Sequence[dict[str, Any]], **fields: Any) -> Path:
    """Write a page whole, and its tables as CSV beside it.

    Parameters
    ----------
    package : str
        Where its ``template.html`` is, which extends ``page.html``.
    sections : sequence of dict
        As `fill_sections` returns them.
    **fields
        What the template needs.
    """
    folder = path.with_name(f"{path.stem}-tables")
    files = {f"{section['id']}.csv": section["table"] for section in sections if section["table"]}
    for name, table in files.items():
        write_text(folder / name, table.to_csv())
    for stale in set(folder.glob("*.csv")) - {folder / name for name in files}:
        stale.unlink()
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(package, ""), jinja2.PackageLoader("cohorts.report", "")])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    style = (resources.files("cohorts.report") / "style.css").read_text(encoding="utf-8")
    page = environment.get_template("template.html")
    write_text(path, page.render(style=style, sections=sections, tables=folder.name, **fields))
    return path


def fill_sections(
    package: str, draw: Callable[[str], Figure | None], tabulate: Callable[[str], Table]
) -> list[dict[str, Any]]:
    """Fill the sections that ``spec.yaml`` of a package lists, with its figures and tables by name."""
    filled = []
    for section in yaml.safe_load((resources.files(package) / "spec.yaml").read_text(encoding="utf-8")):
        figure = draw(section["figure"]) if "figure" in section else None
        table = tabulate(section["table"]) if "table" in section else None
        filled.append(
            {
                **dict.fromkeys(("text", "caption", "read", "without", "block"), ""),
                **section,
                "figure": embedded(figure) if figure else "",
                "table": table if table and table.rows else None,
            }
        )
    return filled


def embedded(figure: Figure, dpi: int = 150) -> str:
    """Figure as a data address of an SVG; `dpi` is that of the images in it."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):  # its salt makes the names inside the SVG the same each time
        figure.savefig(buffer, format="svg", dpi=dpi, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
