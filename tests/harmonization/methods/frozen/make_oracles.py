"""Writes what reference packages make of small tables; run where they still work, not with the tests.

    pip install numpy==1.23.5 pandas==1.5.3 scipy==1.15.3 neuroCombat==0.2.12 neuroHarmonize==2.5.2
    python make_oracles.py

neuroCombat's reference batch and neuroHarmonize need this old numpy. Inputs are stored beside the outputs. Ages are
exact in single precision, since neuroCombat rounds covariates to it.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
from neuroCombat import neuroCombat
from neuroHarmonize import harmonizationApply, harmonizationLearn

SIZES = (9, 14, 11)
FEATURES = 7


def make_table() -> dict:
    """Draw three sites with shifts, scales, age and a category of three levels, one of them rare."""
    rng = np.random.default_rng(4)
    site = np.repeat(np.arange(len(SIZES)), SIZES)
    n = len(site)
    age = np.round(rng.normal(50, 15, n) * 8) / 8
    group = rng.choice(3, size=n, p=[0.5, 0.35, 0.15])
    features = rng.normal(size=(n, FEATURES)) * np.exp(0.4 * rng.normal(size=(3, FEATURES)))[site]
    features += 3 * rng.normal(size=(3, FEATURES))[site] + np.outer(age, rng.normal(size=FEATURES)) / 30
    return {"features": features + 100, "site": site, "age": age, "group": group}


def neurocombat(table: dict, **options: object) -> np.ndarray:
    covariates = pd.DataFrame({name: table[name] for name in ("site", "age", "group")})
    answer = neuroCombat(
        table["features"].T, covariates, "site", categorical_cols=["group"], continuous_cols=["age"], **options
    )
    return answer["data"].T


def neuroharmonize(table: dict) -> dict:
    """Fit on two thirds of the rows, and apply to all."""
    training = np.arange(len(table["site"])) % 3 > 0
    covariates = pd.DataFrame(
        {
            "SITE": np.array(["a", "b", "c"])[table["site"]],
            "age": table["age"],
            "second": (table["group"] == 1) * 1.0,
            "third": (table["group"] == 2) * 1.0,
        }
    )
    model, learned = harmonizationLearn(table["features"][training], covariates[training].reset_index(drop=True))
    applied = harmonizationApply(table["features"], covariates, model)
    return {"training": training, "neuroharmonize/learned": learned, "neuroharmonize/applied": applied}


def main() -> None:
    table = make_table()
    found = dict(table)
    modes = {"parametric": {}, "nonparametric": {"parametric": False}, "none": {"eb": False}}
    with contextlib.redirect_stdout(io.StringIO()):
        for prior, options in modes.items():
            for mean_only in (False, True):
                for reference in (None, 0, 1):
                    found[f"neurocombat/{prior}/{mean_only}/{reference}"] = neurocombat(
                        table, mean_only=mean_only, ref_batch=reference, **options
                    )
        found.update(neuroharmonize(table))
    np.savez_compressed(Path(__file__).with_name("combat.npz"), **found)


if __name__ == "__main__":
    main()
