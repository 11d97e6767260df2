"""How well the class of people who were held out is read from their features."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harmonization.core.declared import Declared, Sent, Widths, everybody, in_parts, named, of_groups
from harmonization.core.errors import HarmonizationError
from harmonization.core.newton import (
    Newton,
    advance,
    beginning,
    intercepts,
    log_odds_of,
    numbers_sent,
    row_terms,
    summarize_fits,
    sums_of_fits,
)
from harmonization.core.protocol import Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.probes.class_regression import check_strength, one_hot_of, permit_classes
from harmonization.probes.crossvalidation import (
    CrossValidation,
    Folded,
    Target,
    TrainingCentres,
    TrainingSums,
    check_size,
    deviations,
    people_of,
)
from harmonization.probes.scoring import (
    beside_null,
    bootstrap_weights,
    classification_scores,
    classification_sums,
    counts_of_classes,
    permuted_rows,
    with_interval,
)

STRENGTHS = tuple(float(C) for C in np.logspace(-4, 0, 5))
"""Inverse penalties that the cross-validated logistic regression tries, for standardised features."""


@dataclass(frozen=True)
class Centres(TrainingCentres):
    """After the first round. Sums of each part from which the features' deviations follow."""

    def check(self, analysis: "CrossValidatedLogistic") -> None:
        """Refuse parts without which a class is unknown, and rounds that would be too large."""
        parts, classes = np.nonzero(self.target_mean == 0)
        if len(parts):
            what = analysis.sites[parts[0]] if analysis.sites else f"fold {parts[0]}"
            raise HarmonizationError(
                f"without {what} there is nobody of class {classes[0]} to learn from. Leave the class out, or leave "
                "out folds instead of sites, or fewer folds."
            )
        n_classes, n_features = self.target_mean.shape[1], self.mean.shape[1]
        for n_fits in (len(analysis.pairs) * len(analysis.Cs), analysis.n_parts * (1 + analysis.permutations)):
            check_size(numbers_sent(n_fits, n_classes, n_features))
        check_size((1 + analysis.bootstrap) * n_classes * 2 * analysis.bins)

    def part(self, analysis: "CrossValidatedLogistic", table: Folded) -> Sums:
        one_hot = one_hot_of(table)
        return analysis.summarize_parts(table, self, lambda x, rows: _spread(x, one_hot[rows]))

    def sends(self, analysis: "CrossValidatedLogistic", widths: Widths) -> Declared:
        of_features = dict.fromkeys(("feature_sum", "squares"), everybody(widths.seen))
        return analysis.of_parts({**of_features, "class_n": of_groups(everybody(widths.classes))})

    def advance(self, analysis: "CrossValidatedLogistic", total: Sums) -> State:
        """Begin the fits that choose the penalty, or if there is no choice, those that are scored."""
        outer_scale = np.stack([self._scale(analysis, total, part) for part in range(analysis.n_parts)])
        if len(analysis.Cs) == 1:
            return self.outer_fits(analysis, outer_scale, np.full(analysis.n_parts, analysis.Cs[0]), {})
        pairs = [analysis.add_parts(total, first, analysis.others(first, second)) for first, second in analysis.pairs]
        strength = np.tile(self._strength(np.array(analysis.Cs)), len(pairs))
        point = [intercepts(np.maximum(sums["class_n"], 1), self.mean.shape[1]) for sums in pairs]
        fields = beginning(strength, np.repeat(np.stack(point), len(analysis.Cs), axis=0))
        complete = [bool(sums["class_n"].all()) for sums in pairs]
        if not all(any(complete[index] for index in analysis.inner(part)) for part in range(analysis.n_parts)):
            raise HarmonizationError(
                "a class is missing whenever two parts are left out, so no penalty can be chosen. Give one C, or leave "
                "out folds."
            )
        fields["active"] = np.repeat(np.array(complete, dtype=np.float64), len(analysis.Cs))  # others are not begun
        return self.become(
            InnerFits,
            **fields,
            steps=0,
            scale=np.stack([self._scale(analysis, total, *pair) for pair in analysis.pairs]),
            outer_scale=outer_scale,
            validation=np.full((len(fields["active"]), 2), np.nan),
        )

    def _scale(self, analysis: "CrossValidatedLogistic", total: Sums, *left_out: int) -> Array:
        """Return what features [p] are divided by, with one part or two left out."""
        sums = analysis.add_parts(total, left_out[0], analysis.others(*left_out))
        n = max(sums["class_n"].sum(), 1)
        variance = sums["squares"] / n - (sums["feature_sum"] / n) ** 2
        return deviations(variance, self.mean[analysis.row_of(left_out[0])], bool(total["together"] > 0))

    def outer_fits(
        self, analysis: "CrossValidatedLogistic", scale: Array, C: Array, start: Mapping[int, Array]
    ) -> "OuterFits":
        """Begin the fits that are scored: of the true classes where the inner ones ended, of others at their shares."""
        point = []
        for part, shares in enumerate(self.target_mean):
            nothing = intercepts(shares, self.mean.shape[1])
            point += [start.get(part, nothing)] + [nothing] * analysis.permutations
        strength = np.repeat(self._strength(C), 1 + analysis.permutations)
        return OuterFits(
            self.n, self.mean, self.target_mean, **beginning(strength, np.stack(point)), steps=0, scale=scale, C=C
        )

    def _strength(self, C: Array) -> Array:
        return C / 2 if self.target_mean.shape[1] == 2 else C


