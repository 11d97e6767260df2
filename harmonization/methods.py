"""The ways of making sites alike, by name: one interface, so that they can be compared."""

from collections.abc import Mapping
from typing import Any

from harmonization.combat import ComBat
from harmonization.errors import HarmonizationError
from harmonization.harmonizer import Harmonizer, Unharmonized

#: Every method that a study can name.
METHODS: dict[str, type[Harmonizer]] = {method.name: method for method in (Unharmonized, ComBat)}


def make_harmonizer(name: str, options: Mapping[str, Any]) -> Harmonizer:
    """Make the method of that name.

    Raises
    ------
    HarmonizationError
        If there is none, or an option is not one of its own.
    """
    if name not in METHODS:
        raise HarmonizationError(f"method '{name}' is not known; expected one of {', '.join(METHODS)}.")
    try:
        return METHODS[name](**options)
    except TypeError:
        raise HarmonizationError(f"method '{name}' does not take {sorted(options)}. Use the same version.") from None
