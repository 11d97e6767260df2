"""Whether a probe of principal components should make them equal: age from the connectivity of real people.

``python benchmarks/scaling.py RECORDINGS.npz PARTICIPANTS.tsv``. The recordings are never part of the project;
docs/real-data.md says what the two files hold. Sites of fewer than 15 people are left out.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from common import machine, markdown

from harmonization import CrossValidatedRidge, SiteTable, run_pooled


def connectivity(recordings: Path, participants: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """Fisher-z correlations [n, p] of parcels that all have, and the n people."""
    people = pd.read_csv(participants, sep="\t")
    with np.load(recordings) as file:
        signals = [file[name].astype(np.float64) for name in people["participant_id"]]
    covered = np.stack([np.ptp(signal, axis=0) > 0 for signal in signals])
    enough = (covered.mean(axis=1) > 0.8) & (people.groupby("site")["site"].transform("size") >= 15).to_numpy()
    parcels = covered[enough].all(axis=0)
    upper = np.triu_indices(parcels.sum(), 1)
    rows = [np.corrcoef(signals[row][:, parcels].T)[upper] for row in np.flatnonzero(enough)]
    return np.arctanh(np.clip(rows, -0.999, 0.999)), people[enough]


def age_r2(scores: np.ndarray, people: pd.DataFrame, *, together: bool) -> float:
    """Held-out R² of age; `together` leaves the scores their relative scale."""
    tables = [
        SiteTable(
            scores[rows],
            target=people["age"].to_numpy()[rows],
            loadings=np.eye(scores.shape[1]) if together else None,
            seed=number,
        )
        for number, rows in enumerate((people["site"] == site).to_numpy() for site in people["site"].unique())
    ]
    return float(run_pooled(CrossValidatedRidge(), tables).r2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("participants", type=Path)
    given = parser.parse_args()
    features, people = connectivity(given.recordings, given.participants)
    left, values, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    rows = []
    for count in (50, 100, 300):
        scores = left[:, :count] * values[:count]
        found = (age_r2(scores, people, together=together) for together in (True, False))
        rows.append((count, *(f"{r2:.3f}" for r2 in found)))
    print(f"Measured on {machine()}. {len(people)} people, {features.shape[1]} pairs of parcels.\n")
    print(markdown(["components", "age R², as they are", "made equal"], rows))


if __name__ == "__main__":
    main()
