"""Cross-validation without leakage: sites are made alike from the training rows alone, then others are scored.

Either each site deals its participants into folds with its own seed, or whole sites are left out in turn. Rounds first
fit a harmonization for each part left out, over the rows of the other parts; then an analysis takes its own rounds over
rows that are harmonized so. No held-out row touches the harmonization or the probe that is tried on it. Loadings, where
a table has them, were found without covariates or targets, on everybody.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from harmonization.errors import SmallGroupError, TableError
from harmonization.harmonizer import Harmonizer
from harmonization.methods import make_harmonizer
from harmonization.protocol import Analysis, Array, SiteTable, State, Sums


@dataclass(frozen=True)
class Fold:
    """One site's rows with one part left out.

    Attributes
    ----------
    features : numpy.ndarray
        [n, k], as the training rows harmonize them, seen through the table's loadings.
    training : numpy.ndarray
        [n] bool: rows that may be learned from; none where the site as a whole is left out.
    """

    features: Array
    training: NDArray[np.bool_]


@dataclass(frozen=True)
class Progress(State):
    """Where a cross-validation stands.

    Attributes
    ----------
    models : tuple of State or None
        Harmonization of each part left out, as far as it is.
    own : State or None
        What the analysis itself found since.
    """

    models: tuple[State | None, ...]
    own: State | None = None

    @property
    def harmonized(self) -> bool:
        """Whether every harmonization is done."""
        return all(model is not None and model.done for model in self.models)

    @property
    def kind(self) -> str:
        return "|".join("" if state is None else state.kind for state in (*self.models, self.own))

    def to_arrays(self) -> Sums:
        named = {**{str(fold): model for fold, model in enumerate(self.models)}, "own": self.own}
        return {
            f"{part}/{name}": values
            for part, state in named.items()
            if state is not None
            for name, values in state.to_arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        raise NotImplementedError("only `CrossValidation.read_state` knows the kinds of its parts")


@dataclass(frozen=True)
class CrossValidation(Analysis):
    """What every cross-validated analysis shares.

    Parameters
    ----------
    n_folds : int
        Folds, dealt within each site.
    sites : sequence of str
        Names of all sites, to leave out whole sites in turn instead; empty for folds. A site that is left out is
        harmonized as a new one, from all its own rows. The sums without a site show that site's by subtraction.
    method : str
        How sites are made alike, a name of `harmonization.METHODS`.
    options : dict
        Options of the method.
    """

    n_folds: int = 5
    sites: tuple[str, ...] = ()
    method: str = "none"
    options: dict[str, Any] = field(default_factory=dict)

    @abstractmethod
    def summarize_folds(self, table: SiteTable, folds: list[Fold], own: State | None) -> Sums:
        """At a site: sums of this round, over harmonized rows; `own` is None in the analysis' first round."""

    @abstractmethod
    def solve_folds(self, total: Sums, own: State | None) -> State:
        """At the coordinator: the analysis' next state, or its answer."""

    @property
    def n_parts(self) -> int:
        """How many parts are left out in turn, K."""
        return len(self.sites) or self.n_folds

    @property
    def harmonizer(self) -> Harmonizer:
        """The method, ready to use."""
        return make_harmonizer(self.method, self.options)

    @property
    def asks_for(self) -> tuple[str, ...]:
        names = (self.name,) if self.method == "none" else (self.name, self.method)
        return (*names, "leave_one_site_out") if self.sites else names

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        if state is None:
            self._check(table)
        progress = self._progress(state)
        if progress.harmonized:
            return self.summarize_folds(table, list(self._folds(table, progress)), progress.own)
        left_out, harmonizer = self.deal(table), self.harmonizer
        sums: Sums = {}
        for fold, model in enumerate(progress.models):
            if model is None or not model.done:
                part = _sum_over(harmonizer, model, table, left_out != fold)
                sums |= {f"{fold}/{name}": values for name, values in part.items()}
        return sums

    def solve(self, total: Sums, state: State | None) -> State:
        progress = self._progress(state)
        if progress.harmonized:
            own = self.solve_folds(total, progress.own)
            return own if own.done else Progress(progress.models, own)
        harmonizer = self.harmonizer
        return Progress(
            tuple(
                model if model is not None and model.done else harmonizer.solve(_part(total, str(fold)), model)
                for fold, model in enumerate(progress.models)
            )
        )

    def read_state(self, kind: str, arrays: Mapping[str, NDArray[Any]]) -> State:
        if "|" not in kind:
            return super().read_state(kind, arrays)
        *models, own = kind.split("|")
        harmonizer = self.harmonizer
        return Progress(
            tuple(
                harmonizer.read_state(model, _part(arrays, str(fold))) if model else None
                for fold, model in enumerate(models)
            ),
            super().read_state(own, _part(arrays, "own")) if own else None,
        )

    def deal(self, table: SiteTable) -> NDArray[np.int64]:
        """Part [n] that each row belongs to: its site's, or a fold, balanced within the site, from its own seed."""
        if self.sites:
            if table.site not in self.sites:
                raise TableError("a site is not among those that are left out in turn. Name all sites.")
            return np.full(table.n, list(self.sites).index(table.site))
        order = np.random.default_rng([table.seed, 0]).permutation(table.n)
        folds = np.empty(table.n, dtype=np.int64)
        folds[order] = np.arange(table.n) % self.n_folds
        return folds

    def _progress(self, state: State | None) -> Progress:
        if isinstance(state, Progress):
            return state
        return Progress((self.harmonizer.initial(),) * self.n_parts)

    def _check(self, table: SiteTable) -> None:
        if self.sites:
            return
        if table.n < self.n_folds:
            raise TableError(f"a site has {table.n} participants for {self.n_folds} folds. Use fewer folds.")
        if table.n // self.n_folds < table.min_group:  # the sums with one fold left out give that fold's by subtraction
            raise SmallGroupError(
                f"{table.n} participants in {self.n_folds} folds are fewer than {table.min_group} in each. "
                "Use fewer folds."
            )

    def _folds(self, table: SiteTable, progress: Progress) -> Iterator[Fold]:
        """Yield the site's rows as each part's training rows harmonize them."""
        left_out, harmonizer = self.deal(table), self.harmonizer
        for fold, model in enumerate(progress.models):
            training = left_out != fold
            assert model is not None, "the harmonization is done"
            # A site that is left out as a whole is a new one: all it can learn its own effect from are its own rows.
            effect = harmonizer.estimate(model, table.take(training) if training.any() else table)
            features = harmonizer.apply(model, table, effect)
            yield Fold(features if table.loadings is None else features @ table.loadings, training)


