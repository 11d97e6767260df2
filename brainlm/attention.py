"""Factorised attention: a token looks at other parcels at the same time, and at its own parcel at other times.

Shapes: B windows; tokens lie on a grid of G groups of parcels and S spans of time, N = G * S, and count group by group;
M tokens of a window are chosen, K is the largest number of them in one span; D is the width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BOUND = 30.0


class Chosen(NamedTuple):
    """Some tokens of every window, and where they go when they are sorted."""

    rows: Tensor
    """[B, M], which token each is, in order. Windows may have different numbers; the last rows then repeat a token."""
    there: Tensor
    """[B, M] bool, False for such rows."""
    on_grid: Tensor
    """[B, G, S] bool, the same tokens on the grid."""
    from_grid: Tensor
    """[B, N], which row of M is at each place of the grid; any where none is."""
    slot: Tensor
    """[B, M], the place s * K + k of each when they are sorted by span."""
    from_slot: Tensor
    """[B, S * K], which row of M is in each slot; any where none is."""
    slot_taken: Tensor
    """[B, S, K] bool, False where none is, since spans have different numbers."""

    @classmethod
    def of(cls, on_grid: Tensor) -> "Chosen":
        """Choose the tokens that are True in `on_grid` [B, G, S]."""
        n_spans = on_grid.shape[2]
        flat = on_grid.flatten(1)
        count = flat.sum(dim=1, keepdim=True)
        n_rows = max(1, int(count.max()))
        rows = flat.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :n_rows]
        from_grid = (flat.cumsum(dim=1) - 1).clamp(min=0)
        in_span = on_grid.sum(dim=1)  # [B, S]
        longest = max(1, int(in_span.max()))
        by_span = on_grid.transpose(1, 2).logical_not().to(torch.uint8).argsort(dim=2, stable=True)[..., :longest]
        token = by_span * n_spans + torch.arange(n_spans, device=on_grid.device)[:, None]  # [B, S, K]
        rank = (on_grid.cumsum(dim=1) - 1).clamp(min=0) + torch.arange(n_spans, device=on_grid.device) * longest
        return cls(
            rows,
            torch.arange(n_rows, device=on_grid.device) < count,
            on_grid,
            from_grid,
            rank.flatten(1).gather(1, rows),
            from_grid.gather(1, token.flatten(1)),
            torch.arange(longest, device=on_grid.device) < in_span[..., None],
        )

    def take(self, tokens: Tensor) -> Tensor:
        """Take these out of all tokens [B, N, D] → [B, M, D]."""
        return take_rows(tokens, self.rows)

    def put(self, tokens: Tensor) -> Tensor:
        """Put these tokens [B, M, D] in their places on the grid [B, G, S, D]; what is elsewhere means nothing."""
        return take_rows(tokens, self.from_grid).unflatten(1, self.on_grid.shape[1:])

    def by_span(self, tokens: Tensor) -> Tensor:
        """Sort these tokens [B, M, D] by span → [B, S, K, D]; what is in the slots not taken means nothing."""
        return take_rows(tokens, self.from_slot).unflatten(1, self.slot_taken.shape[1:])

    def from_spans(self, tokens: Tensor) -> Tensor:
        """Undo `by_span`: [B, S, K, D] → [B, M, D]."""
        return take_rows(tokens.flatten(1, 2), self.slot)


class Tokens(NamedTuple):
    """Tokens and where they are."""

    values: Tensor
    """[B, M, D]."""
    place: Tensor
    """[B, M, D], the code of where in the brain each is."""
    chosen: Chosen
    """Which tokens they are."""


class SpaceAttention(nn.Module):
    """Attention from each token to the context's tokens of the same time span.

    Queries and keys are told the place again in every block, values are not: whom to look at depends on where, what is
    passed on does not (as in Carion et al., DETR, 2020).
    """

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tokens, context: Tokens) -> Tensor:
        """[B, M, D] → [B, M, D]."""
        q = self._by_span(self.query(tokens.values + tokens.place), tokens.chosen)  # [B * S, heads, K, d]
        k = self._by_span(self.key(context.values + context.place), context.chosen)
        v = self._by_span(self.value(context.values), context.chosen)
        taken = context.chosen.slot_taken
        alone = ~taken.any(dim=2)  # spans of which nothing can be seen
        allowed = None if bool(taken.all()) else (taken | alone[..., None]).flatten(0, 1)[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, taken.shape[:2])
        if bool(alone.any()):
            mixed = mixed.masked_fill(alone[..., None, None], 0.0)
        return self.project(tokens.chosen.from_spans(mixed))

    def _by_span(self, values: Tensor, chosen: Chosen) -> Tensor:
        """[B, M, D] → [B * S, heads, K, D / heads]."""
        return chosen.by_span(values).unflatten(-1, (self.heads, -1)).transpose(2, 3).flatten(0, 1)


class TimeAttention(nn.Module):
    """Attention from each token to the context's tokens of the same parcels, by how far apart they are in time.

    How much a token looks at another depends on nothing else, as in a convolution that leaves out what is hidden. It
    looks at nothing, too, with a weight of its own: a parcel may have no visible token.
    """

    def __init__(self, width: int, heads: int, context_width: int, n_spans: int) -> None:
        super().__init__()
        self.heads = heads
        self.value = nn.Linear(context_width, width)
        self.project = nn.Linear(width, width)
        self.distance = nn.Embedding(2 * n_spans, heads)  # the last row is the weight of nothing
        span = torch.arange(n_spans)
        self.register_buffer("apart", span[:, None] - span + n_spans - 1, persistent=False)

    def forward(self, chosen: Chosen, context: Tokens) -> Tensor:
        """Mix the context [B, M', D'] for the `chosen` tokens → [B, M, D]."""
        seen = context.chosen.on_grid[:, :, None, None]  # [B, G, 1, 1, S]
        # Every window looks the scores up for itself: private training tells windows' gradients apart by their inputs.
        every = torch.arange(self.distance.num_embeddings, device=seen.device).expand(len(seen), -1)
        # A softmax over what is seen and nothing, with scores bounded so that no exponential overflows or vanishes.
        exponential = self.distance(every).float().clamp(-_BOUND, _BOUND).exp().transpose(1, 2)[:, None]
        weight = exponential[..., self.apart] * seen  # [B, G, heads, S, S]
        weight = weight / (weight.sum(dim=-1, keepdim=True) + exponential[..., -1, None, None])
        v = context.chosen.put(self.value(context.values)).unflatten(-1, (self.heads, -1)).transpose(2, 3)
        mixed = weight.to(v) @ v  # [B, G, heads, S, d]
        return self.project(chosen.take(mixed.transpose(2, 3).flatten(3).flatten(1, 2)))


class Perceptron(nn.Sequential):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = int(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Block(nn.Module):
    """Attention over space, attention over time and a perceptron, each with a residual path and the norm before it.

    Parameters
    ----------
    width, heads : int
        Of the tokens.
    mlp_ratio : float
        Hidden width of the perceptron over `width`.
    n_spans : int
        Spans of time.
    context_width : int, optional
        Width of the tokens that are looked at; if not given, tokens look at each other.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, n_spans: int, context_width: int | None = None
    ) -> None:
        super().__init__()
        self.norm_space = nn.LayerNorm(width)
        self.space = SpaceAttention(width, heads, context_width or width)
        # Over time only the context's values count, not the tokens' own; the encoder's last norm is the context's.
        self.norm_time = nn.LayerNorm(width) if context_width is None else None
        self.time = TimeAttention(width, heads, context_width or width, n_spans)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Perceptron(width, mlp_ratio)

    def forward(self, tokens: Tokens, context: Tokens | None = None) -> Tokens:
        """[B, M, D] → [B, M, D]; `context` is what is looked at, if not the tokens themselves."""
        values = tokens.values
        normed = tokens._replace(values=self.norm_space(values))
        values = values + self.space(normed, context or normed)
        if self.norm_time is not None:
            normed = tokens._replace(values=self.norm_time(values))
        values = values + self.time(tokens.chosen, context or normed)
        return tokens._replace(values=values + self.mlp(self.norm_mlp(values)))


def take_rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Take rows `index` [B, M] of `tokens` [B, N, D] → [B, M, D]."""
    first = torch.arange(len(tokens), device=tokens.device)[:, None] * tokens.shape[1]
    return tokens.flatten(0, 1).index_select(0, (index + first).flatten()).unflatten(0, index.shape)
