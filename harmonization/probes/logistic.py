"""How well the class of people who were held out is read from their features."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harmonization.core.declared import Declared, Widths, everybody, in_parts, named, of_groups
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
from harmonization.core.protocol import Array, SiteTable, State, Sums
from harmonization.core.registry import register
from harmonization.probes.class_regression import check_strength, one_hot_of, permit_classes
from harmonization.probes.crossvalidation import (
    Centres,
    CrossValidation,
    Fold,
    Target,
    centres_of,
    check_size,
    deviations,
    people_of,
    seen_together,
    solve_centres,
    summarize_centres,
)
from harmonization.probes.scoring import (
    bootstrap_weights,
    classification_scores,
    classification_sums,
    compare_with_null,
    counts_of_classes,
    interval,
    permuted_rows,
)

STRENGTHS = tuple(float(C) for C in np.logspace(-4, 0, 5))
"""Inverse penalties that the cross-validated logistic regression tries, for standardised features."""


@dataclass(frozen=True)
class InnerFits(Newton, Centres):
    """Fits with two parts left out, one to score and one to choose the penalty, under way; [pair, C] in one axis.

    Attributes
    ----------
    scale, outer_scale : numpy.ndarray
        [pairs, p] and [K, p]: what features are divided by, with two parts left out, and with one.
    validation : numpy.ndarray
        [F, 2], losses in the second part of the pair, which choose for the first; and where both see the same
        features, in the first, which choose for the second.
    """

    scale: Array
    outer_scale: Array
    validation: Array


@dataclass(frozen=True)
class OuterFits(Newton, Centres):
    """Fits with one part left out, of the true classes and B permutations, under way; [K, 1 + B] in one axis.

    Attributes
    ----------
    scale : numpy.ndarray
        [K, p], what features are divided by.
    C : numpy.ndarray
        [K], the inverse penalties that were chosen.
    """

    scale: Array
    C: Array


@dataclass(frozen=True)
class ClassProbeScores(State):
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

    done: ClassVar[bool] = True


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

    def summarize_folds(self, table: SiteTable, folds: list[Fold], own: State | None) -> Sums:
        if isinstance(own, OuterFits):
            given = self._permuted(table)
            if own.active.any():
                return self._summarize_outer(folds, own, given)
            return self._summarize_scores(table, folds, own, given)
        if isinstance(own, InnerFits):
            return self._summarize_inner(table, folds, own)
        if isinstance(own, Centres):
            one_hot = one_hot_of(table)
            parts = self.summarize_parts(table, folds, own, lambda x, rows: _spread(x, one_hot[rows]))
            return {**parts, "together": seen_together(table)}
        return summarize_centres(table, folds)

    def sends(self, widths: Widths, state: State | None) -> Declared:
        # A site of few participants of a class deals them into fewer folds than there are (`folds_at`).
        declared = super().sends(widths, state)
        return {name: of_groups(sent) if sent.people == "everybody" else sent for name, sent in declared.items()}

    def sends_folds(self, widths: Widths, own: State | None) -> Declared:
        k, n_classes = widths.seen, widths.classes
        if isinstance(own, OuterFits) and not own.active.any():
            drawn = counts_of_classes(1 + self.bootstrap, n_classes, self.bins)
            permuted = counts_of_classes(1 + self.permutations, n_classes, self.bins)
            return {**named("drawn/", drawn), **named("permuted/", permuted)}
        if isinstance(own, Newton):
            n_fits = int((own.active > 0).sum())
            sums = sums_of_fits(n_fits, n_classes, k)
            if isinstance(own, InnerFits):
                sums["validation"] = of_groups(everybody(n_fits, 2))
            return {name: in_parts(sent, self.n_dealt) for name, sent in sums.items()}
        if isinstance(own, Centres):
            spread = {"feature_sum": everybody(k), "squares": everybody(k), "class_n": of_groups(everybody(n_classes))}
            return {**self.of_parts(spread), "together": everybody()}
        return centres_of(self, k, n_classes)

    def solve_folds(self, total: Sums, own: State | None) -> State:
        if isinstance(own, OuterFits):
            return advance(own, total) if own.active.any() else self._score(total, own)
        if isinstance(own, InnerFits):
            return self._validate(total, own)
        if isinstance(own, Centres):
            return self._begin(total, own)
        centres = solve_centres(total)
        self._check_classes(centres)
        return centres

    # --- at a site ---

    def _check(self, table: SiteTable) -> None:
        super()._check(table)
        permit_classes(table, one_hot_of(table), self.deal(table))
        self._permuted(table)

    def _permuted(self, table: SiteTable) -> Array:
        """Classes [1 + B, n, C]: the true ones, then permuted ones, the same in every round."""
        permuted: Array = one_hot_of(table)[permuted_rows(table, self.deal(table), self.permutations)]
        return permuted

    def _summarize_inner(self, table: SiteTable, folds: list[Fold], fits: InnerFits) -> Sums:
        """Newton's sums of the active fits, and their losses in the parts left out, all at the ends of their steps."""
        one_hot, left_out = one_hot_of(table), self.deal(table)
        sent = []
        for index, some in _groups_of(fits, len(self.Cs)):
            first, second = self.pairs[index]
            x = (folds[first].features - fits.mean[self.row_of(first)]) / fits.scale[index]
            point, step = fits.point[some], fits.step[some]
            training = (left_out != first) & (left_out != second)
            validation = np.zeros((len(some), 2))
            for side, part in enumerate((second, first) if self.alike else (second,)):
                rows = left_out == part
                validation[:, side] = row_terms(log_odds_of(x[rows], point + step), one_hot[rows])[0].sum(axis=1)
            sums = summarize_fits(x[training], one_hot[training], point, step)
            sent.append({**sums, "validation": validation})
        return {name: np.concatenate([sums[name] for sums in sent]) for name in sent[0]}

    def _summarize_outer(self, folds: list[Fold], fits: OuterFits, given: Array) -> Sums:
        """Newton's sums of the active fits."""
        size, sent = len(given), []
        for index, some in _groups_of(fits, size):
            training = folds[index].training
            x = (folds[index].features[training] - fits.mean[self.row_of(index)]) / fits.scale[index]
            sent.append(summarize_fits(x, given[some % size][:, training], fits.point[some], fits.step[some]))
        return {name: np.concatenate([sums[name] for sums in sent]) for name in sent[0]}

    def _summarize_scores(self, table: SiteTable, folds: list[Fold], fits: OuterFits, given: Array) -> Sums:
        """Scores of the rows that were left out: of the true classes with each draw, and of each permutation."""
        size, log_odds = len(given), np.empty_like(given)
        for index, fold in enumerate(folds):
            held_out = ~fold.training
            x = (fold.features[held_out] - fits.mean[self.row_of(index)]) / fits.scale[index]
            log_odds[:, held_out] = log_odds_of(x, fits.point[index * size : (index + 1) * size])
        loss, probability, _ = row_terms(log_odds, given)
        draws = bootstrap_weights(table, self.bootstrap)
        drawn = classification_sums(given[0], probability[0], loss[0], draws, self.bins)
        once, rows = np.ones((1, table.n)), zip(given, probability, loss, strict=True)
        permuted = [classification_sums(*row, once, self.bins) for row in rows]
        return {
            **{f"drawn/{name}": values for name, values in drawn.items()},
            **{f"permuted/{name}": np.concatenate([sums[name] for sums in permuted]) for name in drawn},
        }

    # --- at the coordinator ---

    def _check_classes(self, centres: Centres) -> None:
        """Refuse parts without which a class is unknown, and rounds that would be too large."""
        parts, classes = np.nonzero(centres.target_mean == 0)
        if len(parts):
            what = self.sites[parts[0]] if self.sites else f"fold {parts[0]}"
            raise HarmonizationError(
                f"without {what} there is nobody of class {classes[0]} to learn from. Leave the class out, or leave "
                "out folds instead of sites, or fewer folds."
            )
        n_classes, n_features = centres.target_mean.shape[1], centres.mean.shape[1]
        for n_fits in (len(self.pairs) * len(self.Cs), self.n_parts * (1 + self.permutations)):
            check_size(numbers_sent(n_fits, n_classes, n_features))
        check_size((1 + self.bootstrap) * n_classes * 2 * self.bins)

    def _begin(self, total: Sums, centres: Centres) -> State:
        """Begin the fits that choose the penalty, or if there is no choice, those that are scored."""
        outer_scale = np.stack([self._scale(total, centres, part) for part in range(self.n_parts)])
        if len(self.Cs) == 1:
            return self._begin_outer(centres, outer_scale, np.full(self.n_parts, self.Cs[0]), {})
        pairs = [self.add_parts(total, first, self.others(first, second)) for first, second in self.pairs]
        strength = np.tile(self._strength(np.array(self.Cs), centres), len(pairs))
        point = [intercepts(np.maximum(sums["class_n"], 1), centres.mean.shape[1]) for sums in pairs]
        fields = beginning(strength, np.repeat(np.stack(point), len(self.Cs), axis=0))
        complete = [bool(sums["class_n"].all()) for sums in pairs]
        if not all(any(complete[index] for index in self._inner(part)) for part in range(self.n_parts)):
            raise HarmonizationError(
                "a class is missing whenever two parts are left out, so no penalty can be chosen. Give one C, or leave "
                "out folds."
            )
        fields["active"] = np.repeat(np.array(complete, dtype=np.float64), len(self.Cs))  # others are not even begun
        scales = {"scale": np.stack([self._scale(total, centres, *pair) for pair in self.pairs])}
        validation = np.full((len(fields["active"]), 2), np.nan)
        return InnerFits(
            **_shared(centres), **fields, **scales, steps=0, outer_scale=outer_scale, validation=validation
        )

    def _scale(self, total: Sums, centres: Centres, *left_out: int) -> Array:
        """Return what features [p] are divided by, with one part or two left out."""
        sums = self.add_parts(total, left_out[0], self.others(*left_out))
        n = max(sums["class_n"].sum(), 1)
        variance = sums["squares"] / n - (sums["feature_sum"] / n) ** 2
        return deviations(variance, centres.mean[self.row_of(left_out[0])], bool(total["together"] > 0))

    def _validate(self, total: Sums, fits: InnerFits) -> State:
        """Advance the fits that choose the penalty; once all have converged, choose."""
        validation = fits.validation.copy()
        validation[fits.active > 0] = total["validation"]
        fits = replace(advance(fits, total), validation=validation)
        if fits.active.any():
            return fits
        C, start = np.empty(self.n_parts), {}
        for part in range(self.n_parts):
            C[part], start[part] = self._choose(fits, part)
        return self._begin_outer(fits, fits.outer_scale, C, start)

    def _choose(self, fits: InnerFits, part: int) -> tuple[float, Array]:
        """Best of the inverse penalties with one part left out, and the mean of its inner fits: a good beginning."""
        losses = fits.validation.reshape(len(self.pairs), len(self.Cs), 2)
        points = fits.point.reshape(len(self.pairs), len(self.Cs), *fits.point.shape[1:])
        known = [index for index in self._inner(part) if np.isfinite(losses[index]).all()]
        best = int(np.argmin(np.sum([losses[index, :, self.pairs[index].index(part)] for index in known], axis=0)))
        return self.Cs[best], np.mean(points[known, best], axis=0)

    def _inner(self, part: int) -> list[int]:
        """Indices of the pairs whose fits choose the penalty of a part."""
        return [index for index, pair in enumerate(self.pairs) if part == pair[0] or (self.alike and part in pair)]

    def _begin_outer(self, centres: Centres, scale: Array, C: Array, start: Mapping[int, Array]) -> OuterFits:
        """Begin the fits that are scored: of the true classes where the inner ones ended, of others at their shares."""
        point = []
        for part, shares in enumerate(centres.target_mean):
            nothing = intercepts(shares, centres.mean.shape[1])
            point += [start.get(part, nothing)] + [nothing] * self.permutations
        strength = np.repeat(self._strength(C, centres), 1 + self.permutations)
        return OuterFits(**_shared(centres), **beginning(strength, np.stack(point)), steps=0, scale=scale, C=C)

    def _strength(self, C: Array, centres: Centres) -> Array:
        return C / 2 if centres.target_mean.shape[1] == 2 else C

    def _score(self, total: Sums, fits: OuterFits) -> ClassProbeScores:
        drawn, permuted = (
            classification_scores({name.removeprefix(kind): v for name, v in total.items() if name.startswith(kind)})
            for kind in ("drawn/", "permuted/")
        )
        named: dict[str, Any] = {}
        for name in ("balanced_accuracy", "auroc"):
            score, null = float(drawn[name][0]), permuted[name][1:]
            named |= {name: score, f"{name}_null": null}
            named[f"{name}_low"], named[f"{name}_high"] = interval(drawn[name][1:])
            compared = compare_with_null(score, null)
            named[f"{name}_null_mean"], named[f"{name}_null_95"], named[f"{name}_p_value"] = compared
        named |= {name: float(drawn[name][0]) for name in ("accuracy", "log_loss", "auroc_error")}
        return ClassProbeScores(**named, n=float(total["drawn/class_n"][0].sum()), C=fits.C)


def _shared(centres: Centres) -> Sums:
    return {"n": centres.n, "mean": centres.mean, "target_mean": centres.target_mean}


def _spread(features: Array, one_hot: Array) -> Sums:
    """Sums of rows from which follow the variances of the features, and the shares of the classes."""
    return {"feature_sum": features.sum(axis=0), "squares": (features**2).sum(axis=0), "class_n": one_hot.sum(axis=0)}


def _groups_of(fits: Newton, size: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each group of fits that follow each other which has active ones, and these."""
    for group, active in enumerate(fits.active.reshape(-1, size)):
        if active.any():
            yield group, group * size + np.flatnonzero(active)
