"""Settings files: YAML in, checked against a pydantic model, out as an object or as one clear sentence."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cohorts.errors import SettingsError
from cohorts.files import read_bytes


class Settings(BaseModel):
    """Base of every settings model: unknown fields are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySettings = TypeVar("AnySettings", bound=Settings)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises
    ------
    SettingsError
        If the file is absent, is not UTF-8 YAML, or is not a mapping.
    """
    try:
        content = yaml.safe_load(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file. Check the path.") from None
    except IsADirectoryError:
        raise SettingsError(f"{path}: is a folder; expected a YAML file. Name a file inside it.") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    except (RecursionError, ValueError, yaml.YAMLError) as error:  # ValueError of dates, and of what is no UTF-8
        where = getattr(error, "problem_mark", None)
        line = f" near line {where.line + 1}" if where else ""
        raise SettingsError(f"{path}: is not valid YAML{line}. Correct the file.") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected 'name: value' lines at the top level. Correct the file.")
    return content


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
