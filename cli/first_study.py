"""A first study for the cohorts at hand: what they have in common, written down with the reasons."""

import json
import math
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from study.settings import LARGEST, CohortConfig, Study

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

Field = tuple[str, Any, str]
"""Name, value (a list of fields where they are inside of it), and the comment."""


@dataclass
class Columns:
    """What the participants tables have in common.

    Attributes
    ----------
    usable : dict
        Column that tells something of these people → its levels; none for numbers.
    within_sites : list of str
        Those of them in which people of one cohort differ: effects of others cannot be told from the site's.
    left_out : dict
        Column → why it is of no use.
    """

    usable: dict[str, tuple[str, ...]] = field(default_factory=dict)
    within_sites: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def first_study(cohorts: list[Cohort], name: str, folder: Path) -> str:
    """Return the text of a commented study of some cohorts.

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
    head = [
        f"# A first study of {', '.join(people)}, made by 'fedbrainlm study init'. docs/settings.md has every field.",
        "#   fedbrainlm cohort check COHORT --study THIS_FILE     does a cohort meet it?",
        "#   fedbrainlm run THIS_FILE --simulate COHORT...        all cohorts on this machine",
    ]
    fields: list[Field] = [
        ("study", name, "how it is called in policies, folders and reports"),
        ("title", f"A first study of {', '.join(people)}", ""),
        ("seed", 1, "decides weights, splits, windows and masks"),
        ("cohort", list(_cohort(cohorts, folder)), ""),
        ("model", _model(cohorts, window, people), ""),
        ("training", _TRAINING, ""),
        ("averaging", _averaging(len(cohorts)), ""),
        *_statistics(people),
    ]
    return "\n".join([*head, *_written(fields), ""])


def _written(fields: list[Field], indent: str = "") -> Iterator[str]:
    """Write fields as YAML, each with its comment: behind it, or above where it is long."""
    for name, value, comment in fields:
        nested = isinstance(value, list) and bool(value) and isinstance(value[0], tuple)
        comment, text = " ".join(comment.split()), "" if nested else f" {_inline(value)}"
        line = f"{indent}{_inline(name)}:{text}"
        if comment and len(line) + len(comment) < 116:
            yield f"{line}  # {comment}"
        else:
            yield from (f"{indent}# {part}" for part in textwrap.wrap(comment, 110 - len(indent)))
            yield line
        if nested:
            yield from _written(value, f"{indent}  ")


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


def _cohort(cohorts: list[Cohort], folder: Path) -> Iterator[Field]:
    atlases = list(dict.fromkeys(_atlas(cohort, folder) for cohort in cohorts))
    yield "atlases", atlases, "of the recordings; several train one model"
    t_rs, allowed = sorted({float(t_r) for c in cohorts for t_r in c.recordings["t_r"]}), CohortConfig.model_fields
    if t_rs[0] < allowed["min_t_r"].default:
        yield "min_t_r", t_rs[0], ""
    if t_rs[-1] > allowed["max_t_r"].default:
        yield "max_t_r", t_rs[-1], ""


def _atlas(cohort: Cohort, folder: Path) -> str:
    """Name of a cohort's atlas, or the path of its table where nobody knows it by name."""
    try:
        if load_atlas(cohort.atlas.name).content_hash == cohort.atlas.content_hash:
            return cohort.atlas.name
    except AtlasError:
        pass
    return os.path.relpath(cohort.path / "atlas.json", folder)


