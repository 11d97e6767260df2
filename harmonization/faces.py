"""Residualization and projection of pooled tables, with scikit-learn's manners, for work in a notebook."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmonization.errors import TableError
from harmonization.projection import Projection, ProjectionModel
from harmonization.protocol import Array, SiteTable, run_pooled
from harmonization.residualization import Residualization, ResidualizationModel


class Residualizer:
    """Takes linear effects of covariates, and of the site, out of features.

    Parameters
    ----------
    site : bool
        Whether the site is one of the effects to remove.

    Attributes
    ----------
    model_ : ResidualizationModel
        What was fitted.

    Examples
    --------
    >>> residualizer = Residualizer().fit(X_train, covariates_train, site_train)
    >>> residualizer.transform(X_test, covariates_test, site_test)
    """

    def __init__(self, site: bool = True) -> None:
        self.site = site

    def fit(self, X: ArrayLike, covariates: ArrayLike | None = None, site: Sequence[Any] | None = None) -> Self:
        """Estimate from rows X [n, p], covariates [n, q] (or None) and the site of each row, if sites are an effect."""
        tables = self._by_site(X, covariates, site)
        self.model_: ResidualizationModel = run_pooled(
            Residualization(self.site), [table for table, _ in tables.values()]
        )
        self._centres = {name: self.model_.centre(table.features, table.design) for name, (table, _) in tables.items()}
        return self

    def transform(self, X: ArrayLike, covariates: ArrayLike | None = None, site: Sequence[Any] | None = None) -> Array:
        """Residuals [n, p] of rows. The mean of a site that was not fitted is that of the rows given."""
        tables = self._by_site(X, covariates, site)
        residuals = np.empty(np.shape(X))
        for name, (table, rows) in tables.items():
            centre = self._centres.get(name) or self.model_.centre(table.features, table.design)
            residuals[rows] = self.model_.remove(table.features, table.design, centre)
        return residuals

    def fit_transform(
        self, X: ArrayLike, covariates: ArrayLike | None = None, site: Sequence[Any] | None = None
    ) -> Array:
        """Estimate from rows and return their residuals."""
        return self.fit(X, covariates, site).transform(X, covariates, site)

    def _by_site(
        self, X: ArrayLike, covariates: ArrayLike | None, site: Sequence[Any] | None
    ) -> dict[Any, tuple[SiteTable, NDArray[np.int64]]]:
        """Rows of each site as a table, and where they are; all rows together if sites are no effect."""
        table = _table(X, covariates)
        if not self.site:
            return {None: (table, np.arange(table.n))}
        labels = np.asarray(site)
        if labels.shape != (table.n,):
            raise TableError(f"site has shape {labels.shape}; expected ({table.n},), one name a row.")
        places = {name: np.flatnonzero(labels == name) for name in np.unique(labels).tolist()}
        return {name: (table.take(rows), rows) for name, rows in places.items()}


class Projector:
    """Principal components of features.

    Parameters
    ----------
    n_components : int
        How many components to keep.

    Attributes
    ----------
    mean_, components_, explained_variance_, explained_variance_ratio_ : numpy.ndarray
        [p], [k, p], [k] and [k], as scikit-learn's `PCA` has them.

    Examples
    --------
    >>> scores = Projector(50).fit(X_train).transform(X_test)
    """

    def __init__(self, n_components: int) -> None:
        self.n_components = n_components

    def fit(self, X: ArrayLike) -> Self:
        """Find the components of rows X [n, p]."""
        self.model_: ProjectionModel = run_pooled(Projection(self.n_components), [_table(X)])
        self.mean_ = self.model_.mean
        self.components_ = self.model_.components
        self.explained_variance_ = self.model_.explained_variance
        self.explained_variance_ratio_ = self.model_.explained_variance / self.model_.total_variance
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Scores [n, k] of rows."""
        return self.model_.project(_table(X).features)

    def fit_transform(self, X: ArrayLike) -> Array:
        """Find the components of rows and return their scores."""
        return self.fit(X).transform(X)


def _table(X: ArrayLike, covariates: ArrayLike | None = None) -> SiteTable:
    return SiteTable(
        np.asarray(X, dtype=np.float64), None if covariates is None else np.asarray(covariates, dtype=np.float64)
    )
