"""Robust scaling: medians and interquartile ranges of parcels, shared by all sites with an atlas."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from brainlm.errors import BrainLMError, CheckpointError

QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Scaling:
    """What ``scaling: robust`` subtracts from each parcel, and divides it by.

    BrainLM (Ortega Caro et al., ICLR 2024) describes (x - median) / IQR, each parcel's over all recordings. The code
    that was released with it computes x - median / IQR, for want of a bracket; that slip is not repeated here.
    """

    median: np.ndarray
    iqr: np.ndarray
    """[P] float64, in the recordings' units. Parcels that do not vary have an `iqr` of 1. Those that too few recordings
    have for a measure have one of infinity: they scale to 0, the middle of all others, and not to a size that no model
    expects."""

    @classmethod
    def from_quartiles(cls, quartiles: np.ndarray) -> Self:
        """Make it from quantiles [3, P] at `QUARTILES`, which are NaN for parcels that no recording has."""
        first, median, third = quartiles
        iqr = np.where(third > first, third - first, 1.0)
        unknown = np.isnan(median)
        return cls(np.where(unknown, 0.0, median), np.where(unknown, np.inf, iqr))

    def apply(self, signal: np.ndarray) -> np.ndarray:
        """Scale a signal [T, P]; a BrainLMError refuses another number of parcels."""
        if signal.shape[1:] != self.median.shape:
            raise BrainLMError(
                f"the scaling is for {len(self.median)} parcels, the signal has {signal.shape[1]}. "
                "Use the scaling of the recordings' atlas."
            )
        return (signal - self.median) / self.iqr

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return median and iqr by name."""
        return {"median": self.median, "iqr": self.iqr}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Read what `to_arrays` returned, or lists of the same."""
        return cls(*(np.asarray(arrays[name], dtype=np.float64) for name in ("median", "iqr")))

    @classmethod
    def from_checkpoint(cls, about: Mapping[str, Any], atlas: str) -> Self:
        """Read the scaling of an atlas from what `load_checkpoint` returns beside the model.

        A CheckpointError says that it was not trained with robust scaling of that atlas.
        """
        stored = about.get("scaling", {})
        if atlas not in stored:
            raise CheckpointError(
                f"the checkpoint holds no scaling for atlas {atlas}; it has {', '.join(sorted(stored)) or 'none'}. "
                "Use recordings in an atlas that the model was trained with."
            )
        return cls.from_arrays(stored[atlas])
