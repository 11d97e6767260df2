"""How much of the variance of features the site explains."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harmonization.core.declared import Declared, Widths, everybody
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.site_effects.spread import require_sites


class SiteSums(Stage):
    """First round: sums of the features, and the number of sites."""

    def part(self, analysis: Analysis, table: SiteTable) -> Sums:
        return {"n": np.array(float(table.n)), "sites": np.array(1.0), "feature_sum": table.features.sum(axis=0)}

    def sends(self, analysis: Analysis, widths: Widths) -> Declared:
        return {"n": everybody(), "sites": everybody(), "feature_sum": everybody(widths.features)}

    def advance(self, analysis: Analysis, total: Sums) -> State:
        require_sites(total["sites"])
        n = float(total["n"])
        return Centre(total["feature_sum"] / n, n)


@dataclass(frozen=True)
class Centre(Stage):
    """Mean [p] over all sites, and the number of participants; squares about it, of the sites' means and of all."""

    mean: Array
    n: float

    def part(self, analysis: Analysis, table: SiteTable) -> Sums:
        centred = table.features - self.mean
        return {"between": table.n * centred.mean(axis=0) ** 2, "total": (centred**2).sum(axis=0)}

    def sends(self, analysis: Analysis, widths: Widths) -> Declared:
        return {name: everybody(widths.features) for name in ("between", "total")}

    def advance(self, analysis: Analysis, total: Sums) -> State:
        # A feature that is the same for everybody leaves only the rounding error of its centring.
        varying = total["total"] > self.n * (1e-14 * self.mean) ** 2
        eta = np.where(varying, total["between"] / np.where(varying, total["total"], 1), 0.0)
        return SiteVarianceResult(eta, float(eta.mean()))


@dataclass(frozen=True)
class SiteVarianceResult(Answer):
    """Share of each feature's variance that lies between sites, eta squared [p], and its mean over features."""

    eta_squared: Array
    mean: float


@register
@dataclass(frozen=True)
class SiteVariance(Analysis):
    """Eta squared of the site: sum of n_i (m_i - m)^2 over sum of (y - m)^2, feature by feature."""

    name: ClassVar[str] = "site_variance"
    first: ClassVar[Stage] = SiteSums()
    states: ClassVar[tuple[type[State], ...]] = (Centre, SiteVarianceResult)