@dataclass(frozen=True)
class InnerFits(Newton, Centres):
    """Fits with two parts left out, one to score and one to choose the penalty, under way; [pair, C] in one axis.

    Features are divided by `scale` [pairs, p] with two parts left out, and by `outer_scale` [K, p] with one.
    `validation` [F, 2] are losses in the second part of the pair, which choose for the first; and where both see the
    same features, in the first, which choose for the second.
    """

    scale: Array
    outer_scale: Array
    validation: Array

    def part(self, analysis: "CrossValidatedLogistic", table: Folded) -> Sums:
        """Newton's sums of the active fits, and their losses in the parts left out, all at the ends of their steps."""
        one_hot, left_out = one_hot_of(table), analysis.deal(table)
        sent = []
        for index, some in _groups_of(self, len(analysis.Cs)):
            first, second = analysis.pairs[index]
            x = (table.folds[first].features - self.mean[analysis.row_of(first)]) / self.scale[index]
            point, step = self.point[some], self.step[some]
            training = (left_out != first) & (left_out != second)
            validation = np.zeros((len(some), 2))
            for side, part in enumerate((second, first) if analysis.alike else (second,)):
                rows = left_out == part
                validation[:, side] = row_terms(log_odds_of(x[rows], point + step), one_hot[rows])[0].sum(axis=1)
            sums = summarize_fits(x[training], one_hot[training], point, step)
            sent.append({**sums, "validation": validation})
        return {name: np.concatenate([sums[name] for sums in sent]) for name in sent[0]}

    def sends(self, analysis: "CrossValidatedLogistic", widths: Widths) -> Declared:
        sums = _sums_of_active(self, widths)
        sums["validation"] = of_groups(everybody(sums["losses"].shape[0], 2))
        return {name: in_parts(sent, analysis.n_dealt) for name, sent in sums.items()}

    def advance(self, analysis: "CrossValidatedLogistic", total: Sums) -> State:
        """Advance the fits that choose the penalty; once all have converged, choose."""
        validation = self.validation.copy()
        validation[self.active > 0] = total["validation"]
        fits = replace(advance(self, total), validation=validation)
        if fits.active.any():
            return fits
        C, start = np.empty(analysis.n_parts), {}
        for part in range(analysis.n_parts):
            C[part], start[part] = fits._choose(analysis, part)
        return fits.outer_fits(analysis, fits.outer_scale, C, start)

    def _choose(self, analysis: "CrossValidatedLogistic", part: int) -> tuple[float, Array]:
        """Best of the inverse penalties with one part left out, and the mean of its inner fits: a good beginning."""
        losses = self.validation.reshape(len(analysis.pairs), len(analysis.Cs), 2)
        points = self.point.reshape(len(analysis.pairs), len(analysis.Cs), *self.point.shape[1:])
        known = [index for index in analysis.inner(part) if np.isfinite(losses[index]).all()]
        best = int(np.argmin(np.sum([losses[index, :, analysis.pairs[index].index(part)] for index in known], axis=0)))
        return analysis.Cs[best], np.mean(points[known, best], axis=0)


