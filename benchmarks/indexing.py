"""Measure how fast a tree of derivatives is listed: `python benchmarks/indexing.py [--people 100] [--repeats 5]`.

The tree has 42 empty files a person, named as XCP-D names them. Beside `walk` with `parse_name`, and `Tree`, stand
ancpbids and pybids where they are installed: each lists the tree and finds the series of one atlas. Trees are in the
file system's cache already.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from common import machine, markdown

from cohorts.sources.bids import Tree, parse_name, walk

PER_PERSON = 42


def make_tree(root: Path, people: int) -> None:
    """Write 40 time series of a person, of four runs and ten atlases, and motion and outliers of one run."""
    described = {"Name": "XCP-D", "BIDSVersion": "1.4.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "x"}]}
    (root / "dataset_description.json").write_text(json.dumps(described))
    for number in range(people):
        subject = f"sub-{number:04d}"
        folder = root / subject / "func"
        folder.mkdir(parents=True)
        for run in range(1, 5):
            for atlas in range(156, 1156, 100):
                name = (
                    f"{subject}_task-rest_run-{run}_space-MNI152NLin6Asym_seg-4S{atlas}Parcels_stat-mean_timeseries.tsv"
                )
                (folder / name).touch()
        for suffix in ("motion", "outliers"):
            (folder / f"{subject}_task-rest_run-1_{suffix}.tsv").touch()


def with_walk(root: Path) -> int:
    names = [parse_name(path) for path in walk(root)]
    return sum(bool(name and name.entities.get("seg") == "4S456Parcels") for name in names)


def with_tree(root: Path) -> int:
    return len(Tree(root).select("timeseries", ".tsv", seg="4S456Parcels", stat="mean"))


def with_ancpbids(root: Path) -> int:
    from ancpbids import load_dataset

    return len(load_dataset(str(root)).query(suffix="timeseries", extension=".tsv", seg="4S456Parcels", scope="raw"))


def with_pybids(root: Path) -> int:
    from bids import BIDSLayout

    layout = BIDSLayout(root, validate=False, is_derivative=True, config=["bids", "derivatives"])
    return sum(file.get_entities().get("seg") == "4S456Parcels" for file in layout.get(extension=".tsv"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=100, help=f"{PER_PERSON} files each")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    ways: dict[str, Callable[[Path], int]] = {"`walk` and `parse_name`": with_walk, "`Tree`": with_tree}
    if find_spec("ancpbids"):
        ways["ancpbids"] = with_ancpbids
    if find_spec("bids"):
        ways["pybids"] = with_pybids
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_tree(Path(folder), arguments.people)
        for way, function in ways.items():
            seconds, found = [], 0
            for _ in range(arguments.repeats):
                began = time.perf_counter()
                found = function(Path(folder))
                seconds.append(time.perf_counter() - began)
            rows.append((way, f"{statistics.median(seconds):.2f}", f"{found} of {4 * arguments.people}"))
    print(f"\nMeasured on {machine()}; {PER_PERSON * arguments.people} files, median of {arguments.repeats}.\n")
    print(markdown(["listed with", "seconds", "series of one atlas found"], rows))


if __name__ == "__main__":
    main()
