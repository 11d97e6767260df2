"""The cohorts of a simulation, which all lie on this machine, and whether they allow what the study asks for."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from base.errors import InputError
from base.output import say
from brainlm.windows import usable_recordings
from cohorts import Cohort
from cohorts.participants import as_levels
from harmonization import Categorical
from study.fitting import left_out, misfits
from study.settings import Study


def open_cohorts(study: Study, folders: list[Path]) -> list[Cohort]:
    """Open the cohorts, in order of names, and say before anything starts all that is wrong, and who is left out.

    Raises
    ------
    InputError
        With a line for each fault.
    """
    cohorts = sorted((Cohort.open(folder) for folder in folders), key=lambda cohort: cohort.name)
    faults = list(_faults_of_sites(study, [cohort.name for cohort in cohorts]))
    for cohort in cohorts:
        faults += misfits(study, cohort)
    if not faults:
        faults = list(_faults_of_people(study, cohorts))
    if faults:
        raise InputError("\n".join(faults))
    for cohort in cohorts:
        visits = [f"cohort {cohort.name}: {cohort.visits}"] if cohort.visits else []
        for said in (*left_out(study, cohort), *visits):
            say(said, err=True)
    return cohorts


def _faults_of_sites(study: Study, names: list[str]) -> Iterator[str]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two cohorts are called '{name}'. Prepare one of them anew with another --name."
    if len(names) < study.averaging.quorum:
        secure = (
            " Secure sums need three: with fewer, set privacy.secure_sums: false." if study.privacy.secure_sums else ""
        )
        yield (
            f"{len(names)} cohorts were given; the study's quorum is {study.averaging.quorum}. "
            f"Give more, or lower averaging.quorum.{secure}"
        )
    reference = study.harmonization.reference
    if reference is not None and reference not in names:
        yield f"harmonization.reference: no cohort is called '{reference}'. Name one of {', '.join(names)}."


def _faults_of_people(study: Study, cohorts: list[Cohort]) -> Iterator[str]:
    """Say what all cohorts together know too little of: it would come out after training only."""
    tables = [_complete(study, cohort) for cohort in cohorts]
    for name, settings in study.asked_by.items():
        if fault := _fault_of_column(study, name, tables):
            yield f"{name}: {fault} it out of {' and '.join(settings)}."


def _fault_of_column(study: Study, name: str, tables: list[pd.DataFrame]) -> str | None:
    """Say why a covariate or target tells nothing in these cohorts; None if it does."""
    coding, values = study.coding(name), as_levels(pd.concat([table[name] for table in tables]))
    absent = sorted(set(coding.levels) - set(values)) if isinstance(coding, Categorical) else []
    if values.nunique() < 2:
        return f"is {values.iloc[0]} for everybody in these cohorts, and tells nothing. Leave"
    if absent:
        return f"nobody in these cohorts is {' or '.join(absent)}. Leave that out of its levels, or leave"
    beside_site = (name in study.kept and study.harmonization.method != "none") or (
        name in study.residualized and "site" in study.residualized
    )
    if beside_site and all(table[name].nunique() < 2 for table in tables):
        return "is the same for everybody within each cohort, so its effect cannot be told from the site's. Leave"
    return None


def _complete(study: Study, cohort: Cohort) -> pd.DataFrame:
    """Participants of whom all is known that the study asks for, and whose recordings are long enough."""
    table = cohort.covariates()
    known = study.complete.complete(table, len(table))
    return table[known & table["participant_id"].isin(usable_recordings(cohort, study.model.window)).to_numpy()]
