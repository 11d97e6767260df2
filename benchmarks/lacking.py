"""What becomes of features that hardly vary at one site, where all is noise: age should not be read from it.

``python benchmarks/lacking.py [--people N] [--abide RECORDINGS.npz ...]``. Four sites, 20 parcels, 190 pairs of pure
noise; each site lacks a parcel, and has what the row says in place of its pairs. R² is that of age in every other
person of a site, by a ridge regression of the people between, mean over sites; the truth is 0. With recordings, also
how many pairs of parcels are left when those that somebody lacks are left out.
"""

import argparse
import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from common import machine, markdown
from neuroCombat import neuroCombat
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harmonization import SiteTable, make_harmonizer, run_pooled

N_SITES, N_PARCELS = 4, 20
LACKED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "0 for everybody": lambda values: 0 * values,
    "0 but for one person": lambda values: np.where(np.arange(len(values))[:, None] == 3, values, 0.0),
    "noise of a thousandth": lambda values: 1e-3 * values,
    "noise of a twentieth": lambda values: 0.05 * values,
    "noise of a tenth": lambda values: 0.1 * values,
    "noise of a fifth": lambda values: 0.2 * values,
}
METHODS = {
    "combat": ("combat", {}),
    "combat, no prior": ("combat", {"prior": "none"}),
    "combat_gam": ("combat_gam", {"smooth": [[0, -1.5, 1.5]]}),
    "covbat": ("covbat", {}),
}


def noise(lacked: Callable[[np.ndarray], np.ndarray], n: int) -> list[SiteTable]:
    """Tables of sites that lack a parcel each, and whose features know nobody's age."""
    rng, (one, other) = np.random.default_rng(0), np.triu_indices(N_PARCELS, 1)
    tables = []
    for number in range(N_SITES):
        features = rng.normal(size=(n, len(one))) * np.exp(0.2 * rng.normal(size=len(one)))
        features += 0.3 * rng.normal(size=len(one))
        missing = (one == 2 * number) | (other == 2 * number)
        features[:, missing] = lacked(features[:, missing])
        age, sex = rng.uniform(-1.5, 1.5, n), rng.random(n) < 0.5
        tables.append(SiteTable(features, np.column_stack([age, sex]), age, site=f"site {number}", seed=number))
    return tables


def age_r2(features: np.ndarray, age: np.ndarray) -> float:
    """R² of age in every other row, by a regression of the rows between."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-4, 4, 9)))
    return float(model.fit(features[::2], age[::2]).score(features[1::2], age[1::2]))


def by_neurocombat(tables: list[SiteTable]) -> list[np.ndarray]:
    """Rows of each site as neuroCombat makes them."""
    features, covariates = (
        np.concatenate([getattr(table, name) for table in tables]) for name in ("features", "design")
    )
    people = pd.DataFrame(covariates, columns=["age", "sex"])
    people["site"] = np.repeat(np.arange(len(tables)), [table.n for table in tables])
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        data = neuroCombat(features.T, people, "site", categorical_cols=["sex"], continuous_cols=["age"])["data"]
    return np.split(data.T, np.cumsum([table.n for table in tables])[:-1])


def simulated(n: int) -> str:
    rows = []
    for kind, lacked in LACKED.items():
        tables = noise(lacked, n)
        found = {"neuroCombat": by_neurocombat(tables)}
        for name, (method, options) in METHODS.items():
            harmonizer = make_harmonizer(method, options)
            model = run_pooled(harmonizer, tables)
            found[name] = [harmonizer.harmonize(model, table) for table in tables]
        scores = [
            np.mean([age_r2(values, np.asarray(table.target)) for values, table in zip(sites, tables, strict=True)])
            for sites in found.values()
        ]
        rows.append((kind, *(f"{score:.2f}" for score in scores)))
    return markdown(["a lacked pair is", "neuroCombat", *METHODS], rows)


def shared_pairs(recordings: Path) -> str:
    """Count the pairs of parcels that everybody has, for bounds of a recording's coverage."""
    with np.load(recordings) as file:
        covered = np.stack([np.ptp(file[name].astype(np.float32), axis=0) > 0 for name in file.files])
    rows = []
    for bound in (0.8, 0.9, 0.95):
        kept = covered[covered.mean(axis=1) >= bound]
        parcels, most = int(kept.all(axis=0).sum()), covered.shape[1]
        rows.append((f"{bound:.0%}", len(kept), parcels, f"{parcels * (parcels - 1) / (most * (most - 1)):.0%}"))
    return markdown(["min_coverage", "recordings", "parcels that all have", "pairs left"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=800, help="participants of each site")
    parser.add_argument("--abide", type=Path, nargs="*", default=[], metavar="RECORDINGS")
    given = parser.parse_args()
    print(f"Measured on {machine()}. {given.people} participants a site.\n")
    print(simulated(given.people))
    for recordings in given.abide:
        print(f"\n{recordings.name}:\n\n{shared_pairs(recordings)}")


if __name__ == "__main__":
    main()
