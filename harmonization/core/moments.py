"""Second moments of frames: how parcels go together, and how a parcel goes on in time."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from harmonization.core.checks import check_sizes
from harmonization.core.declared import Declared, Widths, everybody, of_groups
from harmonization.core.errors import HarmonizationError
from harmonization.core.protocol import Analysis, Answer, Array, SiteTable, State, Sums
from harmonization.core.registry import register


@dataclass(frozen=True)
class Moments(Answer):
    """Second moments about zero, over the frames of all sites.

    Attributes
    ----------
    covariance : numpy.ndarray
        [p, p]: mean product of two parcels in one frame, over the frames that have both; 0 for pairs that none has.
        Where parcels are missing here and there, it need not be positive semi-definite: shrink it before inverting.
    pairs : numpy.ndarray
        [p, p]: frames that have both parcels.
    following : numpy.ndarray
        [p, p]: mean product of a parcel's value and another's in the frame before, ``x[t + 1] x[t]'``.
    autocovariance : numpy.ndarray
        [L]: mean product of a parcel's values l frames apart in one recording, over all parcels; 0 for lags that no
        recording is long enough for.
    n : float
        Frames.
    """

    covariance: Array
    pairs: Array
    following: Array
    autocovariance: Array
    n: float


@register
@dataclass(frozen=True)
class SecondMoments(Analysis):
    """Sums of products over frames, in one round. A table is one recording, so that no lag reaches into another.

    They are about zero, since recordings come scaled: z-scored ones have no mean, and robustly scaled ones a small one.

    Parameters
    ----------
    n_lags : int
        Lags 0 to n_lags - 1 of the autocovariance.
    """

    n_lags: int

    name: ClassVar[str] = "second_moments"
    states: ClassVar[tuple[type[State], ...]] = (Moments,)
    rows: ClassVar[Literal["participants", "frames"]] = "frames"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_lags < 1:
            raise HarmonizationError(f"n_lags is {self.n_lags}; expected at least 1.")

    def summarize(self, table: SiteTable, state: State | None) -> Sums:
        check_sizes(table.features, "frames")
        present = (~np.isnan(table.features)).astype(np.float64)
        values = np.where(present > 0, table.features, 0)
        return {
            "n": np.array(float(table.n)),
            "products": values.T @ values,
            "pairs": present.T @ present,
            "following_products": values[1:].T @ values[:-1],
            "following_pairs": present[1:].T @ present[:-1],
            "lagged_products": _lagged_products(values, self.n_lags),
            "lagged_pairs": np.rint(_lagged_products(present, self.n_lags)),
        }

    def sends(self, widths: Widths, state: State | None) -> Declared:
        # Of those who have both parcels of a pair, of whom the site sees that there are enough.
        square, lags = of_groups(everybody(widths.features, widths.features)), everybody(self.n_lags)
        squares = dict.fromkeys(("products", "pairs", "following_products", "following_pairs"), square)
        return {"n": everybody(), **squares, "lagged_products": lags, "lagged_pairs": lags}

    def solve(self, total: Sums, state: State | None) -> State:
        autocovariance = total["lagged_products"] / np.maximum(total["lagged_pairs"], 1)
        return Moments(
            covariance=total["products"] / np.maximum(total["pairs"], 1),
            pairs=total["pairs"],
            following=total["following_products"] / np.maximum(total["following_pairs"], 1),
            autocovariance=np.where(total["lagged_pairs"] > 0, autocovariance, 0),
            n=float(total["n"]),
        )


def _lagged_products(values: Array, n_lags: int) -> Array:
    """Sum over columns of x[t] x[t + l], for l from 0, [n_lags]; by Fourier transform, padded against wrapping."""
    length = next_fast_len(len(values) + n_lags, real=True)
    spectrum = rfft(values, n=length, axis=0)
    products: Array = irfft((spectrum.real**2 + spectrum.imag**2).sum(axis=1), n=length)[:n_lags]
    return products
