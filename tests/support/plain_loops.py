"""Cross-validation as a plain loop over pooled rows: what the federated one must equal."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from harmonization import ComBatHarmonizer, SiteTable
from harmonization.probes.crossvalidation import CrossValidation
from tests.support.sites import Sites


@dataclass(frozen=True)
class Left:
    """Pooled rows with one part left out: features as the others harmonize them, who trains, and the inner parts."""

    part: int
    features: np.ndarray
    training: np.ndarray
    inner: list[tuple[np.ndarray, np.ndarray]]
    """Rows to learn from, and to choose in."""


def tables_of(sites: Sites, target: np.ndarray, **fields: object) -> list[SiteTable]:
    """Tables named by their number, with another target [n] or [n, m]."""
    return [
        replace(table, target=target[sites.site == number], site=str(number), **fields)
        for number, table in enumerate(sites.tables)
    ]


def parts_of(analysis: CrossValidation, tables: list[SiteTable]) -> np.ndarray:
    """Part of each pooled row: the folds are random, so they are those of the analysis."""
    return np.concatenate([analysis.deal(table) for table in tables])


def leave_out(sites: Sites, parts: np.ndarray, method: str) -> Iterator[Left]:
    """Yield the rows with each part left out."""
    for part in range(parts.max() + 1):
        training = parts != part
        features = sites.features
        if method == "combat":
            rows = (sites.features[training], sites.covariates[training], sites.site[training])
            features = ComBatHarmonizer().fit(*rows).transform(sites.features, sites.covariates, sites.site)
        inner = [(training & (parts != other), parts == other) for other in range(parts.max() + 1) if other != part]
        yield Left(part, features, training, inner)
