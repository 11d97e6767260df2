"""What a study expects of a cohort, and how a cohort falls short of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pydantic import Field

from base.settings import Settings
from cohorts.cohort import Cohort, Scale
from cohorts.participants import as_levels

Shortfall = Literal["atlas", "timing", "scaling", "covariates"]
"""What of a cohort can be wanting."""
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Mismatch:
    """One way in which a cohort does not meet the contract: its kind, and a sentence with the remedy."""

    kind: Shortfall
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
    asked_by: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The same columns → the study's settings that name them, for messages."""

    def mismatches(self, cohort: Cohort) -> list[Mismatch]:
        """List how `cohort` falls short; empty if it meets the contract."""
        table = cohort.covariates()
        said: list[tuple[Shortfall, str | None]] = [
            ("atlas", self._atlas(cohort)),
            ("timing", self._timing(cohort)),
            ("scaling", self._scaling(cohort)),
        ]
        said += [("covariates", self._covariate(cohort.name, name, table.get(name))) for name in self.covariates]
        return [Mismatch(kind, message) for kind, message in said if message]

    def complete(self, covariates: pd.DataFrame, participants: Sequence[str]) -> list[str]:
        """Those of some participants of whom every covariate is known, by `Cohort.covariates` under participant_id."""
        known = covariates.reindex(list(participants)).reindex(columns=list(self.covariates)).notna().all(axis=1)
        return [str(participant) for participant in known.index[known]]

    def _atlas(self, cohort: Cohort) -> str | None:
        if self.atlases.get(cohort.atlas.name) == cohort.atlas.content_hash:
            return None
        other = " with other parcels than the study's" if cohort.atlas.name in self.atlases else ""
        return (
            f"cohort {cohort.name}: has atlas {cohort.atlas.name}{other}; the study allows {', '.join(self.atlases)}. "
            "Prepare the recordings in an atlas of the study."
        )

    def _timing(self, cohort: Cohort) -> str | None:
        t_r = cohort.recordings["t_r"]
        outside = t_r[~t_r.between(self.min_t_r, self.max_t_r)]
        if outside.empty:
            return None
        return (
            f"cohort {cohort.name}: has recordings of TR {outside.iloc[0]:g} s; the study allows {self.min_t_r:g} to "
            f"{self.max_t_r:g} s, and {len(outside)} of {len(t_r)} lie outside. Leave them out, or ask the coordinator "
            "to widen the range."
        )

    def _scaling(self, cohort: Cohort) -> str | None:
        if cohort.scaling in self.scalings:
            return None
        return (
            f"cohort {cohort.name}: its recordings were stored as {cohort.scaling}; the study needs "
            f"{' or '.join(self.scalings)} ones. Prepare them as they were before z-scoring, or ask for a study whose "
            "window.scaling is zscore."
        )

    def _covariate(self, cohort: str, name: str, values: pd.Series | None) -> str | None:
        """Say how a column falls short of what the study makes of it; None if it does not."""
        asks = " and ".join(self.asked_by.get(name, ())) or "the study"
        if values is None or values.isna().all():
            return (
                f"cohort {cohort}: knows no participant's {name}, which {asks} asks for. Add the column to the "
                f"participants table and prepare the cohort again, or ask for a study without {name} there."
            )
        known, levels = values.dropna(), self.covariates[name]
        if levels:
            others = as_levels(known)[~(as_levels(known).isin(levels) | known.astype("str").isin(levels))]
            if len(others):
                return (
                    f"cohort {cohort}: {name} has levels outside {', '.join(levels)}: {_counted(others)}. Recode them "
                    f"and prepare the cohort again, or ask for the study's covariates.{name}.levels to name them."
                )
        elif not pd.api.types.is_numeric_dtype(known):
            texts = sorted(known.astype("str").unique())
            named = ", ".join(texts) if len(texts) <= _MOST_SHOWN else "..."
            return (
                f"cohort {cohort}: {name} holds text, such as {_counted(known.astype('str'))}, and the study takes it "
                f"for a number. Ask for the study to name its levels: covariates: {{{name}: {{levels: [{named}]}}}}."
            )
        return None


def _counted(values: pd.Series) -> str:
    """Name the most frequent values and say how many participants have each. This stays where the cohort is."""
    counts = values.value_counts()
    named = ", ".join(f"{value!r} ({n} participants)" for value, n in counts.head(_MOST_SHOWN).items())
    return named + (f" and {len(counts) - _MOST_SHOWN} more" if len(counts) > _MOST_SHOWN else "")
