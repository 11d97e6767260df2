"""Run configs/studies/abide.yaml on the three ABIDE sites and print the tables of docs/real-data.md.

``python benchmarks/abide.py RECORDINGS.npz PARTICIPANTS.tsv --out FOLDER``. The recordings are never part of the
project: docs/real-data.md says what the two files hold.
"""

import argparse
import json
from pathlib import Path

from common import fedbrainlm, machine, markdown, timed_run

STUDY = Path(__file__).parents[1] / "configs" / "studies" / "abide.yaml"
SITES = ("PITT", "OLIN", "OHSU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("participants", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="new folder for cohorts and runs")
    given = parser.parse_args()
    cohorts = [given.out / "cohorts" / site.lower() for site in SITES]
    for site, cohort in zip(SITES, cohorts, strict=True):
        table = ("--participants", given.participants, "--select", f"site={site}", "--atlas", "aal116")
        kept = ("--preprocessing", "abide-pcp", "--keep-ids", "--no-report")
        fedbrainlm("cohort", "prepare", given.recordings, cohort, *table, *kept)
    run = timed_run("run", STUDY, "--runs", given.out / "runs", "--simulate", *cohorts)
    summary = json.loads((run.folder / "summary.json").read_text())
    print(f"\nMeasured in {run.ended - run.began:.0f} s on {machine()}.\n")
    print(reconstruction(summary), site_and_age(summary), sep="\n\n")


def reconstruction(summary: dict) -> str:
    """Masked R² of each site's held-out participants."""
    found = summary["pretraining"]
    rows = [
        (site, summary["sites"][site]["n_participants"], f"{metrics['masked_r2']:.3f}")
        for site, metrics in sorted(found["sites"].items())
    ]
    everyone = sum(site["n_participants"] for site in summary["sites"].values())
    rows.append(("all", everyone, f"{found['masked_r2']:.3f} (untrained {found['masked_r2_untrained']:.3f})"))
    return markdown(["site", "participants", "masked R²"], rows)


def site_and_age(summary: dict) -> str:
    """What site and age leave in each feature set, before and after harmonization."""
    rows = []
    for features, variants in summary["harmonization"]["site_effect"].items():
        for variant, site in variants.items():
            age = summary["probes"][features]["age"][variant]
            eta = f"{site['eta_squared']:.3f}" if "eta_squared" in site else ""
            recognised = f"{site['balanced_accuracy']:.3f}"
            chance = f"{site['null_mean']:.3f} ({site['null_95']:.3f})"
            rows.append(
                (features, variant, eta, recognised, chance, f"{age['r2']:.3f}", f"{age['mean_absolute_error']:.2f}")
            )
    header = ["features", "variant", "η² of site", "site recognised", "by chance (95 %)", "age R²", "age MAE (years)"]
    return markdown(header, rows)


if __name__ == "__main__":
    main()
