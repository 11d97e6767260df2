"""A page that needs nothing beside it: no scripts, no network. The coordinator's report is made with it, too."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import matplotlib as mpl
import yaml
from matplotlib.figure import Figure

from cohorts.report.style import STYLE


@dataclass(frozen=True)
class Table:
    """A table of text: a header, rows, and a note below."""

    header: list[str]
    rows: list[list[str]]
    note: str = ""


def render(package: str, **fields: Any) -> str:
    """Fill the ``template.html`` of a package, which extends ``page.html``."""
    shared = resources.files("cohorts.report")
    templates = {
        "page.html": (shared / "page.html").read_text(encoding="utf-8"),
        "template.html": (resources.files(package) / "template.html").read_text(encoding="utf-8"),
    }
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(templates), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style = (shared / "style.css").read_text(encoding="utf-8")
    return environment.get_template("template.html").render(style=style, **fields)


def sections(
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
