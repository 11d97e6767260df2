import numpy as np
import pytest

from harmonization import TableError
from harmonization.core.selection import Selection


def test_keeps_features_in_their_order():
    features = np.arange(12.0).reshape(3, 4)

    np.testing.assert_array_equal(Selection(np.array([1, 0, 0, 1.0])).select(features), features[:, [0, 3]])
    with pytest.raises(TableError, match="in the same order"):
        Selection(np.ones(5)).select(features)
