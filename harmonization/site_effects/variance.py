"""How much of the variance of features the site explains."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harmonization.core.declared import Declared, Widths, everybody
from harmonization.core.protocol import Analysis, Array, SiteTable, State, Sums
from harmonization.core.registry import register
from harmonization.methods.projection import Centre
from harmonization.site_effects.spread import require_sites


@dataclass(frozen=True)
class SiteVarianceResult(State):
    """Share of each feature's variance that lies between sites, eta squared [p], and its mean over features."""

    eta_squared: Array
    mean: float

    done: ClassVar[bool] = True


@register
@dataclass(frozen=True)
class SiteVariance(Analysis):
    """Eta squared of the site: sum of n_i (m_i - m)^2 over sum of (y - m)^2, feature by feature."""

    name: ClassVar[str] = "site_variance"
    states: ClassVar[tuple[type[State], ...]] = (Centre, SiteVarianceResult)

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        if isinstance(state, Centre):
            centred = table.features - state.mean
            return {"between": table.n * centred.mean(axis=0) ** 2, "total": (centred**2).sum(axis=0)}
        return {
            "n": np.array(float(table.n)),
            "sites": np.array(1.0),
            "feature_sum": table.features.sum(axis=0),
        }

    def sends(self, widths: Widths, state: State | None) -> Declared:
        if isinstance(state, Centre):
            return {name: everybody(widths.features) for name in ("between", "total")}
        return {"n": everybody(), "sites": everybody(), "feature_sum": everybody(widths.features)}

    def solve(self, total: Sums, state: State | None) -> State:
        if isinstance(state, Centre):
            # A feature that is the same for everybody leaves only the rounding error of its centring.
            varying = total["total"] > state.n * (1e-14 * state.mean) ** 2
            eta = np.where(varying, total["between"] / np.where(varying, total["total"], 1), 0.0)
            return SiteVarianceResult(eta, float(eta.mean()))
        require_sites(total["sites"])
        n = float(total["n"])
        return Centre(total["feature_sum"] / n, n)
