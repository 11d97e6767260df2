"""From a run's folder to ``report.html``."""

import math
from pathlib import Path
from typing import Any

from brainlm.evaluation import MODEL, SCORES
from cohorts.files import write_text
from cohorts.report.page import Table, render, sections
from server.report.data import RunData
from server.report.figures import draw, predictor_name, variant_name
from server.report.methods import methods_paragraph
from server.summary import PROBE_SCORES, probe_score, site_score

Rows = list[list[str]]


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder and return its path. The file needs nothing beside it."""
    data = RunData(folder)
    package = "server.report"
    methods, references = methods_paragraph(data)
    html = render(
        package,
        summary=data.summary,
        headlines=_headlines(data),
        sections=sections(package, lambda name: draw(name, data), lambda name: TABLES[name](data)),
        methods=methods,
        references=references,
        simulation=data.is_simulation,
    )
    path = folder / "report.html"
    write_text(path, html)
    return path


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
        raw, harmonized = site_score(effect["raw"]), site_score(effect["harmonized"])
        found.append(
            (
                f"{_number(raw.value)} → {_number(harmonized.value)}",
                f"{raw.title}, raw → harmonized",
                f"by chance: {_number(raw.by_chance)}",
            )
        )
    for target, scores in data.summary["probes"].get("embedding", {}).items():
        if "harmonized" in scores:
            baseline = data.summary["probes"].get("connectivity", data.summary["probes"]["untrained"])
            score = probe_score(scores["raw"])
            found.append(
                (
                    f"{_number(scores['raw'][score])} → {_number(scores['harmonized'][score])}",
                    f"{target} predicted ({PROBE_SCORES[score]}), raw → harmonized",
                    f"{'functional connectivity' if 'connectivity' in data.summary['probes'] else 'untrained'}: "
                    f"{_number(baseline[target]['harmonized'][score])}",
                )
            )
    cca = data.summary["association"].get("cca")
    if cca:
        found.append(
            (
                _number(cca["correlations"][0]),
                "first canonical correlation, held-out participants",
                f"by chance (95%): {_number(cca['null_95'][0])}; p = {_number(cca['p_value'])}",
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
    return Table(
        header, rows, f"Away, silent or refusing, and left out of the analyses: {left_out}." if left_out else ""
    )


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


def _site_effects(data: RunData) -> Table:
    """How much of the site is left, in every feature set and variant."""
    header = ["features", "variant", "η²", "PERMANOVA (chance; p)", "spread", "covariance"]
    effects = data.summary["harmonization"].get("site_effect", {})
    every = [measured for effect in effects.values() for measured in effect.values()]
    classified = any("balanced_accuracy" in measured for measured in every)
    network = any("network" in measured for measured in every)
    header += ["recognised", "chance (95%)", "p"] if classified else []
    header += ["by a network"] if network else []
    rows = []
    for features, effect in effects.items():
        for variant, measured in effect.items():
            permanova = measured.get("permanova", {})
            row = [features, variant_name(variant), _number(measured.get("eta_squared"))]
            beside = f"{_number(permanova.get('r2_by_chance'))}; {_number(permanova.get('p_value'))}"
            row += [f"{_number(permanova.get('r2'))} ({beside})"]
            row += [_number(measured.get("site_spread", {}).get("mean_geometric_sd"))]
            row += [_number(measured.get("covariance_distance", {}).get("corrected"))]
            row += _recognised(measured) if classified else []
            row += [_number(measured.get("network", {}).get("balanced_accuracy"))] if network else []
            rows.append(row)
    note = (
        "η²: mean share of a feature's variance between sites, in sample and with differences in age. PERMANOVA: share "
        "of squared distances between held-out people, beyond kept covariates (except for the control). Spread: "
        "geometric standard deviation of the sites' variances, 1 where they are alike. Covariance: distance of the "
        "sites' covariances from the common one, "
        "less what small samples alone would give."
    )
    if classified:
        note += (
            " Recognised: balanced accuracy in held-out people, beyond the kept covariates (except for the control)."
        )
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
        if constant := effect["raw"].get("site_spread", {}).get("n_constant"):
            said.append(
                f"{constant:,} features of {name} are constant at one site or more, and left as they are there."
            )
    return said


def _recognised(measured: dict[str, Any]) -> list[str]:
    chance = f"{_number(measured.get('null_mean'))} ({_number(measured.get('null_95'))})"
    return [_number(measured.get("balanced_accuracy")), chance, _number(measured.get("p_value"))]


def _probes(data: RunData) -> Table:
    """How well each target is predicted, by feature set and variant."""
    header = ["target", "features", "variant", "score", "95% interval", "p", "error or AUROC", "new site"]
    rows: Rows = []
    for features, targets in data.summary["probes"].items():
        for target, variants in targets.items():
            for variant, scores in variants.items():
                rows.append([target, features, variant_name(variant), *_probe_cells(scores)])
    note = (
        "Score: R² of numbers, balanced accuracy of categories, in held-out participants. Its interval draws "
        "participants within sites anew; its p compares with targets permuted within sites. Error: mean absolute error "
        "in the target's own units. New site: the same score where the site as a whole was left out."
    )
    if not any(row[-1] for row in rows):  # no site was left out as a whole
        header, rows = header[:-1], [row[:-1] for row in rows]
        note = note[: note.index(" New site:")]
    return Table(header, sorted(rows, key=lambda row: row[0]), note)


def _probe_cells(scores: dict[str, Any]) -> list[str]:
    score = probe_score(scores)
    other = "mean_absolute_error" if score == "r2" else "auroc"
    interval = [_number(scores.get(f"{score}_{bound}")) for bound in ("low", "high")]
    left_out = scores.get("new_site", {}).get(score)
    return [
        _number(scores[score]),
        "" if interval == ["n/a", "n/a"] else " to ".join(interval),
        _number(scores.get("p_value", scores.get("balanced_accuracy_p_value"))),
        _number(scores.get(other)),
        "" if left_out is None else _number(left_out),
    ]


def _association(data: RunData) -> Table:
    """Canonical correlations of held-out people, and what the companions found."""
    found = data.summary.get("association", {})
    rows = []
    if "cca" in found:
        cca = found["cca"]
        for number, correlation in enumerate(cca["correlations"]):
            chance = f"{_number(cca['null_mean'][number])} ({_number(cca['null_95'][number])})"
            trained = _number(cca["training_correlations"][number])
            rows.append([f"canonical correlation {number + 1}", _number(correlation), chance, trained])
    for name, scores in found.items():
        if name.startswith("fusion/"):
            models = zip(("embedding", "vectors", "early", "late"), scores["r2"], strict=True)
            rows += [[f"{name.removeprefix('fusion/')} from {model}: R²", _number(r2), "", ""] for model, r2 in models]
    if "two_tower" in found:
        measures = zip(("top 1", "top 5", "reciprocal rank"), found["two_tower"]["scores"], strict=True)
        chance = found["two_tower"]["chance"]
        rows += [
            [f"partner found: {measure}", _number(score), _number(by_chance), ""]
            for (measure, score), by_chance in zip(measures, chance, strict=True)
        ]
    rows += [["failed", found["failed"], "", ""]] if "failed" in found else []
    return Table(["measure", "held out", "by chance (95%)", "in sample"], rows)


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


def _protection(data: RunData) -> Table:
    """What was done so that single sites and participants cannot be read."""
    privacy = data.summary["privacy"]
    if not privacy["secure_sums"]:
        sums = "off: each site's sums could be read"
    elif privacy["roster"] is None:
        sums = "on; the run ended before the sites had found keys in common"
    else:
        sums = _secure_sums(data)
    rows = [["secure sums", sums]]
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
    if privacy["secure_sums"]:
        note = f"Totals that measure site effects show each site's mean features. {note}"
    return Table(["measure", "what was done"], rows, note.strip())


def _secure_sums(data: RunData) -> str:
    silent = data.outcomes.query("outcome != 'ok'")["exchange"].nunique()
    again = f"; a site fell silent in {silent} exchanges" if silent else ""
    roster = data.summary["privacy"]["roster"][:12]
    return f"on, with the keys of roster {roster}: only totals could be read{again}"


TABLES = {
    "sites": _sites,
    "baselines": _baselines,
    "site_effects": _site_effects,
    "probes": _probes,
    "association": _association,
    "protection": _protection,
    "exchanges": _exchanges,
}


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}".replace("-", "−")
