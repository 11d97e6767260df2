"""Statistics from sums: each answer equals the pooled one. Knows arrays only, neither recordings nor networks."""

from harmonization.association.canonical_correlation import CCA
from harmonization.association.cross_validated import CrossValidatedCCA
from harmonization.association.late_fusion import LateFusion
from harmonization.core.design import Categorical, Continuous, Design
from harmonization.core.errors import DesignError, HarmonizationError, SmallGroupError, TableError
from harmonization.core.moments import Moments, SecondMoments
from harmonization.core.protocol import Analysis, SiteTable, State, add_sums, run_pooled
from harmonization.core.quantiles import Quantiles
from harmonization.core.registry import ANALYSES, load_others, make_analysis
from harmonization.estimators.harmonizers import ComBatHarmonizer, PooledHarmonizer
from harmonization.estimators.transformers import Projector, Residualizer
from harmonization.methods.combat import ComBat, ComBatModel
from harmonization.methods.covbat import CovBat
from harmonization.methods.gam import ComBatGAM
from harmonization.methods.harmonizer import Harmonizer, Unharmonized, harmonizers, make_harmonizer
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

__all__ = [
    "ANALYSES",
    "CCA",
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
    "harmonizers",
    "make_analysis",
    "make_harmonizer",
    "run_pooled",
]

load_others()
