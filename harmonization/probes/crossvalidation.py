"""Cross-validation without leakage: sites are made alike from the training rows alone, then others are scored.

Either each site deals its participants into folds with its own seed, or whole sites are left out in turn. Rounds first
fit a harmonization for each part left out, over the rows of the other parts; then an analysis takes its own rounds over
rows that are harmonized so. No held-out row touches the harmonization or the probe that is tried on it. Loadings, where
a table has them, were found without covariates or targets, on everybody.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from harmonization.core.declared import Declared, Sent, Widths, by_part, everybody, in_parts, named
from harmonization.core.errors import HarmonizationError, SmallGroupError, TableError
from harmonization.core.protocol import Analysis, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import ANALYSES
from harmonization.methods.harmonizer import Harmonizer, make_harmonizer

_MOST_NUMBERS = 2**25
"""Numbers that a site may be asked for in one round: 256 MiB."""
_CONSTANT = 1e-12
"""Deviation of a feature, relative to its mean, up to which it is rounding error."""


@dataclass(frozen=True)
class Fold:
    """One site's rows with one part left out.

    `features` [n, k] are as the training rows harmonize them, seen through the table's loadings; `training` [n] bool
    are the rows that may be learned from: none where the site as a whole is left out.
    """

    features: Array
    training: NDArray[np.bool_]


@dataclass(frozen=True)
class Folded(SiteTable):
    """A site's table once the harmonizations are done: with a `Fold` for each part left out."""

    folds: tuple[Fold, ...] = ()


@dataclass(frozen=True)
class Progress(Stage):
    """Where a cross-validation stands: harmonizations of each part left out, and what the analysis itself found since.

    `CrossValidation.read_state` reads it, since it knows the kinds of its parts.
    """

    models: tuple[State | None, ...]
    own: State | None = None

    @property
    def finished(self) -> tuple[State, ...] | None:
        """The harmonizations, once every one is done."""
        finished = tuple(model for model in self.models if model is not None and model.done)
        return finished if len(finished) == len(self.models) else None

    @property
    def _pending(self) -> Iterator[tuple[int, State | None]]:
        return ((fold, model) for fold, model in enumerate(self.models) if model is None or not model.done)

    @property
    def kind(self) -> str:
        return "|".join("" if state is None else state.kind for state in (*self.models, self.own))

    def to_arrays(self) -> Sums:
        named = {**{str(fold): model for fold, model in enumerate(self.models)}, "own": self.own}
        return {
            f"{part}/{name}": values
            for part, state in named.items()
            if state is not None
            for name, values in state.to_arrays().items()
        }

    def part(self, analysis: "CrossValidation", table: SiteTable) -> Sums:
        analysis.check(table)  # in every round: a coordinator could begin with a later one
        if finished := self.finished:
            folded = Folded(**vars(table), folds=tuple(analysis.folds(table, finished)))
            return analysis.own_stage(self.own).part(analysis, folded)
        left_out = analysis.deal(table)
        sums: Sums = {}
        for fold, model in self._pending:
            part = _sum_over(analysis.harmonizer, model, table, left_out != fold)
            sums |= {f"{fold}/{name}": values for name, values in part.items()}
        return sums

    def sends(self, analysis: "CrossValidation", widths: Widths) -> Declared:
        if self.finished:
            return analysis.own_stage(self.own).sends(analysis, widths)
        declared: dict[str, Sent] = {}
        for fold, model in self._pending:
            sums = analysis.harmonizer.sends(widths, model)
            declared |= named(f"{fold}/", {name: in_parts(sent, analysis.n_dealt) for name, sent in sums.items()})
        return declared

    def advance(self, analysis: "CrossValidation", total: Sums) -> State:
        if self.finished:
            own = analysis.own_stage(self.own).advance(analysis, total)
            return own if own.done else Progress(self.models, own)
        solved = {fold: analysis.harmonizer.solve(_part(total, str(fold)), model) for fold, model in self._pending}
        return Progress(tuple(solved.get(fold, model) for fold, model in enumerate(self.models)))


Target = Literal["number", "category", ""]


