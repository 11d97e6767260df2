"""Options that several commands have, and how their values are read."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from base.errors import InputError
from cohorts import atlas_names

ATLAS_HELP = f"Atlas of the columns: {', '.join(atlas_names())}, or a table file (.json, .csv, .tsv)."

RUNS = Annotated[Path, typer.Option("--runs", help="Folder that holds the folders of runs.")]


def finite(value: float | None) -> float | None:
    """Refuse nan and inf, which a range lets through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number that can be used. Give another.")
    return value


class Orientation(StrEnum):
    """How matrices lie."""

    AUTO = "auto"
    FRAMES_FIRST = "frames-first"
    PARCELS_FIRST = "parcels-first"


class Scaling(StrEnum):
    """Whether matrices have kept their units."""

    RAW = "raw"
    ZSCORE = "zscore"


def condition(text: str) -> tuple[str, str]:
    """Read COLUMN=VALUE."""
    column, equals, value = text.partition("=")
    if not (column and equals and value):
        raise InputError(f"--select {text}: expected COLUMN=VALUE, such as site=PITT. Correct it.")
    return column, value


def column_range(text: str) -> tuple[int, int]:
    """Read FIRST-LAST, counted from 1."""
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise InputError(f"--columns {text}: expected FIRST-LAST counted from 1, such as 1-400. Correct it.")
    return int(first), int(last)
