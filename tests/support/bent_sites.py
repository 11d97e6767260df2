"""Sites that shift, scale and bend features whose undistorted values are known."""

from dataclasses import dataclass

import numpy as np

from harmonization import SiteTable


@dataclass(frozen=True)
class BentSites:
    """Tables of the sites, "0", "1" and so on, with the one-hot site as target, and what they would be undistorted."""

    tables: list[SiteTable]
    truth: list[np.ndarray]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(table.site for table in self.tables)

    def error(self, features: list[np.ndarray]) -> float:
        """Mean squared error of features, about their mean, in units of the variance of the undistorted ones."""
        given, truth = np.concatenate(features), np.concatenate(self.truth)
        error = (given - given.mean(axis=0)) - (truth - truth.mean(axis=0))
        return float((error**2).mean() / truth.var(axis=0).mean())


def make_bent_sites(
    sizes: tuple[int, ...], p: int, *, bend: float = 0.5, seed: int = 0, offset: float = 0.0
) -> BentSites:
    """Draw features with a few common sources and effects of age and sex, which sites of other mean ages distort."""
    rng = np.random.default_rng([seed, p])
    n, n_sites = sum(sizes), len(sizes)
    site = np.repeat(np.arange(n_sites), sizes)
    age = rng.normal(0, 0.8, n) + 0.5 * np.linspace(-1, 1, n_sites)[site]
    covariates = np.column_stack([age, rng.random(n) < 0.5]).astype(float)
    sources = rng.normal(size=(n, 12)) @ rng.normal(size=(12, p)) / np.sqrt(12)
    truth = 0.3 * covariates @ rng.normal(size=(2, p)) + sources + 0.6 * rng.normal(size=(n, p))

    shift, scale = 0.7 * rng.normal(size=(n_sites, p)), np.exp(0.25 * rng.normal(size=(n_sites, p)))
    curvature = 0.3 * bend * rng.normal(size=(n_sites, 1)) * rng.choice([-1.0, 1.0], p)
    scaled = scale[site] * truth
    features = offset + scaled + shift[site] + curvature[site] * (scaled**2 - 1)
    one_hot = np.eye(n_sites)[site]
    tables = [
        SiteTable(features[rows], covariates[rows], one_hot[rows], site=str(number), seed=number)
        for number in range(n_sites)
        for rows in [site == number]
    ]
    return BentSites(tables, [truth[site == number] for number in range(n_sites)])
