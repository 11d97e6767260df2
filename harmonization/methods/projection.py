"""Principal components of all sites' features, from sums."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import eigh

from harmonization.core.checks import check_width
from harmonization.core.declared import Declared, Widths, everybody
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register

_EXACT_UP_TO = 1024
"""Features up to which the p x p second moment is summed; above, a sketch of it."""
_SKETCH_AT_LEAST = 512
"""Columns of a sketch, if there are as many participants."""
_CONVERGED = 1e-10
"""Share of the largest variance that a sketch may leave outside of what is found."""
_MOST_PASSES = 8
"""Rounds after which a sketch that is narrower than the data's rank is taken as it is."""
_TIED = 1e-6
"""Relative difference of two loadings below which rounding could decide which is larger."""


class FeatureSums(Stage):
    """First round: sums of the features."""

    def part(self, analysis: Analysis, table: SiteTable) -> Sums:
        return {"n": np.array(float(table.n)), "feature_sum": table.features.sum(axis=0)}

    def sends(self, analysis: Analysis, widths: Widths) -> Declared:
        return {"n": everybody(), "feature_sum": everybody(widths.features)}

    def advance(self, analysis: "Projection", total: Sums) -> State:
        n = float(total["n"])
        most = min(len(total["feature_sum"]), int(n) - 1)
        if not 1 <= analysis.n_components <= most:
            raise HarmonizationError(
                f"n_components is {analysis.n_components}; expected 1 to {most} for {int(n)} participants with "
                f"{len(total['feature_sum'])} features. Ask for as many as there are."
            )
        return Centre(total["feature_sum"] / n, n)


@dataclass(frozen=True)
class Centre(Stage):
    """Mean [p] over all sites, and the number of participants; the second moment about it, or a sketch of that."""

    mean: Array
    n: float

    @property
    def exact(self) -> bool:
        """Whether all of the second moment is summed."""
        return len(self.mean) <= _EXACT_UP_TO

    def part(self, analysis: "Projection", table: SiteTable) -> Sums:
        centred = table.features - self.mean
        squares = np.array((centred**2).sum())
        if not self.exact:
            return {"sketch": centred.T @ (centred @ self.directions(analysis)), "squares": squares}
        scores = self.scores(centred)
        return {"moment": scores.T @ scores, "squares": squares}

    def scores(self, centred: Array) -> Array:
        """Rows [n, l] whose second moment is summed, of centred features [n, p]."""
        return centred

    def directions(self, analysis: "Projection") -> Array:
        """What a sketch multiplies the second moment by: a public random matrix [p, l]."""
        return np.random.default_rng(0).normal(size=(len(self.mean), analysis.width(self)))

    def sends(self, analysis: "Projection", widths: Widths) -> Declared:
        p, width = widths.features, self.sent_width(analysis)
        sums = {"moment": everybody(width, width)} if self.exact else {"sketch": everybody(p, width)}
        return {**sums, "squares": everybody()}

    def sent_width(self, analysis: "Projection") -> int:
        """Columns of the moment, or of its sketch."""
        return len(self.mean) if self.exact else analysis.width(self)

    def advance(self, analysis: "Projection", total: Sums) -> State:
        basis = eigh(total["moment"])[1] if self.exact else np.linalg.qr(total["sketch"]).Q
        return Basis(self.mean, self.n, basis, 0)


@dataclass(frozen=True)
class Basis(Centre):
    """An orthonormal basis [p, l] of a space that holds most of the variance, and the rounds spent on it."""

    basis: Array
    passes: int

    def scores(self, centred: Array) -> Array:
        return centred @ self.basis

    def directions(self, analysis: "Projection") -> Array:
        return self.basis

    def sent_width(self, analysis: "Projection") -> int:
        return len(self.basis.T)

    def advance(self, analysis: "Projection", total: Sums) -> State:
        if self.exact:
            values, vectors = _of_scores(total["moment"], analysis.n_components)
            return self._model(total, values, self.basis @ vectors)
        inside = self.basis.T @ total["sketch"]
        values, vectors = _largest((inside + inside.T) / 2, analysis.n_components)
        components = self.basis @ vectors
        outside = np.linalg.norm(total["sketch"] @ vectors - components * values, axis=0)
        if self.passes + 1 < _MOST_PASSES and outside.max() > _CONVERGED * values[0]:
            return Basis(self.mean, self.n, np.linalg.qr(total["sketch"]).Q, self.passes + 1)
        return self._model(total, values, components)

    def _model(self, total: Sums, values: Array, vectors: Array) -> "ProjectionModel":
        """Model from eigenvalues [k], largest first, and eigenvectors [p, k]."""
        squares = float(total["squares"])
        if squares <= self.n * ((1e-14 * self.mean) ** 2).sum():
            raise HarmonizationError("features are the same for everybody, so they have no components. Leave them out.")
        known = values > values[0] * np.finfo(float).eps * max(len(self.mean), self.n)
        if not known.any():
            raise HarmonizationError("the sums are no second moments of any features: they have no components.")
        components = vectors[:, known].T
        size = np.abs(components)
        largest = (size > (1 - _TIED) * size.max(axis=1, keepdims=True)).argmax(axis=1)
        components = components * np.sign(components[np.arange(len(components)), largest])[:, None]
        return ProjectionModel(self.mean, components, values[known] / (self.n - 1), squares / (self.n - 1))


