"""Whether a feature varies at a site at all, so that its values there say anything.

A parcel that a site lacks, a scale that one scanner does not reach: what is constant at one site and varies at the
others has no effects of covariates there, and no scale. Taking the covariates' common effects out of it leaves these
effects alone, and dividing by their spread blows them up until everybody's own age can be read from it.
"""

import numpy as np
from numpy.typing import NDArray

from harmonization.core.centring import centred
from harmonization.core.protocol import Array

_ALIKE = 0.2
"""Distance from their median, in units of a feature's sd, up to which values are all but the same."""
_FEW = 0.05
"""Share of the rows that may differ from the others in a feature that hardly varies."""
_BY_CHANCE = 1e-6
"""Chance at which normal values may be taken for the same: those of a few rows lie close together now and then."""
_LESS_THAN_EFFECTS = 0.5
"""Spread of a feature, in units of that of the covariates' effects on it, below which it has no such effects."""


def hardly_varies(features: Array, variance: Array, effects: Array) -> NDArray[np.bool_]:
    """Tell which features [n, p] of a site's rows hardly vary there; all of those without any `variance` [p].

    They are `all_but_equal`, or `vary_less` than the covariates' common `effects` [n, p] alone would make them.
    """
    return all_but_equal(features, variance) | vary_less(features, effects) | (variance <= 0)


def vary_less(features: Array, effects: Array) -> NDArray[np.bool_]:
    """Tell which features [n, p] spread less than half as far as the covariates' `effects` [n, p], of the same rows.

    What has these effects spreads at least as far as they do, but for a chance against them, which few rows need more
    room for.
    """
    present = ~np.isnan(features)
    reach = np.minimum(_LESS_THAN_EFFECTS, _chance(present.sum(axis=0)))
    effects = np.where(present, effects, np.nan)
    squares, expected = ((centred(values) ** 2).sum(axis=0) for values in (features, effects))
    less: NDArray[np.bool_] = (present.sum(axis=0) > 1) & (squares <= reach**2 * expected) & (expected > 0)
    return less


def all_but_equal(features: Array, variance: Array) -> NDArray[np.bool_]:
    """Tell in which features [n, p] a site's rows are all but equal, beside a `variance` [p] that they could have.

    Nineteen in twenty rows, or all of fewer, lie within a fifth of the sd of their median. Normal values do if their
    own sd is a tenth of that. Nine rows or fewer could come so close by chance, and have to be closer.
    """
    counts = (~np.isnan(features)).sum(axis=0)
    reach = np.minimum(_ALIKE, _chance(counts))
    apart = (np.abs(features - _median(features)) > reach * np.sqrt(variance)).sum(axis=0)
    equal: NDArray[np.bool_] = (counts > 1) & (apart <= _FEW * counts)
    return equal


def _chance(counts: Array) -> Array:
    """Share [p] of their spread within which so many normal values come by chance, of their median or of others."""
    return _BY_CHANCE ** (1 / np.maximum(counts - 1, 1))


def _median(features: Array) -> Array:
    """Median [p] of each feature over the rows that have it; NaN where none has."""
    median: Array = np.median(features, axis=0)
    holed = np.isnan(median) & ~np.isnan(features).all(axis=0)
    median[holed] = np.nanmedian(features[:, holed], axis=0)
    return median
