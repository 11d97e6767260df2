"""Every analysis and every method, by name: what a study, a policy and a message can name."""

from collections.abc import Mapping
from typing import Any

from harmonization.association.canonical_correlation import CCA
from harmonization.association.cross_validated import CrossValidatedCCA
from harmonization.association.late_fusion import LateFusion
from harmonization.core.errors import HarmonizationError
from harmonization.core.moments import SecondMoments
from harmonization.core.protocol import Analysis
from harmonization.core.quantiles import Quantiles
from harmonization.methods.combat import ComBat
from harmonization.methods.covbat import CovBat
from harmonization.methods.gam import ComBatGAM
from harmonization.methods.harmonizer import Harmonizer, Unharmonized
from harmonization.methods.longitudinal import LongitudinalComBat
from harmonization.methods.projection import Projection
from harmonization.methods.residualization import Residualization
from harmonization.networks.content_style import ContentStyle
from harmonization.networks.site_adversarial import SiteAdversarial
from harmonization.networks.site_network import SiteNetwork
from harmonization.networks.two_tower import TwoTower
from harmonization.probes.class_regression import LogisticRegression, SoftmaxRegression
from harmonization.probes.least_squares import LinearRegression, RidgeRegression
from harmonization.probes.logistic import CrossValidatedLogistic
from harmonization.probes.ridge import CrossValidatedRidge
from harmonization.site_effects.permanova import CrossValidatedPermanova, Permanova
from harmonization.site_effects.site_classification import SiteClassification
from harmonization.site_effects.spread import CovarianceDistance, SiteSpread
from harmonization.site_effects.variance import SiteVariance

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


#: Every method that a study can name, and one for repeated visits.
METHODS: dict[str, type[Harmonizer]] = {
    method.name: method
    for method in (Unharmonized, ComBat, ComBatGAM, CovBat, SiteAdversarial, ContentStyle, LongitudinalComBat)
}


def make_harmonizer(name: str, options: Mapping[str, Any]) -> Harmonizer:
    """Make the method of that name.

    Raises
    ------
    HarmonizationError
        If there is none, or an option is not one of its own.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise HarmonizationError(f"method '{name}' is not known; expected one of {', '.join(METHODS)}.")
    if not isinstance(options, Mapping):
        raise HarmonizationError(f"options of method '{name}' are {options!r}. Give names with values.")
    try:
        return METHODS[name](**options)
    except TypeError:
        raise HarmonizationError(f"method '{name}' does not take {sorted(options)}. Use the same version.") from None
