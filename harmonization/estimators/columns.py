"""Pooled rows as people hold them in a notebook, arrays or tables with named columns, made into tables of sites."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from harmonization.core.checks import as_numbers
from harmonization.core.design import Categorical, Continuous, Covariate, Design, level_of
from harmonization.core.errors import DesignError, TableError
from harmonization.core.protocol import Array, SiteTable


@dataclass(frozen=True)
class Columns:
    """How the columns were called when something was fitted: those of X, if they had names, and a design's.

    `design` says how named covariates are coded; it is None if they came as a matrix, or not at all.
    """

    features: tuple[str, ...] | None
    design: Design | None

    @classmethod
    def learn(cls, X: Any, covariates: Any) -> Self:
        """Look at what something is about to be fitted to. The levels found are those that are accepted later."""
        return cls(_column_names(X), _learned_design(covariates) if _is_named(covariates) else None)

    def check(self, X: Any, covariates: Any) -> None:
        """Refuse columns that are called otherwise, where both have names."""
        names = _column_names(X)
        if names is not None and self.features is not None and names != self.features:
            raise TableError(
                f"the {len(names)} features of X are not the {len(self.features)} that were fitted, in the same order. "
                "Give the same columns."
            )
        if covariates is not None and _is_named(covariates) != (self.design is not None):
            raise TableError("covariates had names in one of fit and transform only. Give the same columns to both.")

    def read(self, X: Any, covariates: Any, *, incomplete: bool = False) -> SiteTable:
        """Read all rows as one table; features may be missing if they are `incomplete`."""
        table = SiteTable(as_numbers(X, "X"), incomplete=incomplete)
        return replace(table, covariates=self._design_matrix(covariates, table.n))

    def _design_matrix(self, covariates: Any, n: int) -> Array | None:
        if covariates is None and not self.design:
            return None
        if self.design is None:
            matrix = as_numbers(covariates, "covariates")
            return matrix[:, None] if matrix.ndim == 1 else matrix
        columns = _named_columns(covariates if covariates is not None else {})
        for name in self.design.names:
            if name in columns and len(columns[name]) != n:
                raise TableError(f"covariate '{name}' has {len(columns[name])} values; expected {n}, one a row of X.")
        return self.design.encode(columns, n)


def table_like(X: Any, values: Array, names: Sequence[str] | None = None) -> Any:
    """Return `values` [n, k] as what they were made of: if X is a table of pandas, with its index.

    The k columns are called as those of X, or have `names` of their own.
    """
    if not (hasattr(X, "columns") and hasattr(X, "index")):
        return values
    return type(X)(values, index=X.index, columns=X.columns if names is None else list(names))


def split(table: SiteTable, sites: Sequence[Any]) -> list[tuple[NDArray[np.int64], SiteTable]]:
    """Return each site's rows of a table: their numbers, and the table of that name."""
    names = row_names(sites, table.n, "site")
    by_site = [(name, np.flatnonzero(names == name)) for name in np.unique(names).tolist()]
    return [(rows, replace(table.take(rows), site=name, seed=seed)) for seed, (name, rows) in enumerate(by_site)]


def check_rows(X: Any, **others: Any) -> None:
    """Refuse tables whose index has the labels of X in another order: their rows are those of other people.

    Rows are taken in their order, as scikit-learn does; an index of other labels says nothing of it.
    """
    if not hasattr(X, "index") or not hasattr(X, "columns"):
        return
    for name, table in others.items():
        index: Any = getattr(table, "index", None)
        if not hasattr(index, "equals") or len(index) != len(X.index) or index.equals(X.index):
            continue
        if set(index) == set(X.index):
            raise TableError(
                f"the index of {name} has the labels of X in another order. Sort both alike, as with "
                f"{name}.loc[X.index], or drop the index."
            )


def row_names(labels: Sequence[Any], n: int, what: str) -> NDArray[np.str_]:
    """Name [n] of each row's site, or of its participant."""
    values = np.asarray(labels, dtype=object)
    if values.shape != (n,):
        raise TableError(f"{what} has shape {values.shape}; expected ({n},), one name a row.")
    return np.array([site_name(label) for label in values.tolist()])


def site_name(label: Any) -> str:
    """Name of a site: its label, which may not be missing, and where 3, 3.0 and "3" are the same."""
    if _is_missing(label) or str(label) == "":
        raise TableError("a row has no name of its site or participant. Leave it out, or name it.")
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def participant_codes(participants: Sequence[Any], sites: Sequence[Any], n: int) -> NDArray[np.int64]:
    """Numbers [n] for participants, each of whom has been at one site."""
    place: dict[str, str] = {}
    people, at = row_names(participants, n, "participant").tolist(), row_names(sites, n, "site").tolist()
    for participant, site in zip(people, at, strict=True):
        if place.setdefault(participant, site) != site:
            raise TableError(
                f"participant '{participant}' has rows at two sites, '{place[participant]}' and '{site}'. Traveling "
                "participants are not supported: name them apart, or keep one site of each."
            )
    numbers = {participant: number for number, participant in enumerate(place)}
    return np.array([numbers[participant] for participant in people], dtype=np.int64)


def _is_named(covariates: Any) -> bool:
    return isinstance(covariates, Mapping) or hasattr(covariates, "columns")


def _column_names(X: Any) -> tuple[str, ...] | None:
    return tuple(str(name) for name in X.columns) if hasattr(X, "columns") else None


def _is_missing(value: Any) -> bool:
    """Whether a value of a column is None, NaN (which is not itself), or what pandas writes for either."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


def _named_columns(covariates: Any) -> dict[str, list[Any]]:
    """Columns of a mapping or a table; missing values become None."""
    names = list(covariates.columns if hasattr(covariates, "columns") else covariates)
    for name in names:
        if sum(str(name) == str(other) for other in names) > 1:
            raise DesignError(f"two covariates are called '{name}'. Rename one of them.")
        if np.asarray(covariates[name], dtype=object).ndim != 1:
            raise DesignError(f"covariate '{name}' is no column of values. Give one for each row.")
    return {str(name): [None if _is_missing(value) else value for value in covariates[name]] for name in names}


def _learned_design(covariates: Any) -> Design:
    """Coding of named columns: numbers as they are, text and what pandas calls a category by the levels found."""
    categories = {str(name) for name in covariates if str(getattr(covariates[name], "dtype", "")) == "category"}
    coded: list[Covariate] = []
    for name, values in _named_columns(covariates).items():
        known = [value for value in values if value is not None]
        if name not in categories and all(isinstance(value, Real | np.bool_) for value in known):
            coded.append(Continuous(name))
            continue
        if name not in categories and not all(isinstance(value, str) for value in known):
            raise DesignError(f"covariate '{name}' is neither numbers nor text throughout. Give one kind of values.")
        levels = tuple(sorted({level_of(value) for value in known}))
        if len(levels) < 2:
            raise DesignError(f"covariate '{name}' is the same for everybody, so it has no effect. Leave it out.")
        coded.append(Categorical(name, levels))
    return Design(tuple(coded))