@dataclass(frozen=True)
class ProjectionModel(Answer):
    """Principal components.

    Attributes
    ----------
    mean : numpy.ndarray
        [p].
    components : numpy.ndarray
        [k, p], orthonormal rows; the largest loading of each is positive, the first of those that are about as large.
        Fewer than asked for where features have fewer dimensions: a direction without variance is as good as another.
    explained_variance : numpy.ndarray
        [k], with n - 1 in the denominator.
    total_variance : float
        Sum of the variances of all features.
    """

    mean: Array
    components: Array
    explained_variance: Array
    total_variance: float

    def project(self, features: Array) -> Array:
        """Scores [n, k] of features [n, p]."""
        check_width(features, len(self.mean))
        return (features - self.mean) @ self.components.T


@register
@dataclass(frozen=True)
class Projection(Analysis):
    """Principal components by eigendecomposition of summed second moments.

    The first round sums to the mean, the second to the second moment M about it. All of M has the rounding errors of
    its largest component, which could hide what varies within sites whose means lie far apart. So the third sums the
    second moment of the scores on M's eigenvectors, where large and small are parted.

    Above 1,024 features M would be too large to send: it is then multiplied by a public random matrix [p, l], and the
    products' orthonormal basis Q by M again, round after round (subspace iteration; Halko, Martinsson & Tropp, SIAM
    Review 2011), until M Q lies in the space that Q spans. Where l is at least n - 1, the rank of the data, and so for
    n / 2 components, it does at once, and the answer is exact. Otherwise up to eight rounds are spent on it. Errors of
    a sketch stay relative to the largest component.

    Second moments square what is small: a component with less than about 1e-13 of the largest one's variance cannot be
    told from rounding errors, and is left out. Components of equal variance are known up to rotation.

    Parameters
    ----------
    n_components : int
        How many components to keep.
    """

    n_components: int

    name: ClassVar[str] = "projection"
    additive: ClassVar[bool] = True
    first: ClassVar[Stage] = FeatureSums()
    states: ClassVar[tuple[type[State], ...]] = (Centre, Basis, ProjectionModel)

    def width(self, centre: Centre) -> int:
        """Columns of a sketch, l."""
        return min(len(centre.mean), max(2 * self.n_components + 10, min(int(centre.n), _SKETCH_AT_LEAST)))


def _largest(moment: Array, count: int) -> tuple[Array, Array]:
    """Largest eigenvalues [k] of a symmetric matrix, in falling order, and their vectors [p, k]."""
    last = len(moment) - 1
    values, vectors = eigh(moment, subset_by_index=(last - count + 1, last))
    return values[::-1], vectors[:, ::-1]


def _of_scores(moment: Array, count: int) -> tuple[Array, Array]:
    """Largest eigenvalues [k] and vectors [p, k], as `_largest`, of a moment of scores that are all but uncorrelated.

    Errors of each entry are relative to its own row's and column's scale, and stay so in a square root of the moment,
    whose singular values do not square what is small.
    """
    variances = np.diag(moment)
    scale = np.sqrt(np.where(variances > 0, variances, 1.0))
    values, vectors = eigh(moment / np.outer(scale, scale))
    left, singular, _ = np.linalg.svd(scale[:, None] * vectors * np.sqrt(np.maximum(values, 0.0)))
    return singular[:count] ** 2, left[:, :count]
