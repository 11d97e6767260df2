from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonization import HarmonizationError, Moments, SecondMoments, SiteTable, add_sums, run_pooled
from tests.support.conditioning import assert_as_exact_as_data, tolerance


def recordings(lengths: list[int], p: int, seed: int) -> list[np.ndarray]:
    """Recordings whose parcels are missing here and there."""
    rng = np.random.default_rng(seed)
    drawn = []
    for length in lengths:
        frames = rng.normal(size=(length, p)).cumsum(axis=0)
        frames[:, rng.random(p) < 0.3] = np.nan
        drawn.append(frames)
    return drawn


def measured(tables: list[np.ndarray], n_lags: int) -> Moments:
    return run_pooled(SecondMoments(n_lags), [SiteTable(table, frames=True) for table in tables])


@settings(max_examples=20)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_moments_are_means_over_the_frames_that_have_both(lengths, p, n_lags, seed):
    tables = recordings(lengths, p, seed)
    pooled = np.concatenate(tables)
    covariance, autocovariance = np.zeros((p, p)), np.zeros(n_lags)
    for i in range(p):
        for j in range(p):
            products = pooled[:, i] * pooled[:, j]
            known = products[~np.isnan(products)]
            covariance[i, j] = known.mean() if len(known) else 0
    for lag in range(n_lags):
        products = np.concatenate([(table[: max(0, len(table) - lag)] * table[lag:]).ravel() for table in tables])
        known = products[~np.isnan(products)]
        autocovariance[lag] = known.mean() if len(known) else 0

    def answer(*tables: np.ndarray) -> dict[str, Any]:
        return measured(list(tables), n_lags).to_arrays()

    expected = {"covariance": covariance, "autocovariance": autocovariance, "n": sum(lengths)}
    assert_as_exact_as_data(answer(*tables), expected, tolerance(answer, *tables))


def test_no_lag_reaches_into_another_recording():
    """Each recording is constant; across the edge the products would be negative."""
    tables = [np.full((5, 2), 1.0), np.full((5, 2), -1.0)]

    np.testing.assert_allclose(measured(tables, 5).autocovariance, 1.0)


def test_recordings_add_whichever_site_has_them():
    tables = [SiteTable(table, frames=True) for table in recordings([40, 31, 57, 22], 5, 3)]
    analysis = SecondMoments(20)
    sites = [add_sums(analysis.summarize(table, None) for table in part) for part in (tables[:1], tables[1:])]

    federated = analysis.solve(add_sums(sites), None).to_arrays()

    for name, expected in run_pooled(analysis, tables).to_arrays().items():
        np.testing.assert_allclose(federated[name], expected, rtol=0, atol=1e-12)


def test_refuses_to_measure_no_lag():
    with pytest.raises(HarmonizationError, match="expected at least 1"):
        SecondMoments(0)
