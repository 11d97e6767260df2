"""Covariates into a design matrix that is the same at every site.

Levels, centres and scales are agreed in advance, so that no site's data decide the coding. They are public constants:
answers do not depend on centres and scales, only the numerical precision does.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from harmonization.core.errors import DesignError
from harmonization.core.protocol import Array


@dataclass(frozen=True)
class Continuous:
    """A number, coded as (value - center) / scale."""

    name: str
    center: float = 0.0
    scale: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns of the design matrix."""
        return (self.name,)

    def encode(self, values: list[Any]) -> Array:
        """Column [n, 1] of n values."""
        try:
            numbers = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise DesignError(f"covariate '{self.name}' is not a number everywhere. Name its levels instead.") from None
        if not np.isfinite(numbers).all():
            raise DesignError(f"covariate '{self.name}' has infinite values. Correct them.")
        return ((numbers - self.center) / self.scale)[:, None]


@dataclass(frozen=True)
class Categorical:
    """A category, coded as one 0/1 column for each level but the first."""

    name: str
    levels: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns of the design matrix."""
        return tuple(f"{self.name}={level}" for level in self.levels[1:])

    def encode(self, values: list[Any]) -> Array:
        """Columns [n, levels - 1] of n values."""
        levels = [str(value) if str(value) in self.levels else level_of(value) for value in values]
        unknown = Counter(level for level in levels if level not in self.levels)
        if unknown:
            named = ", ".join(f"{level!r} ({n} rows)" for level, n in unknown.most_common(5))
            raise DesignError(
                f"covariate '{self.name}' has levels outside the agreed {', '.join(self.levels)}: {named}. "
                "Recode them, or agree on them."
            )
        return np.array(
            [[float(level == agreed) for agreed in self.levels[1:]] for level in levels], dtype=np.float64
        ).reshape(len(values), len(self.levels) - 1)


Covariate = Continuous | Categorical

#: Codings of the covariates that every cohort knows.
KNOWN: dict[str, Covariate] = {
    "age": Continuous("age", center=50.0, scale=20.0),
    "sex": Categorical("sex", levels=("F", "M")),
    "mean_fd": Continuous("mean_fd", center=0.2, scale=0.1),
    "tsnr": Continuous("tsnr", center=60.0, scale=30.0),
}


@dataclass(frozen=True)
class Design:
    """An agreed list of covariates."""

    covariates: tuple[Covariate, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the covariates."""
        return tuple(covariate.name for covariate in self.covariates)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the design matrix."""
        return tuple(column for covariate in self.covariates for column in covariate.columns)

    def complete(self, table: Mapping[str, Sequence[Any]], n: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Tell which of `n` rows have a value, neither NaN nor None, for every covariate of a table."""
        known = np.ones(n, dtype=bool)
        for covariate in self.covariates:
            known &= [not _is_missing(value) for value in _column(table, covariate)]
        return known

    def encode(self, table: Mapping[str, Sequence[Any]], n: int) -> Array:
        """Code `n` complete rows as a design matrix [n, q], without intercept or site columns.

        Raises
        ------
        DesignError
            If a value is missing, a level is not one of the agreed, or a number is not finite.
        """
        blocks = [np.empty((n, 0))]
        for covariate in self.covariates:
            values = list(_column(table, covariate))
            if any(_is_missing(value) for value in values):
                raise DesignError(f"covariate '{covariate.name}' has missing values. Leave those participants out.")
            blocks.append(covariate.encode(values))
        return np.concatenate(blocks, axis=1)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the design as a JSON-able list."""
        return [
            {name: list(value) if name == "levels" else value for name, value in asdict(covariate).items()}
            for covariate in self.covariates
        ]

    @classmethod
    def from_json(cls, content: Sequence[Mapping[str, Any]]) -> "Design":
        """Read what `to_json` returned."""
        return cls(
            tuple(
                Categorical(str(item["name"]), tuple(str(level) for level in item["levels"]))
                if "levels" in item
                else Continuous(str(item["name"]), float(item["center"]), float(item["scale"]))
                for item in content
            )
        )


def _column(table: Mapping[str, Sequence[Any]], covariate: Covariate) -> Sequence[Any]:
    if covariate.name not in table:
        raise DesignError(f"covariate '{covariate.name}' is not in the table. Add it, or leave it out of the study.")
    return table[covariate.name]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and bool(np.isnan(value)))


def level_of(value: Any) -> str:
    """A value as people write it: a table with a missing value makes 2.0 of the code 2."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
