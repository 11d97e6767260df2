"""Settings files: YAML in, checked against a pydantic model, out as an object or as one clear sentence."""

import copy
import re
from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from base.errors import SettingsError
from base.files import read_bytes
from base.wording import Fault, faults_of

_MOST_FAULTS = 20
"""Faults of one file that are told at once."""

Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        json_schema_extra={"words": "1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"},
    ),
]
"""What studies, sites and federations may be called."""
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", json_schema_extra={"words": "64 digits 0-9 and a-f"})]
"""32 bytes: a SHA-256, or a key."""

_MOST_BYTES, _DEEPEST, _MOST_DIGITS = 2**18, 40, 100
"""Size and depth of the largest settings, with everything in place that aliases stand for; length of a number."""


class Settings(BaseModel):
    """Base of every settings model: no unknown fields, finite numbers, and values that do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def conflicts(self) -> Iterator[str]:
        """Sentences on fields that do not go together, each with the remedy."""
        yield from ()

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse yes and no where a number is expected: Python would take them for 1 and 0."""
        kinds = _kinds(cast(Hashable, cls.model_fields[str(info.field_name)].annotation))
        if bool not in kinds and kinds & {int, float} and _holds_truth(value):
            raise PydanticCustomError("number", "expected a number")  # `wording` has the sentence
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if conflicts := list(self.conflicts()):
            raise ValueError("\n".join(conflicts))
        return self


AnySettings = TypeVar("AnySettings", bound=Settings)


@cache
def _kinds(annotation: Hashable) -> frozenset[Any]:
    """All types that stand in a type, such as int in ``dict[str, int | None]``."""
    return frozenset({annotation}).union(*(_kinds(part) for part in get_args(annotation) if isinstance(part, Hashable)))


def _holds_truth(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_truth, value.values()))
    return any(map(_holds_truth, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file as `parse_yaml` does; a SettingsError says that there is none, too."""
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

    A SettingsError, which calls the content `source`, says that it is no UTF-8 YAML, is no mapping, or is larger or
    deeper than settings are.
    """
    if len(content) > _MOST_BYTES:
        raise SettingsError(f"{source}: has {len(content)} bytes; settings have at most {_MOST_BYTES}. Shorten it.")
    try:
        loader = yaml.SafeLoader(content.decode("utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _check_nodes(node, source)
        found = None if node is None else loader.construct_document(node)
    except (RecursionError, ValueError, yaml.YAMLError) as error:  # ValueError of dates, and of what is no UTF-8
        where = getattr(error, "problem_mark", None)
        line = f" near line {where.line + 1}" if where else ""
        tab = " (it has a tab there, where YAML takes spaces)" if "'\\t'" in str(getattr(error, "problem", "")) else ""
        raise SettingsError(f"{source}: is not valid YAML{line}{tab}. Correct the file.") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{source}: expected 'name: value' lines at the top level. Correct the file.")
    return found


def _check_nodes(top: yaml.Node, source: str) -> None:
    """Refuse names that stand twice, and what stands for more, or is nested deeper, than settings are.

    Each node is looked at once.
    """
    known: dict[int, tuple[int, int] | None] = {}

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Bytes and levels that a node stands for."""
        if id(node) in known:
            if (measured := known[id(node)]) is None:
                raise SettingsError(f"{source}: an alias stands inside its own anchor. Write out what it means.")
            return measured
        known[id(node)] = None
        if isinstance(node, yaml.ScalarNode):
            if "\0" in node.value:  # which no path and no name can hold
                raise SettingsError(f"{source}: a text holds a NUL character. Correct it.")
            if node.tag.endswith(":int") and len(node.value) > _MOST_DIGITS:
                raise SettingsError(f"{source}: a number has {len(node.value)} digits. Correct it.")
            size, depth = len(node.value) + 1, 1
        else:
            if isinstance(node, yaml.MappingNode):
                _refuse_repeated(node, source)
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


def _refuse_repeated(mapping: yaml.MappingNode, source: str) -> None:
    """Refuse a name that stands twice: one of its values would be lost without a word."""
    lines: dict[str, int] = {}
    for name, _ in mapping.value:
        if isinstance(name, yaml.ScalarNode):
            line = name.start_mark.line + 1
            if name.value in lines:
                raise SettingsError(
                    f"{source}: '{name.value[:60]}' stands twice in one place (lines {lines[name.value]} and {line}). "
                    "Leave one of them."
                )
            lines[name.value] = line


def check_settings(content: dict[str, Any], model: type[AnySettings], source: str) -> AnySettings:
    """Validate `content` against `model`; a SettingsError says all that is wrong, a line each, after `source`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = _all_faults(content, model, faults_of(error, model))
    said = [str(fault) for fault in faults[:_MOST_FAULTS]]
    if len(faults) > _MOST_FAULTS:
        said.append(f"{len(faults) - _MOST_FAULTS} more faults.")
    raise SettingsError("\n".join(f"{source}: {line}" if source else line for line in said))


def read_settings(path: Path, model: type[AnySettings]) -> AnySettings:
    """Read and validate a YAML settings file."""
    return check_settings(read_yaml(path), model, str(path))


def _all_faults(content: dict[str, Any], model: type[BaseModel], faults: list[Fault]) -> list[Fault]:
    """Add what hides behind `faults`, which are those of a first look, to them.

    Whether fields go together is only looked at once each is right by itself. So faulty ones are left out, and another
    look is taken. What it has to say of those that were left out is no fault of the file, or not yet known to be one.
    """
    found, new, rest = list(faults), faults, copy.deepcopy(content)
    while new:
        for fault in new:
            _leave_out(rest, fault.path)
        try:
            model.model_validate(rest)
            break
        except ValidationError as error:
            left_out = {name for fault in found for name in fault.path[-1:]}
            new = [
                fault
                for fault in faults_of(error, model)
                if fault not in found and not left_out & set(re.findall(r"\w+", fault.said.partition(". ")[0]))
            ]
            found += new
    return found


def _leave_out(content: Any, path: tuple[str, ...]) -> None:
    """Delete a field; what stands inside of it, where it is a mapping whose fields do not go together."""
    *before, last = path or ("",)
    for name in before:
        content = content.get(name) if isinstance(content, dict) else None
    if isinstance(content, dict) and last in content:
        if isinstance(content[last], dict):
            content[last] = {}
        else:
            del content[last]
