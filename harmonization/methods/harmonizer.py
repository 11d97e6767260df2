"""What every way of making sites alike has in common: rounds that end in a shared model, then work at each site."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from harmonization.core.declared import Declared, Shape, Widths, everybody
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Analysis, Array, SiteTable, State, Sums
from harmonization.core.registry import ANALYSES, register


@dataclass(frozen=True)
class Effect(State):
    """What a site finds of itself, from rows that it may learn from. It stays there."""

    done: ClassVar[bool] = True

    @property
    def n_unadjusted(self) -> int:
        """Features that come back as they were, since they hardly vary at the site."""
        return 0


class Harmonizer(Analysis):
    """An analysis whose final state is a model that all sites share.

    With it a site estimates its own effect from rows that it may learn from, and applies both to any of its rows. A
    site that took no part in the rounds does the same, with the model as it is.

    Attributes
    ----------
    described : str
        What a methods paragraph calls it: ``ComBat``, ``a site-adversarial network``.
    exact : bool
        Whether its model equals that of pooled rows.
    study_options : tuple of str
        Options that it takes from a study's ``harmonization`` settings of the same name, and ``sites``, the names of
        all that take part.
    without_covariates : str
        Name of the method in its place where there are no covariates to keep, if it needs some.
    for_studies : bool
        Whether a study can name it.
    """

    described: ClassVar[str] = ""
    exact: ClassVar[bool] = True
    study_options: ClassVar[tuple[str, ...]] = ()
    without_covariates: ClassVar[str] = ""
    for_studies: ClassVar[bool] = True

    def for_columns(self, names: Sequence[str]) -> Self:
        """Return the same method for a design whose columns have these names."""
        return self

    def initial(self) -> State | None:
        """Model before the first round: None, unless there is nothing to ask the sites."""
        return None

    @abstractmethod
    def effect_shapes(self, model: Any, n_features: int) -> dict[str, Shape]:
        """Declare the arrays of a site's effect in so many features: all that it may show of itself."""

    @abstractmethod
    def estimate(self, model: Any, table: SiteTable) -> Effect:
        """At a site: its own effect, from rows of the table."""

    @abstractmethod
    def apply(self, model: Any, table: SiteTable, effect: Any) -> Array:
        """At a site: features [n, p] of the table's rows, made alike to those of the other sites."""

    def harmonize(self, model: State, table: SiteTable) -> Array:
        """At a site: estimate its effect from rows and remove it from the same."""
        return self.apply(model, table, self.estimate(model, table))


@dataclass(frozen=True)
class Nothing(Effect):
    """The model, and the site's effect, of a method that does nothing."""


@register
@dataclass(frozen=True)
class Unharmonized(Harmonizer):
    """Leaves features as they are: what every method is to be compared with."""

    name: ClassVar[str] = "none"
    described: ClassVar[str] = "nothing"
    states: ClassVar[tuple[type[State], ...]] = (Nothing,)

    def initial(self) -> Nothing:
        return Nothing()

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        return {"n": np.array(float(table.n))}

    def sends(self, widths: Widths, state: State | None) -> Declared:
        return {"n": everybody()}

    def solve(self, total: Sums, state: State | None) -> Nothing:
        return Nothing()

    def effect_shapes(self, model: Nothing, n_features: int) -> dict[str, Shape]:
        return {}

    def estimate(self, model: Nothing, table: SiteTable) -> Nothing:
        return Nothing()

    def apply(self, model: Nothing, table: SiteTable, effect: Nothing) -> Array:
        return table.features


def harmonizers() -> dict[str, type[Harmonizer]]:
    """Every method that a study can name, and one for repeated visits, by name."""
    return {name: analysis for name, analysis in ANALYSES.items() if issubclass(analysis, Harmonizer)}


def make_harmonizer(name: str, options: Mapping[str, Any]) -> Harmonizer:
    """Make the method of that name.

    Raises
    ------
    HarmonizationError
        If there is none, or an option is not one of its own.
    """
    known = harmonizers()
    if not isinstance(name, str) or name not in known:
        raise HarmonizationError(f"method '{name}' is not known; expected one of {', '.join(known)}.")
    if not isinstance(options, Mapping):
        raise HarmonizationError(f"options of method '{name}' are {options!r}. Give names with values.")
    try:
        return known[name](**options)
    except TypeError:
        raise HarmonizationError(f"method '{name}' does not take {sorted(options)}. Use the same version.") from None
