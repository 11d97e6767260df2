"""Linear prediction of hidden values from visible ones, under a Gaussian model of the signal.

For jointly Gaussian values of mean zero, the best guess of the hidden ones h given the visible ones v, seen with white
noise of variance s, is ``C_hv (C_vv + s I)^-1 x_v`` (Rasmussen & Williams, Gaussian Processes for Machine Learning,
2006, eq. 2.25). The two predictors differ in C: the covariance of parcels in one frame, or that times the covariance of
frames of one parcel. Both need second moments of training participants, which are sums, and no training.

Shapes: B windows, P parcels, T frames; G runs of L frames each, with at most M visible parcels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brainlm.errors import ShapeError

_TAPER_FRAMES = 60
"""Width of the taper of the autocovariance: long lags are estimated from few pairs of frames."""


class GaussianPredictor:
    """Predict hidden parcels from the visible ones in the same frame.

    Parameters
    ----------
    covariance : numpy.ndarray or torch.Tensor
        [P, P], second moments of parcels over frames of scaled recordings. Its negative eigenvalues, which it can have
        where recordings lack parcels, are set to zero.
    ridge : float
        Variance of the noise, as a fraction of the parcels' mean variance.
    """

    def __init__(self, covariance: np.ndarray | Tensor, ridge: float = 0.1) -> None:
        self.covariance = semidefinite(covariance)
        self.noise = ridge * _mean_variance(self.covariance)

    @torch.no_grad()
    def predict(self, signal: Tensor, visible: Tensor, valid: Tensor) -> Tensor:
        """Predict every value, hidden or not; arguments as of `brainlm.model.Predictor`.

        Returns [B, P, T] of the signal's type, float32 at least; zero where nothing of a frame is visible. What is not
        visible has no influence.
        """
        if self.covariance.shape[-1] != signal.shape[1]:
            raise ShapeError(
                f"the covariance is of {self.covariance.shape[-1]} parcels, the windows of {signal.shape[1]}. Use "
                "moments of the same atlas."
            )
        signal = signal if signal.dtype == torch.float64 else signal.float()
        with torch.autocast(signal.device.type, enabled=False):
            return self._predict(signal, visible & valid[..., None])

    def _predict(self, signal: Tensor, seen: Tensor) -> Tensor:
        covariance = self.covariance.to(signal)
        weights = torch.zeros_like(signal)
        for runs in find_runs(seen):
            noise = self.noise * torch.eye(runs.n_parcels, dtype=signal.dtype, device=signal.device)
            factor = torch.linalg.cholesky(runs.among(covariance) + noise)
            runs.put(torch.cholesky_solve(runs.take(signal), factor), weights)
        return covariance @ weights


class SpaceTimeGaussianPredictor(GaussianPredictor):
    """Predict hidden values from all visible ones of the window.

    The covariance of values of parcels p, q in frames s, t is ``C[p, q] R[s, t]`` (Bonilla, Chai & Williams, Multi-task
    Gaussian process prediction, NeurIPS 2007). With part of the values hidden it no longer factorises, so
    ``(C x R + s I) a = x`` is solved on the visible ones by conjugate gradients, from matrix products alone, and the
    prediction is ``C a R``. The preconditioner solves every run of frames with the same visible parcels for itself:
    exactly, by the eigenvectors of its parts of C and R.

    Parameters
    ----------
    covariance, ridge
        As for `GaussianPredictor`.
    autocovariance : numpy.ndarray or torch.Tensor
        [K], mean product of a parcel's values 0, 1, … frames apart. It is divided by the first, tapered, and zero for
        longer lags.
    iterations : int
        Steps of the conjugate gradients.
    """

    def __init__(
        self,
        covariance: np.ndarray | Tensor,
        autocovariance: np.ndarray | Tensor,
        ridge: float = 0.1,
        iterations: int = 8,
    ) -> None:
        super().__init__(covariance, ridge)
        self.iterations = iterations
        lagged = torch.as_tensor(autocovariance, dtype=torch.float64).cpu()
        lags = torch.arange(len(lagged), dtype=torch.float64)
        self._correlation = lagged / lagged[0].clamp(min=1e-12) * torch.exp(-0.5 * (lags / _TAPER_FRAMES).square())
        self._temporal: dict[int, Tensor] = {}

    def temporal_covariance(self, n_frames: int) -> Tensor:
        """Return R [T, T] float64, symmetric Toeplitz but for negative eigenvalues, which are set to zero."""
        if n_frames not in self._temporal:
            lags = torch.arange(n_frames)
            by_lag = torch.zeros(n_frames, dtype=torch.float64)
            by_lag[: len(self._correlation)] = self._correlation[:n_frames]
            self._temporal[n_frames] = semidefinite(by_lag[(lags[:, None] - lags).abs()])
        return self._temporal[n_frames]

    def _predict(self, signal: Tensor, seen: Tensor) -> Tensor:
        covariance = self.covariance.to(signal)
        temporal = self.temporal_covariance(signal.shape[2]).to(signal)
        solvers = [_RunSolver(runs, covariance, temporal, self.noise) for runs in find_runs(seen)]

        def precondition(residual: Tensor) -> Tensor:
            solved = torch.zeros_like(residual)
            for solver in solvers:
                solver.solve(residual, solved)
            return solved

        # Preconditioned conjugate gradients, every window with its own steps (Golub & Van Loan, Matrix Computations,
        # 4th ed. 2013, algorithm 11.5.1).
        residual = signal * seen
        weights = torch.zeros_like(residual)
        direction = precondition(residual)
        progress = _dot(residual, direction)
        for step in range(self.iterations):
            product = seen * (covariance @ direction @ temporal) + self.noise * direction
            length = _quotient(progress, _dot(direction, product))
            weights = weights + length * direction
            if step + 1 < self.iterations:
                residual = residual - length * product
                solved = precondition(residual)
                before, progress = progress, _dot(residual, solved)
                direction = solved + _quotient(progress, before) * direction
        return covariance @ weights @ temporal


@dataclass(frozen=True)
class Runs:
    """Runs of frames, equally long, within each of which the same parcels are visible."""

    window: Tensor
    """[G], whose run it is."""
    frames: Tensor
    """[G, L], its frames."""
    parcels: Tensor
    """[G, M], the visible parcels, and others where `there` is False."""
    there: Tensor
    """[G, M] bool."""

    @property
    def n_frames(self) -> int:
        return self.frames.shape[1]

    @property
    def n_parcels(self) -> int:
        return self.parcels.shape[1]

    def take(self, values: Tensor) -> Tensor:
        """Visible values [B, P, T] → [G, M, L], zero where padded."""
        return values[self._places()] * self.there[..., None]

    def put(self, values: Tensor, into: Tensor) -> None:
        """Write [G, M, L] to its places in `into` [B, P, T], which is zero where nothing is visible."""
        into[self._places()] = values * self.there[..., None]

    def among(self, covariance: Tensor) -> Tensor:
        """Covariance [P, P], or [B, P, P], → that of each run's visible parcels [G, M, M], zero where padded."""
        both = self.there[:, :, None] & self.there[:, None, :]
        places = self.parcels[:, :, None], self.parcels[:, None, :]
        return (covariance[places] if covariance.ndim == 2 else covariance[self.window[:, None, None], *places]) * both

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.window[:, None, None], self.parcels[:, :, None], self.frames[:, None, :]


