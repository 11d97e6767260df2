"""Noise on sums: how much, on whose contribution, and that it is counted."""

import numpy as np
import pytest
from scipy import stats

from brainlm.config import SummaryNoise
from client.door.noise import draw_normal, summarize_with_noise
from client.door.spending import Spend
from exchange.refusals import Refusal, RefusalCode
from harmonization import ComBat, LogisticRegression, Projection, RidgeRegression, SiteTable, SmallGroupError


def no_noise(n: int) -> bytes:
    """Uniform numbers of 0 make normal numbers of 0."""
    return bytes(n)


def test_noise_is_standard_normal_and_never_the_same():
    drawn = draw_normal(200_001).numpy()

    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    assert np.abs(np.corrcoef(drawn[:100_000], drawn[100_000:200_000])[0, 1]) < 0.02  # sines beside cosines
    assert not np.intersect1d(drawn[:1000], draw_normal(1000).numpy()).size


def test_a_participants_whole_contribution_is_clipped():
    """With several rows and several sums, once; the first of two people here is far beyond the clip."""
    features = np.array([[30.0, 0.0], [10.0, 0.0], [0.0, 1.0]])
    table = SiteTable(features, participant=np.array([4, 4, 7]))
    noise = SummaryNoise(clip=2.0, noise_multiplier=1.0)

    sums, _ = summarize_with_noise(Projection(1), table, None, noise, no_noise)
    second, _ = summarize_with_noise(Projection(1), table.take(np.array([2])), None, noise, no_noise)

    first = {name: sums[name] - second[name] for name in sums}
    length = np.sqrt(sum((values**2).sum() for values in first.values()))
    assert length == pytest.approx(2.0)
    np.testing.assert_allclose(first["feature_sum"] / first["n"], [20.0, 0.0])  # in the direction of the whole
    np.testing.assert_allclose(second["feature_sum"], [0.0, 1.0])
    assert second["n"] == 1.0


def test_noise_has_its_variance_on_every_number():
    rng = np.random.default_rng(0)
    table = SiteTable(rng.normal(size=(20, 200)), target=rng.normal(size=20))
    noise = SummaryNoise(clip=0.5, noise_multiplier=30.0)
    quiet, spend = summarize_with_noise(RidgeRegression(), table, None, noise, no_noise)
    loud = [summarize_with_noise(RidgeRegression(), table, None, noise)[0] for _ in range(20)]

    assert all(sums.keys() == quiet.keys() for sums in loud)
    drawn = np.concatenate([np.ravel(sums[name] - quiet[name]) for sums in loud for name in quiet])
    assert stats.kstest(drawn / 15.0, "norm").pvalue > 1e-6
    assert spend == Spend(30.0, 1.0, 1)


def test_what_cannot_be_bounded_is_refused():
    table = SiteTable(np.ones((5, 2)), np.ones((5, 1)), np.array([0, 0, 0, 0, 1]), min_group=2)
    noise = SummaryNoise(clip=1.0, noise_multiplier=1.0)

    with pytest.raises(Refusal, match="'combat' is no plain sum") as refused:
        summarize_with_noise(ComBat(), table, None, noise)
    assert refused.value.code is RefusalCode.NOT_PRIVATE
    with pytest.raises(SmallGroupError):  # the site's own rule holds beside the noise
        summarize_with_noise(LogisticRegression(), table, None, noise)
