"""What is compared, raw, harmonized, as a negative control and by further methods; and how each is measured."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from exchange.messages import TableSpec
from harmonization import (
    ANALYSES,
    Categorical,
    CovarianceDistance,
    CrossValidatedPermanova,
    Harmonizer,
    SiteClassification,
    SiteNetwork,
    SiteSpread,
    SiteVariance,
    make_harmonizer,
)
from study.settings import Study, blind_method
from study.state import Found, Measure
from study.sums import Task

FEWEST_TO_COMPARE = 2
"""One site differs from nobody: there is nothing to measure and nothing to make alike."""
_FEWEST_TO_LEAVE_OUT = 3
"""With one of fewer sites left out, none is left to choose a penalty in."""
RAW, HARMONIZED, CONTROL = "raw", "harmonized", "control"
EFFECT_KINDS = ("permanova", "site", "network", "site_variance", "site_spread", "covariance_distance")
"""Kinds of measures that say how much of the site is left."""


@dataclass(frozen=True)
class Variant:
    """One way of treating a feature set before it is measured."""

    name: str
    """``raw``, ``harmonized``, ``control``, or the name of a method to compare with."""
    method: str
    """Of `harmonization.harmonizers`."""
    options: dict[str, Any]
    """The method's."""
    covariates: list[dict[str, Any]]
    """The design that it keeps."""

    @property
    def harmonizer(self) -> Harmonizer:
        return make_harmonizer(self.method, self.options)

    def features(self, name: str) -> str:
        """Name of a feature set once it is treated so."""
        return name if self.name == RAW else f"{name}.{self.name}"


def lacking_sites(study: Study, n_sites: int) -> list[Found]:
    """Say what the study asks for and so few sites cannot give."""
    left_out = {}
    if n_sites < FEWEST_TO_COMPARE:
        methods = sorted({study.harmonization.method, *study.analyses.compare} - {"none"})
        kinds = ("site effects", *(f"harmonization by {method}" for method in methods))
        left_out = dict.fromkeys(kinds, "one site takes part, and nothing to compare it with")
    if study.analyses.leave_one_site_out and study.analyses.targets and n_sites < _FEWEST_TO_LEAVE_OUT:
        left_out["leave_one_site_out"] = f"it needs {_FEWEST_TO_LEAVE_OUT} sites, and {n_sites} take part"
    return [Found(Measure(kind), why=why) for kind, why in left_out.items()]


def variants_of(study: Study, sites: Collection[str]) -> list[Variant]:
    """Return the variants that a study measures.

    The control is harmonized without covariates: where sites differ in age, that takes age along with the scanner.
    """
    kept = study.design(study.kept)

    def variant(name: str, method: str) -> Variant:
        return Variant(name, method, study.options_of(method, kept, list(sites)), kept.to_json())

    method = study.harmonization.method
    variants = [variant(RAW, "none")]
    if len(sites) < FEWEST_TO_COMPARE:
        return variants
    if method != "none":
        nothing = study.design(())
        blind = blind_method(method)
        control = Variant(CONTROL, blind, study.options_of(blind, nothing, list(sites)), [])
        variants += [variant(HARMONIZED, method), control]
    others = dict.fromkeys(study.analyses.compare)
    return variants + [variant(other, other) for other in others if other not in ("none", method)]


def table_of(study: Study, features: str, **more: Any) -> TableSpec:
    """Table of a feature set, of the participants of whom all is known that the study asks for."""
    return TableSpec(features=features, complete=study.complete.to_json(), **more)


def held_out_measures(study: Study, features: str, variant: Variant, sites: Mapping[str, int]) -> dict[Measure, Task]:
    """Tasks that measure site and targets on held-out participants.

    Harmonization, by what the other participants say, works on the features themselves; classifiers and probes look at
    them through the components of the raw ones, at the participants of whom all is known that the study asks for.

    Parameters
    ----------
    sites : mapping
        Name of each site → its participants, as it said.
    """
    analyses = study.analyses
    table = table_of(study, features, through=f"{features}.components", covariates=variant.covariates)
    harmonized: dict[str, Any] = {"method": variant.method, "options": variant.options}
    folds = {"n_folds": analyses.folds, **harmonized}
    by_site = table.model_copy(update={"target": "site", "levels": list(sites)})

    def of(kind: str, target: str = "") -> Measure:
        return Measure(kind, features, variant.name, target)

    tasks: dict[Measure, Task] = {}
    if len(sites) >= FEWEST_TO_COMPARE:
        apart = CrossValidatedPermanova(**folds, permutations=analyses.permutations, sizes=tuple(sites.values()))
        tasks[of("permanova")] = Task(apart, table)
        if analyses.site_classification:
            tasks[of("site")] = Task(SiteClassification(**folds, permutations=analyses.permutations), by_site)
        if analyses.site_network:
            tasks[of("network")] = Task(SiteNetwork(**folds), by_site)
    for target in analyses.targets:
        coding = study.coding(target)
        levels = list(coding.levels) if isinstance(coding, Categorical) else []
        probe = ANALYSES[study.probe_of(target)]
        about = table.model_copy(update={"target": target, "levels": levels})
        permutations = analyses.category_permutations if levels else analyses.permutations
        uncertainty = {"bootstrap": analyses.bootstrap, "permutations": permutations}
        tasks[of("probe", target)] = Task(probe(**folds, **uncertainty), about)
        if analyses.leave_one_site_out and variant.name != CONTROL and len(sites) >= _FEWEST_TO_LEAVE_OUT:
            tasks[of("new-site", target)] = Task(probe(**{"sites": tuple(sites), **harmonized}), about)
    return tasks


def site_measures(study: Study, features: str, variant: Variant) -> dict[Measure, Task]:
    """Tasks that measure the site over all participants, once the variant is on the sites' disks."""
    table = table_of(study, variant.features(features))
    seen = table.model_copy(update={"through": f"{features}.components"})
    tasks = {
        "site_variance": Task(SiteVariance(), table),
        "site_spread": Task(SiteSpread(), table),
        "covariance_distance": Task(CovarianceDistance(), seen),
    }
    return {Measure(kind, features, variant.name): task for kind, task in tasks.items()}
