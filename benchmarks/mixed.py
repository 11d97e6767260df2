"""Train one model over sites with other atlases and other TRs, and print how well it reconstructs at each.

``python benchmarks/mixed.py --out FOLDER`` simulates four sites. With ``--abide RECORDINGS PARTICIPANTS`` and ``--fep
RECORDINGS``, it takes four real ones: PITT, OLIN and OHSU of ABIDE I (116 AAL parcels, TR 1.5 and 2.5 s) and one of 400
Schaefer parcels (TR 2 s). The recordings are never part of the project: docs/real-data.md says what the files hold.
"""

import argparse
import json
from pathlib import Path

from common import fedbrainlm, machine, markdown, timed_run

from cohorts.simulation import SimulatedSite, simulate_cohorts

STUDY = Path(__file__).parents[1] / "configs" / "studies" / "mixed.yaml"
SIMULATED = {"schaefer100": 0.72, "schaefer200": 1.5, "schaefer400": 3.0, "a424": 2.0}
"""Atlas and TR of each simulated site."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder for cohorts and runs")
    parser.add_argument("--abide", type=Path, nargs=2, metavar=("RECORDINGS", "PARTICIPANTS"))
    parser.add_argument("--fep", type=Path, metavar="RECORDINGS")
    given = parser.parse_args()
    folder = given.out / "cohorts"
    cohorts = real(folder, given.abide, given.fep) if given.abide and given.fep else simulated(folder)
    run = timed_run("run", STUDY, "--runs", given.out / "runs", "--simulate", *cohorts)
    summary = json.loads((run.folder / "summary.json").read_text())
    print(f"\nMeasured in {run.ended - run.began:.0f} s on {machine()}.\n")
    found = summary["pretraining"]
    rows = [
        (site, about["atlas"], about["n_participants"], f"{found['sites'][site]['masked_r2']:.3f}")
        for site, about in sorted(summary["sites"].items())
    ]
    rows.append(("all", "", "", f"{found['masked_r2']:.3f}"))
    rows.append(("all, untrained", "", "", f"{found['masked_r2_untrained']:.3f}"))
    rows += [(f"all, {name}", "", "", f"{of['masked_r2']:.3f}") for name, of in found["baselines"].items()]
    print(markdown(["site", "atlas", "participants", "masked R²"], rows))


def simulated(folder: Path) -> list[Path]:
    """Make four sites whose people come from the same population."""
    paths = []
    for number, (atlas, t_r) in enumerate(SIMULATED.items()):
        site = SimulatedSite(f"{atlas}-site", n_participants=24, t_r=t_r, n_frames=round(360 / t_r))
        paths += simulate_cohorts(folder / atlas, [site], atlas=atlas, seed=number)
    return paths


def real(folder: Path, abide: tuple[Path, Path], fep: Path) -> list[Path]:
    """Prepare the real sites."""
    recordings, participants = abide
    paths = [folder / name for name in ("pitt", "olin", "ohsu", "fep")]
    for path in paths[:3]:
        table = ("--participants", participants, "--select", f"site={path.name.upper()}", "--atlas", "aal116")
        fedbrainlm("cohort", "prepare", recordings, path, *table, "--keep-ids", "--no-report")
    columns = ("--atlas", "schaefer400", "--columns", "1-400", "--tr", "2.0")
    fedbrainlm("cohort", "prepare", fep, paths[3], *columns, "--keep-ids", "--no-report")
    return paths


if __name__ == "__main__":
    main()
