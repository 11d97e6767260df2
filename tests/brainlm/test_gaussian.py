import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz

from brainlm.gaussian import GaussianPredictor, SpaceTimeGaussianPredictor, find_runs

P, T = 7, 12


@pytest.fixture
def covariance() -> np.ndarray:
    loadings = np.random.default_rng(0).normal(size=(P, 3))
    return loadings @ loadings.T + 0.3 * np.eye(P)


@pytest.fixture
def windows(covariance) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three windows with tokens of 4 frames; one lacks a parcel, one has a frame of which nothing is visible."""
    rng = np.random.default_rng(1)
    signal = np.linalg.cholesky(covariance) @ rng.normal(size=(3, P, T))
    visible = torch.from_numpy(rng.random((3, P, 3)) < 0.6).repeat_interleave(4, dim=2)
    visible[2, :, 5] = False
    valid = torch.ones(3, P, dtype=torch.bool)
    valid[1, 4] = False
    return torch.from_numpy(signal), visible, valid


def dense(prior: np.ndarray, noise: float, signal: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Conditional mean of all values given the seen ones, in noise, all flattened."""
    among = prior[np.ix_(seen, seen)] + noise * np.eye(seen.sum())
    return prior[:, seen] @ np.linalg.solve(among, signal[seen])


def test_hidden_parcels_are_the_conditional_mean_of_the_frame(covariance, windows):
    signal, visible, valid = windows
    noise = 0.2 * np.diagonal(covariance).mean()

    predicted = GaussianPredictor(covariance, ridge=0.2).predict(signal, visible, valid)

    seen = (visible & valid[..., None]).numpy()
    for window in range(3):
        for frame in range(T):
            expected = dense(covariance, noise, signal[window, :, frame].numpy(), seen[window, :, frame])
            np.testing.assert_allclose(predicted[window, :, frame], expected, atol=1e-10)


@pytest.mark.parametrize("mask", ["tokens", "parcels", "future"])
def test_space_and_time_equal_the_dense_solution(covariance, windows, mask):
    signal, visible, valid = windows
    if mask == "parcels":
        visible = visible[:, :, :1].expand(-1, -1, T)
    elif mask == "future":
        visible = (torch.arange(T) < 8).expand(3, P, T)
    autocovariance = 2 * 0.8 ** np.arange(T)
    predictor = SpaceTimeGaussianPredictor(covariance, autocovariance, ridge=0.2, iterations=60)

    predicted = predictor.predict(signal, visible, valid)

    taper = np.exp(-0.5 * (np.arange(T) / 60) ** 2)
    temporal = toeplitz(autocovariance / autocovariance[0] * taper)
    np.testing.assert_allclose(predictor.temporal_covariance(T), temporal, atol=1e-12)
    noise = 0.2 * np.diagonal(covariance).mean()
    seen = (visible & valid[..., None]).numpy()
    for window in range(3):
        flat = signal[window].numpy().ravel()
        expected = dense(np.kron(covariance, temporal), noise, flat, seen[window].ravel())
        np.testing.assert_allclose(predicted[window].numpy().ravel(), expected, atol=1e-6)


def test_one_step_is_enough_where_every_frame_shows_the_same_parcels(covariance, windows):
    signal, visible, valid = windows
    whole = visible[:, :, :1].expand(-1, -1, T)
    autocovariance = 0.7 ** np.arange(T)

    one, many = (
        SpaceTimeGaussianPredictor(covariance, autocovariance, iterations=n).predict(signal, whole, valid)
        for n in (1, 30)
    )

    torch.testing.assert_close(one, many)


@pytest.mark.parametrize("kind", [GaussianPredictor, lambda c: SpaceTimeGaussianPredictor(c, 0.7 ** np.arange(T))])
def test_what_is_hidden_or_missing_has_no_influence(covariance, windows, kind):
    signal, visible, valid = windows
    changed = signal.masked_fill(~(visible & valid[..., None]), 1e3)

    first, second = (kind(covariance).predict(values, visible, valid) for values in (signal, changed))

    torch.testing.assert_close(first, second)
    assert kind(covariance).predict(signal.half(), visible, valid).dtype == torch.float32


def test_moments_that_are_no_covariance_still_predict(windows):
    signal, visible, valid = windows
    indefinite = np.eye(P) + 0.9 * np.fliplr(np.eye(P)) * 2
    predictor = SpaceTimeGaussianPredictor(indefinite, np.array([1.0, -0.9, 0.9, 0.9]), ridge=0.01, iterations=30)

    predicted = predictor.predict(signal.float(), visible, valid)

    assert predicted.isfinite().all()
    assert predicted.abs().max() < 10 * signal.abs().max()
    assert not predictor.predict(signal, torch.zeros_like(visible), valid).any()


def test_runs_cover_what_is_visible_once(windows):
    _, visible, valid = windows
    seen = visible & valid[..., None]
    covered = torch.zeros(seen.shape)

    for runs in find_runs(seen):
        runs.put(runs.take(covered) + 1, covered)

    torch.testing.assert_close(covered, seen.float())
