"""What a paper must state of recordings and people, in sentences."""

from collections.abc import Sequence

import pandas as pd

from cohorts.quality import QualityRules

MOST_LEVELS = 6
"""A column of text with more of them is no category that a sentence can list."""


def rules_sentence(rules: QualityRules) -> str:
    """Say which recordings the rules exclude, with every threshold."""
    grounds = [
        f"of fewer than {rules.min_frames} frames",
        f"with a signal in less than {rules.min_coverage:.0%} of the parcels",
    ]
    if rules.min_seconds:
        grounds.append(f"of less than {rules.min_seconds:g} s after censoring")
    if rules.max_mean_fd is not None:
        grounds.append(f"with a mean framewise displacement above {rules.max_mean_fd:g} mm")
    if rules.max_fd_over is not None:
        grounds.append(
            f"with more than {rules.max_fd_over:.0%} of the frames displaced by over {rules.fd_threshold:g} mm"
        )
    if rules.max_dvars_over is not None:
        over = f"a standardized DVARS above {rules.dvars_threshold:g}"
        grounds.append(f"with {over} in more than {rules.max_dvars_over:.0%} of the frames")
    if rules.min_tsnr is not None:
        grounds.append(f"with a temporal signal-to-noise ratio below {rules.min_tsnr:g}")
    if rules.max_mean_fc is not None:
        grounds.append(f"with a mean correlation of all parcels above {rules.max_mean_fc:g}")
    return f"Recordings were excluded {', '.join(grounds[:-1])}, or {grounds[-1]}."


def seconds_of(t_rs: Sequence[float]) -> str:
    """Name repetition times: all of a few, or from the shortest to the longest."""
    known = [f"{t_r:g}" for t_r in sorted(set(t_rs))]
    return f"{known[0]} to {known[-1]} s" if len(known) > 3 else f"{' and '.join(known)} s"


def column_summary(values: pd.Series) -> str:
    """Sum up one column of a participants table: a number's mean, spread and range, or how many have each level."""
    known = values.dropna()
    unknown = f", {len(values) - len(known)} unknown" if len(known) < len(values) else ""
    if known.empty:
        return "unknown"
    if pd.api.types.is_numeric_dtype(known):
        spread = f" (SD {known.std():.3g})" if len(known) > 1 else ""
        return f"mean {known.mean():.3g}{spread}, {known.min():.3g} to {known.max():.3g}{unknown}"
    counts = known.astype("str").value_counts().sort_index()
    return ", ".join(f"{count} {level}" for level, count in counts.items()) + unknown
