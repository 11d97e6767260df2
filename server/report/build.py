"""From a run's folder to ``report.html``."""

import math
from pathlib import Path
from typing import Any

from brainlm.evaluation import MODEL, SCORES
from cohorts.report.page import Cell, Rows, Shown, Table, Title, fill_sections, write_page
from harmonization import harmonizers
from server.report.data import RunData
from server.report.figures import draw, predictor_name, variant_name
from server.report.methods import methods_paragraph
from server.report.people import people_table
from server.summary import PROBE_SCORES, probe_score, remarks_on, site_score

_PARCELS = 10
"""Parcels that the page lists."""
_NO = ""
"""Cell of a measure that a row does not have by its nature."""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, and its tables as CSV beside it; return the page's path."""
    data = RunData(folder)
    package = "server.report"
    methods, references = methods_paragraph(data)
    return write_page(
        folder / "report.html",
        package,
        fill_sections(package, lambda name: draw(name, data), lambda name: TABLES[name](data)),
        summary=data.summary,
        run=folder.resolve().name,
        when=_when(data),
        headlines=_headlines(data),
        methods=methods,
        references=references,
        simulation=data.is_simulation,
    )


def _when(data: RunData) -> str:
    """Say when the run was, from the first question to the last answer."""
    if data.span is None:
        return ""
    begun, ended = data.span
    same_day = begun.date() == ended.date()
    return f"{begun:%d %B %Y, %H:%M} to {ended.strftime('%H:%M' if same_day else '%d %B %Y, %H:%M')} UTC"


def _headlines(data: RunData) -> list[tuple[str, str, str]]:
    """Number, what it is, and what to read it beside."""
    pretraining, probes = data.summary["pretraining"], data.summary["probes"]
    before = "start" if "masked_r2_start" in pretraining else "untrained"
    beside = f"{before}: {_number(pretraining.get(f'masked_r2_{before}'))}{_best_baseline(data)}"
    found = [(_number(pretraining.get("masked_r2")), "masked R², held-out participants", beside)]
    effect = data.summary["harmonization"].get("site_effect", {}).get("embedding", {})
    if {"raw", "harmonized"} <= effect.keys():
        raw, harmonized = site_score(effect["raw"]), site_score(effect["harmonized"])
        change = _change(raw.value, harmonized.value)
        found.append((change, f"{raw.title}, raw → harmonized", f"by chance: {_number(raw.by_chance)}"))
    name = "connectivity" if "connectivity" in probes else "untrained"
    called = "functional connectivity" if name == "connectivity" else name
    for target, scores in probes.get("embedding", {}).items():
        if {"raw", "harmonized"} <= scores.keys():
            score = probe_score(scores["raw"])
            change = _change(scores["raw"][score], scores["harmonized"][score])
            baseline = probes.get(name, {}).get(target, {}).get("harmonized", {}).get(score)
            title = f"{target} predicted ({PROBE_SCORES[score]}), raw → harmonized"
            found.append((change, title, f"{called}: {_number(baseline)}"))
    if cca := data.summary["association"].get("cca"):
        beside = f"by chance (95%): {_number(cca['null_95'][0])}; p = {_number(cca['p_value'])}"
        found.append((_number(cca["correlations"][0]), "first canonical correlation, held-out participants", beside))
    return found


def _change(raw: float | None, harmonized: float | None) -> str:
    return f"{_number(raw)} → {_number(harmonized)}"


def _best_baseline(data: RunData) -> str:
    best = next(iter(_best_first(data.summary["pretraining"])), None)
    return "" if best is None else f"; {predictor_name(best[0])}: {_number(best[1]['masked_r2'])}"


