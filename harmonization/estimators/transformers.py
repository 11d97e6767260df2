"""Residualization and projection of pooled tables, with scikit-learn's manners, for work in a notebook."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from harmonization.core.errors import HarmonizationError, TableError
from harmonization.core.protocol import SiteTable, run_pooled
from harmonization.estimators.columns import Columns, check_rows, split, table_like
from harmonization.methods.projection import Projection, ProjectionModel
from harmonization.methods.residualization import Residualization, ResidualizationModel


class Residualizer:
    """Takes linear effects of covariates, and of the site, out of features.

    A pandas table comes back as one, with its columns and index; anything else as an array. Features may not be NaN.

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

    def fit(self, X: Any, covariates: Any = None, site: Sequence[Any] | None = None) -> Self:
        """Estimate from rows X [n, p], covariates [n, q] or None, and the site of each row, if sites are an effect.

        Covariates may be named columns of numbers and categories, whose levels are then those found here.
        """
        self._columns = Columns.learn(X, covariates)
        by_site = self._by_site(X, covariates, site)
        self.model_: ResidualizationModel = run_pooled(Residualization(self.site), [table for _, table in by_site])
        self._centres = {table.site: self.model_.centre(table.features, table.design) for _, table in by_site}
        return self

    def transform(self, X: Any, covariates: Any = None, site: Sequence[Any] | None = None) -> Any:
        """Residuals [n, p] of rows. The mean of a site that was not fitted is that of the rows given."""
        if not hasattr(self, "model_"):
            raise HarmonizationError("this residualizer is not fitted. Call fit before transform.")
        self._columns.check(X, covariates)
        by_site = self._by_site(X, covariates, site)
        residuals = np.empty((sum(table.n for _, table in by_site), by_site[0][1].features.shape[1]))
        for rows, table in by_site:
            centre = self._centres.get(table.site) or self.model_.centre(table.features, table.design)
            residuals[rows] = self.model_.remove(table.features, table.design, centre)
        return table_like(X, residuals)

    def fit_transform(self, X: Any, covariates: Any = None, site: Sequence[Any] | None = None) -> Any:
        """Estimate from rows and return their residuals."""
        return self.fit(X, covariates, site).transform(X, covariates, site)

    def _by_site(
        self, X: Any, covariates: Any, site: Sequence[Any] | None
    ) -> list[tuple[NDArray[np.int64], SiteTable]]:
        """Rows of each site, where they are and as a table; all rows together if sites are no effect."""
        check_rows(X, covariates=covariates, site=site)
        table = self._columns.read(X, covariates)
        if not self.site:
            return [(np.arange(table.n), table)]
        if site is None:
            raise TableError("sites are to be removed, but there are none. Give one name a row, or use site=False.")
        return split(table, site)


class Projector:
    """Principal components of features.

    Of a pandas table the scores are one, too, with its index and columns ``c0``, ``c1``, …; of anything else an array.
    Features may not be NaN.

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

    def fit(self, X: Any) -> Self:
        """Find the components of rows X [n, p]."""
        self._columns = Columns.learn(X, None)
        self.model_: ProjectionModel = run_pooled(Projection(self.n_components), [self._columns.read(X, None)])
        self.mean_ = self.model_.mean
        self.components_ = self.model_.components
        self.explained_variance_ = self.model_.explained_variance
        self.explained_variance_ratio_ = self.model_.explained_variance / self.model_.total_variance
        return self

    def transform(self, X: Any) -> Any:
        """Scores [n, k] of rows."""
        if not hasattr(self, "model_"):
            raise HarmonizationError("this projector is not fitted. Call fit before transform.")
        self._columns.check(X, None)
        scores = self.model_.project(self._columns.read(X, None).features)
        return table_like(X, scores, [f"c{number}" for number in range(scores.shape[1])])

    def fit_transform(self, X: Any) -> Any:
        """Find the components of rows and return their scores."""
        return self.fit(X).transform(X)
