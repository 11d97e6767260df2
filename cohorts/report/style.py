"""How figures look, what they have in common, and the brain seen from three sides."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType
from nilearn.plotting.glass_brain import plot_brain_schematics

#: Okabe & Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "fedbrainlm",
}

_LEGEND_LETTERS = 95
"""Letters that fit into a line of the legend, each entry's mark counting as six."""
_LEGEND_INCHES = 0.19
"""Height of a line of the legend."""
_BRAIN = np.array([[-75, -110, -75], [75, 80, 90]])
"""Corners of a box around the brain and the cerebellum in MNI space, mm."""


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Put a legend below a figure, in as many lines as its entries need, and make the figure higher by them."""
    if not labels:
        return
    columns = max(1, min(len(labels), 6, _LEGEND_LETTERS // (max(map(len, labels)) + 6)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    lines = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_INCHES * (lines - 1))


def widened(low: float, high: float, least: float) -> tuple[float, float]:
    """Limits of an axis about some values: at least so wide that a difference which is nothing does not look large."""
    margin = max((least - (high - low)) / 2, 0.04 * (high - low))
    return low - margin, high + margin


def by_network(networks: Sequence[str] | None, n_parcels: int) -> np.ndarray:
    """Order of the parcels: by network in order of appearance, and within it as the atlas has them."""
    if networks is None:
        return np.arange(n_parcels)
    return np.argsort(pd.factorize(np.asarray(networks, dtype=object))[0], kind="stable")


def network_lines(
    axes: Axes, networks: Sequence[str], order: np.ndarray, *, both: bool, names: bool, offset: float = 0.0
) -> None:
    """Draw lines between the networks, and their names at the left."""
    ordered = np.asarray(networks, dtype=object)[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(ordered)]
    for start in starts[1:]:
        axes.axhline(start - 0.5 + offset, color="black" if both else COLOURS[4], linewidth=0.6)
        if both:
            axes.axvline(start - 0.5, color="black", linewidth=0.5)
    if names:
        axes.set_yticks((starts + ends) / 2 - 0.5 + offset, ordered[starts], fontsize=7)
        axes.tick_params(axis="y", length=0, pad=2)


def brain_views(places: np.ndarray, values: np.ndarray, label: str, limits: tuple[float, float]) -> Figure:
    """Draw a value [P] of every parcel at its centroid in nilearn's glass brain, seen from above, behind and the right.

    Centroids [P, 3] are in mm of MNI space; `label` and `limits` are those of the colour bar. Left is left: L and R,
    and P and A in the view from the right, name the sides.
    """
    spans, middle = np.ptp(_BRAIN, axis=0), np.mean(_BRAIN, axis=0)
    figure = Figure(figsize=(8, 2.9))
    views = (("from above", "z", 0, 1), ("from behind", "y", 0, 2), ("from the right", "r", 1, 2))
    panels = figure.subplots(1, 3, width_ratios=[spans[horizontal] for _, _, horizontal, _ in views])
    for axes, (title, direction, horizontal, vertical) in zip(panels, views, strict=True):
        plot_brain_schematics(axes, direction, alpha=0.5)
        points = axes.scatter(
            places[:, horizontal],
            places[:, vertical],
            c=values,
            s=min(60, 9000 / len(places)),
            cmap="viridis",
            vmin=limits[0],
            vmax=limits[1],
            linewidths=0.2,
            edgecolors="white",
        )
        # One scale for all three views: the tallest one sets it.
        tallest = spans[1:].max() / 2
        for side, letter in zip((0.02, 0.98), "PA" if horizontal == 1 else "LR", strict=True):
            axes.text(side, 0.02, letter, ha="center", va="bottom", color="0.35", transform=axes.transAxes)
        axes.set(aspect="equal", xticks=[], yticks=[], ylim=(middle[vertical] - tallest, middle[vertical] + tallest))
        axes.set_xlim(middle[horizontal] - spans[horizontal] / 2, middle[horizontal] + spans[horizontal] / 2)
        axes.set_title(title, fontsize=8, fontweight="normal")
        axes.spines[:].set_visible(False)
    figure.colorbar(points, ax=figure.axes, label=label, shrink=0.8)
    return figure
