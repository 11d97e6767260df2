"""What settings may be, and what is wrong with them, in words: of pydantic's types and errors.

Both are read from a model's JSON schema, so that an error and ``docs/settings.md`` say the same of a field. A field of
text with a pattern says in its ``json_schema_extra`` what the pattern means: ``{"words": "…"}``.
"""

import ast
import difflib
import inspect
import reprlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

_TYPES = {"string": "text", "boolean": "true or false", "null": "null"}
_NUMBERS = {"integer": "whole number", "number": "number"}
_SHOWN = reprlib.Repr()
"""Whatever a file holds, a message shows little of it."""
_SHOWN.maxstring = _SHOWN.maxother = 60
_SHOWN.maxlevel = 2
_LONGEST = 1000

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a file."""

    path: tuple[str, ...]
    """The fields that lead to it; empty where several fields of the file itself do not go together."""
    said: str
    """What was found and what is expected, without a full stop."""
    remedy: str = ""
    """A sentence; empty where `said` ends with it."""

    def __str__(self) -> str:
        return f"{self.said}. {self.remedy}".rstrip()


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Say everything that pydantic holds against a file, in the file's own field names and in plain words."""
    schema, errors = model.model_json_schema(), error.errors(include_url=False)
    # Entries that are wrong do not count, and the list is then too short, too.
    inside = {one["loc"][:-1] for one in errors}
    told = (one for one in errors if one["type"] != "too_short" or one["loc"] not in inside)
    # A value that no member of a union takes is an error of each.
    return list(dict.fromkeys(fault for one in told for fault in _explain(one, schema)))


def describe(schema: Schema, root: Schema) -> str:
    """Say what a field may be, such as "a number above 0 or null".

    Parameters
    ----------
    schema, root : mapping
        The field's JSON schema, and that of the whole model, which holds the definitions that it names.
    """
    if "words" in schema:
        return str(schema["words"])
    schema = _resolved(schema, root)
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        said = list(dict.fromkeys(describe(choice, root) for choice in choices))
        return ("; or " if any(":" in one or "each" in one for one in said) else ", or ").join(said)
    if values := _values(schema):
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    kind = schema.get("type", "")
    if kind in _NUMBERS:
        return f"a {_NUMBERS[kind]}{_bounds(schema)}"
    if kind == "array":
        return _describe_list(schema, root)
    if kind == "object":
        return _describe_fields(schema, root)
    return "a path" if schema.get("format") == "path" else _TYPES.get(kind, "anything")


def docstrings_of(model: type[BaseModel]) -> dict[str, str]:
    """Docstrings below a model's fields, its bases' included: field → text on one line."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls.__module__.startswith("pydantic"):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(field.target, ast.Name):
                found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return {name: found[name] for name in model.model_fields if name in found}


def shortened(line: str) -> str:
    """Cut the middle out of a line of an error that repeats more of its input than anybody reads.

    Paths, which are whole words, may be 4096 characters long; most are much shorter.
    """
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"


def _explain(error: Mapping[str, Any], root: Schema) -> Iterator[Fault]:
    """Say what one of pydantic's errors means."""
    kind, value, location = error["type"], error["input"], error["loc"]
    path, entry, schema = _find(location, root)
    field = f"'{'.'.join(path)}'"
    if kind == "value_error":  # sentences of our own
        for line in map(shortened, str(error["ctx"]["error"]).splitlines()):
            yield Fault(path, (f"{field}: {line}" if path else line).removesuffix("."))
    elif kind in ("extra_forbidden", "invalid_key"):
        known = sorted(_inside(_find(location[:-1], root)[2], root).get("properties", {}))
        yield Fault(path, f"{field} is not a known field", _hint(path[-1], known, root))
    elif location[-1:] == ("[key]",):
        expected = describe(_inside(_find(location[:-2], root)[2], root).get("propertyNames", {"type": "string"}), root)
        yield Fault(path, f"{field} is not a known name; expected {expected}", "Correct it.")
    elif kind == "missing" and entry is None:
        yield Fault(path, f"{field} is missing; expected {describe(schema, root)}", "Add it.")
    elif kind == "missing":  # it is the list that was given, and is too short
        yield Fault(
            path, f"{field} is too short; expected {describe(_find(location[:-1], root)[2], root)}", "Add to it."
        )
    else:
        where = f"{field}, entry {entry}," if entry else field
        which = ", which is not finite" if kind == "finite_number" else ""
        said = f"{where} is {_shown(value)}{which}; expected {describe(schema, root)}"
        yield Fault(path, said, _correction(value, _inside(schema, root)))


