"""Draw masked R² against CPU time from what `reconstruction.py` wrote, and print the table of docs/benchmarks/model.md.

``python benchmarks/curves.py "factorised=a.json,b.json" "original design=c.json" --figure docs/benchmarks/curves.svg``:
a name, and the files of its seeds.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from common import markdown

FLOOR = -0.05
"""Lower edge of the figure; an untrained model is far below."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FILE,FILE")
    parser.add_argument("--figure", type=Path, required=True)
    given = parser.parse_args()
    models = {name: read(files) for name, _, files in (model.partition("=") for model in given.models)}
    draw(models, given.figure)
    rows = [row(name, runs) for name, runs in models.items()]
    first = next(iter(models.values()))[0]
    rows += [(name, "", "0", f"{scores['masked_r2']:.3f}", "") for name, scores in first["baselines"].items()]
    print(first["machine"], "\n")
    print(markdown(["model", "seeds", "CPU minutes", "held-out masked R²", "range over seeds"], rows))


def read(files: str) -> list[dict[str, Any]]:
    """Read the runs of one model."""
    return [json.loads(Path(file).read_text()) for file in files.split(",")]


def row(name: str, runs: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the row of one model: how long its seeds trained, and where they ended."""
    minutes = statistics.median(run["curve"][-1]["cpu_s"] for run in runs) / 60
    found = sorted(run["curve"][-1]["masked_r2"] for run in runs)
    return (
        name,
        str(len(runs)),
        f"{minutes:.1f}",
        f"{statistics.median(found):.3f}",
        f"{found[0]:.3f} to {found[-1]:.3f}",
    )


def draw(models: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw a line a seed, and a dashed one for each Gaussian predictor."""
    with mpl.rc_context({"svg.hashsalt": "curves", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for number, (name, runs) in enumerate(models.items()):
            for seed, run in enumerate(runs):
                minutes = [point["cpu_s"] / 60 for point in run["curve"]]
                scores = [point["masked_r2"] for point in run["curve"]]
                axes.plot(minutes, scores, color=f"C{number}", label=name if seed == 0 else None, linewidth=1.2)
        baselines = next(iter(models.values()))[0]["baselines"]
        for name, style in (("gaussian", ":"), ("gaussian_space_time", "--")):
            axes.axhline(baselines[name]["masked_r2"], color="0.4", linestyle=style, linewidth=1, label=name)
        axes.set(xlabel="CPU minutes of training, one core", ylabel="masked R², held-out participants")
        axes.set_ylim(bottom=FLOOR)
        axes.legend(frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