def find_runs(seen: Tensor) -> list[Runs]:
    """Find the runs of frames with the same visible parcels in `seen` [B, P, T] bool, those of one length together.

    They come in order of length; frames with nothing visible are in none.
    """
    n_windows, _, n_frames = seen.shape
    begins = torch.ones(n_windows, n_frames, dtype=torch.bool, device=seen.device)
    begins[:, 1:] = (seen[:, :, 1:] != seen[:, :, :-1]).any(dim=1)
    window, start = begins.nonzero(as_tuple=True)
    place = window * n_frames + start
    length = torch.diff(place, append=place.new_tensor([n_windows * n_frames]))
    sets = seen[window, :, start]  # [runs, P]
    count = sets.sum(dim=1)
    found = []
    for frames in length[count > 0].unique().tolist():
        chosen = (length == frames) & (count > 0)
        members = sets[chosen]
        n_parcels = int(count[chosen].max())
        parcels = torch.argsort(~members, dim=1, stable=True)[:, :n_parcels]
        within = start[chosen][:, None] + torch.arange(frames, device=seen.device)
        found.append(Runs(window[chosen], within, parcels, members.gather(1, parcels)))
    return found


class _RunSolver:
    """Solve ``C a R + s a = y`` on runs, each for itself, by the eigenvectors of its parts of C and R."""

    def __init__(self, runs: Runs, covariance: Tensor, temporal: Tensor, noise: float) -> None:
        self.runs = runs
        in_space, self.space = torch.linalg.eigh(runs.among(covariance))
        in_time, self.time = torch.linalg.eigh(temporal[: runs.n_frames, : runs.n_frames])
        # Rounding makes eigenvalues of zero a little negative.
        self.scale = 1 / (in_space.clamp(min=0)[:, :, None] * in_time.clamp(min=0) + noise)  # [G, M, L]

    def solve(self, residual: Tensor, into: Tensor) -> None:
        """Solve for `residual` [B, P, T] and write the solution to its places."""
        modes = self.space.mT @ self.runs.take(residual) @ self.time
        self.runs.put(self.space @ (modes * self.scale) @ self.time.T, into)


def semidefinite(matrix: np.ndarray | Tensor) -> Tensor:
    """Nearest positive semidefinite matrices, float64: symmetric, negative eigenvalues zero (Higham 1988)."""
    symmetric = torch.as_tensor(matrix, dtype=torch.float64).cpu()
    symmetric = (symmetric + symmetric.mT) / 2
    # A covariance of complete recordings is semidefinite but for rounding, and a factor is found much sooner.
    nudge = 1e-9 * torch.eye(symmetric.shape[-1], dtype=symmetric.dtype)
    if not bool(torch.linalg.cholesky_ex(symmetric + nudge).info.any()):
        return symmetric
    eigenvalues, vectors = torch.linalg.eigh(symmetric)
    return (vectors * eigenvalues.clamp(min=0)[..., None, :]) @ vectors.mT


def _mean_variance(covariance: Tensor) -> float:
    """Mean variance of the parcels that have one."""
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    return float(variances[variances > 0].mean()) if bool((variances > 0).any()) else 1.0


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Sum of products within each window, [B, 1, 1]."""
    return (first * second).sum(dim=(1, 2), keepdim=True)


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, or 0 where a window has converged and both are."""
    return torch.where(denominator > 0, numerator / denominator.clamp(min=torch.finfo(numerator.dtype).tiny), 0.0)