@dataclass(frozen=True)
class OuterFits(Newton, Centres):
    """Fits with one part left out, of the true classes and B permutations, under way; [K, 1 + B] in one axis.

    Features are divided by `scale` [K, p]; `C` [K] are the inverse penalties that were chosen.
    """

    scale: Array
    C: Array

    def part(self, analysis: "CrossValidatedLogistic", table: Folded) -> Sums:
        summed = self._newton_sums if self.active.any() else self._scored
        return summed(analysis, table, analysis.permuted(table))

    def sends(self, analysis: "CrossValidatedLogistic", widths: Widths) -> Declared:
        if self.active.any():
            return {name: in_parts(sent, analysis.n_dealt) for name, sent in _sums_of_active(self, widths).items()}
        drawn = counts_of_classes(1 + analysis.bootstrap, widths.classes, analysis.bins)
        permuted = counts_of_classes(1 + analysis.permutations, widths.classes, analysis.bins)
        return {**named("drawn/", drawn), **named("permuted/", permuted)}

    def advance(self, analysis: "CrossValidatedLogistic", total: Sums) -> State:
        if self.active.any():
            return advance(self, total)
        drawn, permuted = (
            classification_scores({name.removeprefix(kind): v for name, v in total.items() if name.startswith(kind)})
            for kind in ("drawn/", "permuted/")
        )
        found: dict[str, Any] = {name: float(drawn[name][0]) for name in ("accuracy", "log_loss", "auroc_error")}
        for name in ("balanced_accuracy", "auroc"):
            compared = beside_null(float(drawn[name][0]), permuted[name][1:])
            found |= with_interval(name, drawn[name]) | {f"{name}_{part}": value for part, value in compared.items()}
        return ClassProbeScores(**found, n=float(total["drawn/class_n"][0].sum()), C=self.C)

    def _newton_sums(self, analysis: "CrossValidatedLogistic", table: Folded, given: Array) -> Sums:
        """Newton's sums of the active fits."""
        size, sent = len(given), []
        for index, some in _groups_of(self, size):
            training = table.folds[index].training
            x = (table.folds[index].features[training] - self.mean[analysis.row_of(index)]) / self.scale[index]
            sent.append(summarize_fits(x, given[some % size][:, training], self.point[some], self.step[some]))
        return {name: np.concatenate([sums[name] for sums in sent]) for name in sent[0]}

    def _scored(self, analysis: "CrossValidatedLogistic", table: Folded, given: Array) -> Sums:
        """Scores of the rows that were left out: of the true classes with each draw, and of each permutation."""
        size, log_odds = len(given), np.empty_like(given)
        for index, fold in enumerate(table.folds):
            held_out = ~fold.training
            x = (fold.features[held_out] - self.mean[analysis.row_of(index)]) / self.scale[index]
            log_odds[:, held_out] = log_odds_of(x, self.point[index * size : (index + 1) * size])
        loss, probability, _ = row_terms(log_odds, given)
        draws = bootstrap_weights(table, analysis.bootstrap)
        drawn = classification_sums(given[0], probability[0], loss[0], draws, analysis.bins)
        once, rows = np.ones((1, table.n)), zip(given, probability, loss, strict=True)
        permuted = [classification_sums(*row, once, analysis.bins) for row in rows]
        return {
            **{f"drawn/{name}": values for name, values in drawn.items()},
            **{f"permuted/{name}": np.concatenate([sums[name] for sums in permuted]) for name in drawn},
        }


@dataclass(frozen=True)
class ClassProbeScores(Answer):
    """How well the classes of held-out participants were predicted.

    Attributes
    ----------
    balanced_accuracy, balanced_accuracy_low, balanced_accuracy_high : float
        Mean over classes of the share recognised, and its 95 % interval by bootstrap.
    accuracy : float
        Share recognised.
    log_loss : float
        Mean of minus the log probability of the own class.
    auroc, auroc_low, auroc_high : float
        Area under the ROC curve; of more than two classes the mean over each against the rest.
    auroc_error : float
        What the area may be wrong by at most, since it comes from histograms.
    n : float
        Participants.
    C : numpy.ndarray
        [K], the inverse penalties that were chosen, scikit-learn's C for standardised features.
    balanced_accuracy_null, auroc_null : numpy.ndarray
        [B], the same with permuted classes.
    balanced_accuracy_null_mean, balanced_accuracy_null_95, auroc_null_mean, auroc_null_95 : float
        Mean and 95th percentile of these.
    balanced_accuracy_p_value, auroc_p_value : float
        (1 + number of null values at least as large) / (B + 1).
    """

    balanced_accuracy: float
    balanced_accuracy_low: float
    balanced_accuracy_high: float
    accuracy: float
    log_loss: float
    auroc: float
    auroc_low: float
    auroc_high: float
    auroc_error: float
    n: float
    C: Array
    balanced_accuracy_null: Array
    balanced_accuracy_null_mean: float
    balanced_accuracy_null_95: float
    balanced_accuracy_p_value: float
    auroc_null: Array
    auroc_null_mean: float
    auroc_null_95: float
    auroc_p_value: float


