"""``summary.json`` and ``metrics.parquet``: every headline number by name, for scripts and for the report."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NamedTuple

import pandas as pd

from base.files import atomic_path, write_text
from brainlm.evaluation import SCORES, ReconstructionSums
from cohorts import load_atlas
from exchange.messages import DescribeReply
from server.absences import absences_of
from server.cautions import cautions_of
from server.journal import Journal
from server.reconstruction import read_table, summarize_reconstruction
from study.associating import ASSOCIATION
from study.comparing import EFFECT_KINDS
from study.harmonizing import label
from study.settings import Study
from study.state import Findings

PROBE_SCORES = {"r2": "R²", "balanced_accuracy": "balanced accuracy"}
"""The score by which a probe is known, of numbers and of categories, and its name for people."""


def probe_score(scores: Mapping[str, Any]) -> str:
    """Which of `PROBE_SCORES` a probe's entry in the summary has."""
    return next(score for score in PROBE_SCORES if score in scores)


def remarks_on(sites: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what of each site took no part, and whom it may have taken for several people, by what it said of itself."""
    said = []
    for site, about in sites.items():
        if n_short := about.get("n_too_short", 0):
            said.append(
                f"{site}: {n_short} of {n_short + about['n_recordings']} recordings are shorter than the window, which "
                f"leaves {about['n_left_out']} participants out."
            )
        for missing, n_people in (("a covariate", "n_incomplete"), ("a vector", "n_without_vectors")):
            if (n := about.get(n_people, 0)) != 0:
                who = "a few" if n is None else f"{n} of {about['n_participants']}"
                said.append(f"{site}: {who} participants lack {missing}, and are in no analysis that needs it.")
        if (n := about.get("n_like_visits", 0)) != 0:
            said.append(
                f"{site}: the ids of {'a few' if n is None else n} participants look like visits of the same people, "
                "who may be trained on and held out at once, and count more than once for epsilon."
            )
    return said


class SiteScore(NamedTuple):
    """How much of the site is in one variant of a feature set, in the number that a run is known by.

    `by_chance` is what it would be if sites did not differ.
    """

    title: str
    value: float | None
    by_chance: float | None


def site_score(measured: Mapping[str, Any]) -> SiteScore:
    """Take the score of the classifier, where a study asked for one; else the share of distances between sites."""
    if "balanced_accuracy" in measured:
        return SiteScore("site recognised (balanced accuracy)", measured["balanced_accuracy"], measured["null_mean"])
    permanova = measured.get("permanova", {})
    return SiteScore("site (PERMANOVA R²)", permanova.get("r2"), permanova.get("r2_by_chance"))


def sites_of(journal: Journal) -> dict[str, DescribeReply]:
    """Sites that a run goes on with, and what each said of itself when it began; none before that."""
    facts, left_out = journal.facts(), {site for site, _, _ in journal.left_out()}
    members = json.loads(facts.get("members", "{}"))
    return {site: DescribeReply.model_validate(about) for site, about in members.items() if site not in left_out}


def write_summary(
    study: Study, journal: Journal, sites: Mapping[str, DescribeReply], findings: Findings | None
) -> None:
    """Write the summary of a run that ended, well or not; without findings, if it did not come so far."""
    metrics = journal.table("metrics")
    with atomic_path(journal.folder / "metrics.parquet") as temporary:
        metrics.to_parquet(temporary, index=False)
    facts, pretraining = journal.facts(), _pretraining(study, journal)
    content = {
        "study": study.study,
        "title": study.title,
        "status": "completed" if findings else facts["status"],
        "reason": facts.get("reason", ""),
        "run": journal.run,
        "flower_run": facts.get("flower_run", ""),
        "rounds": int(metrics["round"].max()) if len(metrics) else 0,
        "sites": {site: about.model_dump() for site, about in sites.items()},
        "left_out": facts.get("left_out", ""),
        "absences": [asdict(absence) for absence in absences_of(journal)],
        "cautions": cautions_of(study, metrics, pretraining, findings) if findings else [],
        "recipe": study.recipe,
        "pretraining": pretraining,
        "harmonization": _harmonization(study, findings),
        "probes": _probes(findings) if findings else {},
        "association": _association(findings) if findings else {},
        "privacy": _privacy(study, journal, sites),
        "exchange": _exchange(journal),
        "software": {name: version(name) for name in ("fedbrainlm", "flwr", "torch", "numpy", "scipy")},
    }
    write_text(journal.folder / "summary.json", json.dumps(_finite(content), indent=2) + "\n")


def write_parcels(study: Study, journal: Journal, by_atlas: Mapping[str, ReconstructionSums]) -> None:
    """Write ``parcels.parquet``: the final model's masked R² of every parcel, over all sites with its atlas."""
    tables = [
        pd.DataFrame(
            {
                "atlas": atlas.name,
                "parcel": atlas.labels,
                "network": atlas.networks or "",
                "masked_r2": by_atlas[atlas.name].masked_r2_by_parcel,
            }
        )
        for atlas in map(load_atlas, study.cohort.atlases)
        if atlas.name in by_atlas
    ]
    if not tables:
        return
    with atomic_path(journal.folder / "parcels.parquet") as temporary:
        pd.concat(tables).to_parquet(temporary, index=False)


def _pretraining(study: Study, journal: Journal) -> dict[str, Any]:
    """Scores over all sites, and of each; before the first round; by network and horizon; and of the baselines."""
    metrics = journal.table("metrics")
    wanted = metrics[metrics["name"].isin(["loss", *SCORES])]
    final = wanted.sort_values("round").groupby(["site", "name"])["value"].last()
    by_site: dict[str, dict[str, float]] = {}
    for (site, name), value in final.items():
        by_site.setdefault(str(site), {})[str(name)] = float(value)
    overall = by_site.pop("all", {})
    first = wanted.query("round == 0 and site == 'all' and name == 'masked_r2'")["value"]
    before = "masked_r2_untrained" if study.start is None else "masked_r2_start"
    reconstruction = read_table(journal.folder / "reconstruction.parquet")
    return {
        **overall,
        before: float(first.iloc[0]) if len(first) else math.nan,
        "sites": by_site,
        **({} if reconstruction is None else summarize_reconstruction(reconstruction)),
    }


def _harmonization(study: Study, findings: Findings | None) -> dict[str, Any]:
    chosen = study.harmonization.model_dump(include={"method", "prior", "reference", "order"})
    settings = {**chosen, "keep": list(study.kept), "residualize": list(study.residualized)}
    if findings is None:
        return settings
    return {
        **settings,
        "features": {name: asdict(count) for name, count in findings.features.items()},
        "components": {name: asdict(count) for name, count in findings.components.items()},
        "site_effect": _site_effects(findings),
        "left_out": {one.measure.name: one.why for one in findings.left_out},
    }


def _site_effects(findings: Findings) -> dict[str, dict[str, dict[str, Any]]]:
    """Nest what is left of the site: feature set → variant → number, or measure → number."""
    nested: dict[str, dict[str, dict[str, Any]]] = {features: {} for features in findings.compared}
    for one in findings.found:
        measure, numbers = one.measure, one.numbers
        if one.why or measure.kind not in EFFECT_KINDS:
            continue
        if measure.kind == "site_variance":
            numbers = {"eta_squared": numbers["mean"]}
        elif measure.kind != "site":
            numbers = {measure.kind: numbers}
        nested[label(measure.of)].setdefault(measure.variant, {}).update(numbers)
    return nested


def _probes(findings: Findings) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Nest how well targets are predicted: feature set → target → variant → number."""
    nested: dict[str, dict[str, dict[str, dict[str, Any]]]] = {features: {} for features in findings.compared}
    for one in findings.found:
        measure, targets = one.measure, nested.get(label(one.measure.of), {})
        if one.why:
            continue
        if measure.kind == "probe":
            targets.setdefault(measure.target, {})[measure.variant] = dict(one.numbers)
        elif measure.kind == "new-site" and measure.variant in targets.get(measure.target, {}):
            targets[measure.target][measure.variant]["new_site"] = one.numbers  # nobody looks at it without the probe
    return nested


def _association(findings: Findings) -> dict[str, Any]:
    if findings.not_associated:
        return {"failed": findings.not_associated}
    return {one.measure.called: one.numbers for one in findings.found if one.measure.of == ASSOCIATION and not one.why}


def _privacy(study: Study, journal: Journal, sites: Mapping[str, DescribeReply]) -> dict[str, Any]:
    """How the sites' answers were kept from the coordinator, and the heads of their audit logs at the end."""
    answered = journal.table("outcomes").query("outcome == 'ok'")
    heads = answered[answered["site"].isin(sites)].groupby("site")["audit_head"].last()
    training = study.training.privacy
    return {
        "secure_sums": study.privacy.secure_sums,
        "roster": journal.facts().get("roster"),
        "max_norm": study.privacy.max_norm,
        "frame_noise": study.privacy.frame_noise.model_dump(mode="json") if study.privacy.frame_noise else None,
        "differential_privacy": training.model_dump(mode="json") if training else None,
        "audit_heads": {str(site): head for site, head in heads.items()},
    }


def _exchange(journal: Journal) -> dict[str, int]:
    exchanges = journal.table("exchanges")
    return {
        "bytes_up": int(exchanges["bytes_up"].fillna(0).sum()),
        "bytes_down": int(exchanges["bytes_down"].sum()),
        "messages": int(exchanges["asked"].sum()),
        "exchanges": len(exchanges),
    }


def _finite(content: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