@dataclass(frozen=True)
class CrossValidation(Analysis):
    """What every cross-validated analysis shares.

    Parameters
    ----------
    n_folds : int
        Folds, dealt within each site.
    sites : sequence of str
        Names of all sites, to leave out whole sites in turn instead; empty for folds. A site that is left out is
        harmonized as a new one, from all its own rows, but never from its target. The sums without a site show that
        site's by subtraction.
    method : str
        How sites are made alike, a name of `harmonization.harmonizers`.
    options : dict
        Options of the method.

    Attributes
    ----------
    predicts : {"number", "category", ""}
        The targets that a study can have it predict; empty for what is no probe. A probe takes ``bootstrap`` and
        ``permutations``, too, and its answer has ``r2`` for numbers, ``balanced_accuracy`` for categories.
    """

    predicts: ClassVar[Target] = ""

    n_folds: int = 5
    sites: tuple[str, ...] = ()
    method: str = "none"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        make_harmonizer(self.method, self.options)
        if self.sites and len(set(self.sites)) < max(2, len(self.sites)):
            raise HarmonizationError(f"sites are {', '.join(self.sites)}; expected two or more different ones.")
        if self.n_folds < 2:
            raise HarmonizationError(f"n_folds is {self.n_folds}; expected at least 2.")

    @property
    def n_parts(self) -> int:
        """How many parts are left out in turn, K."""
        return len(self.sites) or self.n_folds

    @property
    def n_dealt(self) -> int:
        """Into how many parts a site deals its own participants: none where whole sites are left out."""
        return 1 if self.sites else self.n_folds

    def stacked(self, sent: Sent) -> Sent:
        """Declare sums with an entry for each part left out, [K, ...]."""
        return by_part(sent, self.n_dealt, self.n_parts)

    def of_parts(self, declared: Declared) -> dict[str, Sent]:
        """Declare what `summarize_parts` returns of such sums."""
        rows = 1 if self.alike else self.n_parts
        sums = {name: by_part(sent, self.n_dealt, rows, self.n_parts) for name, sent in declared.items()}
        return {**sums, "together": everybody()}

    @property
    def alike(self) -> bool:
        """Whether all parts see the same features, since nothing is harmonized."""
        return self.method == "none"

    @property
    def harmonizer(self) -> Harmonizer:
        """The method, ready to use."""
        return make_harmonizer(self.method, self.options)

    @property
    def asks_for(self) -> tuple[str, ...]:
        names = (self.name,) if self.alike else (self.name, *self.harmonizer.asks_for)
        return (*names, "leave_one_site_out") if self.sites else names

    def stage(self, state: State | None) -> Stage:
        return state if isinstance(state, Progress) else Progress((self.harmonizer.initial(),) * self.n_parts)

    def own_stage(self, own: State | None) -> Stage:
        """Return the stage of the analysis itself, once the harmonizations are done; its tables are `Folded`."""
        return super().stage(own)

    def read_state(self, kind: str, arrays: Mapping[str, NDArray[Any]]) -> State:
        if "|" not in kind:
            return super().read_state(kind, arrays)
        *models, own = kind.split("|")
        harmonizer = self.harmonizer
        return Progress(
            tuple(
                harmonizer.read_state(model, _part(arrays, str(fold))) if model else None
                for fold, model in enumerate(models)
            ),
            super().read_state(own, _part(arrays, "own")) if own else None,
        )

    def deal(self, table: SiteTable) -> NDArray[np.int64]:
        """Part [n] that each row belongs to: its site's, or a fold, balanced within the site, from its own seed.

        All rows of a participant are in one fold, and the folds are balanced within each of the `strata`, too.
        """
        if self.sites:
            if table.site not in self.sites:
                raise TableError("a site is not among those that are left out in turn. Name all sites.")
            return np.full(table.n, list(self.sites).index(table.site))
        row, whose = people_of(table)
        rng, n_folds = np.random.default_rng([table.seed, 0]), self.folds_at(table)
        order = rng.permutation(len(row))
        order = order[np.argsort(self.strata(table)[row][order], kind="stable")]
        names = np.arange(self.n_folds) if n_folds == self.n_folds else rng.permutation(self.n_folds)[:n_folds]
        folds = np.empty(len(row), dtype=np.int64)
        folds[order] = names[np.arange(len(row)) % n_folds]
        return folds[whose]

    def folds_at(self, table: SiteTable) -> int:
        """Into how many of the folds a site deals its participants; all unless overridden."""
        return self.n_folds

    def strata(self, table: SiteTable) -> NDArray[np.int64]:
        """Stratum [n] of each row, for folds that hold equal shares of each; one for all unless overridden."""
        return np.zeros(table.n, dtype=np.int64)

    def check(self, table: SiteTable) -> None:
        """Refuse tables that cannot be parted, or whose parts would stand for too few participants."""
        if self.sites:
            return
        n, n_folds = len(people_of(table)[0]), self.folds_at(table)
        if n < n_folds:
            raise TableError(f"a site has {n} participants for {n_folds} folds. Use fewer folds.")
        if n // n_folds < table.min_group:  # the sums with one fold left out give that fold's by subtraction
            raise SmallGroupError(
                f"{n} participants in {n_folds} folds are fewer than {table.min_group} in each. Use fewer folds."
            )

    def folds(self, table: SiteTable, models: tuple[State, ...]) -> Iterator[Fold]:
        """Yield the site's rows as each part's training rows harmonize them."""
        left_out, harmonizer = self.deal(table), self.harmonizer
        for fold, model in enumerate(models):
            training = left_out != fold
            # A site that is left out as a whole is a new one: all it can learn its own effect from are its own rows.
            effect = harmonizer.estimate(model, table.take(training) if training.any() else table)
            features = harmonizer.apply(model, table, effect)
            yield Fold(features if table.loadings is None else features @ table.loadings, training)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of parts that nested folds leave out, one to score and one to choose in.

        Where all parts see the same features either may be either, and the fit without both serves twice.
        """
        return list((combinations if self.alike else permutations)(range(self.n_parts), 2))

    def row_of(self, part: int) -> int:
        """Row of `summarize_parts` that belongs to a part left out."""
        return 0 if self.alike else part

    def summarize_parts(
        self, table: Folded, centres: "TrainingCentres", summarize: Callable[[Array, NDArray[Any]], Sums]
    ) -> Sums:
        """Sums of each part that may be learned from, [K, K, ...]; [1, K, ...] where all see the same features.

        `summarize` makes sums of centred features [n, p] of some rows, given those and their indices [n]; n may be 0.
        In row k, features are harmonized by the training rows of k and centred on them, and part k has only zeros. What
        is learned from any parts then follows by adding, and no further round is needed for nested folds. `together` is
        above 0 if any table sees features through loadings.
        """
        left_out = self.deal(table)
        parts = []
        for index, fold in enumerate(table.folds[:1] if self.alike else table.folds):
            centred = fold.features - centres.mean[index]
            for part in range(self.n_parts):
                rows = np.flatnonzero((left_out == part) & (fold.training | self.alike))
                parts.append(summarize(centred[rows], rows))
        stacked = {name: np.stack([sums[name] for sums in parts]) for name in parts[0]}
        sums = {name: values.reshape(-1, self.n_parts, *values.shape[1:]) for name, values in stacked.items()}
        return {**sums, "together": seen_together(table)}

    def add_parts(self, total: Sums, left_out: int, parts: Sequence[int]) -> Sums:
        """Sums over some parts, as they are seen with one part left out; of `summarize_parts`, and of nothing else."""
        row = self.row_of(left_out)
        return {name: values[row, list(parts)].sum(axis=0) for name, values in total.items() if values.ndim}

    def others(self, *left_out: int) -> list[int]:
        """Return the parts but some."""
        return [part for part in range(self.n_parts) if part not in left_out]


@dataclass(frozen=True)
class TrainingCentres(Stage):
    """After the first round, with each of K parts left out: training rows [K], and means [K, k] and [K, m] of these."""

    n: Array
    mean: Array
    target_mean: Array

    def check(self, analysis: Any) -> None:
        """Refuse means from which the analysis cannot go on; nothing unless overridden."""


@dataclass(frozen=True)
class TrainingSums(Stage):
    """First round of an analysis: sums of the training rows, whose means the following stage knows."""

    following: type[Any]

    def part(self, analysis: Any, table: Folded) -> Sums:
        target = target_of(table)
        return {
            "n": np.array([float(fold.training.sum()) for fold in table.folds]),
            "feature_sum": np.stack([fold.features[fold.training].sum(axis=0) for fold in table.folds]),
            "target_sum": np.stack([target[fold.training].sum(axis=0) for fold in table.folds]),
        }

    def sends(self, analysis: Any, widths: Widths) -> Declared:
        sums = {"n": everybody(), "feature_sum": everybody(widths.seen), "target_sum": everybody(widths.classes)}
        return {name: analysis.stacked(sent) for name, sent in sums.items()}

    def advance(self, analysis: Any, total: Sums) -> State:
        return self.centres(analysis, total)

    def centres(self, analysis: Any, total: Sums, **more: Any) -> TrainingCentres:
        """The following stage, which knows `more`, if the analysis can go on from it."""
        n = total["n"]
        if (n < 1).any():
            raise TableError("nobody is left to learn from when one part is left out. Use more sites, or folds.")
        centres: TrainingCentres = self.following(
            n, total["feature_sum"] / n[:, None], total["target_sum"] / n[:, None], **more
        )
        centres.check(analysis)
        return centres


def seen_together(table: SiteTable) -> Array:
    """1 where a table sees features through loadings, and 0 else: a sum that is above 0 if any does."""
    return np.array(float(table.loadings is not None))


def deviations(variance: Array, mean: Array, together: bool) -> Array:
    """Return what features [p], of such variance and mean in the rows that are learned from, are divided by.

    Before a penalty on their coefficients, each is divided by its own standard deviation, as scikit-learn's
    `StandardScaler` does, so that its unit is of no matter; what is constant stays as it is. What is seen `together`,
    through loadings, is divided by one number for all, the root of the mean variance: components have one unit, and a
    component that hardly varies is not to count as much as the first.
    """
    if together:
        return np.full(len(variance), np.sqrt(variance.mean()) if variance.any() else 1.0)
    varying = variance > (_CONSTANT * np.abs(mean)) ** 2
    return np.sqrt(np.where(varying, variance, 1.0))


def people_of(table: SiteTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a row of each of m participants [m], and which of them each row is of [n]."""
    if table.participant is None:
        return np.arange(table.n), np.arange(table.n)
    _, row, whose = np.unique(table.participant, return_index=True, return_inverse=True)
    return row, whose


