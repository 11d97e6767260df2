"""Unlearning the site: a correction that leaves a classifier nothing to recognise sites by, trained without pooling.

It follows Ganin et al. (JMLR 2016), whose gradient reversal trains features against a classifier, and Dinsdale,
Jenkinson & Namburete (NeuroImage 2021), who unlearn the scanner so. What a linear classifier can use has a closed form
and is taken out first; the adversary is for the rest.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from harmonization.core.declared import Declared, Shape, Widths, everybody
from harmonization.core.errors import DesignError, HarmonizationError, TableError
from harmonization.core.protocol import Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.methods.combat import check_number_of_covariates
from harmonization.methods.harmonizer import Harmonizer, Nothing
from harmonization.methods.projection import Basis, Centre, Projection, ProjectionModel
from harmonization.networks import training
from harmonization.networks.neural import (
    Layout,
    Leaves,
    Losses,
    Network,
    evaluate,
    tensor,
    unpack,
)
from harmonization.networks.training import FederatedTraining, InputCentre, Training

if TYPE_CHECKING:
    from torch import Tensor

AnyRows = TypeVar("AnyRows", Array, "Tensor")

_NEGLIGIBLE = 1e-8
"""Covariances and variances below this, in units of the features' own, are rounding errors."""


@dataclass(frozen=True)
class Standard(training.Standard, Stage):
    """What standardises the inputs. The sums of a projection of them, and how they go with sites and covariates."""

    @property
    def projection(self) -> Centre:
        """Where the projection of standardised features stands: their mean is known to be 0."""
        return Centre(np.zeros(self.width()), self.n)

    def part(self, analysis: "SiteAdversarial", table: SiteTable) -> Sums:
        standardized = analysis.standardized(analysis.training_rows(table), self)
        return self.sums(analysis, standardized)

    def sums(self, analysis: "SiteAdversarial", standardized: SiteTable) -> Sums:
        """Sums of a standardised table; those of its columns stand in the site's place."""
        columns = np.concatenate([standardized.features, standardized.design], axis=1)
        here = np.eye(len(analysis.sites))[analysis.place_of(standardized)]
        return {
            **analysis.projection(self).summarize(standardized, self.projection),
            "site_n": here * standardized.n,
            "site_sum": np.outer(here, columns.sum(axis=0)),
            "products": standardized.design.T @ columns,
        }

    def sends(self, analysis: "SiteAdversarial", widths: Widths) -> Declared:
        columns, n_sites = widths.features + widths.covariates, len(analysis.sites)
        return {
            **analysis.projection(self).sends(widths, self.projection),
            "site_n": everybody(n_sites),
            "site_sum": everybody(n_sites, columns),
            "products": everybody(widths.covariates, columns),
        }

    def advance(self, analysis: "SiteAdversarial", total: Sums) -> State:
        return self.directions(total).advance(analysis, total)

    def directions(self, total: Sums) -> "Directions":
        """Covariances of the features with sites, at given covariates, and with covariates."""
        n, p = self.n, self.width()
        check_number_of_covariates(self.width(1), n)
        present = total["site_n"] > 0
        if present.sum() < 2:
            raise HarmonizationError(
                "only one site has participants to learn from, and nothing sets it apart. Use more."
            )
        shares = total["site_n"] / n
        of_sites, sites_by_covariates = np.split(total["site_sum"].T / n, [p])  # [p, S], [q, S]
        covariance_of_covariates, of_covariates = total["products"][:, p:] / n, total["products"][:, :p].T / n
        slopes = np.linalg.pinv(covariance_of_covariates, rcond=1e-10, hermitian=True) @ sites_by_covariates
        left = np.diag(shares) - np.outer(shares, shares) - sites_by_covariates.T @ slopes
        if np.linalg.matrix_rank(left, tol=1e-8 * shares.max(), hermitian=True) < present.sum() - 1:
            raise DesignError("the covariates tell some of the sites from the others without features. Leave one out.")
        return self.become(
            Directions,
            of_sites=of_sites - of_covariates @ slopes,
            of_covariates=of_covariates,
            basis=np.empty((p, 0)),
            passes=0,
        )


