"""Which tokens the encoder sees.

A token's noise decides: in each window the tokens of smallest noise stay visible, as in He et al., Masked
Autoencoders (CVPR 2022). Tokens of missing parcels are neither seen nor scored.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from brainlm.config import MaskConfig


@dataclass(frozen=True)
class TokenSplit:
    """Visible and hidden tokens of a batch.

    Attributes
    ----------
    visible, hidden : torch.Tensor
        Token indices [B, N_visible] and [B, N_hidden].
    visible_valid, hidden_valid : torch.Tensor or None
        Bool of the same shapes, False where a row is padding; None if no row is.
    """

    visible: Tensor
    hidden: Tensor
    visible_valid: Tensor | None
    hidden_valid: Tensor | None


def draw_noise(mask: MaskConfig, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> Tensor:
    """Draw the noise [B, N] in [0, 1) that hides tokens after `mask`.

    Parameters
    ----------
    mask : MaskConfig
        Kind of the mask.
    shape : tuple of int
        Windows, parcels and patches a parcel. Tokens count parcel by parcel.
    generator : torch.Generator, optional
        Source of the numbers; torch's own if not given.
    """
    n_windows, n_parcels, n_patches = shape
    if mask.kind == "parcel":
        parcels = torch.rand(n_windows, n_parcels, 1, generator=generator)
        return parcels.expand(-1, -1, n_patches).reshape(n_windows, -1)
    return torch.rand(n_windows, n_parcels * n_patches, generator=generator)


def split_tokens(noise: Tensor, mask: MaskConfig, n_patches: int, valid: Tensor | None) -> TokenSplit:
    """Split tokens into visible and hidden ones.

    Of V valid tokens ``int(V * (1 - ratio))`` stay visible, at least one; masks of whole parcels count parcels.

    Parameters
    ----------
    noise : torch.Tensor
        [B, N], smallest stay visible.
    n_patches : int
        Tokens a parcel.
    valid : torch.Tensor or None
        [B, P] bool, False for missing parcels; None if all are there.
    """
    n_windows, n_tokens = noise.shape
    unit = n_patches if mask.kind == "parcel" else 1
    if valid is None:
        n_visible = max(1, int(n_tokens // unit * (1 - mask.ratio))) * unit
        order = torch.argsort(noise, dim=1, stable=True)
        return TokenSplit(order[:, :n_visible], order[:, n_visible:], None, None)

    valid_tokens = valid.repeat_interleave(n_patches, dim=1)
    order = torch.argsort(noise.masked_fill(~valid_tokens, torch.inf), dim=1, stable=True)
    n_valid = valid_tokens.sum(dim=1)
    n_visible = (((n_valid // unit).double() * (1 - mask.ratio)).long().clamp(min=1) * unit).minimum(n_valid)
    n_hidden = n_valid - n_visible
    rank = torch.arange(n_tokens, device=noise.device).expand(n_windows, -1)
    columns = rank[:, : int(n_visible.max())]
    visible = order.gather(1, columns)
    hidden_rank = n_visible[:, None] + rank[:, : int(n_hidden.max())]
    hidden = order.gather(1, hidden_rank.clamp(max=n_tokens - 1))
    return TokenSplit(
        visible,
        hidden,
        _unless_all(columns < n_visible[:, None]),
        _unless_all(rank[:, : hidden.shape[1]] < n_hidden[:, None]),
    )


def _unless_all(rows: Tensor) -> Tensor | None:
    return None if bool(rows.all()) else rows