def _model(cohorts: list[Cohort], window: WindowConfig, people: Mapping[str, pd.DataFrame]) -> list[Field]:
    slowest = [cohort.name for cohort in cohorts if cohort.recordings["t_r"].max() == window.t_r]
    short = {cohort.name: n for cohort in cohorts if (n := len(cohort.covariates()) - len(people[cohort.name]))}
    left_out = "".join(f"; {n} people of {name} have none so long" for name, n in short.items())
    patch = window.patch_frames * window.t_r
    return [
        (
            "window",
            [
                (
                    "t_r",
                    window.t_r,
                    f"seconds; that of {slowest[0]}, the slowest: no site gets frequencies it never measured",
                ),
                ("n_frames", window.n_frames, f"{window.seconds:g} s a window{left_out}"),
                ("patch_frames", window.patch_frames, f"{patch:g} s of one parcel a token"),
            ],
            "",
        ),
        ("mask", [("kind", "random", ""), ("ratio", 0.75, "of the tokens are hidden")], ""),
        ("residual", "none", "gaussian: begin as linear prediction; its embeddings know less of age (docs/models.md)"),
        *((name, value, "") for name, value in _SIZES.items()),
    ]


_SIZES = {
    "width": 64,
    "depth": 3,
    "heads": 4,
    "decoder_width": 64,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "mlp_ratio": 4.0,
    "decode_every": 1,
}
_TRAINING: list[Field] = [
    ("learning_rate", 3.0e-3, "high, with small batches: it takes off sooner"),
    ("batch_size", 4, "windows a step"),
    ("steps_per_round", 75, "more make a better model: the report says whether these were enough"),
    ("warmup_steps", 60, ""),
    ("keep_optimizer_state", True, "rounds are short: AdamW would begin each by learning its moments anew"),
    ("precision", "float32", "the same numbers on every processor"),
]


def _averaging(n_sites: int) -> list[Field]:
    quorum = min(n_sites, MIN_SITES)
    return [
        ("rounds", 24, "every site trains for steps_per_round, then weights are averaged"),
        ("quorum", quorum, f"of {n_sites}: with fewer the run waits, and then fails"),
        ("sites", n_sites, "to wait for at the start"),
    ]


def _statistics(people: Mapping[str, pd.DataFrame]) -> Iterator[Field]:
    """Protection, covariates, harmonization and analyses, by what is known of the people."""
    n_sites, columns = len(people), find_columns(people)
    if n_sites < MIN_SITES:
        few = f"a secure sum needs {MIN_SITES} sites: with {n_sites}, the coordinator reads each site's own numbers"
        yield "privacy", [("secure_sums", False, few)], ""
    own = [name for name in columns.within_sites if name not in KNOWN]
    if own:
        coded: list[Field] = [(name, _coding(name, columns.usable[name], people), "") for name in own]
        yield "covariates", coded, "how columns of participants.tsv are coded, by constants that all sites share"
    yield "harmonization", _harmonization(columns, n_sites), ""
    targets = [name for name in columns.within_sites if name == "age" or columns.usable[name]][:_MOST_TARGETS]
    further = [name for name in own if name not in targets]
    smallest = min(len(table) for table in people.values())
    yield (
        "analyses",
        [
            (
                "targets",
                targets,
                "what is predicted from the embeddings" + (f"; you may add {', '.join(further)}" if further else ""),
            ),
            ("folds", min(5, max(3, smallest // 5)), f"of the people of each site; the smallest has {smallest}"),
        ],
        "; ".join(f"{name} is left out: {why}" for name, why in columns.left_out.items() if name not in _RECIPE),
    )


def _harmonization(columns: Columns, n_sites: int) -> list[Field]:
    removed = [name for name in _RECIPE if name == "site" or name in columns.within_sites]
    same = dict.fromkeys(columns.usable, "the same for everybody within each site")
    why = {**dict.fromkeys(_RECIPE, "not in participants.tsv"), **same, **columns.left_out}
    missing = [f"{name} ({why[name]})" for name in _RECIPE if name not in removed]
    comment = "taken out at the end" + (f"; without {', '.join(missing)}" if missing else "")
    return [
        ("method", "combat", "") if n_sites > 1 else ("method", "none", "one site has nothing to be made alike to"),
        ("keep", [name for name in ("age", "sex") if name in columns.within_sites], "effects that harmonization keeps"),
        ("residualize", removed, comment),
    ]


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
