"""The shape of every analysis: sites summarize, sums add, the coordinator solves; as often as it takes.

The same two functions run on pooled tables and in a federation, so both give the same answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from harmonization.core.checks import as_numbers, as_whole_numbers, check_parameters, check_sizes
from harmonization.core.declared import Declared, Widths
from harmonization.core.errors import HarmonizationError, TableError

Array = NDArray[np.float64]
Sums = dict[str, Array]

_BY_ROW = ("features", "covariates", "target", "second", "participant")
"""Fields of a table that have one entry a row."""
_DIMENSIONS = {"features": (2,), "covariates": (2,), "target": (1, 2), "second": (2,), "loadings": (2,)}
"""Fields of a table that hold numbers, and how many axes they may have."""


@dataclass(frozen=True)
class SiteTable:
    """One site's rows for one analysis: its participants, or the frames of one of its recordings.

    Attributes
    ----------
    features : numpy.ndarray
        [n, p].
    covariates : numpy.ndarray, optional
        Design matrix [n, q].
    target : numpy.ndarray, optional
        What a probe predicts, [n] or [n, m].
    second : numpy.ndarray, optional
        The other view in a canonical correlation, [n, r].
    loadings : numpy.ndarray, optional
        [p, k]: cross-validated analyses see features through them, once these are harmonized.
    site : str
        Name of the site, for analyses that treat sites apart; the study's list of names is public.
    participant : numpy.ndarray, optional
        Whose row each is, [n] integers, where participants have several; None if each row is another's.
    seed : int
        The site's own, for folds and permutations. It never leaves the site.
    min_group : int
        Fewest rows that a part of the sums may stand for: the site's rule.
    frames : bool
        The rows are the frames of one recording, in order, and not participants; NaN where a parcel is missing.
    incomplete : bool
        Features may hold NaN, for analyses that count each feature's rows.
    """

    features: Array
    covariates: Array | None = None
    target: Array | None = None
    second: Array | None = None
    loadings: Array | None = None
    site: str = ""
    participant: NDArray[np.int64] | None = None
    seed: int = 0
    min_group: int = 1
    frames: bool = False
    incomplete: bool = False

    def __post_init__(self) -> None:
        for name, dimensions in _DIMENSIONS.items():
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, self._checked(name, as_numbers(values, name), dimensions))
        if self.features.size == 0:
            raise TableError(f"features have shape {self.features.shape}; expected [n, p]. Give one row or more.")
        if self.participant is not None:
            object.__setattr__(self, "participant", as_whole_numbers(self.participant, "participant"))
        for name in _BY_ROW:
            values = getattr(self, name)
            if values is not None and len(values) != self.n:
                raise TableError(f"{name} has {len(values)} rows, and features {self.n}. Give the same rows of each.")
        if self.loadings is not None and len(self.loadings) != self.features.shape[1]:
            raise TableError(
                f"loadings have {len(self.loadings)} rows, and features {self.features.shape[1]} columns. Use the "
                "loadings of these features."
            )
        if self.seed < 0:
            raise TableError(f"seed is {self.seed}; expected a whole number. Give 0 or more.")

    def _checked(self, name: str, values: Array, dimensions: tuple[int, ...]) -> Array:
        """Refuse numbers of a field that are of the wrong shape, missing without leave, or of no likely size."""
        if values.ndim not in dimensions:
            expected = " or ".join(("[n]", "[n, columns]")[axes - 1] for axes in dimensions)
            raise TableError(f"{name} of shape {values.shape} are not understood. Give numbers of shape {expected}.")
        may_lack = self.frames or (self.incomplete and name == "features")
        if np.isinf(values).any() or (np.isnan(values).any() and not may_lack):
            raise TableError(f"{name} holds NaN or infinite values. Leave those participants out.")
        if not self.frames:
            check_sizes(values, name)
        return values

    @property
    def n(self) -> int:
        return len(self.features)

    @property
    def widths(self) -> Widths:
        """Columns of all that the table holds."""
        return Widths(
            features=self.features.shape[1],
            seen=self.features.shape[1] if self.loadings is None else self.loadings.shape[1],
            covariates=self.design.shape[1],
            target=None if self.target is None else self.target.shape[1:],
            second=0 if self.second is None else self.second.shape[1],
        )

    @property
    def design(self) -> Array:
        """Covariates, or a matrix [n, 0] where there are none."""
        return np.empty((self.n, 0)) if self.covariates is None else self.covariates

    def take(self, rows: NDArray[Any]) -> Self:
        """Return the table of some rows: their indices, or a mask [n]."""
        taken: dict[str, Any] = {name: values[rows] for name in _BY_ROW if (values := getattr(self, name)) is not None}
        return replace(self, **taken)


AnyState = TypeVar("AnyState", bound="State")


@dataclass(frozen=True)
class State:
    """What the coordinator tells the sites after a round: a dataclass of arrays and numbers."""

    done: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """Name of the state on the wire, which `Analysis.read_state` understands."""
        return type(self).__name__

    def to_arrays(self) -> Sums:
        """Return the fields as arrays; numbers become arrays of no dimension."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what `to_arrays` returned."""
        casts: dict[Any, Any] = {"float": float, float: float, "int": int, int: int}
        return cls(**{field.name: casts.get(field.type, np.asarray)(arrays[field.name]) for field in fields(cls)})

    def become(self, kind: type[AnyState], **found: Any) -> AnyState:
        """Return the next state: what this one knows, and what was found since."""
        known = {field.name: getattr(self, field.name) for field in fields(kind) if field.name not in found}
        return kind(**known, **found)


