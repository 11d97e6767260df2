"""Covariates into a design matrix that is the same at every site.

Levels, centres and scales are agreed in advance, so that no site's data decide the coding. They are public constants:
answers do not depend on centres and scales, only the numerical precision does.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Categorical:
    """A category, coded as one 0/1 column for each level but the first."""

    name: str
    levels: tuple[str, ...]


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
        named: list[str] = []
        for covariate in self.covariates:
            if isinstance(covariate, Continuous):
                named.append(covariate.name)
            else:
                named.extend(f"{covariate.name}={level}" for level in covariate.levels[1:])
        return tuple(named)

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
            if isinstance(covariate, Continuous):
                blocks.append(_continuous(covariate, values)[:, None])
            else:
                blocks.append(_categorical(covariate, values))
        return np.concatenate(blocks, axis=1)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the design as a JSON-able list."""
        return [
            {"name": c.name, "center": c.center, "scale": c.scale}
            if isinstance(c, Continuous)
            else {"name": c.name, "levels": list(c.levels)}
            for c in self.covariates
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


def _continuous(covariate: Continuous, values: list[Any]) -> Array:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DesignError(
            f"covariate '{covariate.name}' is not a number everywhere. Name its levels instead."
        ) from None
    if not np.isfinite(numbers).all():
        raise DesignError(f"covariate '{covariate.name}' has infinite values. Correct them.")
    return (numbers - covariate.center) / covariate.scale


def _categorical(covariate: Categorical, values: list[Any]) -> Array:
    levels = [str(value) if str(value) in covariate.levels else level_of(value) for value in values]
    unknown = Counter(level for level in levels if level not in covariate.levels)
    if unknown:
        named = ", ".join(f"{level!r} ({n} rows)" for level, n in unknown.most_common(5))
        raise DesignError(
            f"covariate '{covariate.name}' has levels outside the agreed {', '.join(covariate.levels)}: {named}. "
            "Recode them, or agree on them."
        )
    return np.array(
        [[float(level == agreed) for agreed in covariate.levels[1:]] for level in levels], dtype=np.float64
    ).reshape(len(values), len(covariate.levels) - 1)


def level_of(value: Any) -> str:
    """A value as people write it: a table with a missing value makes 2.0 of the code 2."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
