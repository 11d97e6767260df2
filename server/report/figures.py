"""The report's figures. Each takes the run's data and returns a figure, or None where there is nothing to draw."""

from collections.abc import Callable
from itertools import product

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainlm.evaluation import MODEL
from cohorts.report.style import (
    COLOURS,
    STYLE,
    brain_views,
    by_network,
    legend_below,
    network_lines,
    widened,
)
from harmonization import harmonizers
from server.report.data import RunData
from server.summary import PROBE_SCORES, probe_score, site_score
from study.comparing import CONTROL

_PREDICTORS = {
    "parcel_mean": "mean of the parcel",
    "time_interpolation": "interpolation in time",
    "gaussian": "Gaussian, same frames",
    "gaussian_space_time": "Gaussian, space and time",
    "ar1": "AR(1)",
    "var1": "VAR(1)",
}

_MANY_SITES = [(colour, *style) for style, colour in product((("-", "o"), ("--", "s"), (":", "^")), COLOURS[:-1])]
"""Colour, line and mark of each site: no two of 21 are alike."""
_LEAST_SPAN = 0.1
"""Least width of an axis of masked R², so that differences that are nothing do not look like much."""
_LEAST_OF_SCORES = 0.4
"""The same of what is predicted from features, whose values scatter more."""
_PANELS = 3
"""Panels beside each other."""

FigureMaker = Callable[[RunData], Figure | None]


def learning_curves(data: RunData) -> Figure | None:
    """Loss and masked R² over rounds, of each site and of all."""
    if data.metrics.empty:
        return None
    figure = Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    _curves(left, data, "loss")
    left.set(title="Training loss", xlabel="round", ylabel="mean squared error")
    if not left.lines:  # of private training
        left.text(0.5, 0.5, "not sent where training is private", ha="center", transform=left.transAxes)
    _curves(right, data, "masked_r2")
    right.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    right.set(title="Masked R², held-out participants", xlabel="round", ylabel="R²")
    # An untrained model is far below 0: show where it starts without flattening the rest.
    reached = data.metrics.query("name == 'masked_r2'")["value"].dropna()
    if reached.max() > -0.5:
        right.set_ylim(widened(max(-0.5, reached.min()), reached.max(), _LEAST_SPAN))
    legend_below(figure, *right.get_legend_handles_labels())
    return figure


def baselines(data: RunData) -> Figure | None:
    """Masked R² of the model and of the baselines, by distance from what was visible and by network."""
    table = data.reconstruction
    if table is None or table["masked_r2"].isna().all():  # nobody was held out, or too few
        return None
    n_networks = table[table["group"] == "network"]["name"].nunique()
    figure = Figure(figsize=(8, max(3.4, 1.2 + 0.2 * n_networks)))
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    horizons = table[(table["group"] == "horizon") & (table["name"] != "0")]
    networks = table[table["group"] == "network"]
    for number, predictor in enumerate(table["predictor"].unique()):
        of_model = predictor == MODEL
        style = {"color": "black" if of_model else COLOURS[number - 1], "zorder": 3 if of_model else 2}
        line = horizons[horizons["predictor"] == predictor]
        frames = line["name"].astype(int)
        left.plot(frames, line["masked_r2"], linewidth=2 if of_model else 1.2, label=predictor_name(predictor), **style)
        dots = networks[networks["predictor"] == predictor]
        right.scatter(dots["masked_r2"], dots["name"], s=34 if of_model else 20, **style)
    # A baseline that is far worse than the mean would flatten the rest; the table has its number.
    known = table["masked_r2"].dropna()
    shown = widened(max(-0.6, known.min()), known.max(), _LEAST_SPAN)
    left.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    left.set(title="By distance", xlabel="frames to the nearest visible one", ylabel="masked R²", ylim=shown)
    right.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    right.set(title="By network", xlabel="masked R²", xlim=shown)
    right.invert_yaxis()
    if networks.empty:
        right.set_visible(False)
    legend_below(figure, *left.get_legend_handles_labels())
    return figure


def parcel_map(data: RunData) -> Figure | None:
    """Masked R² of every parcel, at its place in the brain."""
    if data.parcels is None or data.parcels["masked_r2"].isna().all():
        return None
    name = str(data.parcels["atlas"].iloc[0])
    values = data.parcels[data.parcels["atlas"] == name]["masked_r2"].to_numpy()
    limits = widened(np.nanquantile(values, 0.02), np.nanquantile(values, 0.98), _LEAST_SPAN)
    return brain_views(data.atlas(name).coordinates, values, f"masked R², {name}", limits)


