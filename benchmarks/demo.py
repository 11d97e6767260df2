"""Time the stages of the demo: `make benchmark-demo`, or `python benchmarks/demo.py [--runs DIR]`.

The stages come from the run's own journal: a stage lasts from its first question to the next stage's. What lies
before the first question and after the last answer comes from the clock and the files that the command writes.
"""

import argparse
from pathlib import Path

from common import TimedRun, machine, markdown, timed_run

from server.journal import Journal


def stages(run: TimedRun) -> list[tuple[str, float, int, float, float]]:
    """Return for each stage its name, seconds, exchanges, and megabytes from and to all sites."""
    exchanges = Journal(run.folder).table("exchanges").sort_values("started")
    ready = max(path.stat().st_mtime for path in run.folder.glob("sites/*/site.yaml"))
    last = exchanges.ended.max()
    rows = [("recordings of four hospitals", ready - run.began, 0, 0.0, 0.0)]
    rows.append(("SuperLink, Ray and ServerApp start", exchanges.started.min() - ready, 0, 0.0, 0.0))
    named = [(stage, group) for stage, group in exchanges.groupby("stage", sort=False)]
    ends = [group.started.min() for _, group in named[1:]] + [last]
    for (stage, group), end in zip(named, ends, strict=True):
        megabytes = group.bytes_up.sum() / 1e6, group.bytes_down.sum() / 1e6
        rows.append((stage, end - group.started.min(), len(group), *megabytes))
    rows.append(("Flower ends, report", run.ended - last, 0, 0.0, 0.0))
    megabytes = exchanges.bytes_up.sum() / 1e6, exchanges.bytes_down.sum() / 1e6
    rows.append(("**all**", run.ended - run.began, len(exchanges), *megabytes))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    run = timed_run("demo", "--runs", parser.parse_args().runs)
    whole = run.ended - run.began
    rows = [
        (
            stage,
            f"{seconds:.1f}",
            f"{seconds / whole:.0%}",
            exchanges or "",
            *(f"{mb:.1f}" if mb else "" for mb in up_down),
        )
        for stage, seconds, exchanges, *up_down in stages(run)
    ]
    print(f"\nMeasured on {machine()}.\n")
    print(markdown(["stage", "seconds", "share", "exchanges", "MB from sites", "MB to sites"], rows))


if __name__ == "__main__":
    main()
