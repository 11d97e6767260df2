"""What a round over a deployed federation costs beside training, and what grows: three sites on this machine.

    python benchmarks/federation.py [--model 13m] [--rounds 5] [--steps 8] [--device cpu]
    python benchmarks/federation.py --model tiny --rounds 20 --steps 5

TLS, SuperNode keys, the edge, apps in processes of their own, approved apps and secure sums, as the guides set them up.
A round lasts from its question to the next one. Its way is followed where it ends last: at the site that has sent last.
Training and evaluation are what that site's log says of itself; what Flower does is timed by what its SuperNode says.
Overhead is the round less the longest training of any site: what three sites lose by sharing these cores is in it.
"""

import argparse
import re
import statistics
import tempfile
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import fedbrainlm, machine, markdown
from deployed import Deployment

from runtime.fab import PROJECT
from server.journal import Journal
from study.pretraining import PRETRAINING

PARTS = (
    "question reaches the site",
    "download",
    "app starts",
    "evaluation of the incoming model",
    "training",
    "ledger, store, masks, audit",
    "app hands over",
    "upload",
    "answer reaches the run",
    "opening, averaging, checkpoint",
)
_TRAINED = re.compile(
    r"^(\S+ \S+) INFO round (\d+): model evaluated in ([\d.]+) s, trained in ([\d.]+) s$", re.MULTILINE
)
_RELEASED = re.compile(r"^(\S+ \S+) INFO train released", re.MULTILINE)


@dataclass(frozen=True)
class Sizes:
    """Megabytes after a round, and processor seconds until then of each kind of program."""

    memory: float
    database: float
    site: float
    run: float
    cpu: dict[str, float]


def study(model: str, rounds: int, steps: int) -> dict[str, Any]:
    """A study that is all training: the fewest other exchanges."""
    return {
        "study": "overhead",
        "seed": 1,
        "cohort": {"atlases": ["schaefer100"]},
        "model": str(PROJECT / "configs" / "models" / f"{model}.yaml"),
        "training": {"batch_size": 4, "steps_per_round": steps, "warmup_steps": 2, "precision": "float32"},
        "averaging": {"rounds": rounds, "quorum": 3},
        "analyses": {"targets": [], "folds": 3, "permutations": 0, "gaussian_baseline": False},
    }


def parts_of(deployment: Deployment, journal: Journal) -> list[tuple[float, float, list[float]]]:
    """Return for each round its seconds, its longest training, and its way in `PARTS`."""
    exchanges = journal.table("exchanges").sort_values("started")
    begins = exchanges.started.tolist()
    asked = exchanges[exchanges.stage == PRETRAINING]
    nexts = [next(time for time in begins if time > started) for started in asked.started]
    logs = [site_times(site / "state" / "site.log") for site in deployment.sites]
    rows = []
    for number, (row, end) in enumerate(zip(asked.itertuples(), nexts, strict=True)):
        ways = []
        for site, log in zip(deployment.sites, logs, strict=True):
            node, (begin, evaluated, trained, released) = deployment.nodes[site.name], log[number]
            came, whole = node.first("Receiving: train", row.started), node.first("Received successfully", row.started)
            sending, sent = node.first("Sending: train", row.started), node.first("Sent successfully", row.started)
            ways.append([row.started, came, whole, begin, evaluated, trained, released, sending, sent, row.ended, end])
        last = max(ways, key=lambda way: way[-3])
        rows.append((end - row.started, max(way[5] - way[4] for way in ways), [b - a for a, b in pairwise(last)]))
    return rows


def site_times(log: Path) -> list[tuple[float, float, float, float]]:
    """Unix times of each round at a site: the question is read, the model is evaluated, is trained, the answer left."""
    text, times = log.read_text(encoding="utf-8"), []
    for trained, released in zip(_TRAINED.finditer(text), _RELEASED.findall(text), strict=True):
        end, evaluation, training = _time(trained[1]), float(trained[3]), float(trained[4])
        times.append((end - training - evaluation, end - training, end, _time(released)))
    return times


