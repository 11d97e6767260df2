"""Who was studied, as far as it can be known here.

In a simulation the sites' cohorts are at hand. Of a deployed federation the coordinator knows counts, and means of
covariates over all sites together, which come with the model that takes their effects out. Nothing more is asked for.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from brainlm.config import WindowConfig
from brainlm.windows import usable_recordings
from cohorts import Cohort
from cohorts.report.page import Cell, Shown, Table, Title
from cohorts.report.wording import MOST_LEVELS, column_summary, rules_sentence, seconds_of
from server.report.data import RunData

_ALL = "all sites"
_NUMBERS: dict[str, Callable[[pd.Series], Any]] = {
    "mean": pd.Series.mean,
    "SD": pd.Series.std,
    "from": pd.Series.min,
    "to": pd.Series.max,
}
Measure = tuple[Title, str, Callable[[pd.Series], Cell]]
"""A column of the table: its title, the covariate, and what is made of the values that are known."""


def people_table(data: RunData) -> Table:
    """Repetition times and covariates of each simulated site's participants; else means over all sites."""
    if data.cohorts:
        return _of_cohorts(data, data.cohorts)
    note = (
        "The coordinator learned no covariate of anybody: these are means over all participants in the analyses, from "
        "the sums behind residualization. Each site's quality report tells its repetition times, ages and thresholds."
    )
    return Table(["over all sites", "mean or share"], [[name, value] for name, value in _means(data).items()], note)


def people_sentences(data: RunData) -> list[str]:
    """Say what a paper must state of participants, repetition times and quality rules."""
    if not data.cohorts:
        accepted = "Repetition times from {min_t_r:g} to {max_t_r:g} s were accepted".format(**data.study["cohort"])
        means = [f"{name} {value.text}" for name, value in _means(data).items()]
        said = [f"Means over the participants of all sites: {', '.join(means)}."] if means else []
        return [*said, f"{accepted} [state the sites' own, and their quality thresholds, from their quality reports]."]
    everybody, t_rs = _together([_usable(data, cohort) for cohort in data.cohorts.values()])
    known = [name for name in _columns(data) if name in everybody]
    described = "; ".join(f"{_spoken(name)}: {column_summary(everybody[name])}" for name in known)
    said = [f"Participants: {described}."] if described else []
    return [*said, f"Repetition times were {seconds_of(t_rs)}.", *_rules(data.cohorts)]


def _of_cohorts(data: RunData, cohorts: Mapping[str, Cohort]) -> Table:
    tables = {site: _usable(data, cohort) for site, cohort in cohorts.items()}
    tables[_ALL] = _together(list(tables.values()))
    everybody = tables[_ALL][0]
    measures = [measure for name in _columns(data) if name in everybody for measure in _measures(data, everybody[name])]
    rows: list[list[Cell]] = []
    for site, (people, t_rs) in tables.items():
        row: list[Cell] = [site, len(people), ", ".join(f"{t_r:g}" for t_r in t_rs)]
        for _, name, made in measures:
            known = people[name].dropna() if name in people else pd.Series(dtype=float)
            row.append(made(known) if len(known) else None)
        rows.append(row)
    return Table(
        ["site", "participants", "TR (s)", *(title for title, _, _ in measures)], rows, " ".join(_rules(cohorts))
    )


def _measures(data: RunData, values: pd.Series) -> list[Measure]:
    """What is told of one covariate: mean, spread and range if the study asks about it, else the mean alone."""
    name, known = str(values.name), values.dropna()
    if pd.api.types.is_numeric_dtype(known):
        asked = name in (*data.study["analyses"]["targets"], *data.summary["harmonization"]["keep"])
        wanted = list(_NUMBERS) if asked else ["mean"]
        return [((_spoken(name), kind), name, partial(_number, _NUMBERS[kind])) for kind in wanted]
    levels = sorted(known.astype("str").unique())
    counted = levels if len(levels) <= MOST_LEVELS else []
    return [((_spoken(name), level), name, partial(_count, level)) for level in counted]


def _number(measure: Callable[[pd.Series], Any], known: pd.Series) -> Cell:
    value = float(measure(known))
    return None if pd.isna(value) else value


def _count(level: str, known: pd.Series) -> Cell:
    return int((known.astype("str") == level).sum())


def _means(data: RunData) -> dict[str, Shown]:
    """Mean of each number, and share of each level, over the participants of all sites; empty where none is known."""
    found: dict[str, Shown] = {}
    model, design = data.residualization
    if model is None:
        return found
    coded = iter(model["covariate_mean"].tolist())
    for covariate in design:
        if "levels" in covariate:
            others = [next(coded) for _ in covariate["levels"][1:]]
            shares = zip(covariate["levels"], (1 - sum(others), *others), strict=True)
            found |= {f"{_spoken(covariate['name'])} {level}": Shown(share, f"{share:.0%}") for level, share in shares}
        else:
            mean = covariate["center"] + covariate["scale"] * next(coded)
            found[_spoken(covariate["name"])] = Shown(mean, f"{mean:.3g}")
    return found


def _rules(cohorts: Mapping[str, Cohort]) -> list[str]:
    """Say by which rules recordings were excluded; site by site where they differ."""
    said: dict[str, list[str]] = {}
    for site, cohort in cohorts.items():
        said.setdefault(rules_sentence(cohort.about.rules), []).append(site)
    if len(said) == 1:
        return list(said)
    return [f"At {', '.join(sites)}: {sentence[0].lower()}{sentence[1:]}" for sentence, sites in said.items()]


def _columns(data: RunData) -> list[str]:
    """Targets and covariates of the study, in the order of its settings."""
    harmonization = data.summary["harmonization"]
    named = (*data.study["analyses"]["targets"], *harmonization["keep"], *harmonization["residualize"])
    return [name for name in dict.fromkeys(named) if name != "site"]


def _usable(data: RunData, cohort: Cohort) -> tuple[pd.DataFrame, list[float]]:
    """Covariates of the participants whose recordings are long enough, and the repetition times of these."""
    usable = usable_recordings(cohort, WindowConfig(**data.study["model"]["window"]))
    covariates, recordings = cohort.covariates(), cohort.recordings
    long_enough = recordings["recording_id"].isin([name for names in usable.values() for name in names])
    t_rs = sorted(float(t_r) for t_r in recordings[long_enough]["t_r"].unique())
    return covariates[covariates["participant_id"].isin(list(usable))], t_rs


def _together(tables: list[tuple[pd.DataFrame, list[float]]]) -> tuple[pd.DataFrame, list[float]]:
    people = pd.concat([covariates for covariates, _ in tables], ignore_index=True)
    return people, sorted({t_r for _, t_rs in tables for t_r in t_rs})


def _spoken(name: str) -> str:
    return name.replace("mean_fd", "mean FD").replace("tsnr", "tSNR").replace("_", " ")