def _best_first(pretraining: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Scores of the predictors that the model is compared with."""
    return sorted(pretraining.get("baselines", {}).items(), key=lambda named: -_or_lowest(named[1]["masked_r2"]))


def _sites(data: RunData) -> Table:
    header = ["site", "participants", "recordings", "quarantined", "windows", "atlas", "preprocessing", "masked R²"]
    reached = data.summary["pretraining"].get("sites", {})
    rows: Rows = [
        [
            site,
            *(about[name] for name in ("n_participants", "n_recordings", "n_quarantined", "n_windows")),
            about["atlas"],
            about["preprocessing"],
            reached.get(site, {}).get("masked_r2"),
        ]
        for site, about in data.summary["sites"].items()
    ]
    missing = "; ".join(absence.sentence for absence in data.absences)
    notes = [f"Not in all of the run: {missing}."] if missing else []
    return Table(header, rows, " ".join([*notes, *remarks_on(data.summary["sites"])]))


def _baselines(data: RunData) -> Table:
    pretraining = data.summary["pretraining"]
    if "baselines" not in pretraining:
        return Table([], [])
    shown = [(MODEL, pretraining), *_best_first(pretraining)]
    rows: Rows = [[predictor_name(name), *(scores[score] for score in SCORES)] for name, scores in shown]
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


def _parcels(data: RunData) -> Table:
    """Every parcel by name, those first whose hidden signal is predicted best."""
    if data.parcels is None:
        return Table([], [])
    known = data.parcels.dropna(subset="masked_r2").sort_values("masked_r2", ascending=False, kind="stable")
    columns = [name for name in ("atlas", "parcel", "network", "masked_r2") if (known[name] != "").any()]
    titles: list[Title] = ["masked R²" if name == "masked_r2" else name for name in columns]
    return Table(titles, known[columns].to_numpy(object).tolist(), "The best predicted first.", most=_PARCELS)


def _site_effects(data: RunData) -> Table:
    """How much of the site is left, in every feature set and variant."""
    effects = data.summary["harmonization"].get("site_effect", {})
    every = [measured for effect in effects.values() for measured in effect.values()]
    classified = any("balanced_accuracy" in measured for measured in every)
    network = any("network" in measured for measured in every)
    header: list[Title] = ["features", "variant", "η²", "spread", "covariance"]
    header += [("PERMANOVA", name) for name in ("R²", "by chance", "p")]
    header += [("site recognised", name) for name in ("accuracy", "by chance", "95%", "p")] if classified else []
    header += [("by a network", "accuracy")] if network else []
    rows: Rows = []
    for features, effect in effects.items():
        for variant, measured in effect.items():
            permanova = measured.get("permanova", {})
            row: list[Cell] = [features, variant_name(variant), measured.get("eta_squared")]
            row.append(measured.get("site_spread", {}).get("mean_geometric_sd"))
            row.append(measured.get("covariance_distance", {}).get("corrected"))
            row += [permanova.get(name) for name in ("r2", "r2_by_chance", "p_value")]
            recognised = ("balanced_accuracy", "null_mean", "null_95", "p_value")
            row += [measured.get(name) for name in recognised] if classified else []
            row += [measured.get("network", {}).get("balanced_accuracy")] if network else []
            rows.append(row)
    note = (
        "η²: mean share of a feature's variance between sites, in sample and with differences in age. Spread: "
        "geometric standard deviation of the sites' variances, 1 where they are alike. Covariance: distance of the "
        "sites' covariances from the common one, less what small samples alone would give. PERMANOVA: share of "
        "squared distances between held-out people, beyond kept covariates (except for the control)."
    )
    if classified:
        note += " Site recognised: balanced accuracy in held-out people, beyond kept covariates likewise."
    return Table(header, rows, " ".join([note, *_left_as_they_are(data)]))


def _left_as_they_are(data: RunData) -> list[str]:
    """Say of how many features nothing could be compared, and how many could not be adjusted at some site."""
    harmonization, said = data.summary["harmonization"], []
    for name, counts in harmonization.get("features", {}).items():
        if counts["left_out"]:
            said.append(
                f"{counts['left_out']:,} of the {counts['features']:,} features of {name} are left out, since somebody "
                "lacks them."
            )
    for name, effect in harmonization.get("site_effect", {}).items():
        if constant := effect.get("raw", {}).get("site_spread", {}).get("n_constant"):
            said.append(
                f"{constant:,} features of {name} are constant at one site or more, and left as they are there."
            )
    return said


_PROBE_COLUMNS: tuple[tuple[Title, str], ...] = (
    ("R²", "r2"),
    (("R² 95%", "from"), "r2_low"),
    (("R² 95%", "to"), "r2_high"),
    ("mean absolute error", "mean_absolute_error"),
    ("balanced accuracy", "balanced_accuracy"),
    (("accuracy 95%", "from"), "balanced_accuracy_low"),
    (("accuracy 95%", "to"), "balanced_accuracy_high"),
    ("AUROC", "auroc"),
    ("p", "p_value"),
    ("new site", "new_site"),
)
"""Columns of the probes' table, and the scores of numbers, of categories or of both that they hold."""


def _probes(data: RunData) -> Table:
    """How well each target is predicted, by feature set and variant."""
    found = [
        ([target, features, variant_name(variant)], _probe_scores(scores))
        for features, targets in data.summary["probes"].items()
        for target, variants in targets.items()
        for variant, scores in variants.items()
    ]
    columns = [(title, name) for title, name in _PROBE_COLUMNS if any(name in scores for _, scores in found)]
    rows: Rows = [[*names, *(scores.get(name, _NO) for _, name in columns)] for names, scores in found]
    note = (
        "In held-out participants. Intervals draw participants within sites anew; p compares with targets permuted "
        "within sites. The mean absolute error is in the target's own units."
    )
    if any(name == "new_site" for _, name in columns):
        note += " New site: R² or balanced accuracy where the site as a whole was left out."
    header: list[Title] = ["target", "features", "variant", *(title for title, _ in columns)]
    return Table(header, sorted(rows, key=lambda row: str(row[0])), note)


def _probe_scores(scores: dict[str, Any]) -> dict[str, Cell]:
    """Scores of a probe by the names of the table's columns."""
    named: dict[str, Cell] = {name: scores[name] for _, name in _PROBE_COLUMNS if isinstance(scores.get(name), float)}
    named["p_value"] = scores.get("p_value", scores.get("balanced_accuracy_p_value"))
    left_out = scores.get("new_site", {}).get(probe_score(scores))
    return named if left_out is None else {**named, "new_site": left_out}


def _association(data: RunData) -> Table:
    """Canonical correlations of held-out people, and what the companions found."""
    found = data.summary.get("association", {})
    rows: Rows = []
    if "cca" in found:
        cca = found["cca"]
        columns = (cca["correlations"], cca["null_mean"], cca["null_95"], cca["training_correlations"])
        rows += [[f"canonical correlation {n + 1}", *numbers] for n, numbers in enumerate(zip(*columns, strict=True))]
    for name, scores in found.items():
        if name.startswith("fusion/"):
            models = zip(("embedding", "vectors", "early", "late"), scores["r2"], strict=True)
            rows += [[f"{name.removeprefix('fusion/')} from {model}: R²", r2, _NO, _NO, _NO] for model, r2 in models]
    if "two_tower" in found:
        measures = zip(("top 1", "top 5", "reciprocal rank"), found["two_tower"]["scores"], strict=True)
        chance = found["two_tower"]["chance"]
        rows += [
            [f"partner found: {measure}", score, by_chance, _NO, _NO]
            for (measure, score), by_chance in zip(measures, chance, strict=True)
        ]
    note = f"Failed: {found['failed']}" if "failed" in found else ""
    rows += [["failed", _NO, _NO, _NO, _NO]] if note else []
    return Table(["measure", "held out", ("by chance", "mean"), ("by chance", "95%"), "in sample"], rows, note)


def _run(data: RunData) -> Table:
    """What a reader needs to find and repeat the run."""
    summary = data.summary
    rows: Rows = [["study", summary["study"]], ["run", f"{data.folder.resolve().name} ({summary['run']})"]]
    if data.span is not None:
        begun, ended = (f"{moment:%Y-%m-%d %H:%M:%S} UTC" for moment in data.span)
        rows += [["begun", begun], ["ended", ended]]
    rows += [["seed", str(data.study["seed"])], ["recipe", summary["recipe"]]]
    last = [name for name in data.files if name.startswith("checkpoints/round-")][-1:]
    rows += [[f"SHA-256 of {name}", data.files[name]] for name in last]
    rows += [["Flower's run", summary["flower_run"]]] if summary["flower_run"] else []
    rows += [[f"version of {name}", number] for name, number in summary["software"].items()]
    return Table(["what", "value"], rows, "study.yaml beside this page holds every setting.")


def _exchanges(data: RunData) -> Table:
    table = data.exchanges
    header = ["stage", "message", "exchanges", "asked", "answered", "MB to the sites", "MB back", "seconds"]
    rows: Rows = []
    for names, part in table.groupby(["stage", "message"], sort=False):
        seconds = float((part["ended"] - part["started"]).sum())
        counts = [len(part), int(part["asked"].sum()), int(part["answered"].sum())]
        sizes = [float(part[name].sum() / 1e6) for name in ("bytes_down", "bytes_up")]
        measured = [*(Shown(size, f"{size:,.2f}") for size in sizes), Shown(seconds, f"{seconds:,.1f}")]
        rows.append([*names, *counts, *measured])
    refused = data.outcomes[data.outcomes["outcome"] != "ok"].groupby(["site", "outcome"]).size()
    note = "; ".join(f"{site}: {outcome} ({count} times)" for (site, outcome), count in refused.items())
    return Table(header, rows, f"Not answered: {note}." if note else "Every question was answered.")


def _protection(data: RunData) -> Table:
    """What was done so that single sites and participants cannot be read."""
    privacy = data.summary["privacy"]
    if not privacy["secure_sums"]:
        sums = "off: each site's sums could be read"
    elif privacy["roster"] is None:
        sums = "on; the run ended before the sites had found keys in common"
    else:
        silent = data.outcomes.query("outcome != 'ok'")["exchange"].nunique()
        again = f"; a site fell silent in {silent} exchanges" if silent else ""
        keys = f"on, with the keys of roster {privacy['roster'][:12]}"
        sums = f"{keys}: a coordinator that follows the protocol reads totals alone{again}"
    rows: Rows = [["secure sums", sums]]
    if privacy["max_norm"] is not None:
        rows.append(["length of an update", f"at most {privacy['max_norm']:g} (L2)"])
    if (training := privacy["differential_privacy"]) is not None:
        aim = "noise_multiplier" if training["epsilon"] is None else "epsilon"
        rows.append(
            [
                "differential privacy of the training participants, in the model and not in the analyses after it",
                f"{aim.replace('_', ' ')} {training[aim]:g}, delta {training['delta']:g}, gradients clipped to "
                f"{training['clip']:g}",
            ]
        )
    if (noise := privacy["frame_noise"]) is not None:
        rows.append(["noise on sums over frames", f"{noise['noise_multiplier']:g} times a clip of {noise['clip']:g}"])
    shows = sorted(set(data.metrics["site"]) - {"all"}) if privacy["secure_sums"] else []
    if shows:
        rows.append(["sites that showed their own metrics", ", ".join(shows)])
    heads = "; ".join(f"{site} {head[:12]}" for site, head in privacy["audit_heads"].items())
    note = f"Heads of the sites' audit logs at the end: {heads}. summary.json has them whole." if heads else ""
    if privacy["secure_sums"] and (shown := _shows_one_site(data.study)):
        note = f"The totals of {', '.join(shown)} tell single sites' sums, each by its place or by subtraction. {note}"
    return Table(["measure", "what was done"], rows, note.strip())


def _shows_one_site(study: dict[str, Any]) -> list[str]:
    """Name what the study asked for whose totals show a single site's sums."""
    asked = ("site_classification", "site_network", "leave_one_site_out")
    analyses, harmonization = study["analyses"], study["harmonization"]
    names = [name for name in asked if analyses[name]]
    named = dict.fromkeys((harmonization["method"], *analyses["compare"]))
    names += [method for method in named if harmonizers()[method].shows_one_site]
    return names + (["reference_site"] if harmonization["reference"] else [])


TABLES = {
    "sites": _sites,
    "people": people_table,
    "baselines": _baselines,
    "parcels": _parcels,
    "site_effects": _site_effects,
    "probes": _probes,
    "association": _association,
    "protection": _protection,
    "exchanges": _exchanges,
    "run": _run,
}


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}".replace("-", "−")
