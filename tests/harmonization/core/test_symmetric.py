import numpy as np
import pytest

from harmonization.core.symmetric import pack, unpack


@pytest.mark.parametrize("size", [1, 2, 37])
def test_one_triangle_says_it_all(size):
    half = np.random.default_rng(0).normal(size=(size, size))
    matrix = half + half.T

    assert len(pack(matrix)) == size * (size + 1) // 2
    np.testing.assert_array_equal(unpack(pack(matrix)), matrix)
