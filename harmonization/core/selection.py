"""Features that everybody has: what analyses look at where some are missing."""

from dataclasses import dataclass

import numpy as np

from harmonization.core.checks import check_width
from harmonization.core.protocol import Answer, Array


@dataclass(frozen=True)
class Selection(Answer):
    """Which features to look at: `kept` [p] is 1 for these, and 0 for others."""

    kept: Array

    def select(self, features: Array) -> Array:
        """Return the k kept ones of features [n, p]: [n, k]."""
        check_width(features, len(self.kept))
        return features[:, np.asarray(self.kept) > 0]
