"""Features that everybody has: what analyses look at where some are missing."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harmonization.core.checks import check_width
from harmonization.core.protocol import Array, State


@dataclass(frozen=True)
class Selection(State):
    """Which features to look at: `kept` [p] is 1 for these, and 0 for others."""

    kept: Array

    done: ClassVar[bool] = True

    def select(self, features: Array) -> Array:
        """Return the k kept ones of features [n, p]: [n, k]."""
        check_width(features, len(self.kept))
        return features[:, np.asarray(self.kept) > 0]
