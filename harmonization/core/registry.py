"""Every analysis by name: what a study, a site's policy and a message can name. Each enters itself."""

from collections.abc import Mapping
from typing import TypeVar

from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Analysis

AnyAnalysis = TypeVar("AnyAnalysis", bound=Analysis)

ANALYSES: dict[str, type[Analysis]] = {}


def register(analysis: type[AnyAnalysis]) -> type[AnyAnalysis]:
    """Enter an analysis under its name: a decorator of its class.

    Raises
    ------
    HarmonizationError
        If another has that name.
    """
    known = ANALYSES.setdefault(analysis.name, analysis)
    if known is not analysis:
        raise HarmonizationError(
            f"{analysis.__module__}: analysis '{analysis.name}' is {known.__module__}'s already. Name it otherwise."
        )
    return analysis


def make_analysis(name: str, parameters: Mapping[str, object]) -> Analysis:
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
