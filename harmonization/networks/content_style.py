"""Content and style: what a person's features say, and how a site writes them, told apart without pooling.

In the spirit of MURD (Liu & Yap, Communications Engineering 2024), whose shared encoder finds the content of an image
and whose decoder writes it in the style of any site. Here the style of a site is the shape of each feature's
distribution: location and scale, as ComBat shrinks them, and bends beyond these, which small networks learn. Networks
are shared by all features, as a convolution's are by all places of an image.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from harmonization.core.declared import Declared, Shape, Widths, everybody
from harmonization.core.errors import HarmonizationError, TableError
from harmonization.core.protocol import Answer, Array, SiteTable, Stage, State, Sums
from harmonization.core.registry import register
from harmonization.core.variation import hardly_varies
from harmonization.methods import combat
from harmonization.methods.combat import ComBatModel, Prior, SiteEffect
from harmonization.methods.harmonizer import Harmonizer
from harmonization.networks.neural import (
    Layout,
    Leaves,
    Losses,
    Network,
    Weights,
    evaluate,
    tensor,
    unpack,
)
from harmonization.networks.training import FederatedTraining, Standard, Training

if TYPE_CHECKING:
    from torch import Tensor

_FREQUENCIES = (1.0, 2.0)
"""Where the characteristic function of a normalised feature is taken."""
_SHAPE = 2 * len(_FREQUENCIES)
_ROWS_OF_DOUBT = 20
"""A shape that n rows tell counts n / (n + 20)."""
_STILL = 1e-9
"""Rows of this deviation or less differ by rounding alone."""
_BLOCK = 512
"""Features that are bent at a time, which bounds memory."""


class SiteMoments(Stage):
    """First round: ComBat's sums, and the number of sites."""

    def part(self, analysis: "ContentStyle", table: SiteTable) -> Sums:
        table = analysis.training_rows(table)
        if table.n < 2:
            raise TableError("'content_style' needs two participants at a site to know its scale. Leave the site out.")
        return {"sites": np.array(1.0), **combat.summarize(table.features, table.design)}

    def sends(self, analysis: "ContentStyle", widths: Widths) -> Declared:
        return {"sites": everybody(), **combat.moments_of(widths.features, widths.covariates)}

    def advance(self, analysis: "ContentStyle", total: Sums) -> State:
        if total["sites"] < 2:
            raise HarmonizationError("there is one site, whose style is that of all. Use more.")
        model = combat.solve(total)
        if not (model.pooled_variance > 0).any():
            raise HarmonizationError(
                "no feature varies inside the sites, so they have no style. Use the method 'none'."
            )
        (q, p), deviation = model.coefficients.shape, np.sqrt(model.pooled_variance)
        return Located(
            mean=np.concatenate([model.grand_mean, np.zeros(q)]),
            scale=np.concatenate([np.where(deviation > 0, deviation, 1), np.ones(q)]),
            widths=np.array([p, q], dtype=np.float64),
            n=model.n,
            coefficients=model.coefficients,
            pooled_variance=model.pooled_variance,
        )


@dataclass(frozen=True)
class CombatStandard(Standard):
    """ComBat of all sites: `mean` and `scale` hold the grand mean and the pooled deviation.

    `coefficients` [q, p] are the effects of the covariates; `pooled_variance` [p] is 0 for features that are constant
    inside every site.
    """

    coefficients: Array
    pooled_variance: Array

    @property
    def combat(self) -> ComBatModel:
        """The same as a model of ComBat."""
        return ComBatModel(self.coefficients, self.mean[: self.width()], self.pooled_variance, self.n)

    def hardly_varies(self, table: SiteTable) -> NDArray[np.bool_]:
        """Which features [p] hardly vary at a site."""
        return hardly_varies(table.features, self.pooled_variance, table.design @ self.coefficients)


@dataclass(frozen=True)
class Located(CombatStandard, Stage):
    """After the first round. The shape of each feature at the sites."""

    def part(self, analysis: "ContentStyle", table: SiteTable) -> Sums:
        table = analysis.training_rows(table)
        still, rows = self.hardly_varies(table), analysis.left_of(table, self)
        shape = np.where(still[:, None], 0.0, _shape_of(_normalised(rows, *_location_and_scale(rows))))
        return {"shape": table.n * shape, "shape_n": table.n * (~still).astype(np.float64)}

    def sends(self, analysis: "ContentStyle", widths: Widths) -> Declared:
        return {"shape": everybody(widths.features, _SHAPE), "shape_n": everybody(widths.features)}

    def advance(self, analysis: "ContentStyle", total: Sums) -> State:
        typical = total["shape"] / np.maximum(total["shape_n"], 1)[:, None]
        return analysis.start(ContentTraining, self, typical=typical)


@dataclass(frozen=True)
class ContentTraining(CombatStandard, Training):
    """After each round; `typical` [p, 4] is each feature's shape over all sites, at location 0 and scale 1 at each."""

    typical: Array


