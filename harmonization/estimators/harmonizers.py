"""A scikit-learn-like face for every way of making sites alike, for tables that lie pooled in one place.

It goes through the rounds of a federation, one table a site, so its answers are those of the federation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from harmonization.core import saving
from harmonization.core.design import Design
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import SiteTable, State, run_pooled
from harmonization.estimators.columns import Columns, check_rows, participant_codes, site_name, split, table_like
from harmonization.methods.combat import ComBat, Missing, Prior
from harmonization.methods.harmonizer import Harmonizer, make_harmonizer


class PooledHarmonizer:
    """Any method on pooled tables: `fit`, `transform`, `save` and `load`.

    A pandas table comes back as one, with its columns and index; anything else as an array.

    Parameters
    ----------
    method : Harmonizer
        With its options, as `make_harmonizer` makes it. Covariates that have names may be smooth by name.

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
    >>> gam = PooledHarmonizer(make_harmonizer("combat_gam", {"smooth": {"age": [18, 90]}}))
    """

    method_type: ClassVar[type[Any]] = Harmonizer
    """The methods that a face may load; a face for one method names it."""

    def __init__(self, method: Harmonizer) -> None:
        if not isinstance(method, Harmonizer):
            raise HarmonizationError(f"method is {method!r}, and no way to harmonize. Make one with make_harmonizer.")
        self.method = method

    def fit(self, X: Any, covariates: Any, site: Sequence[Any], *, participant: Sequence[Any] | None = None) -> Self:
        """Estimate what sites share, and each site's effect.

        Parameters
        ----------
        X : array-like or table
            [n, p] numbers; NaN only where the method's ``missing`` allows it (`ComBat`). The names of a table's columns
            are remembered.
        covariates : array-like, mapping or table, optional
            What is to be kept: a design matrix [n, q], or named columns of numbers and categories. The levels found
            are those that `transform` accepts.
        site : sequence
            Site of each row.
        participant : sequence, optional
            Whose row each is, where participants have several.
        """
        columns = Columns.learn(X, covariates)
        self.feature_names_, self.design_ = columns.features, columns.design
        method = self._method
        tables = [table for _, table in self._by_site(X, covariates, site, participant)]
        initial = method.initial()
        if initial is None and len(tables) < 2:
            raise HarmonizationError(
                "all rows are of one site, and nothing is to be made alike. Give two sites or more."
            )
        self.model_: State = run_pooled(method, tables) if initial is None else initial
        self.effects_ = {table.site: self._estimate(table) for table in tables}
        return self

    def transform(
        self, X: Any, covariates: Any, site: Sequence[Any], *, participant: Sequence[Any] | None = None
    ) -> Any:
        """Harmonize rows [n, p]. The effect of a site that was not fitted is estimated from the rows given.

        Features that hardly vary at a site (`harmonization.core.variation`) come back as they were there: how many,
        ``effects_[site].n_unadjusted`` says. A table comes back as a table, an array as an array.
        """
        if not hasattr(self, "model_"):
            raise HarmonizationError("this harmonizer is not fitted. Call fit before transform, or load one.")
        self._columns.check(X, covariates)
        by_site = self._by_site(X, covariates, site, participant)
        harmonized = np.empty((sum(table.n for _, table in by_site), by_site[0][1].features.shape[1]))
        for rows, table in by_site:
            effect = self.effects_.get(table.site)
            if effect is None:
                effect = self._estimate(table)
            harmonized[rows] = self._method.apply(self.model_, table, effect)
        return table_like(X, harmonized)

    def fit_transform(
        self, X: Any, covariates: Any, site: Sequence[Any], *, participant: Sequence[Any] | None = None
    ) -> Any:
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
            return self._method.estimate(self.model_, table)
        except HarmonizationError as error:
            raise type(error)(f"site '{table.site}': {error}") from None

    @property
    def _method(self) -> Harmonizer:
        """The method, told the names of the covariates that were fitted."""
        return self.method if self.design_ is None else self.method.for_columns(self.design_.columns)

    @property
    def _columns(self) -> Columns:
        return Columns(self.feature_names_, self.design_)

    def _by_site(
        self, X: Any, covariates: Any, site: Sequence[Any], participant: Sequence[Any] | None
    ) -> list[tuple[NDArray[np.int64], SiteTable]]:
        """Check the rows, and return each site's: their numbers and their table."""
        check_rows(X, covariates=covariates, site=site, participant=participant)
        incomplete = getattr(self.method, "missing", "refuse") != "refuse"
        table = self._columns.read(X, covariates, incomplete=incomplete)
        if participant is not None:
            table = replace(table, participant=participant_codes(participant, site, table.n))
        return split(table, site)


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


class ComBatHarmonizer(PooledHarmonizer):
    """ComBat on pooled tables, with scikit-learn's manners.

    A pandas table comes back as one, with its columns and index; anything else as an array.

    Parameters
    ----------
    prior : {"parametric", "nonparametric", "none"}
        How a site's effects are shrunk towards those in its other features.
    mean_only : bool
        Remove shifts and leave scales.
    reference : optional
        Label of the site that all others are made alike to; its own rows stay as they are.
    missing : {"refuse", "complete", "per_feature"}
        What to do where features are NaN. "refuse" raises `TableError`. "complete" estimates everything from the rows
        that have all features, "per_feature" each feature from the rows that have it, as if it were harmonized alone.
        In both, every value that is there is harmonized, and NaN stays NaN. Covariates may never be missing.

    Examples
    --------
    >>> harmonizer = ComBatHarmonizer().fit(X_train, covariates_train, site_train)
    >>> harmonizer.transform(X_test, covariates_test, site_test)
    """

    method_type = ComBat

    def __init__(
        self,
        prior: Prior = "parametric",
        mean_only: bool = False,
        reference: Any = None,
        missing: Missing = "refuse",
    ) -> None:
        super().__init__(ComBat(prior, mean_only, None if reference is None else site_name(reference), missing))
