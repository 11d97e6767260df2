"""Logistic and softmax regression: which class a person is of, read from the person's features."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from harmonization.core.checks import check_width
from harmonization.core.declared import Declared, Widths, everybody, of_groups
from harmonization.core.errors import HarmonizationError, SmallGroupError, TableError
from harmonization.core.newton import (
    Newton,
    advance,
    beginning,
    contrasts,
    intercepts,
    row_terms,
    summarize_fits,
    sums_of_fits,
)
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.probes.crossvalidation import people_of, target_of


class ClassSums(Stage):
    """First round: sums of the features, and counts of the classes."""

    def part(self, analysis: "ClassRegression", table: SiteTable) -> Sums:
        return {"feature_sum": table.features.sum(axis=0), "class_n": analysis.one_hot(table).sum(axis=0)}

    def sends(self, analysis: "ClassRegression", widths: Widths) -> Declared:
        return {"feature_sum": everybody(widths.features), "class_n": of_groups(everybody(analysis.classes))}

    def advance(self, analysis: "ClassRegression", total: Sums) -> State:
        class_n = total["class_n"]
        if (class_n == 0).any():
            raise HarmonizationError(
                f"nobody is of class {int((class_n == 0).argmax())}, so the classes cannot be told apart. "
                "Add a site that has it, or leave the class out."
            )
        mean = total["feature_sum"] / class_n.sum()
        point = intercepts(class_n, len(mean))[None]
        return ClassFit(**beginning(np.array([analysis.strength]), point), steps=0, mean=mean)


@dataclass(frozen=True)
class ClassFit(Newton, Stage):
    """A fit under way, to features less their mean [p]."""

    mean: Array

    def part(self, analysis: "ClassRegression", table: SiteTable) -> Sums:
        return summarize_fits(table.features - self.mean, analysis.one_hot(table), self.point, self.step)

    def sends(self, analysis: "ClassRegression", widths: Widths) -> Declared:
        return sums_of_fits(len(self.point), analysis.classes, widths.features)

    def advance(self, analysis: "ClassRegression", total: Sums) -> State:
        fit = advance(self, total)
        if fit.active.any():
            return fit
        classes = contrasts(analysis.classes) @ fit.point[0]
        coef = classes[:, :-1]
        return analysis.model(coef, classes[:, -1] - coef @ fit.mean)


@dataclass(frozen=True)
class SoftmaxModel(Answer):
    """A softmax regression.

    Attributes
    ----------
    coef : numpy.ndarray
        [C, p]; they sum to 0 over classes.
    intercept : numpy.ndarray
        [C]; they sum to 0.
    """

    coef: Array
    intercept: Array

    def predict_proba(self, features: Array) -> Array:
        """Probabilities of the classes [n, C] of features [n, p]."""
        log_odds = self.log_odds(features)
        anybody = np.zeros_like(log_odds)
        anybody[:, 0] = 1  # probabilities do not depend on the true class
        return row_terms(log_odds, anybody)[1]

    def log_odds(self, features: Array) -> Array:
        """Log odds of the classes [n, C] of features [n, p]."""
        check_width(features, self.coef.shape[1])
        return np.asarray(features @ self.coef.T + self.intercept)

    def predict(self, features: Array) -> NDArray[np.int64]:
        """Likeliest class [n] of features [n, p]."""
        return np.asarray(self.predict_proba(features).argmax(axis=1))


@dataclass(frozen=True)
class LogisticModel(SoftmaxModel):
    """A logistic regression of labels 0 and 1: `coef` [1, p] and `intercept` [1] of the log odds of label 1."""

    def log_odds(self, features: Array) -> Array:
        return np.column_stack([np.zeros(len(features)), super().log_odds(features)])


@dataclass(frozen=True)
class ClassRegression(Analysis):
    """What logistic and softmax regression share: a round for the means, then Newton's.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty.
    """

    C: float = 1.0

    additive: ClassVar[bool] = True
    first: ClassVar[Stage] = ClassSums()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.C)

    @property
    @abstractmethod
    def classes(self) -> int:
        """How many classes."""

    @property
    @abstractmethod
    def strength(self) -> float:
        """Strength of the fit, as `harmonization.core.newton` has it."""

    @abstractmethod
    def model(self, coef: Array, intercept: Array) -> State:
        """Return the model of coefficients [C, p] and intercepts [C] that sum to 0 over classes."""

    def one_hot(self, table: SiteTable) -> Array:
        """Classes [n, C] of a table's rows, none of which has few participants."""
        one_hot = one_hot_of(table, self.classes)
        permit_classes(table, one_hot, np.zeros(table.n, dtype=np.int64))
        return one_hot


