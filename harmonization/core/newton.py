r"""Newton's method for logistic and softmax regression from sums, many fits in lock-step.

For C classes a row's log odds are eta = U V [x, 1], with coefficients V [C - 1, p + 1] along the C - 1 orthonormal
contrasts U [C, C - 1] of classes: so coefficients and intercepts of the classes sum to zero. A fit minimises::

    strength * sum_i loss_i + |V without intercepts|^2 / 2        loss_i = -log probability of i's own class

which is scikit-learn's softmax regression of C = strength. Of two classes it is scikit-learn's logistic regression of
C = 2 strength, with w = w_1 - w_0: |w|^2 / 2 is then |V|^2. Gradient and Hessian of the loss are sums over rows, with
(x) for the Kronecker product::

    G = sum_i U' (P_i - Y_i) [x_i, 1]
    H = sum_{c < d} (u_c - u_d)' (u_c - u_d) (x) sum_i P_ic P_id [x_i, 1]' [x_i, 1]

A round sends the losses at a few lengths of the last step, and G and H at its end. A step that does not lower the
objective enough (Armijo) is shortened to the best of these lengths and tried again, so that the method ends where plain
Newton diverges (Boyd & Vandenberghe, Convex Optimization 2004, chapter 9).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, helmert

from harmonization.core.declared import Sent, everybody, of_groups, triangle
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Array, State, Sums
from harmonization.core.symmetric import pack, unpack

LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.005)
"""Lengths of a step at which its losses are sent."""
_MOST_STEPS = 200
_LEAST_DECREASE = 1e-4
"""Share of the decrease that the gradient promises that a step must reach (Armijo's constant)."""
_ROUNDING = 1e-12
"""Relative error of the sums of losses."""
_TOLERANCE = 1e-14
"""Squared Newton decrement, relative to the objective, from which the next step is the last."""


@dataclass(frozen=True)
class Newton(State):
    """Where F fits stand.

    `strength` [F] multiplies the sum of losses. `point` [F, C - 1, p + 1] are coefficients and, last, intercepts, and
    `step` the step from there that is tried; `value` [F] is the objective at the point, `slope` [F] its derivative
    along the step. `active` [F] is 1 until a fit has converged, and `steps` the number of rounds so far.
    """

    strength: Array
    point: Array
    step: Array
    value: Array
    slope: Array
    active: Array
    steps: int


AnyNewton = TypeVar("AnyNewton", bound=Newton)


def contrasts(n_classes: int) -> Array:
    """Orthonormal contrasts between classes, [C, C - 1]."""
    columns: Array = helmert(n_classes).T
    return columns


def intercepts(class_n: Array, n_features: int) -> Array:
    """Point [C - 1, p + 1] at which everybody has the shares of the classes, from their counts [C], all above 0."""
    point = np.zeros((len(class_n) - 1, n_features + 1))
    point[:, -1] = contrasts(len(class_n)).T @ np.log(class_n)
    return point


def beginning(strength: Array, point: Array) -> Sums:
    """Return the fields of a `Newton` that begins at points [F, C - 1, p + 1]."""
    unknown = np.full(len(point), np.inf)
    return {
        "strength": strength,
        "point": point,
        "step": np.zeros_like(point),
        "value": unknown,
        "slope": np.zeros(len(point)),
        "active": np.ones(len(point)),
    }


def sums_of_fits(n_fits: int, n_classes: int, n_features: int) -> dict[str, Sent]:
    """Declare what `summarize_fits` returns; sums of classes are of no fewer than `permit_classes` lets one have."""
    declared = {
        "losses": everybody(n_fits, len(LENGTHS)),
        "gradient": everybody(n_fits, n_classes - 1, n_features + 1),
        "hessian": triangle(n_features + 1, n_fits, n_classes * (n_classes - 1) // 2),
    }
    return {name: of_groups(sent) for name, sent in declared.items()}


def numbers_sent(n_fits: int, n_classes: int, n_features: int) -> int:
    """How many numbers a site sends a round: next to all are of the Hessians."""
    return n_fits * n_classes * (n_classes - 1) // 2 * (n_features + 1) * (n_features + 2) // 2


# --- at a site -------------------------------------------------------------------------------------------------------


def row_terms(log_odds: Array, one_hot: Array) -> tuple[Array, Array, Array]:
    """Losses [..., n], probabilities [..., n, C] and these less the one-hot classes, all exact near 0 and 1.

    Log odds and one-hot classes are [..., n, C].
    """
    margin, loss = _losses(log_odds, one_hot)
    probability = np.exp(margin - loss[..., None])
    return loss, probability, np.where(one_hot > 0, np.expm1(-loss)[..., None], probability)


def _losses(log_odds: Array, one_hot: Array) -> tuple[Array, Array]:
    """Log odds against the own class [..., n, C], and losses [..., n]."""
    margin = log_odds - (log_odds * one_hot).sum(axis=-1, keepdims=True)
    others = np.where(one_hot > 0, -np.inf, margin)
    peak = others.max(axis=-1)
    against = peak + np.log(np.exp(others - peak[..., None]).sum(axis=-1))
    loss: Array = np.maximum(against, 0) + np.log1p(np.exp(-np.abs(against)))
    return margin, loss


def log_odds_of(features: Array, points: Array) -> Array:
    """Log odds [F, n, C] of features [n, p] at points [F, C - 1, p + 1]."""
    n_fits, n_contrasts, _ = points.shape
    along = features @ points[:, :, :-1].reshape(n_fits * n_contrasts, -1).T  # one product for all fits
    along = along.reshape(-1, n_fits, n_contrasts).transpose(1, 0, 2) + points[:, None, :, -1]
    return along @ contrasts(n_contrasts + 1).T


def summarize_fits(features: Array, one_hot: Array, points: Array, steps: Array) -> Sums:
    """Sums of some rows for F fits at the end of their steps, as `sums_of_fits` declares them.

    Features are [n, p], and n may be 0; one-hot classes [n, C], or [F, n, C] where fits learn other classes; points and
    steps [F, C - 1, p + 1].
    """
    start, move = log_odds_of(features, points), log_odds_of(features, steps)
    losses = [_losses(start + length * move, one_hot)[1].sum(axis=1) for length in LENGTHS]
    _, probability, residual = row_terms(start + move, one_hot)
    rows = np.column_stack([features, np.ones(len(features))])
    along = (residual @ contrasts(one_hot.shape[-1])).transpose(0, 2, 1)
    return {
        "losses": np.stack(losses, axis=1),
        "gradient": (np.concatenate(along) @ rows).reshape(points.shape),
        "hessian": np.stack([np.stack(list(_pair_products(rows, fit))) for fit in probability]),
    }


def _pair_products(rows: Array, probability: Array) -> Iterator[Array]:
    """Yield the sum over rows of P_c P_d [x, 1][x, 1]' of each pair of classes, packed."""
    for first, second in combinations(range(probability.shape[1]), 2):
        weighted = np.sqrt(probability[:, first] * probability[:, second])[:, None] * rows
        yield pack(weighted.T @ weighted)


# --- at the coordinator ----------------------------------------------------------------------------------------------


def advance(state: AnyNewton, total: Sums) -> AnyNewton:
    """Take or shorten the steps of the active fits, to which alone the sums belong, in many rounds at most."""
    if state.steps >= _MOST_STEPS:
        raise HarmonizationError(
            f"logistic regression has not converged after {_MOST_STEPS} rounds. Use a smaller C, or scale the features."
        )
    changed = {name: getattr(state, name).copy() for name in ("point", "step", "value", "slope", "active")}
    for place, fit in enumerate(np.flatnonzero(state.active)):
        tried = [
            state.strength[fit] * loss + _penalty(state.point[fit] + length * state.step[fit])
            for length, loss in zip(LENGTHS, total["losses"][place], strict=True)
        ]
        enough = state.value[fit] + _LEAST_DECREASE * state.slope[fit] + _ROUNDING * abs(tried[0])
        if not tried[0] <= enough:
            best = LENGTHS[1 + int(np.argmin(tried[1:]))]
            changed["step"][fit] *= best
            changed["slope"][fit] *= best
            continue
        point = state.point[fit] + state.step[fit]
        step, slope = _newton_step(point, state.strength[fit], total["gradient"][place], total["hessian"][place])
        converged = -slope <= _TOLERANCE * tried[0]
        changed["point"][fit] = point + step if converged else point
        changed["step"][fit] = 0 if converged else step
        changed["value"][fit], changed["slope"][fit], changed["active"][fit] = tried[0], slope, not converged
    return replace(state, **changed, steps=state.steps + 1)


def _penalty(point: Array) -> float:
    return float((point[:, :-1] ** 2).sum()) / 2


def _newton_step(point: Array, strength: float, gradient: Array, pairs: Array) -> tuple[Array, float]:
    """Return the step [C - 1, p + 1] and the derivative along it."""
    free = np.zeros_like(point)
    free[:, :-1] = 1  # intercepts are not penalised
    slope = strength * gradient + free * point
    columns = contrasts(len(point) + 1)
    hessian = np.diag(free.ravel())
    for (first, second), products in zip(combinations(range(len(columns)), 2), pairs, strict=True):
        difference = columns[first] - columns[second]
        hessian += np.kron(strength * np.outer(difference, difference), unpack(products))
    scale = np.sqrt(np.diag(hessian))
    try:
        factor = cho_factor(hessian / np.outer(scale, scale))
    except (LinAlgError, ValueError):
        raise HarmonizationError(
            "logistic regression tells classes apart so sharply that its numbers underflow. Use a smaller C."
        ) from None
    step = -(cho_solve(factor, slope.ravel() / scale) / scale).reshape(point.shape)
    return step, float((step * slope).sum())
