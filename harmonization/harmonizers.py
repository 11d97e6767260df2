"""A scikit-learn-like face for every way of making sites alike, for tables that lie pooled in one place.

It goes through the rounds of a federation, one table a site, so its answers are those of the federation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from harmonization import saving
from harmonization.design import Categorical, Continuous, Covariate, Design
from harmonization.errors import HarmonizationError, TableError
from harmonization.harmonizer import Harmonizer
from harmonization.protocol import Array, SiteTable, State, run_pooled


class PooledHarmonizer:
    """Any method on pooled tables: `fit`, `transform`, `save` and `load`.

    Attributes
    ----------
    method : Harmonizer
    model_ : State
        What the sites share, after `fit`.
    effects_ : dict
        Site → its own effect.
    feature_names_ : tuple of str or None
        Names of the columns of X, if it had any.
    design_ : Design or None
        How named covariates are coded; None if they came as a matrix, or not at all.

    Examples
    --------
    >>> harmonizer = PooledHarmonizer(make_harmonizer("combat", {"prior": "none"}))
    >>> harmonizer.fit(X_train, covariates_train, site_train).transform(X_test, covariates_test, site_test)
    """

    method_type: ClassVar[type[Any]] = Harmonizer
    """The methods that a face may load; a face for one method names it."""

    def __init__(self, method: Harmonizer) -> None:
        self.method = method

    def fit(self, X: Any, covariates: Any, site: Sequence[Any], *, participant: Sequence[Any] | None = None) -> Self:
        """Estimate what sites share, and each site's effect.

        Parameters
        ----------
        X : array-like or table
            [n, p] numbers. The names of a table's columns are remembered.
        covariates : array-like, mapping or table, optional
            What is to be kept: a design matrix [n, q], or named columns of numbers and categories. The levels found
            are those that `transform` accepts.
        site : sequence
            Site of each row.
        participant : sequence, optional
            Whose row each is, where participants have several.
        """
        self.feature_names_ = _column_names(X)
        self.design_ = _learned_design(covariates) if _is_named(covariates) else None
        tables = [table for _, table in self._by_site(X, covariates, site, participant)]
        initial = self.method.initial()
        self.model_: State = run_pooled(self.method, tables) if initial is None else initial
        self.effects_ = {table.site: self._estimate(table) for table in tables}
        return self

    def transform(
        self, X: Any, covariates: Any, site: Sequence[Any], *, participant: Sequence[Any] | None = None
    ) -> Array:
        """Harmonize rows [n, p]. The effect of a site that was not fitted is estimated from the rows given."""
        if not hasattr(self, "model_"):
            raise HarmonizationError("this harmonizer is not fitted. Call fit before transform, or load one.")
        self._check_columns(X, covariates)
        harmonized = np.empty(np.shape(X))
        for rows, table in self._by_site(X, covariates, site, participant):
            effect = self.effects_.get(table.site)
            if effect is None:
                effect = self._estimate(table)
            harmonized[rows] = self.method.apply(self.model_, table, effect)
        return harmonized

    def fit_transform(
        self, X: Any, covariates: Any, site: Sequence[Any], *, participant: Sequence[Any] | None = None
    ) -> Array:
        """Estimate from rows and harmonize them."""
        fitted = self.fit(X, covariates, site, participant=participant)
        return fitted.transform(X, covariates, site, participant=participant)

    def save(self, path: Path | str) -> None:
        """Write everything that `transform` needs to one file of safetensors and JSON."""
        if not hasattr(self, "model_"):
            raise HarmonizationError("this harmonizer is not fitted. Call fit before save.")
        arrays = {f"model.{name}": values for name, values in self.model_.to_arrays().items()}
        for number, effect in enumerate(self.effects_.values()):
            arrays |= {f"site.{number}.{name}": values for name, values in effect.to_arrays().items()}
        about = {
            "method": self.method.name,
            "parameters": self.method.parameters(),
            "model": self.model_.kind,
            "sites": [[name, _qualified(type(effect))] for name, effect in self.effects_.items()],
            "features": self.feature_names_,
            "design": None if self.design_ is None else self.design_.to_json(),
        }
        saving.write(path, arrays, about)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a harmonizer that `save` wrote.

        Raises
        ------
        HarmonizationError
            If the file is damaged, or holds another kind of harmonizer.
        """
        from harmonization.methods import make_harmonizer  # methods import this module for their own faces

        arrays, about = saving.read(path)
        try:
            method = make_harmonizer(about["method"], about["parameters"])
            if not isinstance(method, cls.method_type):
                raise HarmonizationError(
                    f"{path}: holds the method '{method.name}'. Load it with PooledHarmonizer, or the face of its own."
                )
            loaded = cls.__new__(cls)
            PooledHarmonizer.__init__(loaded, method)  # a face's own takes options
            loaded.model_ = method.read_state(about["model"], _part(arrays, "model."))
            loaded.effects_ = {
                name: _state_type(kind).from_arrays(_part(arrays, f"site.{number}."))
                for number, (name, kind) in enumerate(about["sites"])
            }
            loaded.feature_names_ = None if about["features"] is None else tuple(about["features"])
            loaded.design_ = None if about["design"] is None else Design.from_json(about["design"])
        except (KeyError, TypeError, ValueError):
            raise HarmonizationError(f"{path}: was saved by another version. Fit and save it again.") from None
        return loaded

    def _estimate(self, table: SiteTable) -> State:
        try:
            return self.method.estimate(self.model_, table)
        except HarmonizationError as error:
            raise type(error)(f"site '{table.site}': {error}") from None

    def _check_columns(self, X: Any, covariates: Any) -> None:
        """Check that columns are named as in `fit`, where both have names."""
        names, expected = _column_names(X), self.feature_names_
        if names is not None and expected is not None and names != expected:
            raise TableError(
                f"the {len(names)} features of X are not the {len(expected)} that were fitted, in the same order. "
                "Give the same columns."
            )
        if covariates is not None and _is_named(covariates) != (self.design_ is not None):
            raise TableError("covariates had names in one of fit and transform only. Give the same columns to both.")

    def _by_site(
        self, X: Any, covariates: Any, site: Sequence[Any], participant: Sequence[Any] | None
    ) -> list[tuple[NDArray[np.int64], SiteTable]]:
        """Check the rows, and return each site's: their numbers and their table."""
        features = _matrix(X, "X")
        n = len(features)
        names = np.array([site_name(label) for label in _labels(site, n, "site")])
        codes = None
        if participant is not None:
            codes = _participant_codes([site_name(label) for label in _labels(participant, n, "participant")], names)
        table = SiteTable(
            features,
            self._design_matrix(covariates, n),
            participant=codes,
            incomplete=getattr(self.method, "missing", "refuse") != "refuse",
        )
        by_site = [(name, np.flatnonzero(names == name)) for name in np.unique(names).tolist()]
        return [(rows, replace(table.take(rows), site=name, seed=seed)) for seed, (name, rows) in enumerate(by_site)]

    def _design_matrix(self, covariates: Any, n: int) -> Array | None:
        if covariates is None and not self.design_:
            return None
        if self.design_ is None:
            return _matrix(covariates, "covariates")
        columns = _named_columns(covariates if covariates is not None else {})
        for name in self.design_.names:
            if name in columns and len(columns[name]) != n:
                raise TableError(f"covariate '{name}' has {len(columns[name])} values; expected {n}, one a row of X.")
        return self.design_.encode(columns, n)


