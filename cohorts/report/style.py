"""How figures look, and the brain seen from three sides."""

import numpy as np
from matplotlib.figure import Figure
from nilearn.plotting.glass_brain import plot_brain_schematics

#: Okabe & Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
STYLE = {
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

_BRAIN = np.array([[-75, -110, -75], [75, 80, 90]])
"""Corners of a box around the brain and the cerebellum in MNI space, mm."""


def brain_views(places: np.ndarray, values: np.ndarray, label: str, limits: tuple[float, float]) -> Figure:
    """Draw a value of every parcel at its centroid in nilearn's glass brain, seen from above, behind and the right.

    Parameters
    ----------
    places : numpy.ndarray
        Centroids [P, 3] in mm, MNI space.
    values : numpy.ndarray
        [P].
    label : str
        What the values are, for the colour bar.
    limits : tuple of float
        Values at the ends of the colour bar.
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
        axes.set(aspect="equal", xticks=[], yticks=[], ylim=(middle[vertical] - tallest, middle[vertical] + tallest))
        axes.set_xlim(middle[horizontal] - spans[horizontal] / 2, middle[horizontal] + spans[horizontal] / 2)
        axes.set_title(title, fontsize=8, fontweight="normal")
        axes.spines[:].set_visible(False)
    figure.colorbar(points, ax=figure.axes, label=label, shrink=0.8)
    return figure
