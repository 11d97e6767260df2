"""Fifty simulated sites in one simulation, with secure sums: seconds a round, memory, messages.

    python benchmarks/many_sites.py [--sites 50] [--rounds 3] [--quick]

Memory is the proportional share (PSS) of all processes of the command, so that what they share counts once, sampled
every second; its peak.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml
from common import fedbrainlm, machine, markdown

from runtime.fab import PROJECT
from runtime.flower import program
from server.journal import Journal
from study.pretraining import PRETRAINING


def study(sites: int, rounds: int) -> dict[str, Any]:
    """A whole study of a tiny model, with the fewest analyses."""
    return {
        "study": "many-sites",
        "seed": 1,
        "cohort": {"atlases": ["schaefer100"]},
        "model": str(PROJECT / "configs" / "models" / "tiny.yaml"),
        "training": {"batch_size": 4, "steps_per_round": 5, "warmup_steps": 2, "precision": "float32"},
        "averaging": {"rounds": rounds, "quorum": sites},
        "analyses": {"targets": ["age"], "folds": 3, "permutations": 10},
    }


def run(plan: Path, cohorts: list[Path], runs: Path) -> tuple[float, float]:
    """Run the study; return its seconds and its peak memory in gigabytes."""
    command = [program("fedbrainlm"), "run", plan, "--runs", runs, "--simulate", *cohorts]
    began, peak = time.monotonic(), 0.0
    process = psutil.Popen(list(map(str, command)))
    while process.poll() is None:
        peak = max(peak, sum(map(pss_of, [process, *process.children(recursive=True)])))
        time.sleep(1)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.monotonic() - began, peak / 1e9


def pss_of(process: psutil.Process) -> int:
    """Bytes of memory of a process, its share of what it has in common with others; 0 if it has ended."""
    with suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


def stages(exchanges: pd.DataFrame) -> list[tuple[str, int, int, str, str, str]]:
    """Of each stage: exchanges, messages, seconds of an exchange, and megabytes from and to all sites."""
    rows = []
    for stage, group in exchanges.groupby("stage", sort=False):
        seconds = statistics.median(group.ended - group.started)
        megabytes = f"{group.bytes_up.sum() / 1e6:.1f}", f"{group.bytes_down.sum() / 1e6:.1f}"
        rows.append((str(stage), len(group), 2 * int(group.asked.sum()), f"{seconds:.1f}", *megabytes))
    return rows


def main() -> None:
    """Simulate cohorts, run, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="six sites and one round, to try the script")
    options = parser.parse_args()
    sites, rounds = (6, 1) if options.quick else (options.sites, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        cohorts, plan = Path(folder) / "cohorts", Path(folder) / "study.yaml"
        fedbrainlm("cohort", "simulate", cohorts, "--sites", sites, "--participants", 12, "--minutes", 2.2)
        plan.write_text(yaml.safe_dump(study(sites, rounds)))
        names = sorted(path for path in cohorts.iterdir() if path.is_dir())
        seconds, peak = run(plan, names, Path(folder) / "runs")
        (journal,) = (Journal(path.parent) for path in Path(folder).glob("runs/*/*/journal.sqlite"))
        exchanges = journal.table("exchanges").sort_values("started")
        rounds_begin = [
            *exchanges[exchanges.stage == PRETRAINING].started,
            exchanges[exchanges.stage == "embedding"].started.min(),
        ]
        lasting = statistics.median(pd.Series(rounds_begin).diff().dropna())
        headline = ("sites", "rounds", "seconds in all", "seconds a round", "peak memory, GB")
        print(f"\nMeasured on {machine()}.\n")
        print(markdown(headline, [(sites, rounds, f"{seconds:.0f}", f"{lasting:.1f}", f"{peak:.1f}")]), end="\n\n")
        header = ("stage", "exchanges", "messages", "seconds an exchange", "MB from sites", "MB to sites")
        print(markdown(header, stages(exchanges)))


if __name__ == "__main__":
    main()
