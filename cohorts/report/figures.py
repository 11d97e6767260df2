"""The quality report's figures. Each takes plain data and returns a figure, or None where there is nothing to draw."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from scipy import stats

from cohorts.quality import QualityRules, acquired_frames, connectivity, standardized_dvars
from cohorts.recording import Recording
from cohorts.report.group import MEASURES, Measure
from cohorts.report.style import COLOURS, brain_views, by_network, network_lines

_BLUE, _BEYOND, _ABSENT = COLOURS[0], COLOURS[5], "#f6dfd3"
_HIGHEST_FD = 3.0
"""Top of a motion trace in mm: beyond it one jump would flatten the rest."""
_HIGHEST_DVARS = 4.0


def distributions(table: pd.DataFrame, rules: QualityRules) -> Figure | None:
    """Histogram of every measure over recordings, with the threshold that the rules set."""
    if table.empty:
        return None
    figure = Figure(figsize=(8, 6.4))
    panels = figure.subplots(3, 3)
    for axes, measure in zip(panels.flat, MEASURES, strict=True):
        _histogram(axes, table[measure.column].to_numpy(float), measure, measure.limit(rules))
    return figure


def coverage_map(places: np.ndarray, coverage: np.ndarray) -> Figure:
    """Fraction of recordings in which a parcel has a signal, at its place [P, 3] in the brain; the lowest in front."""
    order = np.argsort(-coverage, kind="stable")
    lowest = min(0.9, math.floor(coverage.min() * 10) / 10)
    return brain_views(places[order], coverage[order] * 100, "% of recordings", (lowest * 100, 100))


def mean_connectivity(matrix: np.ndarray, distance: np.ndarray, networks: Sequence[str] | None) -> Figure | None:
    """Mean correlation [P, P] in order of the networks, and over the distance [E] between the centroids."""
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    known = np.isfinite(pairs)
    if not known.any():
        return None
    figure = Figure(figsize=(8, 3.7))
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    image = _matrix(left, matrix, networks)
    left.set_title("Mean connectivity")
    figure.colorbar(image, ax=left, shrink=0.8).ax.set_title("r", fontsize=9, fontweight="normal", loc="center")
    _over_distance(right, distance[known], pairs[known])
    right.set(title="Over distance", ylabel="mean r")
    return figure


def qc_fc(correlations: np.ndarray, distance: np.ndarray, n_participants: int) -> Figure | None:
    """Correlation of every pair's connectivity with mean FD over participants [E], and over distance [E] in mm."""
    known = np.isfinite(correlations)
    if not known.any():
        return None
    correlations, distance = correlations[known], distance[known]
    figure = Figure(figsize=(8, 3.3))
    left, right = figure.subplots(1, 2)
    left.hist(correlations, bins=np.linspace(-1, 1, 81), density=True, color=_BLUE, alpha=0.6, label="pairs of parcels")
    r = np.linspace(-1, 1, 401)
    chance = _by_chance(n_participants)
    left.plot(r, chance.pdf(r), color="black", linewidth=1.2, label="by chance, single pair")
    reach = max(np.abs(np.quantile(correlations, (0.001, 0.999))).max(), chance.ppf(0.999)) + 0.05
    left.set(title="QC-FC", xlabel="correlation with mean FD", ylabel="density", xlim=(-min(1, reach), min(1, reach)))
    left.axvline(0, color="0.6", linewidth=0.8)
    left.legend(loc="upper left", fontsize=7.5)
    left.set_ylim(top=left.get_ylim()[1] * 1.25)  # room for the legend
    _over_distance(right, distance, correlations)
    right.axhline(0, color="0.6", linewidth=0.8)
    right.set(title="Over distance", ylabel="correlation with mean FD")
    return figure


def qc_fc_numbers(correlations: np.ndarray, distance: np.ndarray, n_participants: int) -> dict[str, float]:
    """Sum up QC-FC as Ciric 2017 do: median of its size, share of pairs with p < 0.05, Spearman's rho with distance."""
    known = np.isfinite(correlations)
    critical = _by_chance(n_participants).ppf(0.975)
    return {
        "median": float(np.median(np.abs(correlations[known]))),
        "significant": float((np.abs(correlations[known]) > critical).mean()),
        "distance": float(stats.spearmanr(distance[known], correlations[known]).statistic),
    }


def _by_chance(n: int) -> Any:
    """Distribution of the correlation of `n` pairs that have nothing to do with each other."""
    return stats.beta(n / 2 - 1, n / 2 - 1, loc=-1, scale=2)


