"""Principal components of all sites' features, from sums."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import eigh

from harmonization.errors import HarmonizationError
from harmonization.protocol import Analysis, Array, SiteTable, State, Sums

_EXACT_UP_TO = 1024
"""Features up to which the p x p second moment is summed; above, a sketch of it."""
_SKETCH_AT_LEAST = 512
"""Columns of a sketch, if there are as many participants."""
_PASSES = 3
"""Times that a sketch narrower than the data's rank is refined."""


@dataclass(frozen=True)
class Centre(State):
    """Mean [p] over all sites, and the number of participants."""

    mean: Array
    n: float


@dataclass(frozen=True)
class Basis(State):
    """Mean [p], an orthonormal basis [p, l] of the space that the features span, and how often yet to refine it."""

    mean: Array
    n: float
    basis: Array
    passes: int


@dataclass(frozen=True)
class ProjectionModel(State):
    """Principal components.

    Attributes
    ----------
    mean : numpy.ndarray
        [p].
    components : numpy.ndarray
        [k, p], orthonormal rows; the largest loading of each is positive.
    explained_variance : numpy.ndarray
        [k], with n - 1 in the denominator.
    total_variance : float
        Sum of the variances of all features.
    """

    mean: Array
    components: Array
    explained_variance: Array
    total_variance: float

    done: ClassVar[bool] = True

    def project(self, features: Array) -> Array:
        """Scores [n, k] of features [n, p]."""
        scores: Array = (features - self.mean) @ self.components.T
        return scores


@dataclass(frozen=True)
class Projection(Analysis):
    """Principal components by eigendecomposition of summed second moments.

    The first round sums to the mean, the second to the second moment about it. Above 1,024 features that would be too
    large to send: it is then multiplied by a public random matrix [p, l], and a last round sums to the second moment
    inside the space of the l products (Halko, Martinsson & Tropp, SIAM Review 2011). This is exact when l is at least
    n - 1, the rank of the data: so always for n / 2 components. Below, three more rounds of the power method refine it.

    Parameters
    ----------
    n_components : int
        How many components to keep.
    """

    n_components: int

    name: ClassVar[str] = "projection"
    states: ClassVar[tuple[type[State], ...]] = (Centre, Basis, ProjectionModel)

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        if isinstance(state, Basis):
            centred = table.features - state.mean
            inside = centred @ state.basis
            if state.passes:
                return {"sketch": centred.T @ inside}
            return {"moment": inside.T @ inside, "squares": np.array((centred**2).sum())}
        if isinstance(state, Centre):
            centred = table.features - state.mean
            if len(state.mean) > _EXACT_UP_TO:
                return {"sketch": centred.T @ (centred @ self._random(state))}
            return {"moment": centred.T @ centred, "squares": np.array((centred**2).sum())}
        return {"n": np.array(float(table.n)), "feature_sum": table.features.sum(axis=0)}

    def solve(self, total: Sums, state: State | None) -> State:
        if isinstance(state, Centre | Basis):
            if "sketch" in total:
                passes = state.passes - 1 if isinstance(state, Basis) else self._passes(state)
                return Basis(state.mean, state.n, np.linalg.qr(total["sketch"]).Q, passes)
            return self._components(total, state)
        n = float(total["n"])
        most = min(len(total["feature_sum"]), int(n) - 1)
        if not 1 <= self.n_components <= most:
            raise HarmonizationError(
                f"n_components is {self.n_components}; expected 1 to {most} for {int(n)} participants with "
                f"{len(total['feature_sum'])} features."
            )
        return Centre(total["feature_sum"] / n, n)

    def _width(self, state: Centre) -> int:
        return min(len(state.mean), max(2 * self.n_components + 10, min(int(state.n), _SKETCH_AT_LEAST)))

    def _passes(self, state: Centre) -> int:
        return 0 if self._width(state) >= state.n - 1 else _PASSES

    def _random(self, state: Centre) -> Array:
        """Public random matrix [p, l]."""
        return np.random.default_rng(0).normal(size=(len(state.mean), self._width(state)))

    def _components(self, total: Sums, state: Centre | Basis) -> ProjectionModel:
        last = len(total["moment"]) - 1
        values, vectors = eigh(total["moment"], subset_by_index=(last - self.n_components + 1, last))
        vectors = vectors[:, ::-1]
        components = (state.basis @ vectors if isinstance(state, Basis) else vectors).T
        largest = np.abs(components).argmax(axis=1)
        components = components * np.sign(components[np.arange(len(components)), largest])[:, None]
        variance = np.maximum(values[::-1], 0) / (state.n - 1)
        return ProjectionModel(state.mean, components, variance, float(total["squares"]) / (state.n - 1))