@register
@dataclass(frozen=True)
class LogisticRegression(ClassRegression):
    """Logistic regression of labels 0 and 1 with a penalty on the squared coefficients, scikit-learn's.

    It minimises ``C * sum of losses + |w|^2 / 2``; the intercept is not penalised. The first round sums to the means of
    the features and the counts of the classes. Each further one sums the gradient and the Hessian of Newton's method
    (`harmonization.core.newton`), for some 6 to 10 rounds, and more where a large C tells the classes apart.

    The table's target is the labels [n], or the classes one-hot [n, 2].
    """

    name: ClassVar[str] = "logistic_regression"
    states: ClassVar[tuple[type[State], ...]] = (ClassFit, LogisticModel)

    @property
    def classes(self) -> int:
        return 2

    @property
    def strength(self) -> float:
        return self.C / 2

    def model(self, coef: Array, intercept: Array) -> LogisticModel:
        return LogisticModel(coef[1:] - coef[:1], intercept[1:] - intercept[:1])


@register
@dataclass(frozen=True)
class SoftmaxRegression(ClassRegression):
    """Multinomial logistic regression with a penalty on all squared coefficients, scikit-learn's.

    Intercepts are not penalised. As `LogisticRegression`, with a Hessian for each pair of classes. Of two classes it is
    the logistic regression of twice the C.

    The table's target is the labels 0, 1 ... [n], or the classes one-hot [n, C].

    Parameters
    ----------
    n_classes : int
        Number of classes.
    """

    n_classes: int = 3

    name: ClassVar[str] = "softmax_regression"
    states: ClassVar[tuple[type[State], ...]] = (ClassFit, SoftmaxModel)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_classes < 2:
            raise HarmonizationError(f"n_classes is {self.n_classes}; expected at least 2.")

    @property
    def classes(self) -> int:
        return self.n_classes

    @property
    def strength(self) -> float:
        return self.C

    def model(self, coef: Array, intercept: Array) -> SoftmaxModel:
        return SoftmaxModel(coef, intercept)


def check_strength(C: float) -> None:
    """Refuse an inverse penalty that is not a positive number."""
    if not 0 < C < np.inf:
        raise HarmonizationError(f"C is {C}; expected a positive, finite number.")


def one_hot_of(table: SiteTable, n_classes: int | None = None) -> Array:
    """Return the table's target, which must be these or labels from 0 to C - 1, as one-hot classes [n, C]."""
    target = target_of(table)
    if target.shape[1] == 1 and n_classes is not None:
        labels = target[:, 0]
        if not np.isin(labels, np.arange(n_classes)).all():
            raise TableError(f"the target is not made of labels 0 to {n_classes - 1}. Number the classes so.")
        return np.eye(n_classes)[labels.astype(np.int64)]
    if target.shape[1] != (n_classes or target.shape[1]) or target.shape[1] < 2:
        expected = n_classes or "two or more"
        raise TableError(f"the target has shape {target.shape}; expected one column for each of {expected} classes.")
    if not (np.isin(target, (0, 1)).all() and (target.sum(axis=1) == 1).all()):
        raise TableError("the target is not one-hot. Give each row a 1 in the column of its class, and else 0.")
    return target


def permit_classes(table: SiteTable, one_hot: Array, part: NDArray[np.int64]) -> None:
    """Refuse classes that fewer than `min_group` people of a part [n] of the table have: sums would stand for those."""
    row, _ = people_of(table)
    for name in np.unique(part[row]):
        counts = one_hot[row][part[row] == name].sum(axis=0)
        few = (counts > 0) & (counts < table.min_group)
        if few.any():
            raise SmallGroupError(
                f"class {int(few.argmax())} has fewer than {table.min_group} participants in one part of a site. "
                "Use fewer folds or coarser classes, or leave these participants out."
            )
