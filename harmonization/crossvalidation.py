"""Cross-validation inside the sites, with ComBat fitted on the training folds alone.

Each site deals its participants into folds with its own seed. A round sums, for every fold left out, over the
participants of the other folds: no held-out row touches the ComBat or the probe that is tried on it. Loadings, where a
table has them, were found without covariates or targets, on everybody.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from harmonization import combat
from harmonization.combat import ComBatModel, Prior
from harmonization.errors import SmallGroupError, TableError
from harmonization.protocol import Analysis, Array, SiteTable, State, Sums

AnyFits = TypeVar("AnyFits", bound="Moments")


@dataclass(frozen=True)
class Fold:
    """One site's rows with one fold left out: harmonized features, and which rows train."""

    features: Array
    training: NDArray[np.bool_]


@dataclass(frozen=True)
class Moments(State):
    """First round: what the training rows of each of K folds have in common.

    Attributes
    ----------
    n : numpy.ndarray
        [K], training participants.
    mean : numpy.ndarray
        [K, k], of the features as the analysis sees them.
    target_mean : numpy.ndarray
        [K, m].
    coefficients, grand_mean, pooled_variance : numpy.ndarray
        [K, q, p], [K, p], [K, p] of the covariates' effects and ComBat; empty ([0, ...]) where neither is needed.
    """

    n: Array
    mean: Array
    target_mean: Array
    coefficients: Array
    grand_mean: Array
    pooled_variance: Array

    def fitted(self, kind: type[AnyFits], **values: Array) -> AnyFits:
        """Return the state after the second round: these moments, and `values` that were fitted."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return kind(**{**own, **values})

    def combat_of(self, fold: int) -> ComBatModel | None:
        """ComBat of the training rows with `fold` left out, if there is one."""
        if not len(self.grand_mean):
            return None
        return ComBatModel(
            self.coefficients[fold], self.grand_mean[fold], self.pooled_variance[fold], float(self.n[fold])
        )


@dataclass(frozen=True)
class CrossValidation(Analysis):
    """Rounds that every cross-validated analysis shares: moments, then a fit, then scores.

    Parameters
    ----------
    n_folds : int
        Folds, dealt within each site.
    combat : bool
        Whether to harmonize, with the table's covariates kept, by ComBat fitted on the training folds.
    prior : {"parametric", "nonparametric", "none"}
        ComBat's prior.
    """

    n_folds: int = 5
    combat: bool = False
    prior: Prior = "parametric"

    removes_covariates: ClassVar[bool] = False

    @abstractmethod
    def summarize_training(self, table: SiteTable, moments: Moments, folds: list[Fold]) -> Sums:
        """Sums over each fold's training rows."""

    @abstractmethod
    def fit(self, total: Sums, moments: Moments) -> Moments:
        """Models of each fold: a subclass of `Moments` that carries them along."""

    @abstractmethod
    def summarize_scores(self, table: SiteTable, fitted: Any, folds: list[Fold]) -> Sums:
        """Scores of the held-out rows."""

    @abstractmethod
    def score(self, total: Sums, fitted: Any) -> State:
        """Final answer."""

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        if not isinstance(state, Moments):
            return self._summarize_moments(table)
        folds = list(self._folds(table, state))
        if type(state) is Moments:
            return self.summarize_training(table, state, folds)
        return self.summarize_scores(table, state, folds)

    def solve(self, total: Sums, state: State | None) -> State:
        if not isinstance(state, Moments):
            return self._solve_moments(total)
        if type(state) is Moments:
            return self.fit(total, state)
        return self.score(total, state)

    def adjusted(self, harmonized: Array, table: SiteTable, model: ComBatModel) -> Array:
        """Return harmonized features [n, p] as the analysis wants them: here, as they are."""
        return harmonized

    def _models_covariates(self, n_columns: int) -> bool:
        """Whether the rounds need the effects of the covariates: for ComBat, or to take them out."""
        return self.combat or (self.removes_covariates and n_columns > 0)

    def deal(self, table: SiteTable) -> NDArray[np.int64]:
        """Fold of each row, balanced within the site, from the site's own seed."""
        order = np.random.default_rng([table.seed, 0]).permutation(table.n)
        folds = np.empty(table.n, dtype=np.int64)
        folds[order] = np.arange(table.n) % self.n_folds
        return folds

    def _summarize_moments(self, table: SiteTable) -> Sums:
        if table.n < self.n_folds:
            raise TableError(f"a site has {table.n} participants for {self.n_folds} folds. Use fewer folds.")
        if table.n // self.n_folds < table.min_group:  # the sums with one fold left out give that fold's by subtraction
            raise SmallGroupError(
                f"{table.n} participants in {self.n_folds} folds are fewer than {table.min_group} in each. "
                "Use fewer folds."
            )
        target, folds = target_of(table), self.deal(table)
        parts = []
        for fold in range(self.n_folds):
            rows = folds != fold
            sums = combat.summarize(table.features[rows], table.design[rows])
            if not self._models_covariates(table.design.shape[1]):
                sums = {name: sums[name] for name in ("n", "feature_sum")}
            if table.loadings is not None:
                sums["seen_sum"] = sums["feature_sum"] @ table.loadings
            parts.append({**sums, "target_sum": target[rows].sum(axis=0)})
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def _solve_moments(self, total: Sums) -> Moments:
        n = total["n"]
        if self._models_covariates(total["W"].shape[-1] if "W" in total else 0):
            models = [
                combat.solve({name: values[fold] for name, values in total.items()}) for fold in range(self.n_folds)
            ]
            shared = [
                np.stack([getattr(model, name) for model in models])
                for name in ("coefficients", "grand_mean", "pooled_variance")
            ]
        else:
            shared = [np.empty((0, 0, 0)), np.empty((0, 0)), np.empty((0, 0))]
        seen = total.get("seen_sum", total["feature_sum"])
        return Moments(n, seen / n[:, None], total["target_sum"] / n[:, None], *shared)

    def _folds(self, table: SiteTable, moments: Moments) -> Iterator[Fold]:
        """Yield the site's rows as each fold's training rows would harmonize them."""
        folds = self.deal(table)
        for fold in range(self.n_folds):
            training = folds != fold
            model = moments.combat_of(fold)
            if model is None:
                yield Fold(_seen(table.features, table), training)
            else:
                harmonized = table.features
                if self.combat:
                    effect = model.site_effect(table.features[training], table.design[training], prior=self.prior)
                    harmonized = model.remove(table.features, table.design, effect)
                yield Fold(_seen(self.adjusted(harmonized, table, model), table), training)


def _seen(features: Array, table: SiteTable) -> Array:
    return features if table.loadings is None else features @ table.loadings


def target_of(table: SiteTable) -> Array:
    """Target of the table as [n, m].

    Raises
    ------
    TableError
        If it has none.
    """
    if table.target is None:
        raise TableError("the table has no target. Name what to predict.")
    return table.target.reshape(table.n, -1)
