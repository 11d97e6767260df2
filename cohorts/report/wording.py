"""What a paper must state of recordings and people, in sentences."""

from collections.abc import Sequence

import pandas as pd

from cohorts.quality import QualityRules

MOST_LEVELS = 6
"""A column of text with more of them is no category that a sentence can list."""


_GROUNDS = {
    "min_frames": "of fewer than {min_frames} frames",
    "min_coverage": "with a signal in less than {min_coverage:.0%} of the parcels",
    "min_seconds": "of less than {min_seconds:g} s after censoring",
    "max_mean_fd": "with a mean framewise displacement above {max_mean_fd:g} mm",
    "max_fd_over": "with more than {max_fd_over:.0%} of the frames displaced by over {fd_threshold:g} mm",
    "max_dvars_over": (
        "with a standardized DVARS above {dvars_threshold:g} in more than {max_dvars_over:.0%} of the frames"
    ),
    "min_tsnr": "with a temporal signal-to-noise ratio below {min_tsnr:g}",
    "max_mean_fc": "with a mean correlation of all parcels above {max_mean_fc:g}",
}
"""What each threshold excludes."""


def rules_sentence(rules: QualityRules) -> str:
    """Say which recordings the rules exclude, with every threshold."""
    thresholds = {name: value for name, value in rules.model_dump().items() if value is not None}
    asked = thresholds.keys() - ({"min_seconds"} if rules.min_seconds == 0 else set())
    *grounds, last = (said.format(**thresholds) for name, said in _GROUNDS.items() if name in asked)
    return f"Recordings were excluded {', '.join(grounds)}, or {last}."


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
