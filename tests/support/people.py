"""Random people of random sites: some sites tiny, some categories rare, and features far from zero."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class People:
    """Pooled rows of random sites.

    Attributes
    ----------
    features, covariates, second : numpy.ndarray
        [n, p], [n, q] and [n, 3].
    number : numpy.ndarray
        [n], something to predict.
    site, participant : numpy.ndarray
        [n], counted from 0; a participant's rows follow each other.
    """

    features: np.ndarray
    covariates: np.ndarray
    number: np.ndarray
    second: np.ndarray
    site: np.ndarray
    participant: np.ndarray

    @property
    def one_hot(self) -> np.ndarray:
        return np.eye(self.site.max() + 1)[self.site]

    @property
    def rows(self) -> list[np.ndarray]:
        """Rows of each site."""
        return [np.flatnonzero(self.site == number) for number in range(self.site.max() + 1)]

    @property
    def centred(self) -> np.ndarray:
        """Features [n, p] about their mean."""
        return self.features - self.features.mean(axis=0)

    @property
    def residuals(self) -> np.ndarray:
        """What an intercept for each site and the covariates leave of the features."""
        design = np.column_stack([self.one_hot, self.covariates])
        return self.centred - fitted(design, self.centred)

    def effects(self, by_site: bool) -> np.ndarray:
        """Least-squares effects of the covariates [q, p]."""
        others = self.one_hot if by_site else np.ones((len(self.site), 1))
        design = np.column_stack([self.covariates, others])
        return np.linalg.lstsq(design, self.centred, rcond=None)[0][: self.covariates.shape[1]]

    def labels(self, n_classes: int) -> np.ndarray:
        """Class [n] of each row, by the size of its number: few are in the first, and not every site has each."""
        edges = np.quantile(self.number, [0.15, 0.6][: n_classes - 1], method="lower")
        return np.searchsorted(edges, self.number)

    def every_class_is_shared(self, n_classes: int) -> bool:
        """Whether each class has two rows at some site, so that folds leave one of them to learn from."""
        one_hot = np.eye(n_classes)[self.labels(n_classes)]
        return bool(((self.one_hot.T @ one_hot).max(axis=0) >= 2).all())

    def take(self, rows: np.ndarray) -> "People":
        return People(*(values[rows] for values in vars(self).values()))


def make_people(sizes: list[int], p: int, q: int, seed: int, offset: float, categories: bool) -> People:
    """Draw people with effects of site and of covariates: continuous ones, and categories that few are in."""
    rng = np.random.default_rng(seed)
    site = np.repeat(np.arange(len(sizes)), sizes)
    n = len(site)
    # One to three rows each; the first two rows of a site are of one participant.
    first = rng.random(n) < 0.6
    starts = np.cumsum([0, *sizes[:-1]])
    first[starts], first[starts + 1] = True, False
    first[2:] |= ~(first[1:-1] | first[:-2])
    participant = np.cumsum(first) - 1
    age = rng.normal(size=n) + np.linspace(-1, 1, len(sizes))[site]
    motion = rng.gamma(2, size=n)
    columns = [age, rng.random(n) < 0.5, motion, rng.random(n) < 0.1, rng.normal(size=n), rng.random(n) < 0.03]
    if not categories:
        columns = [values for values in columns if values.dtype != bool]
    covariates = np.column_stack(columns)[:, : min(q, (n - len(sizes)) // 3)].astype(float)
    covariates = _estimable(covariates, site)
    shift, scale = rng.normal(size=(len(sizes), p)), np.exp(0.3 * rng.normal(size=(len(sizes), p)))
    signal = covariates @ rng.normal(size=(covariates.shape[1], p)) + rng.normal(size=(n, 1)) * rng.normal(size=p)
    signal += rng.normal(size=(participant[-1] + 1, p))[participant]
    features = offset + signal + shift[site] + scale[site] * rng.normal(size=(n, p))
    number = 40 + 10 * age + rng.normal(size=n) + (features - offset)[:, 0]
    second = rng.normal(size=(n, 3)) + features[:, :1] - offset
    return People(features, covariates, number, second, site, participant)


def fitted(design: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least-squares fit of values by a design."""
    return design @ np.linalg.lstsq(design, values, rcond=None)[0]


def _estimable(covariates: np.ndarray, site: np.ndarray) -> np.ndarray:
    """Drop covariates that are constant inside the sites, or follow from those before them."""
    within = covariates - np.stack([covariates[site == one].mean(axis=0) for one in range(site.max() + 1)])[site]
    norms = np.linalg.norm(within, axis=0)
    independent = [
        norms[column] > 1e-6
        and np.linalg.norm(within[:, column] - fitted(within[:, :column], within[:, column])) > 0.05 * norms[column]
        for column in range(covariates.shape[1])
    ]
    return covariates[:, np.array(independent, dtype=bool)]
