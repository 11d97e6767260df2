"""What a study expects of a cohort, and how a cohort falls short of it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from cohorts.cohort import Cohort, Scale
from cohorts.settings import Settings


@dataclass(frozen=True)
class Mismatch:
    """One way in which a cohort does not meet the contract: its kind, and a sentence with the remedy."""

    kind: Literal["atlas", "timing", "scaling", "covariates"]
    message: str


class CohortContract(Settings):
    """The contract that a study's cohorts must meet."""

    atlases: dict[str, str]
    """Allowed atlases: name → content hash."""
    min_t_r: float = 0.0
    max_t_r: float = 20.0
    """Allowed repetition times, in seconds."""
    scalings: tuple[Scale, ...] = ("raw", "zscore")
    """Allowed scalings of the recordings as they are stored. Robust scaling needs their units, so raw ones."""
    covariates: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Needed columns of ``participants.tsv`` (or of the recordings) → allowed levels; none for numbers."""

    def mismatches(self, cohort: Cohort) -> list[Mismatch]:
        """List how `cohort` falls short; empty if it meets the contract."""
        return [
            *self._atlas(cohort),
            *self._timing(cohort),
            *self._scaling(cohort),
            *self._covariates(cohort),
        ]

    def _atlas(self, cohort: Cohort) -> list[Mismatch]:
        if self.atlases.get(cohort.atlas.name) == cohort.atlas.content_hash:
            return []
        other = " with other parcels than the study's" if cohort.atlas.name in self.atlases else ""
        message = (
            f"cohort {cohort.name}: has atlas {cohort.atlas.name}{other}; the study allows {', '.join(self.atlases)}. "
            "Prepare the recordings in an atlas of the study."
        )
        return [Mismatch("atlas", message)]

    def _timing(self, cohort: Cohort) -> list[Mismatch]:
        outside = [t_r for t_r in cohort.recordings["t_r"].unique() if not self.min_t_r <= t_r <= self.max_t_r]
        if not outside:
            return []
        message = (
            f"cohort {cohort.name}: has recordings of TR {outside[0]:g} s; the study allows {self.min_t_r:g} to "
            f"{self.max_t_r:g} s. Leave them out, or ask the coordinator to widen the range."
        )
        return [Mismatch("timing", message)]

    def _scaling(self, cohort: Cohort) -> list[Mismatch]:
        if cohort.scaling in self.scalings:
            return []
        message = (
            f"cohort {cohort.name}: its recordings were stored as {cohort.scaling}; the study needs "
            f"{' or '.join(self.scalings)} ones. Prepare them as they were before z-scoring, or ask for a study whose "
            "window.scaling is zscore."
        )
        return [Mismatch("scaling", message)]

    def _covariates(self, cohort: Cohort) -> list[Mismatch]:
        table = cohort.covariates()
        found = []
        for name, levels in self.covariates.items():
            if name not in table or table[name].isna().all():
                message = (
                    f"cohort {cohort.name}: knows no participant's {name}, which the study needs. Add the column "
                    "to the participants table and prepare the cohort again, or ask for a study without it."
                )
                found.append(Mismatch("covariates", message))
            elif levels and not set(table[name].dropna().astype("str")) <= set(levels):
                allowed = ", ".join(levels)
                message = f"cohort {cohort.name}: {name} has levels outside {allowed}. Recode and prepare again."
                found.append(Mismatch("covariates", message))
        return found
