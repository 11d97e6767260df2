"""Settings files: YAML in, checked against a pydantic model, out as an object or as one clear sentence."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cohorts.errors import SettingsError
from cohorts.files import read_bytes

_MOST_BYTES, _DEEPEST = 2**18, 40
"""Size and depth of the largest settings, with everything in place that aliases stand for."""


class Settings(BaseModel):
    """Base of every settings model: unknown fields are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySettings = TypeVar("AnySettings", bound=Settings)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises
    ------
    SettingsError
        If the file is absent, or is none that `parse_yaml` reads.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file. Check the path.") from None
    except IsADirectoryError:
        raise SettingsError(f"{path}: is a folder; expected a YAML file. Name a file inside it.") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, source: str) -> dict[str, Any]:
    """Read YAML whose top level is a mapping, and which is no larger than it looks.

    An alias stands for all that its anchor holds: a few lines of them can stand for more than a memory holds. So what
    they stand for is counted before any of it is made.

    Parameters
    ----------
    source : str
        What the content is called in errors.

    Raises
    ------
    SettingsError
        If it is no UTF-8 YAML, is no mapping, or is larger or deeper than settings are.
    """
    if len(content) > _MOST_BYTES:
        raise SettingsError(f"{source}: has {len(content)} bytes; settings have at most {_MOST_BYTES}. Shorten it.")
    try:
        loader = yaml.SafeLoader(content.decode("utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _check_size(node, source)
        found = None if node is None else loader.construct_document(node)
    except (RecursionError, ValueError, yaml.YAMLError) as error:  # ValueError of dates, and of what is no UTF-8
        where = getattr(error, "problem_mark", None)
        line = f" near line {where.line + 1}" if where else ""
        raise SettingsError(f"{source}: is not valid YAML{line}. Correct the file.") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{source}: expected 'name: value' lines at the top level. Correct the file.")
    return found


def _check_size(top: yaml.Node, source: str) -> None:
    """Refuse what stands for more, or is nested deeper, than settings are; each node is looked at once."""
    known: dict[int, tuple[int, int] | None] = {}

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Bytes and levels that a node stands for."""
        if id(node) in known:
            if (measured := known[id(node)]) is None:
                raise SettingsError(f"{source}: an alias stands inside its own anchor. Write out what it means.")
            return measured
        known[id(node)] = None
        if isinstance(node, yaml.ScalarNode):
            size, depth = len(node.value) + 1, 1
        else:
            within = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
            parts = [measure(part) for part in within]
            size, depth = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
        if size > _MOST_BYTES or depth > _DEEPEST:
            raise SettingsError(
                f"{source}: stands for more than settings do (at most {_MOST_BYTES} bytes, nested {_DEEPEST} deep). "
                "Write it without aliases, and shorter."
            )
        known[id(node)] = size, depth
        return size, depth

    measure(top)


def check_settings(content: dict[str, Any], model: type[AnySettings], source: str) -> AnySettings:
    """Validate `content` against `model`; `source` names the file in the error."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"{source}: {_explain(error, model)}") from None


def read_settings(path: Path, model: type[AnySettings]) -> AnySettings:
    """Read and validate a YAML settings file."""
    return check_settings(read_yaml(path), model, str(path))


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first fault in the user's field names, and how many more there are."""
    faults = error.errors()
    first = faults[0]
    field = ".".join(str(part) for part in first["loc"]) or ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"Known fields: {', '.join(sorted(known))}."
        said = f"'{field}' is not a known field. {hint}"
    elif first["type"] == "missing":
        said = f"'{field}' is missing. Add it."
    elif first["type"] == "value_error":
        said = f"'{field}': {first['ctx']['error']}" if field else str(first["ctx"]["error"])
    else:
        said = f"'{field}' is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}. Correct it."
    more = f" ({len(faults) - 1} more after it)" if len(faults) > 1 else ""
    return said + more


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the nested model at `location`; empty where it is not a plain nested model."""
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
