"""Statistics from sums: each answer equals the pooled one. Knows arrays only, neither recordings nor networks."""

from harmonization.association import CrossValidatedCCA
from harmonization.canonical_correlation import CCA
from harmonization.classification import LogisticRegression, SoftmaxRegression
from harmonization.classification_probe import CrossValidatedLogistic
from harmonization.combat import ComBat, ComBatHarmonizer, ComBatModel
from harmonization.content_style import ContentStyle
from harmonization.covbat import CovBat
from harmonization.design import Categorical, Continuous, Design
from harmonization.errors import DesignError, HarmonizationError, SmallGroupError, TableError
from harmonization.faces import Projector, Residualizer
from harmonization.gam import ComBatGAM
from harmonization.harmonizer import Harmonizer, Unharmonized
from harmonization.harmonizers import PooledHarmonizer
from harmonization.late_fusion import LateFusion
from harmonization.least_squares import LinearRegression, RidgeRegression
from harmonization.longitudinal import LongitudinalComBat
from harmonization.methods import METHODS, make_harmonizer
from harmonization.moments import Moments, SecondMoments
from harmonization.permanova import CrossValidatedPermanova, Permanova
from harmonization.probes import CrossValidatedRidge
from harmonization.projection import Projection
from harmonization.protocol import Analysis, SiteTable, State, add_sums, run_pooled
from harmonization.quantiles import Quantiles
from harmonization.residualization import Residualization
from harmonization.site_adversarial import SiteAdversarial
from harmonization.site_classification import SiteClassification
from harmonization.site_effects import SiteVariance
from harmonization.site_metrics import CovarianceDistance, SiteSpread
from harmonization.site_network import SiteNetwork
from harmonization.two_tower import TwoTower

#: Every analysis that can be asked for by name, in a study or a site's policy.
ANALYSES: dict[str, type[Analysis]] = {
    analysis.name: analysis
    for analysis in (
        CCA,
        ComBat,
        ComBatGAM,
        CovarianceDistance,
        CovBat,
        CrossValidatedCCA,
        CrossValidatedLogistic,
        CrossValidatedPermanova,
        ContentStyle,
        CrossValidatedRidge,
        LateFusion,
        LinearRegression,
        LogisticRegression,
        LongitudinalComBat,
        Permanova,
        Projection,
        Quantiles,
        Residualization,
        RidgeRegression,
        SecondMoments,
        SiteAdversarial,
        SiteClassification,
        SiteNetwork,
        SiteSpread,
        SiteVariance,
        SoftmaxRegression,
        TwoTower,
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
    "CCA",
    "METHODS",
    "Analysis",
    "Categorical",
    "ComBat",
    "ComBatGAM",
    "ComBatHarmonizer",
    "ComBatModel",
    "ContentStyle",
    "Continuous",
    "CovBat",
    "CovarianceDistance",
    "CrossValidatedCCA",
    "CrossValidatedLogistic",
    "CrossValidatedPermanova",
    "CrossValidatedRidge",
    "Design",
    "DesignError",
    "HarmonizationError",
    "Harmonizer",
    "LateFusion",
    "LinearRegression",
    "LogisticRegression",
    "LongitudinalComBat",
    "Moments",
    "Permanova",
    "PooledHarmonizer",
    "Projection",
    "Projector",
    "Quantiles",
    "Residualization",
    "Residualizer",
    "RidgeRegression",
    "SecondMoments",
    "SiteAdversarial",
    "SiteClassification",
    "SiteNetwork",
    "SiteSpread",
    "SiteTable",
    "SiteVariance",
    "SmallGroupError",
    "SoftmaxRegression",
    "State",
    "TableError",
    "TwoTower",
    "Unharmonized",
    "add_sums",
    "make_analysis",
    "make_harmonizer",
    "run_pooled",
]
