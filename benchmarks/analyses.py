"""What a site spends on each analysis, and ComBat beside neuroCombat 0.2.12: the tables of docs/harmonization.md.

``OMP_NUM_THREADS=1 python benchmarks/analyses.py`` measures on random rows, on one core.
"""

import argparse
import contextlib
import io
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from common import machine, markdown
from neuroCombat import neuroCombat

from harmonization import (
    Analysis,
    ComBat,
    ComBatHarmonizer,
    CovarianceDistance,
    CrossValidatedRidge,
    Permanova,
    Projection,
    Residualization,
    RidgeRegression,
    SiteClassification,
    SiteSpread,
    SiteTable,
    SiteVariance,
    add_sums,
)

N_AT_SITE, N_FEATURES, N_SITES = 2000, 512, 3
ANALYSES = [
    ComBat(),
    Residualization(),
    Residualization(site=False),
    Projection(N_FEATURES),
    RidgeRegression(),
    CrossValidatedRidge(),
    SiteVariance(),
    SiteSpread(),
    CovarianceDistance(),
    CovarianceDistance(correlation=True),
    Permanova(100, (1,) * N_SITES),
    SiteClassification(permutations=0),
    SiteClassification(),
]
PRIORS: dict[str, dict[str, Any]] = {
    "parametric": {},
    "none": {"eb": False},
    "nonparametric": {"parametric": False},
}
"""ComBat's priors, and neuroCombat's options for the same."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"Measured on {machine()}.\n")
    print(f"{N_AT_SITE:,} participants x {N_FEATURES} features at one of {N_SITES} sites, all rounds:\n")
    print(markdown(["analysis", "rounds", "seconds at a site", "seconds at the coordinator"], map(cost, ANALYSES)))
    print("\nComBat of 1,000 participants x 1,000 features at 5 sites, pooled, beside neuroCombat in the same run:\n")
    header = ["prior", "seconds", "peak memory", "neuroCombat's seconds", "largest difference, in pooled sd"]
    print(markdown(header, [beside_neurocombat(prior, 1000, 1000) for prior in PRIORS]))
    print("\nThe non-parametric prior, 1,000 participants:\n")
    rows = [(f"{p:,}", *beside_neurocombat("nonparametric", 1000, p)[1:]) for p in (500, 1000, 2000)]
    print(markdown(["features", *header[1:]], rows))


def cost(analysis: Analysis) -> tuple[object, ...]:
    """Seconds that the slowest site, and the coordinator, spend on all rounds of an analysis."""
    state, rounds, at_coordinator, at_site = None, 0, 0.0, np.zeros(N_SITES)
    tables = [random_table(number, analysis) for number in range(N_SITES)]
    while state is None or not state.done:
        answers = [timed(analysis.summarize, table, state) for table in tables]
        at_site += [seconds for _, seconds in answers]
        total, adding = timed(add_sums, [sums for sums, _ in answers])
        state, solving = timed(analysis.solve, total, state)
        at_coordinator, rounds = at_coordinator + adding + solving, rounds + 1
    return _call(analysis), rounds, f"{at_site.max():.2f}", f"{at_coordinator:.2f}"


def random_table(number: int, analysis: Analysis) -> SiteTable:
    """Make a site with five covariates; its target is the site for analyses of it, and a number for others."""
    rng = np.random.default_rng(number)
    features, covariates = rng.normal(size=(N_AT_SITE, N_FEATURES)), rng.normal(size=(N_AT_SITE, 5))
    site = np.tile(np.eye(N_SITES)[number], (N_AT_SITE, 1))
    target = site if isinstance(analysis, Permanova | SiteClassification) else features[:, 0] + covariates[:, 0]
    return SiteTable(features, covariates, target, site=f"site {number}", seed=number, min_group=5)


def beside_neurocombat(prior: str, n: int, p: int) -> tuple[object, ...]:
    """Harmonize random rows of five sites with both: seconds, peak memory, ratio and largest difference."""
    rng = np.random.default_rng(0)
    site = rng.integers(0, 5, n)
    covariates = pd.DataFrame({"site": site, "age": rng.normal(size=n).round(2), "sex": rng.integers(0, 2, n)})
    features = rng.normal(size=(5, p))[site] + np.exp(0.3 * rng.normal(size=(5, p)))[site] * rng.normal(size=(n, p))
    # neuroCombat reads covariates as float32.
    design = covariates[["age", "sex"]].to_numpy(dtype=np.float32).astype(np.float64)

    def ours() -> np.ndarray:
        return ComBatHarmonizer(prior=prior).fit_transform(features, design, site)  # type: ignore[arg-type]

    def theirs() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            options = PRIORS[prior]
            answer = neuroCombat(features.T, covariates, "site", ["sex"], ["age"], **options)
        return answer["data"].T

    found, seconds = timed(ours)
    expected, their_seconds = timed(theirs)
    difference = np.abs((found - expected) / features.std(axis=0)).max()
    beside = f"{their_seconds:.1f} ({their_seconds / seconds:.1f} times ours)"
    return prior, f"{seconds:.2f}", f"{peak_memory(ours) / 2**20:.0f} MiB", beside, f"{difference:.0e}"


def timed(work: Callable[..., Any], *arguments: object) -> tuple[Any, float]:
    """Do some work; return what came of it, and the seconds it took."""
    began = time.perf_counter()
    done = work(*arguments)
    return done, time.perf_counter() - began


def peak_memory(work: Callable[[], Any]) -> int:
    """Bytes that are allocated at once, beside what there was before."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _call(analysis: Analysis) -> str:
    """Name of an analysis, and the parameters that are not the default."""
    default = type(analysis).__dataclass_fields__
    given = {
        name: value
        for name, value in analysis.parameters().items()
        if value != default[name].default and not isinstance(value, dict)
    }
    return (
        f"{analysis.name}({', '.join(f'{name}={value}' for name, value in given.items())})" if given else analysis.name
    )


if __name__ == "__main__":
    main()
