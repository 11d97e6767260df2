"""Gaussian noise that nobody can predict, and sums that carry it."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from brainlm.config import SummaryNoise
from client.door.spending import Spend
from exchange.refusals import Refusal, RefusalCode
from harmonization import Analysis, SiteTable, State
from harmonization.core.protocol import Array, Sums

RandomBytes = Callable[[int], bytes]
"""Gives so many random bytes. `os.urandom` is the operating system's cryptographic source; tests give another."""


def draw_normal(n: int, random_bytes: RandomBytes = os.urandom) -> Tensor:
    """Draw standard normal numbers [n], float64, straight from random bytes (Box & Muller 1958).

    Not from a generator of torch, although that is faster: a CPU's has only 2^32 streams, and a weight without a
    gradient would show which of them it was, and with it the noise of all other weights.
    """
    half = (n + 1) // 2
    whole = np.frombuffer(random_bytes(16 * half), dtype=np.uint64) >> np.uint64(11)
    uniform = torch.from_numpy(whole.astype(np.float64) * 2.0**-53)  # [0, 1), all 53 bits of a float64
    radius = uniform[:half].neg().log1p().mul(-2).sqrt()
    angle = uniform[half:] * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:n]


def summarize_with_noise(
    analysis: Analysis,
    table: SiteTable,
    state: State | None,
    noise: SummaryNoise,
    random_bytes: RandomBytes = os.urandom,
) -> tuple[Sums, Spend]:
    """Sum what an analysis asks for over participants, so that none of them can be told to be in the sums.

    Returns
    -------
    sums : dict
        With noise.
    spend : Spend
        What their release costs, to be written down before they leave.

    Raises
    ------
    Refusal
        If the analysis is not a sum over participants.
    """
    if not analysis.additive:
        raise Refusal(
            RefusalCode.NOT_PRIVATE,
            f"'{analysis.name}' is no plain sum over participants, so there is no bound on what one of them changes. "
            "Leave it out, or summary noise.",
        )
    analysis.summarize(table, state)  # refuses what the site's own rules refuse, whatever the noise
    return add_with_noise((analysis.summarize(of_one, state) for of_one in _each(table)), noise, random_bytes)


def add_with_noise(
    contributions: Iterable[Sums], noise: SummaryNoise, random_bytes: RandomBytes = os.urandom
) -> tuple[Sums, Spend]:
    """Add one dict a participant, each shortened to the length ``noise.clip`` over all its numbers, and noise to each.

    Returns as `summarize_with_noise` does.
    """
    total, shapes = None, {}
    for sums in contributions:
        shapes = {name: np.shape(values) for name, values in sums.items()}
        vector = _shorten(np.concatenate([np.ravel(values) for values in sums.values()]), noise.clip)
        total = vector if total is None else total + vector
    assert total is not None, "a site has participants"
    total = total + noise.noise_multiplier * noise.clip * draw_normal(len(total), random_bytes).numpy()
    bounds = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
    parts = zip(shapes, np.split(total, bounds), strict=True)
    return {name: part.reshape(shapes[name]) for name, part in parts}, Spend(noise.noise_multiplier, 1.0, 1)


def _each(table: SiteTable) -> Iterator[SiteTable]:
    """Iterate over the rows of each participant; the rule for small groups is for all of them together."""
    whose = np.arange(table.n) if table.participant is None else table.participant
    for participant in np.unique(whose):
        yield replace(table.take(whose == participant), min_group=1)


def _shorten(vector: Array, clip: float) -> Array:
    """Shorten a vector to the length `clip` if it is longer; to nothing if it has none that is finite."""
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length):
        return np.zeros_like(vector)
    return vector * (clip / length) if length > clip else vector