@dataclass(frozen=True)
class Centres(State):
    """First round of an analysis: what the training rows have in common with each of K parts left out.

    Attributes
    ----------
    n : numpy.ndarray
        [K], training rows.
    mean : numpy.ndarray
        [K, k], of the features.
    target_mean : numpy.ndarray
        [K, m].
    """

    n: Array
    mean: Array
    target_mean: Array


def summarize_centres(table: SiteTable, folds: list[Fold]) -> Sums:
    """Return the sums that `solve_centres` needs."""
    target = target_of(table)
    return {
        "n": np.array([float(fold.training.sum()) for fold in folds]),
        "feature_sum": np.stack([fold.features[fold.training].sum(axis=0) for fold in folds]),
        "target_sum": np.stack([target[fold.training].sum(axis=0) for fold in folds]),
    }


def solve_centres(total: Sums) -> Centres:
    """Return the means over the training rows of all sites."""
    n = total["n"]
    if (n < 1).any():
        raise TableError("nobody is left to learn from when one part is left out. Use more sites, or folds.")
    return Centres(n, total["feature_sum"] / n[:, None], total["target_sum"] / n[:, None])


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


def _sum_over(analysis: Analysis, state: State | None, table: SiteTable, rows: NDArray[np.bool_]) -> Sums:
    """Sums of an analysis over some rows of a table; zeros of the same shapes where there are none."""
    if rows.any():
        return analysis.summarize(table.take(rows), state)
    return {name: np.zeros_like(values) for name, values in analysis.summarize(table, state).items()}


def _part(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(f"{part}/"): values for name, values in arrays.items() if name.startswith(f"{part}/")}