@register
@dataclass(frozen=True)
class CrossValidatedLogistic(CrossValidation):
    """Logistic regression of two classes, or softmax regression of more, on people who were held out.

    Every fit standardises the features by its own training rows, whose sums tell the deviations: it is scikit-learn's
    ``make_pipeline(StandardScaler(), LogisticRegression(C=C))``, whatever the units of the features. What is seen
    through loadings keeps its relative scale (`crossvalidation.deviations`).

    The table's target is the class, one-hot [n, C]. Folds hold equal shares of each class. A class that a site has must
    have `min_group` participants there; where these are too few for each fold, the site deals its participants into
    fewer of the folds.

    The penalty is chosen by nested folds: with part k left out, each other part j is left out, too, and the penalty of
    least log loss in these j is taken. All these fits go in lock-step, then those without k alone, each by Newton's
    method in some 5 to 10 rounds. The features of j are harmonized by all rows but k's, and so by j's own, too: that
    can bias the choice of the penalty a little, but no score. Of inner fits those are skipped that a class is missing
    for.

    Classes are permuted within each part of a site, so that no permutation makes cells smaller than the true ones; a
    permuted fit takes the penalty of the true one in its part.

    A round sends a Hessian for each pair of classes and each fit not yet converged, which for K parts are
    K (K - 1) times the strengths, and half of these where nothing is harmonized. For 100 features, 5 parts, 5
    strengths and two classes this is 4 MB. For 512 features it is 105 MB, and a second's work for 2,000 participants:
    then see features through fewer loadings.

    The last round counts held-out participants by class in equal parts of the predicted probability. Only the sum over
    sites is needed. Where sums are not secure, the coordinator sees how many participants of one site are in each, and
    a count of one tells one person's predicted probability and class, though not whose.

    Parameters
    ----------
    Cs : tuple of float
        Inverse penalties to choose from, as scikit-learn's C for standardised features. One alone needs no nested
        folds.
    bins : int
        Parts of the probability in the histograms behind the AUROC.
    bootstrap : int
        Draws of participants within sites for the intervals, of 2 x bins numbers each (C times as many of C > 2
        classes); 0 for none.
    permutations : int
        Permutations of the classes, B; each costs K fits more.
    """

    Cs: tuple[float, ...] = STRENGTHS
    bins: int = 1000
    bootstrap: int = 0
    permutations: int = 0

    name: ClassVar[str] = "cross_validated_logistic"
    predicts: ClassVar[Target] = "category"
    first: ClassVar[Stage] = TrainingSums(Centres)
    states: ClassVar[tuple[type[State], ...]] = (Centres, InnerFits, OuterFits, ClassProbeScores)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.Cs):
            raise HarmonizationError("Cs is empty; expected inverse penalties to choose from.")
        for C in self.Cs:
            check_strength(C)
        if len(self.Cs) > 1 and self.n_parts < 3:
            raise HarmonizationError("two parts leave none to choose the penalty in. Use more folds, or one C.")
        if self.bins < 2 or min(self.bootstrap, self.permutations) < 0:
            raise HarmonizationError("expected at least 2 bins, and neither bootstrap nor permutations below 0.")

    def strata(self, table: SiteTable) -> NDArray[np.int64]:
        classes: NDArray[np.int64] = one_hot_of(table).argmax(axis=1)
        return classes

    def folds_at(self, table: SiteTable) -> int:
        if table.min_group == 1:
            return self.n_folds
        row, _ = people_of(table)
        counts = np.bincount(self.strata(table)[row])
        return max(1, min(self.n_folds, int(counts[counts > 0].min()) // table.min_group))

    def sends(self, widths: Widths, state: State | None) -> Declared:
        # A site of few participants of a class deals them into fewer folds than there are (`folds_at`).
        declared = super().sends(widths, state)
        return {name: of_groups(sent) if sent.people == "everybody" else sent for name, sent in declared.items()}

    def check(self, table: SiteTable) -> None:
        super().check(table)
        permit_classes(table, one_hot_of(table), self.deal(table))
        self.permuted(table)

    def permuted(self, table: SiteTable) -> Array:
        """Classes [1 + B, n, C]: the true ones, then permuted ones, the same in every round."""
        return one_hot_of(table)[permuted_rows(table, self.deal(table), self.permutations)]

    def inner(self, part: int) -> list[int]:
        """Indices of the pairs whose fits choose the penalty of a part."""
        return [index for index, pair in enumerate(self.pairs) if part == pair[0] or (self.alike and part in pair)]


def _spread(features: Array, one_hot: Array) -> Sums:
    """Sums of rows from which follow the variances of the features, and the shares of the classes."""
    return {"feature_sum": features.sum(axis=0), "squares": (features**2).sum(axis=0), "class_n": one_hot.sum(axis=0)}


def _sums_of_active(fits: Newton, widths: Widths) -> dict[str, Sent]:
    """Declare Newton's sums of the fits that have not converged."""
    return sums_of_fits(int((fits.active > 0).sum()), widths.classes, widths.seen)


def _groups_of(fits: Newton, size: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each group of fits that follow each other which has active ones, and these."""
    for group, active in enumerate(fits.active.reshape(-1, size)):
        if active.any():
            yield group, group * size + np.flatnonzero(active)