@dataclass(frozen=True)
class ContentModel(Answer, CombatStandard):
    """The networks' `weights` [w], the `typical` shape [p, 4], and the mean `loss` [rounds] of each round."""

    typical: Array
    weights: Array
    loss: Array


@dataclass(frozen=True)
class SiteStyle(SiteEffect):
    """How one site writes p features: ComBat's shift and scale, and what is beyond them.

    Attributes
    ----------
    location, scale : numpy.ndarray
        [p], mean and deviation at this site, before they are shrunk.
    code : numpy.ndarray
        [p, d], style code.
    content_location, content_scale : numpy.ndarray
        [p], mean and deviation of the content here.
    """

    location: Array
    scale: Array
    code: Array
    content_location: Array
    content_scale: Array


@register
@dataclass(frozen=True)
class ContentStyle(Harmonizer, FederatedTraining):
    """A shared content encoder, a style code for each site and feature, and a decoder, by federated averaging.

    ComBat's round gives the effects of the covariates and the pooled deviations; a second one the typical shape of each
    feature, mean [sin v, cos v, sin 2v, cos 2v] over the rows v of all sites, which every site has brought to location
    0 and scale 1. Then, with e and d networks of one value and d outputs::

        code      s = A (shape at the site - typical shape)
        content   y = v + s e(v)
        decoded   v' = y + s d(y)

    In each step a site takes its code from one half of its rows. The content of the other half, brought to location 0
    and scale 1 by the first, has to have the typical shape (`match`): so a code learns how much of a shape is chance.
    Decoding with the site's own code has to give back what was encoded (`reconstruct`), and content that is decoded
    with another code, that of another feature, has to be found again (`consist`).

    The typical site's code is 0, with which decoding changes nothing: harmonized features are contents, written with
    ComBat's location and scale, and covariates' effects are kept as ComBat keeps them. A site works out its code by
    itself, from rows that it may learn from, and never sends it; so can a site that took no part. A feature that hardly
    varies at a site has no style there: nothing is learned from it, and it comes back as it was. Dependencies between
    features stay as they are. Two exchanges come before the rounds.

    Parameters
    ----------
    prior : {"parametric", "nonparametric", "none"}
        How ComBat's location and scale are shrunk.
    code_size : int
        Numbers in a code, d.
    hidden : int
        Units of the hidden layers.
    features_a_round : int
        Features that a round of training looks at, drawn with the public seed.
    match, reconstruct, consist : float
        Weights of the losses.
    """

    rounds: int = 20
    local_steps: int = 10
    batch_size: int = 128
    learning_rate: float = 0.03
    prior: Prior = "parametric"
    code_size: int = 2
    hidden: int = 8
    features_a_round: int = 16
    match: float = 10.0
    reconstruct: float = 1.0
    consist: float = 1.0

    name: ClassVar[str] = "content_style"
    title: ClassVar[str] = "content and style"
    described: ClassVar[str] = "a network of shared content and site-specific style"
    exact: ClassVar[bool] = False
    study_options: ClassVar[tuple[str, ...]] = ("prior",)
    references: ClassVar[tuple[str, ...]] = (
        "Liu S, Yap PT. Learning multi-site harmonization of magnetic resonance images without traveling human "
        "phantoms. Communications Engineering 2024;3:6.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("features", "covariates")
    zero_at_first: ClassVar[tuple[str, ...]] = ("encoder.1.weight", "decoder.1.weight")  # nothing is bent
    trained: ClassVar[type[State]] = ContentModel
    first: ClassVar[Stage] = SiteMoments()
    states: ClassVar[tuple[type[State], ...]] = (Located, ContentTraining, ContentModel)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.code_size, self.hidden, self.features_a_round) < 1:
            raise HarmonizationError("code_size, hidden and features_a_round are expected to be at least 1.")
        if min(self.match, self.reconstruct, self.consist) < 0:
            raise HarmonizationError("match, reconstruct and consist are expected to be at least 0.")
        combat.ComBat(prior=self.prior)  # refuses an unknown prior

    # Training

    def layout(self, standard: CombatStandard) -> Layout:
        return self._encoder.layout | self._decoder.layout | {"code": (_SHAPE, self.code_size)}

    def standardize(self, table: SiteTable, standard: CombatStandard) -> SiteTable:
        """Table whose features have neither covariates' effects nor units; NaN in those that hardly vary here."""
        left = np.where(standard.hardly_varies(table), np.nan, self.left_of(table, standard))
        return replace(table, features=left, incomplete=True)

    def left_of(self, table: SiteTable, standard: CombatStandard) -> Array:
        """Features [n, p] without covariates' effects and units."""
        explained = table.design @ standard.coefficients / standard.scale[: standard.width()]
        return super().standardize(table, standard).features - explained

    def losses(self, weights: Leaves, rows: SiteTable, training: ContentTraining) -> Losses:
        columns = self._columns(training)
        columns = columns[~np.isnan(rows.features[0, columns])]
        if not len(columns):
            return (tensor(np.zeros(())),)
        typical, features = tensor(training.typical[columns]), rows.features[:, columns]
        estimating = np.arange(rows.n) % 2 == 0
        values = tensor(_normalised(features, *_location_and_scale(features[estimating])))
        code = _reliability(int(estimating.sum())) * (_shape(values[estimating]) - typical) @ weights["code"]
        other_code = code.roll(1, 0)

        content = _bend(self._encoder, weights, values, code)
        unlike = _mismatch(content[estimating], content[~estimating], typical)
        lost = _bend(self._decoder, weights, content, code) - values
        as_another = _bend(self._decoder, weights, content, other_code)
        missed = _bend(self._encoder, weights, as_another, other_code) - content
        loss = self.match * unlike + self.reconstruct * (lost**2).mean() + self.consist * (missed**2).mean()
        return (loss,)

    @property
    def _encoder(self) -> Network:
        return Network("encoder", (1, self.hidden, self.code_size))

    @property
    def _decoder(self) -> Network:
        return Network("decoder", (1, self.hidden, self.code_size))

    def _columns(self, training: ContentTraining) -> NDArray[np.int64]:
        """Features that this round looks at, in random order, so that neighbours are any two."""
        varying = np.flatnonzero(training.pooled_variance > 0)
        rng = np.random.default_rng([self.seed, training.round])
        return rng.choice(varying, size=min(len(varying), self.features_a_round), replace=False)

    # Harmonization

    def effect_shapes(self, model: ContentModel, n_features: int) -> dict[str, Shape]:
        own = dict.fromkeys(("location", "scale", "content_location", "content_scale"), (n_features,))
        return {**SiteEffect.shapes(n_features), **own, "code": (n_features, self.layout(model)["code"][1])}

    def estimate(self, model: ContentModel, table: SiteTable) -> SiteStyle:
        effect = model.combat.site_effect(table.features, table.design, prior=self.prior)
        rows = np.where(effect.unadjusted, 0.0, self.left_of(table, model))
        location, scale = _location_and_scale(rows)
        values = _normalised(rows, location, scale)
        weights = unpack(model.weights, self.layout(model))
        code = _reliability(table.n) * (_shape_of(values) - model.typical) @ weights["code"]
        content_location, content_scale = _location_and_scale(self._content(weights, values, code))
        return SiteStyle(
            *(effect.gamma, effect.delta, effect.unadjusted), location, scale, code, content_location, content_scale
        )

    def apply(self, model: ContentModel, table: SiteTable, effect: SiteStyle) -> Array:
        values = _normalised(self.left_of(table, model), effect.location, effect.scale)
        content = self._content(unpack(model.weights, self.layout(model)), values, effect.code)
        content = _normalised(content, effect.content_location, effect.content_scale)
        p = model.width()
        # Bent, but with the site's own location and scale, which ComBat then takes out.
        bent = model.mean[:p] + model.scale[:p] * (effect.location + effect.scale * content)
        bent = np.where(effect.unadjusted, table.features, bent + table.design @ model.coefficients)
        return model.combat.remove(bent, table.design, effect)

    def _content(self, weights: Weights, values: Array, code: Array) -> Array:
        content = np.empty_like(values)
        for start in range(0, values.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            content[:, block] = evaluate(partial(_bend, self._encoder), weights, values[:, block], code[block])
        return content


def _bend(network: Network, weights: Leaves, values: "Tensor", code: "Tensor") -> "Tensor":
    """Values [n, p] bent by codes [p, d]: v + s f(v), for a network f of one input and d outputs that all share."""
    terms = network(weights, values.reshape(-1, 1)).reshape(*values.shape, -1)  # [n, p, d]
    return values + (terms * code).sum(-1)


def _mismatch(known: "Tensor", tried: "Tensor", typical: "Tensor") -> "Tensor":
    """Mean square of what sets the shape of the tried rows apart from the typical one; `known` tell their location."""
    variance = known.var(0, correction=0)
    scale = variance.where(variance > _STILL**2, variance.new_ones(())).sqrt()
    return ((_shape((tried - known.mean(0)) / scale) - typical) ** 2).mean()


def _shape(values: "Tensor") -> "Tensor":
    """Mean over rows of sine and cosine [p, 4] of normalised features [n, p]."""
    import torch

    functions = [function(f * values).mean(0) for f in _FREQUENCIES for function in (torch.sin, torch.cos)]
    return torch.stack(functions, -1)


def _shape_of(values: Array) -> Array:
    """The same of an array."""
    return evaluate(lambda weights, rows: _shape(rows), {}, values)


def _reliability(n: int) -> float:
    """How much a shape that n rows tell counts."""
    return n / (n + _ROWS_OF_DOUBT)


def _location_and_scale(rows: Array) -> tuple[Array, Array]:
    """Mean and deviation [p]; a deviation of 1 where rows do not differ by more than rounding."""
    location, scale = rows.mean(axis=0), rows.std(axis=0)
    return location, np.where(scale > _STILL, scale, 1.0)


def _normalised(rows: Array, location: Array, scale: Array) -> Array:
    return (rows - location) / scale
