"""Statistics from sums: each answer equals the pooled one. Knows arrays only, neither recordings nor networks."""

from harmonization.combat import ComBat, ComBatHarmonizer, ComBatModel
from harmonization.design import Categorical, Continuous, Design
from harmonization.errors import DesignError, HarmonizationError, TableError
from harmonization.harmonizer import Harmonizer, Unharmonized
from harmonization.methods import METHODS, make_harmonizer
from harmonization.moments import Moments, SecondMoments
from harmonization.probes import CrossValidatedRidge, RidgeRegression
from harmonization.projection import Projection
from harmonization.protocol import Analysis, SiteTable, State, add_sums, run_pooled
from harmonization.quantiles import Quantiles
from harmonization.residualization import Residualization
from harmonization.site_classification import SiteClassification
from harmonization.site_effects import SiteVariance

#: Every analysis that can be asked for by name, in a study or a site's policy.
ANALYSES: dict[str, type[Analysis]] = {
    analysis.name: analysis
    for analysis in (
        ComBat,
        CrossValidatedRidge,
        Projection,
        Quantiles,
        Residualization,
        RidgeRegression,
        SecondMoments,
        SiteClassification,
        SiteVariance,
        Unharmonized,
    )
}


def make_analysis(name: str, parameters: dict[str, object]) -> Analysis:
    """Make the analysis of that name.

    Raises
    ------
    HarmonizationError
        If there is none, or a parameter is not one of its own.
    """
    if name not in ANALYSES:
        raise HarmonizationError(f"analysis '{name}' is not known; expected one of {', '.join(sorted(ANALYSES))}.")
    try:
        return ANALYSES[name](**parameters)
    except TypeError:
        raise HarmonizationError(
            f"analysis '{name}' does not take {sorted(parameters)}. Use the same version."
        ) from None


__all__ = [
    "ANALYSES",
    "METHODS",
    "Analysis",
    "Categorical",
    "ComBat",
    "ComBatHarmonizer",
    "ComBatModel",
    "Continuous",
    "CrossValidatedRidge",
    "Design",
    "DesignError",
    "HarmonizationError",
    "Harmonizer",
    "Moments",
    "Projection",
    "Quantiles",
    "Residualization",
    "RidgeRegression",
    "SecondMoments",
    "SiteClassification",
    "SiteTable",
    "SiteVariance",
    "State",
    "TableError",
    "Unharmonized",
    "add_sums",
    "make_analysis",
    "make_harmonizer",
    "run_pooled",
]
