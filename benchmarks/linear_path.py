"""What the linear residual path does to R² and to embeddings: one study, with and without it.

``python benchmarks/linear_path.py STUDY.yaml COHORT ... --out FOLDER`` runs the study twice over the same cohorts, one
simulated site each, and prints the table of docs/benchmarks/model.md.
"""

import argparse
import json
from pathlib import Path

import yaml
from common import machine, markdown, timed_run

from study.settings import load_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("cohorts", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="new folder for runs")
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    rows = []
    for residual in ("none", "gaussian"):
        study = load_study(given.study).model_dump(mode="json")
        study["model"]["residual"] = residual
        path = given.out / f"{residual}.yaml"
        path.write_text(yaml.safe_dump(study))
        run = timed_run("run", path, "--runs", given.out / residual, "--simulate", *given.cohorts)
        rows += read(residual, json.loads((run.folder / "summary.json").read_text()))
    print(f"\nMeasured on {machine()}.\n")
    print(markdown(["residual", "masked R²", "embedding", "site recognised", "by chance", "age R²"], rows))


def read(residual: str, summary: dict) -> list[tuple[str, ...]]:
    """Return a row for each variant of the embedding."""
    found, rows = summary["pretraining"]["masked_r2"], []
    for variant, site in summary["harmonization"]["site_effect"]["embedding"].items():
        age = summary["probes"]["embedding"]["age"][variant]["r2"]
        recognised, chance = f"{site['balanced_accuracy']:.3f}", f"{site['null_mean']:.3f}"
        rows.append((residual, f"{found:.3f}", variant, recognised, chance, f"{age:.3f}"))
    return rows


if __name__ == "__main__":
    main()
