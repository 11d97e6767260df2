"""Where in the brain a token is: a code of millimetres, so that any atlas can be read."""

import math

import torch
from torch import Tensor, nn

_DIRECTIONS = 64
_SHORTEST_MM, _LONGEST_MM = 15.0, 300.0


class PlaceCode(nn.Module):
    """Code coordinates by waves through the brain, mixed by a perceptron.

    Each wave has a direction and a length of its own; directions cover the half sphere evenly (Fibonacci lattice),
    lengths go from half a parcel's width to the whole head. Fine waves tell neighbours apart, which coarse ones cannot
    (Tancik et al., Fourier Features, NeurIPS 2020).
    """

    waves: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("waves", _waves(), persistent=False)
        self.mix = nn.Sequential(nn.Linear(2 * _DIRECTIONS, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, coordinates: Tensor) -> Tensor:
        """[B, G, 3] mm → [B, G, width]."""
        with torch.autocast(coordinates.device.type, enabled=False):  # bfloat16 would be wrong by a tenth of a turn
            phase = coordinates.float() @ self.waves
        return self.mix(torch.cat([phase.sin(), phase.cos()], dim=-1))


def _waves() -> Tensor:
    """Wave vectors [3, directions] in radians a millimetre."""
    number = torch.arange(_DIRECTIONS, dtype=torch.float64)
    golden = (math.sqrt(5) - 1) / 2
    height = (number + 0.5) / _DIRECTIONS
    turn = 2 * math.pi * golden * number
    radius = (1 - height.square()).sqrt()
    directions = torch.stack([radius * turn.cos(), radius * turn.sin(), height])
    # Lengths in another irrational order than the directions, so that neither tells the other.
    share = (number * (math.sqrt(2) - 1)) % 1.0
    lengths = _SHORTEST_MM * (_LONGEST_MM / _SHORTEST_MM) ** share
    return (2 * math.pi * directions / lengths).float()
