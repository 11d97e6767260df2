"""Multi-site tables with known effects."""

from dataclasses import dataclass

import numpy as np

from harmonization import SiteTable


@dataclass(frozen=True)
class Sites:
    """Pooled rows, and the same rows site by site."""

    features: np.ndarray
    covariates: np.ndarray
    target: np.ndarray
    site: np.ndarray

    @property
    def tables(self) -> list[SiteTable]:
        return [
            SiteTable(self.features[rows], self.covariates[rows], self.target[rows], seed=int(number))
            for number in np.unique(self.site)
            for rows in [self.site == number]
        ]


def make_sites(
    sizes: tuple[int, ...], p: int, seed: int = 0, *, offset: float = 0.0, site_effect: float = 1.0
) -> Sites:
    """Draw features with effects of age (confounded with site), sex, and site."""
    rng = np.random.default_rng(seed)
    site = np.repeat(np.arange(len(sizes)), sizes)
    n = len(site)
    age = rng.normal(0, 0.6, n) + np.linspace(-1, 1, len(sizes))[site]
    age = np.round(age, 2).astype(np.float32).astype(np.float64)  # neuroCombat reads covariates as float32
    covariates = np.column_stack([age, rng.random(n) < 0.5]).astype(float)
    beta = rng.normal(size=(2, p)) * 0.6
    shift = rng.normal(size=(len(sizes), p)) * site_effect
    scale = np.exp(0.3 * site_effect * rng.normal(size=(len(sizes), p)))
    features = offset + covariates @ beta + shift[site] + scale[site] * rng.normal(size=(n, p))
    return Sites(features, covariates, age, site)
