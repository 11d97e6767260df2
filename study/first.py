"""A first study for the cohorts at hand: what they have in common, written down with the reasons."""

import json
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from base.errors import InputError
from brainlm.config import WindowConfig
from brainlm.embedding import RECIPES
from brainlm.windows import usable_recordings
from cohorts import AtlasError, Cohort, load_atlas
from cohorts.participants import as_levels, identifying_columns
from exchange.key_roster import MIN_SITES
from harmonization import Categorical
from harmonization.core.design import KNOWN
from study.sections import LARGEST, CohortConfig
from study.settings import Study

_SECONDS_A_PATCH = 16
"""One or two slow waves of the BOLD signal."""
_MOST_PATCHES, _FEWEST_PATCHES = 4, 2
_MOST = 0.8
"""Share of each cohort's people of whom a column must be known, and who must have a recording of a window's length."""
_FEWEST_OF_A_LEVEL = 10
_MOST_LEVELS = 5
_MOST_TARGETS = 4
_RECIPE = RECIPES[Study.model_fields["recipe"].default].residualize
_NO_COLUMNS = ("participant_id", "session_id", "site", "t_r")
"""What says nothing of a person, or is known to studies by another name."""
_BEHIND, _ABOVE = 114, 108
"""Letters of a field with its comment on one line, and of a line of a comment above it."""
_TEMPLATE = jinja2.Template(
    Path(__file__).with_name("first.jinja").read_text(encoding="utf-8"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


@dataclass
class Columns:
    """What the participants tables have in common."""

    usable: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Column that tells something of these people → its levels; none for numbers."""
    within_sites: list[str] = field(default_factory=list)
    """Those of them in which people of one cohort differ: effects of others cannot be told from the site's."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Column → why it is of no use."""


def first_study(cohorts: list[Cohort], name: str, folder: Path) -> str:
    """Return the text of a commented study of some cohorts: `first.jinja`, filled in.

    Parameters
    ----------
    folder : Path
        Where the study will lie: paths in it start from there.

    Raises
    ------
    InputError
        If most recordings of a cohort are too short for any window.
    """
    window = _window(cohorts)
    people = {cohort.name: _people(cohort, window) for cohort in cohorts}
    columns = find_columns(people)
    own = [column for column in columns.within_sites if column not in KNOWN]
    targets = [column for column in columns.within_sites if column == "age" or columns.usable[column]][:_MOST_TARGETS]
    further = [column for column in own if column not in targets]
    short = {cohort.name: n for cohort in cohorts if (n := len(cohort.covariates()) - len(people[cohort.name]))}
    return _TEMPLATE.render(
        field=_field,
        name=name,
        people=people,
        n_sites=len(people),
        min_sites=MIN_SITES,
        smallest=min(map(len, people.values())),
        atlases=list(dict.fromkeys(_atlas(cohort, folder) for cohort in cohorts)),
        t_rs=sorted({float(t_r) for cohort in cohorts for t_r in cohort.recordings["t_r"]}),
        usual=CohortConfig.model_fields,
        window=window,
        slowest=next(cohort.name for cohort in cohorts if cohort.recordings["t_r"].max() == window.t_r),
        too_short="".join(f"; {n} people of {cohort} have none so long" for cohort, n in short.items()),
        coded={column: _coding(column, columns.usable[column], people) for column in own},
        kept=[column for column in ("age", "sex") if column in columns.within_sites],
        targets=targets,
        further=f"; you may add {', '.join(further)}" if further else "",
        left_out="; ".join(f"{one} is left out: {why}" for one, why in columns.left_out.items() if one not in _RECIPE),
        **_residualization(columns),
    )


def _field(name: str, value: Any, comment: str = "") -> str:
    """Write a field as YAML with its comment, behind it, or above where it is long; without a value if that is None."""
    comment, line = " ".join(comment.split()), f"{_inline(name)}:" + ("" if value is None else f" {_inline(value)}")
    if not comment:
        return line
    if len(line) + len(comment) < _BEHIND:
        return f"{line}  # {comment}"
    return "\n".join([*(f"# {part}" for part in textwrap.wrap(comment, _ABOVE)), line])


def _inline(value: Any) -> str:
    """Write a value as YAML on one line, in quotes where it would mean something else."""
    dumped = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    written = str(dumped).removesuffix("...\n").rstrip("\n")
    return json.dumps(value, ensure_ascii=False) if "\n" in written else written  # which is YAML, too


def _people(cohort: Cohort, window: WindowConfig) -> pd.DataFrame:
    """Covariates of the participants who have a recording of a window's length."""
    table = cohort.covariates()
    return table[table["participant_id"].isin(usable_recordings(cohort, window))]


def _window(cohorts: list[Cohort]) -> WindowConfig:
    """The slowest site's TR, and as many patches as most recordings of every cohort have room for."""
    t_r = float(max(cohort.recordings["t_r"].max() for cohort in cohorts))
    patch = max(1, round(_SECONDS_A_PATCH / t_r))
    for n_patches in range(_MOST_PATCHES, _FEWEST_PATCHES - 1, -1):
        window = WindowConfig(t_r=t_r, n_frames=n_patches * patch, patch_frames=patch)
        too_short = [
            cohort.name for cohort in cohorts if len(_people(cohort, window)) < _MOST * len(cohort.covariates())
        ]
        if not too_short:
            return window
    raise InputError(
        f"cohort {too_short[0]}: too many recordings are shorter than {window.seconds:g} s, the shortest window of a "
        "first study. Leave the cohort out."
    )


def _atlas(cohort: Cohort, folder: Path) -> str:
    """Name of a cohort's atlas, or the path of its table where nobody knows it by name."""
    try:
        if load_atlas(cohort.atlas.name).content_hash == cohort.atlas.content_hash:
            return cohort.atlas.name
    except AtlasError:
        pass
    return os.path.relpath(cohort.path / "atlas.json", folder)


def _residualization(columns: Columns) -> dict[str, Any]:
    """What of the recipe's covariates is taken out of the embeddings, and why the others are not."""
    removed = [name for name in _RECIPE if name == "site" or name in columns.within_sites]
    same = dict.fromkeys(columns.usable, "the same for everybody within each site")
    why = {**dict.fromkeys(_RECIPE, "not in participants.tsv"), **same, **columns.left_out}
    missing = [f"{name} ({why[name]})" for name in _RECIPE if name not in removed]
    return {"removed": removed, "without": f"; without {', '.join(missing)}" if missing else ""}


def find_columns(people: Mapping[str, pd.DataFrame]) -> Columns:
    """Find the columns that all cohorts have, of most people, and in which people differ.

    Parameters
    ----------
    people : mapping
        Cohort → its participants' covariates.
    """
    found = Columns()
    for name in dict.fromkeys(str(column) for table in people.values() for column in table):
        if name not in _NO_COLUMNS:
            why, levels = _judge(name, people)
            if why:
                found.left_out[name] = why
            else:
                found.usable[name] = levels
                if any(len(table[name].dropna().unique()) > 1 for table in people.values()):
                    found.within_sites.append(name)
    return found


def _judge(name: str, people: Mapping[str, pd.DataFrame]) -> tuple[str, tuple[str, ...]]:
    """Say why a column is of no use, or which levels it has; both are empty for a number."""
    lacking = [cohort for cohort, table in people.items() if name not in table or table[name].notna().mean() < _MOST]
    if lacking:
        return f"not known of most people of {', '.join(lacking)}", ()
    if any(name in identifying_columns(table) for table in people.values()):
        return "it tells who people are", ()
    values = pd.concat([table[name].dropna() for table in people.values()])
    counts = as_levels(values).value_counts()
    if len(counts) < 2:
        return f"{counts.index[0]} for everybody", ()
    if pd.api.types.is_numeric_dtype(values) and not _can_be_coded(values):
        return "its numbers are too large or too small to be coded. Give them in other units", ()
    number = pd.api.types.is_numeric_dtype(values) and (name in KNOWN or len(counts) > _MOST_LEVELS)
    if number or (name in KNOWN and not isinstance(KNOWN[name], Categorical)):
        return "", ()
    if len(counts) > _MOST_LEVELS:
        return f"text of {len(counts)} kinds", ()
    if counts.min() < _FEWEST_OF_A_LEVEL:
        return f"only {counts.min()} people are {counts.idxmin()}", ()
    return "", tuple(sorted(counts.index))


def _can_be_coded(values: pd.Series) -> bool:
    return abs(values.mean()) < LARGEST / 2 and 2 / LARGEST < values.std() < LARGEST / 2


def _coding(name: str, levels: tuple[str, ...], people: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Levels of a category; for a number, constants near its mean and deviation, to one digit."""
    if levels:
        return {"levels": list(levels)}
    values = pd.concat([table[name].dropna() for table in people.values()])
    return {"center": float(f"{values.mean():.1g}"), "scale": float(f"{values.std():.1g}")}
