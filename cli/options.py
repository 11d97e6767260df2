"""Options that several commands have, options made of settings, and how their values are read."""

import inspect
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from base.settings import Settings
from base.wording import docstrings_of

Command = TypeVar("Command", bound=Callable[..., None])

RUNS = Annotated[Path, typer.Option("--runs", help="Folder that holds the folders of runs.")]


def finite(value: float | None) -> float | None:
    """Refuse nan and inf, which a range lets through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number that can be used. Give another.")
    return value


def with_settings(models: Iterable[type[Settings]]) -> Callable[[Command], Command]:
    """Give a command an option for each field of some settings, which it takes as ``**options``.

    Of a field that several of them have, the option takes what any of them takes; what is said of it is its docstring
    in the first. Parameters that the command names itself are left as they are.
    """
    fields: dict[str, list[FieldInfo]] = {}
    said: dict[str, str] = {}
    for model in models:
        said = docstrings_of(model) | said
        for name, field in model.model_fields.items():
            fields.setdefault(name, []).append(field)

    def decorate(command: Command) -> Command:
        own = [one for one in inspect.signature(command).parameters.values() if one.kind is not one.VAR_KEYWORD]
        named = {parameter.name for parameter in own}
        more = [_option(name, same, said[name]) for name, same in fields.items() if name not in named]
        command.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined] # what Typer looks at
        return command

    return decorate


def _option(name: str, same: list[FieldInfo], said: str) -> inspect.Parameter:
    """Make the option of a field as the settings have it."""
    field, kind, default = same[0], same[0].annotation, same[0].default
    words: dict[str, Any] = {"help": said}
    if get_origin(kind) is Literal:
        kind = Literal[tuple(dict.fromkeys(value for one in same for value in get_args(one.annotation)))]
        if any(one.default != default for one in same):
            kind, default = kind | None, None
    elif get_origin(kind) is tuple:
        kind, default = list[str] | None, None
    elif float in (kind, *get_args(kind)):
        ends = {"min": "ge", "max": "le"}
        words["callback"] = finite
        words |= {end: getattr(rule, to) for rule in field.metadata for end, to in ends.items() if hasattr(rule, to)}
    flags = [f"--{name.replace('_', '-')}"] if kind is bool else []  # with no --no-… beside it
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, typer.Option(*flags, **words)]
    )
