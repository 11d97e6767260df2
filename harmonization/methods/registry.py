"""The ways of making sites alike, by name: one interface, so that they can be compared."""

from collections.abc import Mapping
from typing import Any

from harmonization.core.errors import HarmonizationError
from harmonization.methods.combat import ComBat
from harmonization.methods.covbat import CovBat
from harmonization.methods.gam import ComBatGAM
from harmonization.methods.harmonizer import Harmonizer, Unharmonized
from harmonization.methods.longitudinal import LongitudinalComBat
from harmonization.networks.content_style import ContentStyle
from harmonization.networks.site_adversarial import SiteAdversarial

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
