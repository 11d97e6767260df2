"""How exact an answer can be: what the rounding of its data alone does to it.

A number is known to its last digit, and no column better than its largest entry, to which others are added. What such
changes of the data make of an answer no computation can undo, be it in another order, in other units, or by other
means. So the bound of an error is measured, for each draw and each field of an answer: wide where the answer is
ill-conditioned (features far from zero, three people at a site, eigenvalues that lie close), a dozen digits elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_EPS = np.finfo(np.float64).eps
_DRAWS = 2
_MARGIN = 1000
"""Times what the draws do: both may be a hundredth of the usual, and a sum rounds with the root of its length."""


def tolerance(answer: Callable[..., Any], *data: np.ndarray, least: float = 0.0) -> Any:
    """Largest error that the rounding of the data allows an answer, or each field of one.

    Parameters
    ----------
    answer : callable
        An array, or arrays by name, from the data.
    *data : numpy.ndarray
        [n, k] or [n]; entries of a column are of one unit.
    least : float
        Size that the first of the data had before it came to be in these units, and was rounded.
    """
    rng = np.random.default_rng(0)
    found = _named(answer(*data))
    errors = {name: _EPS * np.abs(values).max(initial=0) for name, values in found.items()}
    for _ in range(_DRAWS):
        first, *others = data
        nudged = _named(answer(_nudge(first, rng, least), *(_nudge(values, rng) for values in others)))
        for name, values in found.items():
            change = np.abs(np.asarray(nudged[name], dtype=np.float64) - values)
            errors[name] = max(errors[name], change[np.isfinite(change)].max(initial=0))
    bounds = {name: _MARGIN * error for name, error in errors.items()}
    return bounds.get("", bounds)


def assert_as_exact_as_data(
    found: Mapping[str, Any], expected: Mapping[str, Any], bounds: Mapping[str, float], solver: float = 0.0
) -> None:
    """Compare the expected fields within the bounds of `tolerance`.

    Parameters
    ----------
    solver : float
        Where expected ones come from a solver that stops before the last digit: how far off, relative to their size.
    """
    for name, values in expected.items():
        atol = bounds[name] + solver * np.abs(values).max(initial=0)
        np.testing.assert_allclose(found[name], values, rtol=0, atol=atol, err_msg=name)


def _nudge(values: np.ndarray, rng: np.random.Generator, least: float = 0.0) -> np.ndarray:
    """Change data as rounding could: each number by itself, and each column as a whole."""
    size = _EPS * np.maximum(np.fmax.reduce(np.abs(values), axis=0, initial=0), least)
    return values + size * (rng.choice([-1.0, 1.0], size=np.shape(size)) + rng.uniform(-1, 1, values.shape))


def _named(answer: Any) -> dict[str, np.ndarray]:
    fields = answer if isinstance(answer, Mapping) else {"": answer}
    return {name: np.asarray(values, dtype=np.float64) for name, values in fields.items()}
