"""Which tokens the encoder sees.

A token's noise decides: in each window the tokens of smallest noise stay visible, as in He et al., Masked
Autoencoders (CVPR 2022). Tokens of missing parcels are neither seen nor scored.

Shapes: B windows, P parcels (or groups of parcels that share a token), S patches of time, N = P * S tokens, which count
parcel by parcel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from brainlm.config import MaskConfig

_ROUNDING = 1e-6
"""10 * (1 - 0.8) is a little below 2."""


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

    def masks(self, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Return bool [B, N], one True for each visible token, the other for each hidden one."""
        return _mark(self.visible, self.visible_valid, n_tokens), _mark(self.hidden, self.hidden_valid, n_tokens)


def choose_mask(mask: MaskConfig, progress: float = 1.0, generator: torch.Generator | None = None) -> MaskConfig:
    """Choose what one batch hides: a kind out of a mixture, and the ratio at this point of the training.

    Parameters
    ----------
    mask : MaskConfig
        The model's.
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

    Parameters
    ----------
    n_parcels, n_patches : int
        Parcels (or groups of parcels that share a token), P, and patches a parcel, S.
    decode_every : int
        Of the tokens hidden at random, training predicts every n-th.
    """
    noise = draw_noise(mask, (1, n_parcels, n_patches), torch.Generator().manual_seed(0))
    visible, hidden = split_tokens(noise, mask, n_patches, None).masks(n_parcels * n_patches)
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
    """Draw the noise [B, N] in [0, 1) that hides tokens after `mask`.

    Parameters
    ----------
    mask : MaskConfig
        Kind of the mask.
    shape : tuple of int
        Windows, parcels and patches a parcel: B, P, S.
    generator : torch.Generator, optional
        Source of the numbers; torch's own if not given.
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


def split_tokens(noise: Tensor, mask: MaskConfig, n_patches: int, valid: Tensor | None) -> TokenSplit:
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
    """
    n_windows, n_tokens = noise.shape
    if valid is None:
        unit = {"parcel": n_patches, "time": n_tokens // n_patches, "future": n_tokens // n_patches}.get(mask.kind, 1)
        n_visible = max(1, int(n_tokens // unit * (1 - mask.ratio) + _ROUNDING)) * unit
        order = torch.argsort(noise, dim=1, stable=True)
        return TokenSplit(order[:, :n_visible], order[:, n_visible:], None, None)

    valid_tokens = valid.repeat_interleave(n_patches, dim=1)
    order = torch.argsort(noise.masked_fill(~valid_tokens, torch.inf), dim=1, stable=True)
    n_valid = valid_tokens.sum(dim=1)
    units = {"parcel": torch.full_like(n_valid, n_patches), "time": valid.sum(dim=1), "future": valid.sum(dim=1)}
    unit_of = units.get(mask.kind, torch.ones_like(n_valid)).clamp(min=1)
    n_units = (n_valid // unit_of).double() * (1 - mask.ratio) + _ROUNDING
    visible_counts = (n_units.long().clamp(min=1) * unit_of).minimum(n_valid)
    hidden_counts = n_valid - visible_counts
    rank = torch.arange(n_tokens, device=noise.device).expand(n_windows, -1)
    columns = rank[:, : int(visible_counts.max())]
    visible = order.gather(1, columns)
    hidden_rank = visible_counts[:, None] + rank[:, : int(hidden_counts.max())]
    hidden = order.gather(1, hidden_rank.clamp(max=n_tokens - 1))
    return TokenSplit(
        visible,
        hidden,
        _unless_all(columns < visible_counts[:, None]),
        _unless_all(rank[:, : hidden.shape[1]] < hidden_counts[:, None]),
    )


def _mark(index: Tensor, rows: Tensor | None, n_tokens: int) -> Tensor:
    there = torch.ones_like(index, dtype=torch.bool) if rows is None else rows
    # Padding is marked in a column of its own, which is cut off.
    marked = there.new_zeros(len(index), n_tokens + 1)
    return marked.scatter(1, index.masked_fill(~there, n_tokens), value=True)[:, :-1]


def _unless_all(rows: Tensor) -> Tensor | None:
    return None if bool(rows.all()) else rows
