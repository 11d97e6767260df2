"""What a notebook imports: cohorts, models, embeddings, harmonization, and whole studies.

>>> from fedbrainlm import Cohort, ComBatHarmonizer, embed, load_model

Each name is imported when it is first asked for: who wants statistics alone waits for neither torch nor Flower.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from base.errors import of_the_installation

if TYPE_CHECKING:
    from brainlm import Scaling, embed, functional_connectivity, load_model
    from cli.run import run_study
    from cohorts import Cohort
    from harmonization import ComBatHarmonizer, Design, PooledHarmonizer, Projector, Residualizer, make_harmonizer
    from harmonization.core.design import KNOWN

__all__ = [
    "KNOWN",
    "Cohort",
    "ComBatHarmonizer",
    "Design",
    "PooledHarmonizer",
    "Projector",
    "Residualizer",
    "Scaling",
    "embed",
    "functional_connectivity",
    "load_model",
    "make_harmonizer",
    "run_study",
]
_WHERE = {
    "Cohort": "cohorts",
    "KNOWN": "harmonization.core.design",
    "Scaling": "brainlm",
    "embed": "brainlm",
    "functional_connectivity": "brainlm",
    "load_model": "brainlm",
    "run_study": "cli.run",
}
"""Module of each name that is not harmonization's; the imports above tell type checkers the same."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fedbrainlm' has no attribute '{name}'")
    try:
        return getattr(import_module(_WHERE.get(name, "harmonization")), name)
    except ModuleNotFoundError as error:
        raise of_the_installation(error) or error from None


def __dir__() -> list[str]:
    return __all__