@dataclass(frozen=True)
class Directions(Standard):
    """How the standardised features of p columns go with sites and covariates, while their components are found.

    `of_sites` [p, S] is the covariance with the one-hot site once covariates are accounted for, `of_covariates` [p, q]
    that with the standardised covariates. `basis`, [p, 0] before there is one, and `passes` are those of
    `harmonization.methods.projection.Basis`.
    """

    of_sites: Array
    of_covariates: Array
    basis: Array
    passes: int

    @property
    def projection(self) -> Centre:
        centre = super().projection
        return Basis(centre.mean, self.n, self.basis, self.passes) if self.basis.size else centre

    def sums(self, analysis: "SiteAdversarial", standardized: SiteTable) -> Sums:
        return analysis.projection(self).summarize(standardized, self.projection)

    def sends(self, analysis: "SiteAdversarial", widths: Widths) -> Declared:
        return analysis.projection(self).sends(widths, self.projection)

    def advance(self, analysis: "SiteAdversarial", total: Sums) -> State:
        projected: Any = analysis.projection(self).solve(total, self.projection)
        if not projected.done:
            return replace(self, basis=projected.basis, passes=projected.passes)
        return analysis.start(AdversarialTraining, self.components(projected))

    def components(self, projection: ProjectionModel) -> "Components":
        """Coordinates of the correction."""
        components, variance = projection.components, projection.explained_variance
        # Divided by n, as the features are, and 0 where there is only rounding error.
        spread = np.sqrt(np.where(variance > _NEGLIGIBLE * variance[0], variance * (self.n - 1) / self.n, 0))
        whitening = components / np.where(spread > 0, spread, np.inf)[:, None]
        erased, varying = _span(whitening @ self.of_sites), int((spread > 0).sum())
        if erased.shape[1] >= varying:
            raise HarmonizationError(
                f"sites differ in all {varying} components of the features, and nothing would be left. Use more "
                "features, or fewer sites."
            )
        outside = self.of_sites - components.T @ (components @ self.of_sites)
        return self.become(
            Components,
            components=components,
            spread=spread,
            erased=erased,
            erased_outside=_span(outside),
            kept=whitening @ self.of_covariates,
        )


@dataclass(frozen=True)
class Components(training.Standard):
    """Coordinates of the correction.

    `components` [k, p] are principal components of the standardised features, and `spread` [k] their standard
    deviations; `erased` [k, r] orthonormal directions of the whitened scores that differ between sites,
    `erased_outside` [p, r'] the same of what lies outside the components; `kept` [k, q] the covariance of the whitened
    scores with the covariates.
    """

    components: Array
    spread: Array
    erased: Array
    erased_outside: Array
    kept: Array

    def whiten(self, standardized: Array) -> Array:
        """Scores [n, k] of variance 1; 0 for components that do not vary."""
        varying = self.spread > 0
        scores: Array = standardized @ self.components.T
        return np.where(varying, scores / np.where(varying, self.spread, 1), 0)


@dataclass(frozen=True)
class AdversarialTraining(Components, Training):
    """After each round; `loss` is the classifier's, log S where it can but guess among S sites of one size."""


@dataclass(frozen=True)
class AdversarialModel(Answer, Components):
    """The correction. `weights` [w] hold its network, then the classifier; `loss` [rounds] is the classifier's."""

    weights: Array
    loss: Array


