"""Every analysis by name: what a study, a site's policy and a message can name. Each enters itself.

Studies, policies, the door and the report ask the classes for all that they say of an analysis. One of another package
is found by its entry point, ``fedbrainlm.analyses``, and is then there as ours are.
"""

import re
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Analysis

AnyAnalysis = TypeVar("AnyAnalysis", bound=Analysis)

ANALYSES: dict[str, type[Analysis]] = {}
GROUP = "fedbrainlm.analyses"
"""Entry points of other packages: each names a module, or a class in one, that enters its analyses."""
NAME = "[a-z_]{1,64}"
"""What an analysis may be called, in studies, in policies and on the wire."""
TAKEN = frozenset(
    {
        *("pretraining", "embedding", "evaluation", "lacking", "leave_one_site_out", "reference_site", "selection"),
        *("raw", "harmonized", "control", "components", "shared", "projected", "residualized"),
    }
)
"""What policies, transforms and feature sets call other things: an analysis of such a name would be taken for those."""
_OURS: dict[str, type[Analysis]] = {}


def register(analysis: type[AnyAnalysis]) -> type[AnyAnalysis]:
    """Enter an analysis under its name: a decorator of its class.

    Raises
    ------
    HarmonizationError
        If another has that name, it is none, or the class leaves something out.
    """
    name = getattr(analysis, "name", None)
    if not isinstance(name, str) or not re.fullmatch(NAME, name) or name in TAKEN:
        raise HarmonizationError(
            f"{analysis.__module__}: an analysis is called {name!r}; expected 1 to 64 letters a-z and '_', and none of "
            f"{', '.join(sorted(TAKEN))}. Name it otherwise."
        )
    lacking = set(getattr(analysis, "__abstractmethods__", ()))
    if not hasattr(analysis, "first"):
        steps = ("summarize", "sends", "solve")
        lacking |= {step for step in steps if getattr(analysis, step, None) is getattr(Analysis, step)}
    if lacking:
        raise HarmonizationError(
            f"{analysis.__module__}: analysis '{name}' lacks {', '.join(sorted(lacking))}. Write them."
        )
    known = ANALYSES.setdefault(analysis.name, analysis)
    if known is not analysis:
        raise HarmonizationError(
            f"{analysis.__module__}: analysis '{analysis.name}' is {known.__module__}'s already. Name it otherwise."
        )
    return analysis


def load_others() -> None:
    """Import the analyses of other packages that are installed, which enter themselves.

    Raises
    ------
    HarmonizationError
        If one of them cannot be imported.
    """
    _OURS.update({} if _OURS else ANALYSES)
    for point in entry_points(group=GROUP):
        if getattr(getattr(sys.modules.get(point.module), "__spec__", None), "_initializing", False):
            continue  # who imports it first comes by here, and its analyses enter themselves after that
        try:
            point.load()
        except (Exception, SystemExit) as error:
            raise HarmonizationError(
                f"package '{point.dist.name if point.dist else point.value}': its analysis '{point.name}' cannot be "
                f"loaded ({type(error).__name__}: {error}). Mend the package, or remove it."
            ) from error


def is_ours(name: str) -> bool:
    """Whether an analysis of that name, if there is one, came with this package: whatever it says of itself."""
    return ANALYSES.get(name) is _OURS.get(name)


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
