"""Empirical Bayes of ComBat: one site's shifts and scales, shrunken towards what its other features say.

Parametric and non-parametric priors of Johnson, Li & Rabinovic (Biostatistics 2007), sections 3.2 and 3.3. Each needs
of a site only its raw effects and how much they rest on, never its rows; and a site's prior needs no other site.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from harmonization.core.centring import centred
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Array

Prior = Literal["parametric", "nonparametric", "none"]

_TOLERANCE = 1e-4
"""Largest relative step at which neuroCombat stops: its answer, not a tighter fixed point, is the norm."""
_STANDSTILL = 1e-14
"""Step of all features at which rounding is all that is left, whatever the relative step of a shift near 0."""
_MOST_STEPS = 1_000
_POINT = 1e-30
"""Relative variance of the scales below which their prior is a point."""
_BLOCK = 2**20
"""Pairs of features that the non-parametric prior compares at a time."""


@dataclass(frozen=True)
class RawEffects:
    """A site's effects in p features, before shrinkage, in units of the pooled standard deviation; all [p].

    `gamma` are shifts; `delta` variances, 1 where the site does not vary, or its scale is not to be removed. `squares`
    are sums about the shift, of `freedom` degrees of freedom; `weight` rows are what the shift rests on: its variance
    is delta / weight.
    """

    gamma: Array
    delta: Array
    squares: Array
    weight: Array
    freedom: Array


def raw_effects(standardized: Array, mean_only: bool) -> RawEffects:
    """Return the effects in standardized rows [n, p] of one site; NaN where a value is missing."""
    present = ~np.isnan(standardized)
    n = present.sum(axis=0).astype(np.float64)
    gamma = np.where(present, standardized, 0.0).sum(axis=0) / n
    squares = (centred(standardized) ** 2).sum(axis=0)
    if mean_only:
        return RawEffects(gamma, np.ones_like(gamma), squares, n, n - 1)
    delta = np.where(squares > 0, squares / (n - 1), 1.0)
    return RawEffects(gamma, delta, squares, n, n - 1)


def shrink(raw: RawEffects, prior: Prior, mean_only: bool) -> tuple[Array, Array]:
    """Return shifts [p] and variances [p] after shrinkage.

    With `mean_only`, variances stay 1 and the parametric shift takes the prior for the variance of one row, as
    neuroCombat does. A feature alone has no others that its effects could be shrunk towards.
    """
    if prior not in get_args(Prior):
        raise HarmonizationError(f"prior is '{prior}'; expected one of {', '.join(get_args(Prior))}.")
    if prior == "none" or len(raw.gamma) < 2:
        return raw.gamma, raw.delta
    if prior == "nonparametric":
        return _nonparametric(raw)
    if mean_only:
        t2 = raw.gamma.var(ddof=1)
        return (t2 * raw.gamma + raw.gamma.mean()) / (t2 + 1), raw.delta
    return _parametric(raw)


def _parametric(raw: RawEffects) -> tuple[Array, Array]:
    """Posterior means under a normal prior of shifts and an inverse-gamma one of variances, matched by moments."""
    gamma_bar, t2 = raw.gamma.mean(), raw.gamma.var(ddof=1)
    m, s2 = raw.delta.mean(), raw.delta.var(ddof=1)
    if s2 <= _POINT * m**2:
        return _posterior_shift(raw, m, gamma_bar, t2), np.full_like(raw.delta, m)
    a, b = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    gamma, delta = raw.gamma, raw.delta
    for _ in range(_MOST_STEPS):
        new_gamma = _posterior_shift(raw, delta, gamma_bar, t2)
        squares = raw.squares + raw.weight * (raw.gamma - new_gamma) ** 2
        new_delta = (0.5 * squares + b) / ((raw.freedom + 1) / 2 + a - 1)
        old, new = np.concatenate([gamma, delta]), np.concatenate([new_gamma, new_delta])
        gamma, delta = new_gamma, new_delta
        step = np.abs(new - old)
        # Divided by the signed old value, as neuroCombat does: negative shifts do not count.
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.nanmax(step / old)
        if relative <= _TOLERANCE or (step <= _STANDSTILL * (1 + np.abs(old))).all():
            return gamma, delta
    raise HarmonizationError(
        f"the empirical Bayes of a site did not settle in {_MOST_STEPS} steps. Use prior='nonparametric' or 'none'."
    )


def _posterior_shift(raw: RawEffects, delta: Array, gamma_bar: float, t2: float) -> Array:
    """Shift between the site's own and the prior's mean, as their variances delta / weight and t2 have it."""
    return (t2 * raw.weight * raw.gamma + delta * gamma_bar) / (t2 * raw.weight + delta)


def _nonparametric(raw: RawEffects) -> tuple[Array, Array]:
    """Posterior means under the empirical distribution of the other features' effects.

    The likelihood of feature i under the effect of feature j is kept as a logarithm: as a product of densities it
    underflows from a few hundred participants on. All pairs are compared, in blocks of bounded memory.
    """
    p = len(raw.gamma)
    gamma, delta = np.empty(p), np.empty(p)
    log_delta = np.log(raw.delta)
    rows = max(1, _BLOCK // p)
    for start in range(0, p, rows):
        block = np.arange(start, min(start + rows, p))
        squares = raw.squares[block, None] + raw.weight[block, None] * (raw.gamma[block, None] - raw.gamma) ** 2
        log_likelihood = -0.5 * ((raw.freedom[block, None] + 1) * log_delta + squares / raw.delta)
        log_likelihood[block - start, block] = -np.inf  # not by the feature itself
        likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
        total = likelihood.sum(axis=1)
        gamma[block], delta[block] = likelihood @ raw.gamma / total, likelihood @ raw.delta / total
    return gamma, delta