def recording(shown: Recording, networks: Sequence[str] | None, rules: QualityRules) -> Figure:
    """Motion, DVARS, carpet and connectivity of one recording, on the time axis of the frames as acquired.

    `networks` has one a parcel; of the rules, the thresholds of framewise displacement and DVARS are drawn.
    """
    signal, coverage, displacement = shown.signal, shown.coverage, shown.framewise_displacement
    n_acquired = max(len(signal), displacement.size, shown.censored.size)
    frames = acquired_frames(len(signal), shown.censored)
    figure = Figure(figsize=(8, 3.9))
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.75, 1))[0]
    motion, changes, carpet = left.subplots(3, 1, sharex=True, height_ratios=(1, 1, 3.6))
    seconds = np.arange(n_acquired) * shown.t_r
    _motion(motion, seconds, displacement, shown.censored, rules.fd_threshold)
    dvars = np.full(n_acquired, np.nan)
    measured = standardized_dvars(signal[:, coverage])
    dvars[frames[1 : 1 + measured.size]] = measured
    _trace(changes, seconds, dvars, rules.dvars_threshold, "DVARS", top=_HIGHEST_DVARS)
    values = np.full((n_acquired, signal.shape[1]), np.nan)
    centred = signal - signal.mean(axis=0, dtype=np.float64)
    values[np.ix_(frames, coverage)] = centred[:, coverage] / centred.std(axis=0)[coverage]
    _carpet(carpet, values, n_acquired * shown.t_r, networks)
    matrix = right.subplots()
    image = _matrix(matrix, connectivity(np.where(coverage, signal, 0)), networks, names=False)
    matrix.set_title("Connectivity", fontsize=9)
    right.colorbar(image, ax=matrix, label="r", orientation="horizontal", shrink=0.6)
    return figure


def _histogram(axes: Axes, values: np.ndarray, measure: Measure, limit: float | None) -> None:
    """Histogram of one measure; what is beyond the threshold in another colour."""
    axes.set_title(measure.title[0].upper() + measure.title[1:])
    values = values[np.isfinite(values)] * measure.scale
    if values.size == 0:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        _say(axes, "not known")
        return
    low, high = float(values.min()), float(values.max())
    if high - low < 10.0 ** -(measure.decimals + 1):  # all alike
        low, high = low - 5 * 10.0**-measure.decimals, high + 5 * 10.0**-measure.decimals
        if measure.unit == "%":
            low, high = max(0, low), min(100, high)
    bins = np.linspace(low, high, min(30, max(8, round(2 * math.sqrt(values.size)))) + 1)
    highest = np.histogram(values, bins)[0].max()
    axes.hist(values, bins=bins.tolist(), color=_BLUE, alpha=0.75)
    place = axes.get_subplotspec()
    axes.set(xlabel=measure.unit, ylabel="recordings" if place is not None and place.is_first_col() else "")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    if values.size <= 200:
        axes.plot(values, np.full(values.size, -0.04 * highest), "|", color="0.3", markersize=5, alpha=0.6)
        axes.set_ylim(bottom=-0.09 * highest)
    if limit is None:
        return
    for bar, left, right in zip(axes.patches, bins[:-1], bins[1:], strict=True):
        if (left + right) / 2 > limit if measure.worse == "high" else (left + right) / 2 < limit:
            bar.set_color(_BEYOND)
    _mark_threshold(axes, limit, low, high, measure)


def _mark_threshold(axes: Axes, limit: float, low: float, high: float, measure: Measure) -> None:
    """A line at the threshold, or a word on where it lies if it would flatten the distribution."""
    said = f"{'at most' if measure.worse == 'high' else 'at least'} {limit:g}{'%' if measure.unit == '%' else ''}"
    style: dict[str, Any] = {"color": _BEYOND, "fontsize": 7.5, "va": "top"}
    if limit - high > 1.5 * (high - low):
        axes.text(1, 0.98, f"{said} →", ha="right", transform=axes.transAxes, **style)
    elif low - limit > 1.5 * (high - low):
        axes.text(0.03, 0.98, f"← {said}", ha="left", transform=axes.transAxes, **style)
    else:
        axes.axvline(limit, color=_BEYOND, linestyle="--", linewidth=1.2)
        side = "right" if limit > sum(axes.get_xlim()) / 2 else "left"
        away: dict[str, Any] = {"xytext": (-3 if side == "right" else 3, 0), "textcoords": "offset points"}
        axes.annotate(said, (limit, 0.98), xycoords=("data", "axes fraction"), ha=side, **away, **style)