def _time(said: str) -> float:
    return datetime.strptime(said, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def measure_sizes(deployment: Deployment, run: Path) -> Sizes:
    site, where = deployment.sites[0], deployment.federation.folder
    database = sum(path.stat().st_size for path in where.glob("superlink.sqlite*"))
    memory = deployment.superlink_bytes()
    return Sizes(
        memory / 1e6, database / 1e6, size_of(site / "state"), size_of(run / "answers"), deployment.cpu_seconds()
    )


def size_of(folder: Path) -> float:
    """Megabytes of all files below a folder."""
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.stat().st_size
        except OSError:  # it was there a moment ago
            continue
    return found / 1e6


def print_rounds(rows: list[tuple[float, float, list[float]]]) -> None:
    """Print the rounds; where the time of the later ones goes, in the median, as the first has more to start."""
    table = [
        (number, f"{whole:.1f}", f"{training:.1f}", f"{whole - training:.1f}")
        for number, (whole, training, _) in enumerate(rows, start=1)
    ]
    print(markdown(["round", "seconds", "longest training", "overhead"], table), end="\n\n")
    later = [parts for _, _, parts in rows[1:] or rows]
    medians = [f"{statistics.median(seconds):.2f}" for seconds in zip(*later, strict=True)]
    print(markdown(["part of a round, at the last site", "seconds, median"], zip(PARTS, medians, strict=True)))


def print_sizes(sizes: dict[int, Sizes]) -> None:
    header = ["after round", "SuperLink, MB of memory", "`superlink.sqlite`, MB", "a site's state, MB", "answers, MB"]
    rows = [
        (number, *(f"{value:.1f}" for value in (of.memory, of.database, of.site, of.run)))
        for number, of in sorted(sizes.items())
    ]
    print(markdown(header, rows))


def print_processor(sizes: dict[int, Sizes]) -> None:
    """Print what a round takes of the processor: unlike seconds, hardly more where others use the machine."""
    rounds = [number for number in sorted(sizes) if number > 0]
    first, last = sizes[rounds[0]].cpu, sizes[rounds[-1]].cpu
    rows = [(name, f"{(last[name] - first[name]) / max(1, len(rounds) - 1):.1f}") for name in last]
    print(markdown(["program", "processor seconds a round"], rows))


def main() -> None:
    """Set up, run, print three tables, and leave nothing running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="13m", help="name of a file in configs/models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of training, in a round at a site")
    parser.add_argument(
        "--device", default="cpu", help="where the sites train: cpu, or cuda for one GPU that they share"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model and two rounds, to try the script")
    options = parser.parse_args()
    if options.quick:
        options.model, options.rounds, options.steps = "tiny", 2, 2
    with tempfile.TemporaryDirectory() as folder:
        cohorts = Path(folder) / "cohorts"
        fedbrainlm("cohort", "simulate", cohorts, "--sites", 3, "--participants", 12, "--minutes", 6)
        names = sorted(path for path in cohorts.iterdir() if path.is_dir())
        plan = study(options.model, options.rounds, options.steps)
        deployment = Deployment(Path(folder) / "deployment", names, plan, options.device)
        sizes: dict[int, Sizes] = {}

        def seen(run: Path) -> bool:
            """Measure; what was measured last before the next round ended is a round's own."""
            exchanges = Journal(run).table("exchanges")
            sizes[Journal(run).progress().round_number] = measure_sizes(deployment, run)
            return bool((exchanges.stage == "embedding").any())

        try:
            deployment.start()
            run = deployment.run(seen)
        finally:
            deployment.stop()
        print(f"\nModel {options.model}, {options.steps} steps a round on {options.device}. Measured on {machine()}.\n")
        print_rounds(parts_of(deployment, Journal(run)))
        print()
        print_processor(sizes)
        print()
        print_sizes(sizes)


if __name__ == "__main__":
    main()