def target_of(table: SiteTable) -> Array:
    """Target of the table, which must have one, as [n, m]."""
    if table.target is None:
        raise TableError("the table has no target. Name what to predict.")
    return table.target.reshape(table.n, -1)


def one_target_of(table: SiteTable) -> Array:
    """Target of the table as [n], which must be one number a row."""
    target = target_of(table)
    if target.shape[1] != 1:
        raise TableError(f"the target has {target.shape[1]} columns; expected one number a participant. Name one.")
    return target[:, 0]


def check_size(numbers: int) -> None:
    """Refuse a round in which a site would send too many numbers."""
    if numbers > _MOST_NUMBERS:
        asked, most = (count * 8 / 2**20 for count in (numbers, _MOST_NUMBERS))
        raise HarmonizationError(
            f"a site would send {asked:,.0f} MiB in one round; at most {most:.0f} are allowed. See features through "
            "fewer loadings, or use fewer folds, penalties, permutations or draws."
        )


def _sum_over(analysis: Analysis, state: State | None, table: SiteTable, rows: NDArray[np.bool_]) -> Sums:
    """Sums of an analysis over some rows of a table; zeros of the same shapes where there are none."""
    if rows.any():
        return analysis.summarize(table.take(rows), state)
    return {name: np.zeros_like(values) for name, values in analysis.summarize(table, state).items()}


def _part(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(f"{part}/"): values for name, values in arrays.items() if name.startswith(f"{part}/")}


def probes_of(target: Target) -> list[str]:
    """Names of the probes that predict such a target."""
    return [name for name, known in ANALYSES.items() if issubclass(known, CrossValidation) and known.predicts == target]