def _find(location: Sequence[int | str], root: Schema) -> tuple[tuple[str, ...], int | None, Schema]:
    """Follow an error's location: the names on the way, the entry of a list counted from 1, and the schema there.

    Pydantic puts the names of a union's members and ``[key]`` on the way, too: nobody wrote those.
    """
    path: list[str] = []
    entry: int | None = None
    schema = root
    for part in location:
        inside = _inside(schema, root)
        choices = inside.get("oneOf", inside.get("anyOf", []))
        named = [choice for choice in choices if str(choice.get("$ref", "")).endswith(f"/{part}")]
        if part == "[key]" or (choices and not named):
            break
        if named:
            schema = named[0]
        elif isinstance(part, int) and inside.get("type") == "array":
            entry, before = part + 1, inside.get("prefixItems", [])
            schema = before[part] if part < len(before) else inside.get("items", {})
        else:
            path.append(_SHOWN.repr(part).strip("'\""))  # nothing that a terminal obeys
            others = inside.get("additionalProperties")
            schema = inside.get("properties", {}).get(part, others if isinstance(others, dict) else {})
    return tuple(path), entry, schema


def _resolved(schema: Schema, root: Schema) -> Schema:
    """Follow a reference to a definition."""
    return root["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _inside(schema: Schema, root: Schema) -> Schema:
    """Resolve a schema, and of a choice between something and null take the former."""
    schema = _resolved(schema, root)
    others = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    return _resolved(others[0], root) if len(others) == 1 else schema


def _values(schema: Schema) -> list[str]:
    """Values of a choice between a few; empty of anything else."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [value if isinstance(value, str) else _shown(value) for value in values]


def _bounds(schema: Schema) -> str:
    """Say a number's bounds."""
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:,.10g} to {high:,.10g}"
    bounds = (("of at least", low), ("above", above), ("at most", high), ("below", below))
    said = " and ".join(f"{word} {bound:,.10g}" for word, bound in bounds if bound is not None)
    return f" {said}" if said else ""


def _describe_list(schema: Schema, root: Schema) -> str:
    entries, least = schema.get("prefixItems", []), schema.get("minItems", 0)
    if entries:
        each = list(dict.fromkeys(describe(entry, root) for entry in entries))
        return f"a list of {len(entries)}: {'each ' if len(each) == 1 else ''}{', then '.join(each)}"
    fewest = f" of at least {least}" if least else ""
    return f"a list{fewest}, each entry {describe(schema.get('items', {}), root)}"


def _describe_fields(schema: Schema, root: Schema) -> str:
    if "properties" in schema:
        return f"fields of its own: {', '.join(schema['properties'])}"
    names = describe(schema["propertyNames"], root) if "propertyNames" in schema else "a name"
    others = schema.get("additionalProperties")
    return f"fields of its own, {names}: {describe(others if isinstance(others, dict) else {}, root)}"


def _hint(name: str, known: Sequence[str], root: Schema) -> str:
    """Name the field that was meant: one of the `known`, or one that stands elsewhere in the file."""
    if close := difflib.get_close_matches(name, known, n=1):
        return f"Did you mean '{close[0]}'?"
    if elsewhere := next((path for path in _paths(root, root) if path.endswith(f".{name}")), None):
        return f"Did you mean '{elsewhere}'?"
    return f"Known fields: {', '.join(known)}."


def _paths(schema: Schema, root: Schema, before: str = "") -> Iterator[str]:
    """Dotted paths of all fields."""
    for name, field in _inside(schema, root).get("properties", {}).items():
        yield f"{before}{name}"
        yield from _paths(field, root, f"{before}{name}.")


def _correction(value: Any, schema: Schema) -> str:
    if isinstance(value, str) and (close := difflib.get_close_matches(value[:60], _values(schema), n=1)):
        return f"Did you mean '{close[0]}'?"
    if schema.get("type") == "string" and "enum" not in schema and isinstance(value, bool | int | float):
        return "Put it in quotes."
    return "Correct it."


def _shown(value: Any) -> str:
    """A value as a file has it, cut where it is long."""
    named = {None: "null", True: "true", False: "false"}
    return named[value] if value is None or isinstance(value, bool) else _SHOWN.repr(value)
