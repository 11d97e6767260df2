"""Preflight checks: each line says pass, warn, fail or skip, and what to do."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from base.errors import FedBrainLMError, RunFailedError, of_the_disk
from base.output import PlainConsole, say
from exchange.refusals import Refusal
from runtime.pins import VERSIONS

Verdict = Literal["pass", "warn", "fail", "skip"]
Found = tuple[Verdict, str]
"""What a look at a thing gives; `Check` says what is what."""
STRICT = Annotated[bool, typer.Option("--strict", help="Exit code 1 also where something only needs you.")]
_STYLE = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@dataclass(frozen=True)
class Check:
    """What was found of one thing."""

    what: str
    """The thing."""
    verdict: Verdict
    """Whether it is as it should be; ``warn`` where somebody has to decide or do something, although nothing is broken;
    ``skip`` where it cannot be looked at from here."""
    said: str
    """What was found, with the remedy where something is wrong."""


def attempt(what: str, look: Callable[..., Found], *at: object) -> Check:
    """Look at a thing; what goes wrong on the way is a failure with its message."""
    try:
        return Check(what, *look(*at))
    except (FedBrainLMError, RunFailedError, Refusal, OSError) as error:
        return Check(what, "fail", getattr(error, "detail", "") or str(of_the_disk(error) or error))


def expiry(days: int, remedy: str) -> Found:
    """Judge the days until a certificate expires."""
    if days < 0:
        return "fail", f"expired {-days} days ago. {remedy}"
    if days < 30:
        return "warn", f"expires in {days} days. {remedy}"
    return "pass", f"expires in {days} days"


def versions() -> Found:
    """Judge whether Flower is a version whose inner parts the SuperNode's guard is made for."""
    found = version("flwr")
    said = f"FedBrainLM {version('fedbrainlm')}, Flower {found}"
    if found not in VERSIONS:
        return "fail", f"{said}: this version needs Flower {' or '.join(VERSIONS)}. Use 'make install'."
    return "pass", said


def report(checks: Iterable[Check], *, strict: bool = False) -> None:
    """Print the checks as they come, and count them; exit code 1 if one failed, or `strict` and one warned."""
    console, found = PlainConsole(), Counter[Verdict]()
    for check in checks:
        found[check.verdict] += 1
        verdict = Text(check.verdict, style=_STYLE[check.verdict])
        table = Table.grid(padding=(0, 1))
        table.add_column(width=4)
        table.add_column(width=16)
        table.add_column(overflow="fold")
        table.add_row(verdict, Text(check.what), Text(check.said))
        console.print(table)
    say(summary(found))
    if found["fail"] or (strict and found["warn"]):
        raise typer.Exit(1)


def summary(found: Counter[Verdict]) -> str:
    """Say how many checks passed, and of the others how many ask for what."""
    if found["pass"] == found.total():
        return f"All {found.total()} checks passed."
    said: dict[Verdict, str] = {
        "pass": "passed",
        "fail": "failed",
        "warn": "needs you" if found["warn"] == 1 else "need you",
        "skip": "not looked at here",
    }
    return ", ".join(f"{found[verdict]} {words}" for verdict, words in said.items() if found[verdict]) + "."