def site_name(label: Any) -> str:
    """Name of a site: its label, where 3, 3.0 and "3" are the same.

    Raises
    ------
    TableError
        If the label is missing.
    """
    if _is_missing(label) or str(label) == "":
        raise TableError("a row has no name of its site or participant. Leave it out, or name it.")
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def _labels(labels: Sequence[Any], n: int, what: str) -> list[Any]:
    values = np.asarray(labels, dtype=object)
    if values.shape != (n,):
        raise TableError(f"{what} has shape {values.shape}; expected ({n},), one name a row.")
    found: list[Any] = values.tolist()
    return found


def _participant_codes(participants: list[str], sites: NDArray[np.str_]) -> NDArray[np.int64]:
    """Numbers for participants, each of whom has been at one site."""
    place: dict[str, str] = {}
    for participant, site in zip(participants, sites.tolist(), strict=True):
        if place.setdefault(participant, site) != site:
            raise TableError(
                f"participant '{participant}' has rows at two sites, '{place[participant]}' and '{site}'. Traveling "
                "participants are not supported: name them apart, or keep one site of each."
            )
    numbers = {participant: number for number, participant in enumerate(place)}
    return np.array([numbers[participant] for participant in participants], dtype=np.int64)


def _matrix(values: Any, what: str) -> Array:
    """Return numbers [n, columns]; a vector is one column."""
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise TableError(
            f"{what} holds values that are no numbers. Give numbers; categories of covariates go in named columns."
        ) from None
    return matrix[:, None] if matrix.ndim == 1 and what == "covariates" else matrix


def _is_named(covariates: Any) -> bool:
    return isinstance(covariates, Mapping) or hasattr(covariates, "columns")


def _column_names(X: Any) -> tuple[str, ...] | None:
    return tuple(str(name) for name in X.columns) if hasattr(X, "columns") else None


def _is_missing(value: Any) -> bool:
    """Whether a value of a column is None, NaN (which is not itself), or what pandas writes for either."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


def _named_columns(covariates: Any) -> dict[str, list[Any]]:
    """Columns of a mapping or a table; missing values become None."""
    names = covariates.columns if hasattr(covariates, "columns") else covariates
    return {str(name): [None if _is_missing(value) else value for value in covariates[name]] for name in names}


def _learned_design(covariates: Any) -> Design:
    """Coding of named columns: numbers as they are, anything else by the levels found."""
    coded: list[Covariate] = []
    for name, values in _named_columns(covariates).items():
        known = [value for value in values if value is not None]
        if all(isinstance(value, Real | np.bool_) for value in known):
            coded.append(Continuous(name))
        else:
            coded.append(Categorical(name, tuple(sorted({str(value) for value in known}))))
    return Design(tuple(coded))


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _qualified(kind: type[State]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _state_type(name: str) -> type[State]:
    """Find a state by its full name among those that the loaded methods define; nothing is imported for it."""
    found, pending = {}, [State]
    while pending:
        kind = pending.pop()
        found[_qualified(kind)] = kind
        pending.extend(kind.__subclasses__())
    return found[name]
