"""What a user's first study gives, unchanged, beside what needs no training.

``python benchmarks/first_study.py COHORT ... --out FOLDER`` writes a study with ``fedbrainlm study init``, runs it over
the cohorts, and prints a row of the table in docs/benchmarks/model.md.
"""

import argparse
import json
from pathlib import Path

from common import fedbrainlm, machine, markdown, timed_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohorts", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the study and the run")
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    study = given.out / "first.yaml"
    fedbrainlm("study", "init", *given.cohorts, "--out", study)
    run = timed_run("run", study, "--runs", given.out / "runs", "--simulate", *given.cohorts)
    summary = json.loads((run.folder / "summary.json").read_text())
    print(f"\nMeasured in {run.ended - run.began:.0f} s on {machine()}.\n")
    print(
        markdown(
            ["cohorts", "people", "masked R²", "untrained", "linear", "age R²", "with connectivity"], [row(summary)]
        )
    )
    print("\n".join(summary["cautions"]))


def row(summary: dict) -> list[str]:
    """Return what came out, and what it stands beside."""
    pretraining, probes = summary["pretraining"], summary["probes"]
    linear = max(pretraining["baselines"][name]["masked_r2"] for name in ("gaussian", "gaussian_space_time"))
    ages = [probes[features].get("age", {}).get("raw", {}).get("r2") for features in ("embedding", "connectivity")]
    people = sum(site["n_participants"] for site in summary["sites"].values())
    scores = (pretraining["masked_r2"], pretraining["masked_r2_untrained"], linear, *ages)
    return [", ".join(summary["sites"]), str(people), *("" if score is None else f"{score:.3f}" for score in scores)]


if __name__ == "__main__":
    main()
