"""Which tokens the encoder sees.

A token's noise decides: in each window the tokens of smallest noise stay visible, as in He et al., Masked
Autoencoders (CVPR 2022). Tokens of missing parcels are neither seen nor scored.

Shapes: B windows, P parcels (or groups of parcels that share a token), S patches of time, N = P * S tokens, which count
parcel by parcel.
"""

import torch
from torch import Tensor

from brainlm.config import MaskConfig

_ROUNDING = 1e-6
"""10 * (1 - 0.8) is a little below 2."""


def choose_mask(mask: MaskConfig, progress: float = 1.0, generator: torch.Generator | None = None) -> MaskConfig:
    """Choose what one batch hides: a kind out of a mixture, and the ratio at this point of the training.

    Parameters
    ----------
    progress : float
        Fraction of the training that is done; 1 in evaluation.
    generator : torch.Generator, optional
        Source of the choice.
    """
    kind = mask.kind
    if kind == "mixed":
        kinds = sorted(mask.weights)
        weights = torch.tensor([mask.weights[name] for name in kinds])
        kind = kinds[int(torch.multinomial(weights, 1, generator=generator))]
    start = mask.ratio if mask.initial_ratio is None else mask.initial_ratio
    return MaskConfig(kind=kind, ratio=start + (mask.ratio - start) * min(1.0, progress))


def masks_of(mask: MaskConfig) -> list[MaskConfig]:
    """List what `choose_mask` may choose: every kind, at the first ratio of the training and at the last."""
    kinds = sorted(mask.weights) if mask.kind == "mixed" else [mask.kind]
    ratios = dict.fromkeys((mask.ratio, mask.ratio if mask.initial_ratio is None else mask.initial_ratio))
    return [MaskConfig(kind=kind, ratio=ratio) for kind in kinds for ratio in ratios]


def count_tokens(mask: MaskConfig, n_parcels: int, n_patches: int, decode_every: int = 1) -> tuple[int, int]:
    """Count the tokens of a whole window that a mask of one kind leaves visible, and those that training predicts.

    The window has P times S tokens; of those hidden at random, training predicts every n-th (`decode_every`).
    """
    noise = draw_noise(mask, (1, n_parcels, n_patches), torch.Generator().manual_seed(0))
    visible, hidden, _ = split_tokens(noise, mask, n_patches, None)
    return int(visible.sum()), int((hidden & predicted_in_training(mask, decode_every, noise)).sum())


def predicted_in_training(mask: MaskConfig, n: int, noise: Tensor) -> Tensor:
    """Mark, as bool [B, N], the tokens that training predicts where they are hidden: every n-th in order of noise.

    Where whole parcels or spans are hidden, all are.
    """
    if n == 1 or mask.kind != "random":
        return torch.ones_like(noise, dtype=torch.bool)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return rank % n == 0


def draw_noise(mask: MaskConfig, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> Tensor:
    """Draw the noise [B, N] in [0, 1) that hides tokens after a mask of one kind; the `shape` is B, P, S.

    Its numbers are torch's own if no generator is given.
    """
    n_windows, n_parcels, n_patches = shape
    if mask.kind == "parcel":
        noise = torch.rand(n_windows, n_parcels, 1, generator=generator)
    elif mask.kind == "time":
        # Ranks, which never tie: tied patches would share their tokens between seen and hidden.
        noise = torch.rand(n_windows, 1, n_patches, generator=generator).argsort(dim=2) / n_patches
    elif mask.kind == "future":
        noise = torch.arange(n_patches).expand(n_windows, 1, -1) / n_patches
    else:
        noise = torch.rand(n_windows, n_parcels, n_patches, generator=generator)
    return noise.expand(-1, n_parcels, n_patches).reshape(n_windows, -1)


def split_tokens(
    noise: Tensor, mask: MaskConfig, n_patches: int, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Split tokens into visible and hidden ones.

    Of V valid tokens ``int(V * (1 - ratio))`` stay visible, at least one; masks of whole parcels count parcels, masks
    of whole time spans count patches.

    Parameters
    ----------
    noise : torch.Tensor
        [B, N], smallest stay visible.
    n_patches : int
        Tokens a parcel, S.
    valid : torch.Tensor or None
        [B, P] bool, False for missing parcels; None if all are there.

    Returns
    -------
    visible, hidden : torch.Tensor
        [B, N] bool.
    order : torch.Tensor
        [B, N_visible], the visible tokens, those of least noise first; rows of windows with fewer end in other tokens.
    """
    if valid is None:
        valid = torch.ones(len(noise), noise.shape[1] // n_patches, dtype=torch.bool, device=noise.device)
    there = valid.repeat_interleave(n_patches, dim=1)
    n_parcels, n_there = valid.sum(dim=1), there.sum(dim=1)
    units = {"parcel": torch.full_like(n_there, n_patches), "time": n_parcels, "future": n_parcels}
    unit = units.get(mask.kind, torch.ones_like(n_there)).clamp(min=1)
    n_units = (n_there // unit).double() * (1 - mask.ratio) + _ROUNDING
    n_visible = (n_units.long().clamp(min=1) * unit).minimum(n_there)
    order = noise.masked_fill(~there, torch.inf).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    visible = rank < n_visible[:, None]
    return visible, ~visible & (rank < n_there[:, None]), order[:, : int(n_visible.max())]
