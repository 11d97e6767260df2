"""How a cohort fits a study, before any site is asked: what keeps it out, and whom of it the study leaves out."""

from brainlm.windows import lengths_of
from cohorts import Cohort
from study.settings import Study


def misfits(study: Study, cohort: Cohort) -> list[str]:
    """Say what keeps a cohort out of a study, a sentence each; none if it fits."""
    contract, lengths = study.contract(), lengths_of(cohort, study.model.window)
    found = [mismatch.message for mismatch in contract.mismatches(cohort)]
    people, folds = list(lengths.usable), study.analyses.folds
    if len(people) < folds:
        remedy = "Shorten model.window" if lengths.too_short else "Lower analyses.folds"
        found.append(
            f"{lengths.said} Expected a participant or more for each of {folds} folds. {remedy}, or leave the cohort "
            "out."
        )
    complete = contract.complete(cohort.covariates().set_index("participant_id"), people)
    if not found and len(complete) < folds:
        found.append(
            f"cohort {cohort.name}: {len(complete)} of {len(people)} participants have all of "
            f"{', '.join(contract.covariates)}; expected one or more for each of {folds} folds. Fill them in, or ask "
            "for a study without them."
        )
    return found


def left_out(study: Study, cohort: Cohort) -> list[str]:
    """Say whom of a cohort a study leaves out, a sentence each; none if nobody is."""
    contract, lengths = study.contract(), lengths_of(cohort, study.model.window)
    found = [lengths.said] if lengths.too_short else []
    people = list(lengths.usable)
    complete = contract.complete(cohort.covariates().set_index("participant_id"), people)
    if len(complete) < len(people):
        found.append(
            f"cohort {cohort.name}: {len(people) - len(complete)} of {len(people)} participants lack one of "
            f"{', '.join(contract.covariates)}: they are trained on, and in no analysis."
        )
    return found
