import numpy as np
import torch

from brainlm.gaussian import SpaceTimeGaussianPredictor
from brainlm.linear_path import LinearPath

P, T = 6, 24
RECORDINGS = {f"p{n}": [np.random.default_rng(n).normal(size=(30 + n, P)) @ np.tri(P)] for n in range(4)}
COVERAGE = {name: np.arange(P) != (4 if name == "p1" else -1) for name in RECORDINGS}


def moments(people: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Covariance and pairs of some participants, parcel 4 of p1 missing."""
    products, pairs = np.zeros((P, P)), np.zeros((P, P))
    for name in people:
        for frames in RECORDINGS[name]:
            there = COVERAGE[name]
            values = np.where(there, frames, 0)
            products += values.T @ values
            pairs += len(frames) * np.outer(there, there)
    return products / pairs, pairs


def windows(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(n, P, T, generator=generator, dtype=torch.float64)
    visible = (torch.rand(n, P, 4, generator=generator) < 0.5).repeat_interleave(6, dim=2)
    return signal, visible, torch.ones(n, P, dtype=torch.bool)


def test_each_window_is_predicted_from_the_others():
    """Leaving a participant out of the federation's sums equals sums that never had them."""
    autocovariance = 0.8 ** np.arange(10)
    covariance, pairs = moments(list(RECORDINGS))
    signal, visible, valid = windows(2)
    people = ["p1", "p3"]

    path = LinearPath(covariance, autocovariance, pairs)
    batch = path.without([(frames, COVERAGE[name]) for frames in RECORDINGS[name]] for name in people)
    found = batch.predict(signal, visible, valid)

    for window, name in enumerate(people):
        others, _ = moments([other for other in RECORDINGS if other != name])
        alone = SpaceTimeGaussianPredictor(others, autocovariance)
        alone.noise = path.noise
        expected = alone.predict(signal[[window]], visible[[window]], valid[[window]])[0]
        torch.testing.assert_close(found[window], expected, atol=1e-6, rtol=1e-5)


def test_parcels_that_the_site_never_summed_are_not_subtracted():
    covariance, pairs = moments(["p0", "p2"])
    counted = np.arange(P) < 3

    path = LinearPath(covariance, np.ones(1), pairs, counted)
    left_out = path.without([[(RECORDINGS["p2"][0], COVERAGE["p2"])]]).covariance[0].numpy()

    expected, _ = moments(["p0"])
    np.testing.assert_allclose(left_out[:3, :3], expected[:3, :3], atol=1e-6)
    np.testing.assert_allclose(left_out[3:, 3:], covariance[3:, 3:], atol=1e-6)


def test_nobody_left_is_no_prediction():
    covariance, pairs = moments(["p0"])
    signal, visible, valid = windows(1)

    path = LinearPath(covariance, np.ones(1), pairs)
    alone = path.without([[(RECORDINGS["p0"][0], COVERAGE["p0"])]])

    assert (alone.predict(signal, visible, valid) == 0).all()
