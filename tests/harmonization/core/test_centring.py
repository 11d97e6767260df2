import numpy as np

from harmonization.core.centring import centred


def test_a_constant_column_is_exactly_zero():
    """The plain mean of many 0.1 is not 0.1."""
    values = np.tile([0.1, 1e6 + 0.3, -7e-9, 0.0], (2001, 1))
    assert (values - values.mean(axis=0)).any()

    np.testing.assert_array_equal(centred(values), 0)


def test_small_variation_far_from_zero_is_kept():
    values = np.array([[1e6], [1e6 + 2**-20], [1e6 - 2**-20]])

    np.testing.assert_allclose(centred(values)[:, 0], [0, 2**-20, -(2**-20)], atol=1e-12)


def test_missing_values_count_for_nothing():
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [4.0, np.nan], [7.0, np.nan]])

    np.testing.assert_allclose(centred(values), [[-3, 0], [0, 0], [0, 0], [3, 0]])
