"""From a run's folder to ``report.html``."""

import base64
import io
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import yaml
from matplotlib.figure import Figure

from brainlm.evaluation import MODEL, SCORES
from cohorts.files import write_text
from server.report.data import RunData
from server.report.figures import STYLE, draw, predictor_name
from server.report.methods import methods_paragraph

Rows = list[list[str]]


@dataclass(frozen=True)
class Table:
    """A table of text: a header, rows, and a note below."""

    header: list[str]
    rows: Rows
    note: str = ""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder and return its path. The file needs nothing beside it."""
    data = RunData(folder)
    files = resources.files("server.report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((files / "template.html").read_text(encoding="utf-8"))
    html = template.render(
        summary=data.summary,
        headlines=_headlines(data),
        sections=[_section(section, data) for section in yaml.safe_load((files / "spec.yaml").read_text("utf-8"))],
        style=(files / "style.css").read_text(encoding="utf-8"),
        simulation=data.is_simulation,
    )
    path = folder / "report.html"
    write_text(path, html)
    return path


def _section(spec: dict[str, Any], data: RunData) -> dict[str, Any]:
    """Fill one section of the specification."""
    figure = draw(spec["figure"], data) if "figure" in spec else None
    table = TABLES[spec["table"]](data) if "table" in spec else None
    absent = dict.fromkeys(("text", "caption", "without", "methods"), "")
    filled = {
        **absent,
        **spec,
        "figure": _embedded(figure) if figure else "",
        "table": table if table and table.rows else None,
    }
    if spec.get("block") == "methods":
        filled["methods"], filled["references"] = methods_paragraph(data)
    return filled


def _embedded(figure: Figure) -> str:
    """Figure as a data address of an SVG."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):  # its salt makes the names inside the SVG the same each time
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _headlines(data: RunData) -> list[tuple[str, str, str]]:
    """Number, what it is, and what to read it beside."""
    pretraining = data.summary["pretraining"]
    before = "start" if "masked_r2_start" in pretraining else "untrained"
    found = [
        (
            _number(pretraining.get("masked_r2")),
            "masked R², held-out participants",
            f"{before}: {_number(pretraining.get(f'masked_r2_{before}'))}{_best_baseline(data)}",
        )
    ]
    effect = data.summary["harmonization"].get("site_effect", {}).get("embedding", {})
    if "harmonized" in effect:
        found.append(
            (
                f"{_number(effect['raw']['balanced_accuracy'])} → {_number(effect['harmonized']['balanced_accuracy'])}",
                "site recognised, raw → harmonized",
                f"by chance: {_number(effect['raw']['null_mean'])}",
            )
        )
    for target, scores in data.summary["probes"].get("embedding", {}).items():
        if "harmonized" in scores:
            baseline = data.summary["probes"].get("connectivity", data.summary["probes"]["untrained"])
            found.append(
                (
                    f"{_number(scores['raw']['r2'])} → {_number(scores['harmonized']['r2'])}",
                    f"{target} predicted (R²), raw → harmonized",
                    f"{'functional connectivity' if 'connectivity' in data.summary['probes'] else 'untrained'}: "
                    f"{_number(baseline[target]['harmonized']['r2'])}",
                )
            )
    return found


def _best_baseline(data: RunData) -> str:
    rows = _baselines(data).rows[1:]
    return f"; {rows[0][0]}: {rows[0][1]}" if rows else ""


def _sites(data: RunData) -> Table:
    header = ["site", "participants", "recordings", "quarantined", "windows", "atlas", "preprocessing", "masked R²"]
    reached = data.summary["pretraining"].get("sites", {})
    rows = [
        [
            site,
            *(str(about[name]) for name in ("n_participants", "n_recordings", "n_quarantined", "n_windows")),
            about["atlas"],
            about["preprocessing"],
            _number(reached.get(site, {}).get("masked_r2")),
        ]
        for site, about in data.summary["sites"].items()
    ]
    left_out = data.summary["left_out"]
    return Table(header, rows, f"Fell silent and was left out of the analyses: {left_out}." if left_out else "")


def _baselines(data: RunData) -> Table:
    pretraining = data.summary["pretraining"]
    if "baselines" not in pretraining:
        return Table([], [])
    others = sorted(pretraining["baselines"].items(), key=lambda named: -_or_lowest(named[1]["masked_r2"]))
    rows = [
        [predictor_name(name), *(_number(scores[score]) for score in SCORES)]
        for name, scores in [(MODEL, pretraining), *others]
    ]
    note = (
        "All predict the same hidden values, and none is left out. MSE and MAE are in units of the scaled signal, r is "
        "Pearson's; a prediction that is the same everywhere has none."
    )
    if "gaussian" not in pretraining["baselines"]:
        note += (
            " The Gaussian predictors need second moments of frames of one TR: set analyses.gaussian_baseline, and "
            "window.temporal to resample."
        )
    return Table(["predictor", "masked R²", "MSE", "MAE", "r"], rows, note)


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None else value


def _effects(data: RunData) -> Table:
    targets = list(next(iter(data.summary["probes"].values()), {}))
    header = ["features", "variant", "η² of site", "site recognised", "by chance (95%)", "p"]
    for target in targets:
        header += [f"{target}: R²", "mean absolute error"]
    rows = []
    for features, effect in data.summary["harmonization"].get("site_effect", {}).items():
        for variant, measured in effect.items():
            row = [features, {"control": "control, no covariates"}.get(variant, variant)]
            row += [_number(measured.get("eta_squared")), _number(measured["balanced_accuracy"])]
            row += [f"{_number(measured['null_mean'])} ({_number(measured['null_95'])})", _number(measured["p_value"])]
            for target in targets:
                scores = data.summary["probes"][features][target][variant]
                row += [_number(scores["r2"]), f"{scores['mean_absolute_error']:.2f}"]
            rows.append(row)
    note = (
        "η² is the mean share of a feature's variance between sites, in sample and with differences in age; the "
        "accuracy is held out and, except for the control, beyond the kept covariates. Errors are in the target's "
        "own units."
    )
    return Table(header, rows, note)


def _exchanges(data: RunData) -> Table:
    table = data.exchanges
    header = ["stage", "message", "exchanges", "asked", "answered", "MB to the sites", "MB back", "seconds"]
    rows = []
    for (stage, message), part in table.groupby(["stage", "message"], sort=False):
        seconds = (part["ended"] - part["started"]).sum()
        counts = [len(part), part["asked"].sum(), int(part["answered"].sum())]
        megabytes = [f"{part[name].sum() / 1e6:.2f}" for name in ("bytes_down", "bytes_up")]
        rows.append([stage, message, *map(str, counts), *megabytes, f"{seconds:.1f}"])
    refused = data.outcomes[data.outcomes["outcome"] != "ok"].groupby(["site", "outcome"]).size()
    note = "; ".join(f"{site}: {outcome} ({count} times)" for (site, outcome), count in refused.items())
    return Table(header, rows, f"Not answered: {note}." if note else "Every question was answered.")


TABLES = {"sites": _sites, "baselines": _baselines, "effects": _effects, "exchanges": _exchanges}


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}".replace("-", "−")