def _over_distance(axes: Axes, distance: np.ndarray, values: np.ndarray) -> None:
    """Density of pairs over distance in mm, with the median and the quartiles of each stretch."""
    shown = np.quantile(values, (0.0005, 0.9995))
    counts, _, _, image = axes.hist2d(
        distance, values, bins=60, range=((0, distance.max()), shown), cmap="Greys", cmin=1, rasterized=True
    )
    image.set_clim(0, np.nanquantile(counts, 0.98))
    edges = np.unique(np.quantile(distance, np.linspace(0, 1, 21)))
    stretch = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, max(len(edges) - 2, 0))
    parts = pd.DataFrame({"x": distance, "y": values}).groupby(stretch)
    x = parts["x"].median()
    axes.fill_between(x, *(parts["y"].quantile(q) for q in (0.25, 0.75)), color=_BLUE, alpha=0.25, linewidth=0)
    axes.plot(x, parts["y"].median(), color=_BLUE, linewidth=2)
    axes.set_xlabel("distance of centroids, mm")


def _matrix(axes: Axes, matrix: np.ndarray, networks: Sequence[str] | None, names: bool = True) -> AxesImage:
    """Correlations in the order of the networks, with lines between them."""
    order = by_network(networks, len(matrix))
    off_diagonal = matrix[np.triu_indices(len(matrix), 1)]
    known = np.abs(off_diagonal[np.isfinite(off_diagonal)])
    reach = min(1.0, max(0.2, math.ceil(10 * np.quantile(known, 0.98)) / 10)) if known.size else 1.0
    image = axes.imshow(matrix[np.ix_(order, order)], cmap="RdBu_r", vmin=-reach, vmax=reach, rasterized=True)
    axes.set(xticks=[], yticks=[], facecolor=_ABSENT)
    axes.spines[:].set_visible(False)
    if networks is None:
        axes.set_xlabel(f"{len(matrix)} parcels in the atlas's order")
        return image
    network_lines(axes, networks, order, both=True, names=names)
    return image


def _carpet(axes: Axes, values: np.ndarray, seconds: float, networks: Sequence[str] | None) -> None:
    """Signals [A, P] over time, in units of their standard deviations, parcels in the order of the networks."""
    order = by_network(networks, values.shape[1])
    extent = (0, seconds, len(order), 0)
    axes.imshow(values.T[order], aspect="auto", cmap="gray", vmin=-2.5, vmax=2.5, extent=extent, rasterized=True)
    axes.set(yticks=[], xlabel="seconds", facecolor=_ABSENT, xlim=(0, seconds))
    axes.spines[:].set_visible(False)
    if networks is None:
        axes.set_ylabel(f"{len(order)} parcels")
    else:
        network_lines(axes, networks, order, both=False, names=True, offset=0.5)


def _motion(axes: Axes, seconds: np.ndarray, displacement: np.ndarray, censored: np.ndarray, threshold: float) -> None:
    """Framewise displacement over time, with the censored frames marked above it."""
    if np.isfinite(displacement).any():
        trace = np.full(seconds.size, np.nan)
        trace[: displacement.size] = displacement
        _trace(axes, seconds, trace, threshold, "FD, mm", top=_HIGHEST_FD)
    else:
        axes.set(yticks=[], ylabel="FD")
        _say(axes, "motion over time not known")
    note, colour = "no frame censored", "0.45"
    if censored.any():
        note, colour = f"{np.count_nonzero(censored)} of {censored.size} frames censored", _BEYOND
        marked = seconds[: censored.size][censored]
        above = axes.get_xaxis_transform()
        axes.plot(marked, np.full(marked.size, 1.1), "|", color=_BEYOND, markersize=5, clip_on=False, transform=above)
    axes.set_title(note, fontsize=8, fontweight="normal", loc="right", color=colour, pad=9)


def _trace(axes: Axes, seconds: np.ndarray, values: np.ndarray, threshold: float, label: str, top: float) -> None:
    """A line over time and its threshold; what leaves the axis is cut off and marked by a triangle."""
    highest = max(1.15 * threshold, min(top, 1.1 * values[np.isfinite(values)].max(initial=0.0)))
    axes.plot(seconds, np.minimum(values, highest), color=_BLUE, linewidth=0.9)
    if (beyond := values > highest).any():
        axes.plot(
            seconds[beyond], np.full(beyond.sum(), highest), "^", color=_BLUE, markersize=3, clip_on=False
        )  # an empty line that is not clipped would take part in the layout, at no place
    axes.axhline(threshold, color=_BEYOND, linestyle="--", linewidth=0.9)
    axes.set(ylabel=label, ylim=(0, highest))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))


def _say(axes: Axes, text: str) -> None:
    """Say in an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.45", transform=axes.transAxes)