class Answer(State):
    """The state after the last round."""

    done: ClassVar[bool] = True


class Stage(State, ABC):
    """A state in which an analysis asks its sites once more."""

    @abstractmethod
    def part(self, analysis: Any, table: Any) -> Sums:
        """At a site: its sums."""

    @abstractmethod
    def sends(self, analysis: Any, widths: Widths) -> Declared:
        """Declare what `part` returns, for tables of such widths, whatever their rows are."""

    @abstractmethod
    def advance(self, analysis: Any, total: Sums) -> State:
        """At the coordinator: what follows from the sum over all sites, another stage or the answer."""


class Analysis(ABC):
    """An analysis in rounds. Subclasses are frozen dataclasses of JSON-able parameters.

    Each round is a `Stage`, which says what is summed and what follows; the analysis names the `first`. One of a single
    round may write `summarize`, `sends` and `solve` itself, and names none.

    Attributes
    ----------
    name : str
        Name on the wire and in a site's policy.
    first : Stage
        The stage of its first round, which is not sent: sites know it.
    states : tuple of type
        The states that its rounds pass, for the wire: further stages, and the answer, which is `done`.
    rows : {"participants", "frames"}
        What its tables must hold. Sums that are safe over many frames can single out a row among few participants.
    counts_missing : bool
        Whether its tables of participants may be `incomplete`.
    additive : bool
        Whether its sums over a table are, in every round, the sums over each participant's rows alone, added. Then one
        participant's share is known, and can be bounded and hidden in noise.
    shows_one_site : bool
        Whether its sums have a place for each site, and so show a single site's even where they are secure: a site's
        policy must name it.
    title : str
        What tables and figures call it; its name if empty.
    references : tuple of str
        What a paper that uses it cites.
    """

    name: ClassVar[str]
    first: ClassVar[Stage]
    states: ClassVar[tuple[type[State], ...]]
    rows: ClassVar[Literal["participants", "frames"]] = "participants"
    counts_missing: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    shows_one_site: ClassVar[bool] = False
    title: ClassVar[str] = ""
    references: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Refuse parameters of the wrong kind. Subclasses call it before they look at their values."""
        check_parameters(self)

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        """At a site: its sums for this round. `state` is None in the first."""
        return self.stage(state).part(self, table)

    def sends(self, widths: Widths, state: State | None) -> Declared:
        """Declare what `summarize` returns in this round, for tables of such widths, whatever their rows are."""
        return self.stage(state).sends(self, widths)

    def solve(self, total: Sums, state: State | None) -> State:
        """At the coordinator: the next state from the sum over all sites; the last one is `done`."""
        return self.stage(state).advance(self, total)

    def stage(self, state: State | None) -> Stage:
        """Return the stage that a state is, or the first; an answer is none: whoever sends one begins nowhere."""
        stage = self.first if state is None else state
        if stage.done or not isinstance(stage, Stage):
            raise HarmonizationError(f"'{stage.kind}' is an answer of '{self.name}', after which nothing is summed.")
        return stage

    @property
    def asks_for(self) -> tuple[str, ...]:
        """Names that a site's policy must allow."""
        return (self.name,)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters, JSON-able."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # subclasses are dataclasses

    def read_state(self, kind: str, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Rebuild a state from its kind and its arrays."""
        for state in self.states:
            if state.__name__ == kind:
                return state.from_arrays(arrays)
        raise HarmonizationError(f"analysis '{self.name}' has no state '{kind}'. Use the same version everywhere.")


def add_sums(parts: Iterable[Sums]) -> Sums:
    """Add the sums of all sites, or of all recordings of a site, in the order given.

    Raises
    ------
    HarmonizationError
        If there are none, or two sites sent different names or shapes.
    """
    remaining = iter(parts)
    first = next(remaining, None)
    if first is None:
        raise HarmonizationError("there are no sums to add. Give the table of one site or more.")
    total = {name: np.array(values, dtype=np.float64) for name, values in first.items()}
    for part in remaining:
        if part.keys() != total.keys() or any(part[name].shape != total[name].shape for name in total):
            raise HarmonizationError(
                "sites sent sums of different shapes. Use the same features, covariates and version everywhere."
            )
        for name, values in part.items():
            total[name] += values
    return total


def run_pooled(analysis: Analysis, tables: Sequence[SiteTable]) -> Any:
    """Run all rounds in one process, over tables that lie at hand.

    Returns
    -------
    State
        The final state of the analysis.

    Raises
    ------
    TableError
        If features are NaN, and the analysis does not count by feature.
    """
    tables = list(tables)
    if not analysis.counts_missing and any(table.incomplete and np.isnan(table.features).any() for table in tables):
        raise TableError(
            f"features are NaN somewhere, which '{analysis.name}' cannot take. Leave those participants out."
        )
    state: State | None = None
    while state is None or not state.done:
        state = analysis.solve(add_sums([analysis.summarize(table, state) for table in tables]), state)
    return state
