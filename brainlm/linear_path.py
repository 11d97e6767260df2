"""The linear prediction that a model with ``residual: gaussian`` starts from."""

import copy
from collections.abc import Iterable
from typing import Self

import numpy as np

from brainlm.gaussian import SpaceTimeGaussianPredictor, semidefinite


class LinearPath(SpaceTimeGaussianPredictor):
    """The space-time Gaussian predictor, which can leave participants out.

    A participant who is in the covariance is predicted better than one who is not, and what a model would learn of the
    rest holds for nobody else. So each training participant is predicted from a covariance without them: their own
    products are subtracted from the sums (Stone 1974, leave-one-out cross-validation). A site can do that alone.

    Parameters
    ----------
    covariance, autocovariance : numpy.ndarray
        As for `SpaceTimeGaussianPredictor`.
    pairs : numpy.ndarray
        [P, P], how many frames are behind each entry of the covariance.
    counted : numpy.ndarray, optional
        [P] bool, parcels of this site that went into the sums; all if not given.
    """

    def __init__(
        self, covariance: np.ndarray, autocovariance: np.ndarray, pairs: np.ndarray, counted: np.ndarray | None = None
    ) -> None:
        super().__init__(covariance, autocovariance)
        self._pairs = np.asarray(pairs, dtype=np.float64)
        self._products = np.asarray(covariance, dtype=np.float64) * self._pairs
        self._counted = np.ones(len(pairs), dtype=bool) if counted is None else counted

    def without(self, participants: Iterable[Iterable[tuple[np.ndarray, np.ndarray]]]) -> Self:
        """Return a predictor for a batch of windows, the i-th of them predicted without the i-th participant.

        Parameters
        ----------
        participants : iterable
            For each window its participant's recordings: scaled frames [T', P], zero where missing, and coverage [P].
        """
        covariances = [self._without(recordings) for recordings in participants]
        left_out = copy.copy(self)  # with the same temporal covariance and noise
        left_out.covariance = semidefinite(np.stack(covariances))
        return left_out

    def _without(self, recordings: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        products, pairs = self._products.copy(), self._pairs.copy()
        for frames, coverage in recordings:
            there = coverage & self._counted
            values = np.where(there, frames, 0).astype(np.float64)
            products -= values.T @ values
            pairs -= len(frames) * np.outer(there, there)
        return np.where(pairs > 0, products / np.maximum(pairs, 1), 0)
