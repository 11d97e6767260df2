"""``docs/settings.md``: every field of the files that people write, from the settings' own types and docstrings.

``make settings`` writes it.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from base.settings import Settings
from base.wording import describe, docstrings_of
from brainlm.config import ModelConfig
from client.settings import SiteSettings
from cohorts.quality import QualityRules
from cohorts.settings import KINDS, Preparation
from study.settings import Study

PAGE = Path(__file__).with_name("settings.md")

_HEAD = """# Settings, field by field

Made by `make settings` from the settings themselves; what is said here is what the files are checked against. All that
is wrong with a file is told at once. A field that is left out has its default. Text that looks like a number or a truth
(`1`, `2024`, `no`) goes in quotes.
"""
_FILES: tuple[tuple[str, type[Settings], str], ...] = (
    (
        "study.yaml",
        Study,
        "What coordinator and sites agree on. `fedbrainlm study init COHORT... --out study.yaml` writes a first one "
        "from the cohorts at hand; [configs/studies/](../configs/studies/) has more.",
    ),
    (
        "Models",
        ModelConfig,
        "`model` of a study, inline or in a file of its own; [configs/models/](../configs/models/) has sizes from 0.3 "
        "to 657 million parameters. Released BrainLM checkpoints bring their own settings: [models.md](models.md).",
    ),
    (
        "site.yaml",
        SiteSettings,
        "A hospital's own file; no study and no message can change what it says. `fedbrainlm site init` makes it of "
        "[configs/sites/hospital.yaml](../configs/sites/hospital.yaml).",
    ),
    (
        "Quality thresholds",
        QualityRules,
        "What `fedbrainlm cohort check --quality FILE` judges recordings by; "
        "[configs/quality.yaml](../configs/quality.yaml) has what is published.",
    ),
    (
        "prepare.yaml",
        Preparation,
        "How a cohort is prepared, for `fedbrainlm cohort prepare --settings FILE`. Every field is an option of the "
        "command, too, which counts where both are given; a path is relative to the file. Each prepared cohort keeps "
        "what it was prepared by in `site-only/prepare.yaml`. Besides these fields, each kind of source has its own.",
    ),
    *((f"prepare.yaml, kind {kind}", model, f"{inspect.getdoc(model)}") for kind, model in KINDS.items()),
)


def settings_page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for title, model, about in _FILES:
        parts += [f"## {title}\n\n{about}\n", *_tables(model, model.model_json_schema(), "")]
    return "\n".join(parts)


def _tables(model: type[BaseModel], root: dict[str, Any], path: str) -> Iterator[str]:
    """Tables of a model's fields, then of the models inside of it, each under its path."""
    if path:
        yield f"### {path}\n\n{_plain(inspect.getdoc(model) or '')}\n"
    schema = root if not path else root["$defs"][model.__name__]
    said = docstrings_of(model)
    rows, inside = ["| field | takes | default | |", "|---|---|---|---|"], []
    above = {name for _, other, _ in _FILES if other in model.__mro__[1:] for name in other.model_fields}
    for name, field in model.model_fields.items():
        if name in above:
            continue
        nested, within = _nested(field), f"{path}.{name}".lstrip(".")
        takes = describe(schema["properties"][name], root)
        if nested is not None:
            within += ".NAME" if "a name" in takes else ""
            takes = f"[{within}](#{within.replace('.', '').lower()})"
            inside.append((nested, within))
        about = said.get(name) or (inspect.getdoc(nested) or "").partition("\n")[0]
        rows.append(f"| `{name}` | {_cell(takes)} | {_cell(_default(field))} | {_cell(_plain(about))} |")
    yield "\n".join(rows) + "\n"
    for nested, within in inside:
        yield from _tables(nested, root, within)


def _nested(field: FieldInfo) -> type[Settings] | None:
    """The model that a field holds, or a mapping of names to it; None for values, and for a study's model."""
    found = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    models = [kind for kind in found if issubclass(kind, Settings)]
    return models[0] if len(models) == 1 else None


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if isinstance(value, Settings):
        return "as below"
    if isinstance(value, tuple):
        value = list(value)
    return "`" + yaml.safe_dump(value, default_flow_style=True, width=200).replace("\n...", "").strip() + "`"


def _plain(docstring: str) -> str:
    """A docstring in Markdown."""
    return docstring.replace("``", "`").replace("::", ":")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