def reconstruction(data: RunData) -> Figure | None:
    """A held-out recording: all parcels, and a few of them as lines."""
    example = data.example
    if example is None:
        return None
    window = data.study["model"]["window"]
    seconds = np.arange(example.signal.shape[1]) * window["t_r"]
    hidden, atlas = example.mask > 0, data.atlas(data.summary["sites"][example.site]["atlas"])
    figure = Figure(figsize=(8, 5.2))
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.15))[:, 0]
    carpets = (example.signal, np.where(hidden, np.nan, example.signal), example.reconstruction)
    _carpets(top, carpets, seconds, atlas.networks)
    half_hidden = np.argsort(np.abs(hidden.mean(axis=1) - 0.5), kind="stable")
    shown = np.sort(half_hidden[: len(hidden) // 3])[:: max(1, len(hidden) // 9)][:3]
    for axes, parcel in zip(bottom.subplots(3, 1, sharex=True), shown, strict=False):
        axes.fill_between(
            seconds, -4, 4, where=hidden[parcel], color="0.92", step="mid", linewidth=0, label="hidden from the model"
        )
        axes.plot(seconds, example.signal[parcel], color="0.35", linewidth=1, label="recorded")
        guess = np.where(hidden[parcel], example.reconstruction[parcel], np.nan)
        axes.plot(seconds, guess, color=COLOURS[5], linewidth=1.4, label="reconstructed")
        axes.set(ylim=(-3.5, 3.5), ylabel="sd", yticks=[-2, 0, 2])
        axes.set_title(atlas.labels[parcel], loc="right", fontsize=8, fontweight="normal", pad=2)
    axes.set_xlabel("seconds")
    bottom.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def embeddings(data: RunData) -> Figure | None:
    """Embeddings before and after harmonization, seen along the directions that tell the sites apart before."""
    before, after = data.vectors("embedding"), data.vectors("embedding.harmonized")
    if before is None:
        return None
    stages = [("before", before)] if after is None else [("before", before), ("after", after)]
    aged = before["age"].notna().any()
    figure = Figure(figsize=(8 if aged else 4.4, 3.2 * len(stages)))
    grid = figure.subplots(len(stages), 1 + aged, squeeze=False)
    directions = _between_sites(before)
    for (stage, table), panels in zip(stages, grid, strict=True):
        points = _values(table) @ directions
        for number, site in enumerate(data.sites):
            rows, (colour, _, mark) = (table["site"] == site).to_numpy(), _style_of(number)
            panels[0].scatter(*points[rows].T, s=12, color=colour, marker=mark, label=site, alpha=0.8)
        panels[0].set_title(f"{stage} harmonization, by site")
        if aged:
            coloured = panels[1].scatter(*points.T, s=12, c=table["age"], cmap="viridis")
            panels[1].set_title(f"{stage} harmonization, by age")
            figure.colorbar(coloured, ax=panels[1], label="years")
        for axes in panels:
            axes.set(xticks=[], yticks=[], xlabel="direction 1", ylabel="direction 2")
    legend_below(figure, *grid[0, 0].get_legend_handles_labels())
    return figure


def effects(data: RunData) -> Figure | None:
    """How well site and target are read from each feature set, raw and harmonized, beside chance."""
    site_effect, probes = data.summary["harmonization"].get("site_effect", {}), data.summary["probes"]
    measured = {features: effect for features, effect in site_effect.items() if effect}
    targets = list(dict.fromkeys(target for named in probes.values() for target in named))
    n_panels = bool(measured) + len(targets)
    if not n_panels:
        return None
    rows, columns = -(-n_panels // _PANELS), min(n_panels, _PANELS)
    figure = Figure(figsize=(8, 2.6 * rows + 0.4))
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).ravel())
    for panel in panels[n_panels:]:
        panel.set_visible(False)
    labelled = panels[0]
    if measured:
        panel, chance = panels.pop(0), site_score(next(iter(next(iter(measured.values())).values())))
        values = {name: {v: site_score(m).value for v, m in effect.items()} for name, effect in measured.items()}
        _dots(panel, values, chance.by_chance)
        panel.set(title="Site", xlabel=f"{chance.title.partition(' (')[2].rstrip(')')} (line: by chance)")
    for panel, target in zip(panels, targets, strict=False):
        scores = {features: named[target] for features, named in probes.items() if target in named}
        score = probe_score(next(iter(next(iter(scores.values())).values())))
        of_target = {features: {v: m[score] for v, m in named.items()} for features, named in scores.items()}
        _dots(panel, of_target, 0 if score == "r2" else 0.5)
        panel.set(title=f"{target.capitalize()} predicted", xlabel=PROBE_SCORES[score])
    handles, labels = labelled.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    legend_below(figure, list(unique.values()), list(unique))
    return figure


FIGURES: dict[str, FigureMaker] = {
    maker.__name__: maker for maker in (learning_curves, baselines, parcel_map, reconstruction, embeddings, effects)
}


def draw(name: str, data: RunData) -> Figure | None:
    """Draw a figure by name, in the report's style."""
    with mpl.rc_context(STYLE):
        return FIGURES[name](data)


def variant_name(variant: str) -> str:
    """Name of a variant of a feature set, for people."""
    if variant == CONTROL:
        return "control, no covariates"
    method = harmonizers().get(variant)
    return (method and method.title) or variant.replace("_", " ")


def predictor_name(predictor: str) -> str:
    """Name of a predictor, for people."""
    return _PREDICTORS.get(predictor, predictor.replace("_", " "))


def _curves(axes: Axes, data: RunData, name: str) -> None:
    """One line a site, and a thick one for all."""
    metric = data.metrics[data.metrics["name"] == name]
    for number, site in enumerate([*data.sites, "all"]):
        line = metric[metric["site"] == site].sort_values("round")
        if line.empty:  # a site that shows no metrics of its own
            continue
        everything = site == "all"
        colour, style, _ = ("black", "-", "") if everything else _style_of(number)
        axes.plot(
            line["round"],
            line["value"],
            label="all sites" if everything else site,
            color=colour,
            linestyle=style,
            linewidth=2 if everything else 1,
            marker="." if len(line) < 30 else None,
        )
    axes.locator_params(axis="x", integer=True)


def _style_of(number: int) -> tuple[str, str, str]:
    """Colour, line and mark of a site by its place among the sites."""
    return _MANY_SITES[number % len(_MANY_SITES)]


def _carpets(
    figure: Figure, carpets: tuple[np.ndarray, ...], seconds: np.ndarray, networks: tuple[str, ...] | None
) -> None:
    """Parcels by time, three times, in the order of the networks: recorded, seen by the model, and reconstructed."""
    order = by_network(networks, len(carpets[0]))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, title, values in zip(panels, ("recorded", "what the model saw", "reconstructed"), carpets, strict=True):
        image = axes.imshow(
            values[order],
            aspect="auto",
            cmap="RdBu_r",
            vmin=-2.5,
            vmax=2.5,
            interpolation="nearest",
            extent=(seconds[0], seconds[-1], len(values), 0),
        )
        axes.set_facecolor("0.92")
        axes.set(title=title, xlabel="seconds")
    if networks is None:
        panels[0].set_ylabel("parcel")
    else:
        network_lines(panels[0], networks, order, both=False, names=True, offset=0.5)
    figure.colorbar(image, ax=panels, label="sd", shrink=0.9)


def _values(table: pd.DataFrame) -> np.ndarray:
    return table.filter(regex=r"^e\d+$").to_numpy(float)


def _between_sites(table: pd.DataFrame) -> np.ndarray:
    """Two directions [D, 2] along which the sites' means lie farthest apart, in units of the spread within sites."""
    values = _values(table)
    means = pd.DataFrame(values).groupby(table["site"].to_numpy()).transform("mean").to_numpy()
    within = np.cov(values - means, rowvar=False)
    spread = np.trace(within) / len(within)
    scale, axes = np.linalg.eigh(0.8 * within + 0.2 * spread * np.eye(len(within)))
    whiten = axes / np.sqrt(scale)
    _, _, directions = np.linalg.svd((means - means.mean(axis=0)) @ whiten, full_matrices=False)
    return whiten @ directions[:2].T


def _dots(axes: Axes, values: dict[str, dict[str, float | None]], chance: float | None) -> None:
    """One row a feature set: raw, harmonized, control, and further methods as dots on a line; a line at chance."""
    styles = {"raw": (COLOURS[5], "o"), "harmonized": (COLOURS[0], "o"), "control": ("0.55", "x")}
    others = dict.fromkeys(variant for variants in values.values() for variant in variants if variant not in styles)
    styles |= {variant: (COLOURS[1 + number % 4], "^") for number, variant in enumerate(others)}
    rows = list(values)
    seen = [] if chance is None else [chance]
    for row, features in enumerate(rows):
        known = {variant: value for variant, value in values[features].items() if value is not None}
        if not known:
            continue
        axes.plot([min(known.values()), max(known.values())], [row, row], color="0.85", linewidth=2, zorder=0)
        for variant, value in known.items():
            colour, marker = styles[variant]
            axes.scatter(value, row, color=colour, marker=marker, s=34, label=variant_name(variant), zorder=2)
        seen += known.values()
    if chance is not None:  # else there were too few people for a permutation that every site lets out
        axes.axvline(chance, color="0.7", linewidth=0.8, zorder=0)
    if seen:
        axes.set_xlim(widened(min(seen), max(seen), _LEAST_OF_SCORES))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
