"""Predictors that need no training, to read a model's reconstruction beside; see docs/evaluation.md.

Shapes: B windows, P parcels, T frames. All take `predict(signal, visible, valid)` (`brainlm.model.Predictor`).
"""

from collections.abc import Callable, Collection, Mapping
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from brainlm.config import MaskConfig
from brainlm.errors import ShapeError
from brainlm.evaluation import visible_neighbours
from brainlm.gaussian import GaussianPredictor, SpaceTimeGaussianPredictor
from brainlm.model import Predictor


class ParcelMean:
    """The mean of the parcel's visible values in the window; 0, the mean of a recording, where none is visible."""

    def predict(self, signal: Tensor, visible: Tensor, valid: Tensor) -> Tensor:
        shown = signal.masked_fill(~visible, 0)
        mean = shown.sum(dim=2, keepdim=True) / visible.sum(dim=2, keepdim=True).clamp(min=1)
        return mean.expand_as(signal)


class TimeInterpolation:
    """A straight line between the visible frames before and after; the nearest one at the edges; 0 if there is none."""

    def predict(self, signal: Tensor, visible: Tensor, valid: Tensor) -> Tensor:
        n_frames = signal.shape[2]
        before, after = visible_neighbours(visible)
        left = torch.where(before >= 0, before, after)
        right = torch.where(after < n_frames, after, before)
        there = left < n_frames
        left, right = (frames.clamp(0, n_frames - 1) for frames in (left, right))
        frame = torch.arange(n_frames, device=signal.device)
        share = (frame - left).to(signal) / (right - left).clamp(min=1)
        shown = signal.masked_fill(~visible, 0)
        line = torch.lerp(shown.gather(2, left), shown.gather(2, right), share)
        return line.masked_fill(~there, 0)


class AR1:
    """Each parcel's last visible or predicted value, times its coefficient: ``y[t + 1] = a y[t]``; of 1, it persists.

    The coefficients are [P], or one for all parcels (`ar_coefficients`).
    """

    def __init__(self, coefficients: np.ndarray | float) -> None:
        self.coefficients = torch.as_tensor(coefficients, dtype=torch.float64)

    def predict(self, signal: Tensor, visible: Tensor, valid: Tensor) -> Tensor:
        """Predict [B, P, T]; 0 before the first visible frame."""
        before, _ = visible_neighbours(visible)
        frame = torch.arange(signal.shape[2], device=signal.device)
        shown = signal.masked_fill(~visible, 0)
        last = shown.gather(2, before.clamp(min=0)).masked_fill(before < 0, 0)
        return last * self.coefficients.to(signal)[..., None] ** (frame - before.clamp(min=0))


class VAR1:
    """All parcels of the frame before, visible or predicted, times a matrix: ``y[t + 1] = A y[t]``.

    The coefficients are A [P, P] (`var_coefficients`).
    """

    def __init__(self, coefficients: np.ndarray) -> None:
        self.coefficients = torch.as_tensor(coefficients, dtype=torch.float64)

    def predict(self, signal: Tensor, visible: Tensor, valid: Tensor) -> Tensor:
        """Predict [B, P, T]; 0 before the first visible frame."""
        step = self.coefficients.to(signal).T
        state = torch.zeros_like(signal[:, :, 0])
        states = []
        for frame in range(signal.shape[2]):
            state = torch.where(visible[:, :, frame], signal[:, :, frame], state @ step)
            states.append(state)
        return torch.stack(states, dim=2)


def ar_coefficients(moment0: np.ndarray, moment1: np.ndarray) -> np.ndarray:
    """Coefficients of first-order autoregressions by Yule and Walker, ``moment1 / moment0``, within [-1, 1].

    Parameters
    ----------
    moment0, moment1 : numpy.ndarray
        [P], mean products of a parcel's values with themselves, and with those one frame later.

    Returns
    -------
    numpy.ndarray
        [P]; 0 where a parcel has no variance.
    """
    return np.where(moment0 > 0, np.clip(moment1 / np.where(moment0 > 0, moment0, 1), -1, 1), 0)


def var_coefficients(moment0: np.ndarray, moment1: np.ndarray, ridge: float = 0.1) -> np.ndarray:
    """Coefficients of a first-order vector autoregression, ``A = moment1 (moment0 + s I)^-1``.

    Multivariate least squares from moments (Lütkepohl, New Introduction to Multiple Time Series Analysis, 2005,
    eq. 3.2.10), with a ridge s.

    Parameters
    ----------
    moment0 : numpy.ndarray
        [P, P], mean of ``x[t] x[t]'``.
    moment1 : numpy.ndarray
        [P, P], mean of ``x[t + 1] x[t]'``.
    ridge : float
        s as a fraction of the parcels' mean variance.
    """
    variances = np.diagonal(moment0)
    scale = variances[variances > 0].mean() if (variances > 0).any() else 1.0
    return np.linalg.solve(moment0 + ridge * scale * np.eye(len(moment0)), moment1.T).T


def make_baselines(
    mask: MaskConfig, n_parcels: int, moments: Mapping[str, np.ndarray] | None = None
) -> dict[str, Predictor]:
    """Make the predictors to read a model beside, by name.

    Parameters
    ----------
    mask : MaskConfig
        The model's; forecasting is tried where the future is hidden.
    moments : mapping, optional
        Second moments of training participants: ``covariance`` [P, P], ``autocovariance`` [L], and ``following``
        [P, P], the mean of ``x[t + 1] x[t]'``. What needs absent ones is left out.

    Raises
    ------
    ShapeError
        If the moments are of another number of parcels.
    """
    known = dict(moments or {})
    for name in ("covariance", "following"):
        if name in known and known[name].shape != (n_parcels, n_parcels):
            raise ShapeError(
                f"moments: {name} has shape {list(known[name].shape)}; expected {[n_parcels, n_parcels]}. "
                "Use moments of the same atlas."
            )
    return {name: make(known) for name, make in _makers(mask, known).items()}


def baseline_names(mask: MaskConfig, moments: Collection[str] = ()) -> list[str]:
    """Name the predictors that `make_baselines` makes of moments of these names, without making them."""
    return list(_makers(mask, moments))


def _makers(mask: MaskConfig, known: Collection[str]) -> dict[str, Callable[[Mapping[str, np.ndarray]], Predictor]]:
    """What makes each predictor of the moments, where those that it needs are known."""
    makers: dict[str, Callable[[Mapping[str, np.ndarray]], Predictor]] = {
        "parcel_mean": lambda moments: ParcelMean(),
        "time_interpolation": lambda moments: TimeInterpolation(),
    }
    if mask.kind == "future":
        makers["persistence"] = lambda moments: AR1(1.0)
        if {"covariance", "following"} <= set(known):
            own = itemgetter("covariance", "following")
            makers["ar1"] = lambda moments: AR1(ar_coefficients(*map(np.diagonal, own(moments))))
            makers["var1"] = lambda moments: VAR1(var_coefficients(*own(moments)))
        elif "autocovariance" in known:  # of windows of one frame, it has no second entry
            makers["ar1"] = lambda moments: AR1(ar_coefficients(*np.pad(moments["autocovariance"], (0, 1))[:2, None]))
    if "covariance" in known:
        makers["gaussian"] = lambda moments: GaussianPredictor(moments["covariance"])
        if "autocovariance" in known:
            both = itemgetter("covariance", "autocovariance")
            makers["gaussian_space_time"] = lambda moments: SpaceTimeGaussianPredictor(*both(moments))
    return makers