@register
@dataclass(frozen=True)
class SiteAdversarial(Harmonizer, FederatedTraining):
    """A correction of features that unlearns the site, by federated SGD.

    Features are standardised, and seen as whitened scores u of their leading components. Directions whose mean differs
    between sites, for people of the same covariates, are projected out; no linear classifier is then better than
    chance on the training rows (Belrose et al., NeurIPS 2023). Outside the components this is all that happens. Inside,
    a network adds a correction c(u), and for a classifier that sees corrected scores h, their squares and the
    covariates, rounds minimise::

        classifier:   -log p(site)
        correction:   reversal * -log(1 - p(site))  +  stay * |c|^2  +  keep * |c' cov(u, covariates)|^2

    The first term of the correction is the classifier's loss with its gradient reversed, times the odds p / (1 - p), so
    that people who are no longer recognised are pushed no further. The last keeps what a linear head reads of the
    covariates.

    Nothing about it belongs to a site, so it can be applied to rows of any: but it can only remove what sets sites
    apart, also where people of one site differ in it, and not put right what one site distorts. The coordinator learns
    the mean features of each site. Sites count by their participants. Three exchanges come before the rounds, or
    four to seven above 1,024 features.

    Parameters
    ----------
    sites : sequence of str
        Names of all sites that take part.
    n_components : int
        Components at most, k.
    hidden : int
        Units of the correction's hidden layer.
    classifier_hidden : int
        Units of the classifier's.
    reversal, stay, keep : float
        Weights of the losses.
    """

    rounds: int = 30
    local_steps: int = 1
    learning_rate: float = 0.03
    sites: tuple[str, ...] = ()
    n_components: int = 64
    hidden: int = 32
    classifier_hidden: int = 16
    reversal: float = 2.0
    stay: float = 0.1
    keep: float = 10.0

    name: ClassVar[str] = "site_adversarial"
    title: ClassVar[str] = "site-adversarial"
    described: ClassVar[str] = "a site-adversarial network"
    exact: ClassVar[bool] = False
    study_options: ClassVar[tuple[str, ...]] = ("sites",)
    shows_one_site: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = (
        "Dinsdale NK, Jenkinson M, Namburete AIL. Deep learning-based unlearning of dataset bias for MRI "
        "harmonisation and confound removal. NeuroImage 2021;228:117689.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("features", "covariates")
    zero_at_first: ClassVar[tuple[str, ...]] = ("correction.1.weight",)  # nothing is corrected
    trained: ClassVar[type[State]] = AdversarialModel
    states: ClassVar[tuple[type[State], ...]] = (
        InputCentre,
        Standard,
        Directions,
        AdversarialTraining,
        AdversarialModel,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.sites)) < 2 or len(set(self.sites)) < len(self.sites):
            raise HarmonizationError("'site_adversarial' needs the names of two sites or more, each once.")
        if self.local_steps != 1:
            raise HarmonizationError(
                "'site_adversarial' takes one step a round: a site knows only its name and would learn to answer it."
            )
        if min(self.n_components, self.hidden, self.classifier_hidden) < 1:
            raise HarmonizationError("n_components, hidden and classifier_hidden are expected to be at least 1.")
        if min(self.reversal, self.stay, self.keep) < 0:
            raise HarmonizationError("reversal, stay and keep are expected to be at least 0.")

    def begin(self, standard: training.Standard) -> State:
        return standard.become(Standard)

    def standardized(self, table: SiteTable, standard: training.Standard) -> SiteTable:
        """Table with standardised inputs."""
        return super().standardize(table, standard)

    def projection(self, standard: training.Standard) -> Projection:
        """The projection of the standardised features."""
        return Projection(max(1, min(self.n_components, standard.width(), int(standard.n) - 1)))

    # Training

    def layout(self, standard: Components) -> Layout:
        return self._correction(standard).layout | self._classifier(standard).layout

    def standardize(self, table: SiteTable, standard: Components) -> SiteTable:
        """Table with whitened scores for features."""
        standardized = self.standardized(table, standard)
        return replace(standardized, features=standard.whiten(standardized.features), loadings=None)

    def losses(self, weights: Leaves, rows: SiteTable, training: AdversarialTraining) -> Losses:
        change, corrected = self._correct(weights, tensor(rows.features), training)
        site, kept = self.place_of(rows), change @ tensor(training.kept)

        recognised = self._answers(weights, corrected.detach(), rows, training).log_softmax(1)[:, site]
        # The correction learns what the classifier sees, and changes nothing of the classifier.
        fixed = {name: values.detach() for name, values in weights.items()}
        answers = self._answers(fixed, corrected, rows, training)
        others = answers[:, [number for number in range(len(self.sites)) if number != site]]
        of_recognition = answers.logsumexp(1) - others.logsumexp(1)  # -log(1 - p)
        of_correction = self.reversal * of_recognition + self.stay * (change**2).sum(1) + self.keep * (kept**2).sum(1)
        return -recognised.mean(), of_correction.mean()

    def _answers(
        self, weights: Leaves, corrected: "Tensor", rows: SiteTable, training: AdversarialTraining
    ) -> "Tensor":
        """Scores [n, S] of the classifier."""
        import torch

        seen = torch.cat([corrected, corrected**2, tensor(rows.design)], 1)
        return self._classifier(training)(weights, seen)

    def place_of(self, table: SiteTable) -> int:
        """Where the table's site stands among all."""
        if table.site not in self.sites:
            raise TableError("a site is not among those that 'site_adversarial' unlearns. Name all sites.")
        return self.sites.index(table.site)

    def _correction(self, standard: Components) -> Network:
        k = len(standard.spread)
        return Network("correction", (k, self.hidden, k))

    def _classifier(self, standard: Components) -> Network:
        seen = 2 * len(standard.spread) + standard.width(1)
        return Network("classifier", (seen, self.classifier_hidden, len(self.sites)))

    def _correct(self, weights: Leaves, scores: "Tensor", known: Components) -> tuple["Tensor", "Tensor"]:
        """The correction's change of the scores [n, k], and the scores after it."""
        erased = tensor(known.erased)
        left = _without(scores, erased)
        change = _without(self._correction(known)(weights, left), erased)
        return change, left + change

    # Harmonization

    def effect_shapes(self, model: AdversarialModel, n_features: int) -> dict[str, Shape]:
        return {}

    def estimate(self, model: AdversarialModel, table: SiteTable) -> Nothing:
        return Nothing()

    def apply(self, model: AdversarialModel, table: SiteTable, effect: Nothing) -> Array:
        standardized = self.standardized(table, model).features
        scores = model.whiten(standardized)
        weights = unpack(model.weights, self.layout(model))
        corrected = evaluate(lambda weights, scores: self._correct(weights, scores, model)[1], weights, scores)
        outside = standardized - (scores * model.spread) @ model.components
        alike = (corrected * model.spread) @ model.components + _without(outside, model.erased_outside)
        return model.restored(alike)


def _span(columns: Array) -> Array:
    """Orthonormal basis [k, r] of what the columns [k, S] of all sites span; they add up to 0."""
    vectors, values, _ = np.linalg.svd(columns, full_matrices=False)
    present = int((columns != 0).any(axis=0).sum())
    return np.asarray(vectors[:, : max(present - 1, 0)][:, values[: max(present - 1, 0)] > _NEGLIGIBLE])


def _without(rows: AnyRows, directions: AnyRows) -> AnyRows:
    """Rows [n, k] with orthonormal directions [k, r] projected out."""
    return rows - (rows @ directions) @ directions.T
