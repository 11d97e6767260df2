"""BrainLM: a vision-transformer masked autoencoder over parcel time series.

A window [P, T] is cut into tokens of one parcel and `patch_frames` frames. The encoder sees the visible tokens; the
decoder predicts each hidden one by attending from its place (where in the brain, when in the window) to what the
encoder made of the visible ones. After Ortega Caro et al., BrainLM (ICLR 2024), He et al., Masked Autoencoders
(CVPR 2022), and for the cross-attention decoder Fu et al., Rethinking Patch Dependence for MAE (2024).

Shapes: B windows, P parcels, T frames, N = P * T / patch_frames tokens, D encoder width, E decoder width.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainlm.config import ModelConfig
from brainlm.errors import ShapeError
from brainlm.masking import draw_noise, split_tokens

_WAVELENGTHS_MM = (320.0, 160.0, 80.0, 40.0, 20.0)


class MAEOutput(NamedTuple):
    """What `BrainLM` returns.

    Attributes
    ----------
    loss : torch.Tensor
        [B], mean squared error over each window's hidden values.
    reconstruction : torch.Tensor
        [B, P, T], predictions where hidden, the signal itself elsewhere.
    mask : torch.Tensor
        [B, P, T], 1 where a value was hidden and scored, else 0.
    latent : torch.Tensor
        [B, N_visible, D], the encoder's tokens. Rows of windows with fewer visible tokens end in zeros.
    """

    loss: Tensor
    reconstruction: Tensor
    mask: Tensor
    latent: Tensor


class Attention(nn.Module):
    """Multi-head attention from `queries` to `context`, in one fused kernel."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.project = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor, context_valid: Tensor | None) -> Tensor:
        q = self._split(self.query(queries))
        k, v = (self._split(part) for part in self.key_value(context).chunk(2, dim=-1))
        allowed = None if context_valid is None else context_valid[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.project(mixed.transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        """[B, N, D] → [B, heads, N, D / heads]."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Perceptron(nn.Sequential):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = int(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class EncoderBlock(nn.Module):
    """Self-attention and a perceptron, each with a residual path and the norm before it."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Perceptron(width, mlp_ratio)

    def forward(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        normed = self.norm_attention(tokens)
        tokens = tokens + self.attention(normed, normed, valid)
        return tokens + self.mlp(self.norm_mlp(tokens))


class DecoderBlock(nn.Module):
    """Cross-attention from hidden tokens to the encoder's, and a perceptron."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, context_width: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, context_width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Perceptron(width, mlp_ratio)

    def forward(self, queries: Tensor, context: Tensor, context_valid: Tensor | None) -> Tensor:
        queries = queries + self.attention(self.norm_attention(queries), context, context_valid)
        return queries + self.mlp(self.norm_mlp(queries))


class PlaceCode(nn.Module):
    """Codes where (millimetres) and when (patch) a token is; works for any atlas and number of parcels."""

    def __init__(self, width: int, n_patches: int) -> None:
        super().__init__()
        self.where = nn.Linear(6 * len(_WAVELENGTHS_MM), width)
        self.register_buffer("when", sinusoid(torch.arange(n_patches), width), persistent=False)

    def forward(self, coordinates: Tensor) -> Tensor:
        """[B, P, 3] mm → [B, P, patches, width]."""
        phase = coordinates[..., None] * (2 * math.pi / coordinates.new_tensor(_WAVELENGTHS_MM))
        waves = torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(2)  # [B, P, 3 * 2 * wavelengths]
        return self.where(waves)[:, :, None] + self.when


class BrainLM(nn.Module):
    """The masked autoencoder.

    Parameters
    ----------
    config : ModelConfig
        Sizes, window and mask.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        n_patches, patch_frames = config.window.n_patches, config.window.patch_frames
        self.embed = nn.Linear(patch_frames, config.width)
        self.encoder_place = PlaceCode(config.width, n_patches)
        self.encoder = nn.ModuleList(
            EncoderBlock(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.encoder_norm = nn.LayerNorm(config.width)
        self.decoder_place = PlaceCode(config.decoder_width, n_patches)
        # An embedding of one row rather than a bare parameter: Opacus takes per-sample gradients of modules only.
        self.mask_token = nn.Embedding(1, config.decoder_width)
        self.decoder = nn.ModuleList(
            DecoderBlock(config.decoder_width, config.decoder_heads, config.mlp_ratio, config.width)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(config.decoder_width)
        self.predict = nn.Linear(config.decoder_width, patch_frames)
        self.apply(_initialise)

    def forward(
        self,
        signal: Tensor,
        coordinates: Tensor,
        noise: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> MAEOutput:
        """Hide part of each window and reconstruct it.

        Parameters
        ----------
        signal : torch.Tensor
            [B, P, T], scaled.
        coordinates : torch.Tensor
            [B, P, 3], parcel centroids in millimetres.
        noise : torch.Tensor, optional
            [B, N] in [0, 1); the tokens of smallest noise stay visible. Drawn after the config if not given.
        valid : torch.Tensor, optional
            [B, P] bool, False for missing parcels.

        Raises
        ------
        ShapeError
            If a shape does not fit the window.
        """
        patches, valid = self._patches(signal, coordinates, valid)  # [B, N, patch]
        if noise is None:
            noise = self.draw_noise(*signal.shape[:2]).to(signal.device)
        if noise.shape != patches.shape[:2]:
            raise ShapeError(f"noise has shape {list(noise.shape)}; expected {list(patches.shape[:2])}.")
        split = split_tokens(noise, self.config.mask, self.config.window.n_patches, valid)

        latent = self._encode(patches, coordinates, split.visible, split.visible_valid)
        places = self.decoder_place(coordinates).flatten(1, 2)  # [B, N, E]
        queries = _gather(places + self.mask_token.weight[0], split.hidden)
        for block in self.decoder:
            queries = block(queries, latent, split.visible_valid)
        predicted = self.predict(self.decoder_norm(queries)).float()  # [B, N_hidden, patch]

        scored = predicted.new_ones(split.hidden.shape)
        if split.hidden_valid is not None:
            scored = split.hidden_valid.to(predicted)
        error = (predicted - _gather(patches, split.hidden)).square().mean(dim=-1) * scored
        loss = error.sum(dim=1) / scored.sum(dim=1).clamp(min=1)
        if split.visible_valid is not None:
            latent = latent * split.visible_valid[..., None]
        return MAEOutput(
            loss,
            self._unpatch(self._scatter(patches, split.hidden, predicted, scored), signal.shape),
            self._unpatch(
                self._scatter(torch.zeros_like(patches), split.hidden, torch.ones_like(predicted), scored),
                signal.shape,
            ),
            latent,
        )

    def encode(self, signal: Tensor, coordinates: Tensor, valid: Tensor | None = None) -> Tensor:
        """Encode windows with nothing hidden and average their tokens.

        Returns
        -------
        torch.Tensor
            [B, D], the mean over the tokens of the parcels that are there.
        """
        patches, valid = self._patches(signal, coordinates, valid)
        everything = torch.arange(patches.shape[1], device=signal.device).expand(len(signal), -1)
        rows = None if valid is None else valid.repeat_interleave(self.config.window.n_patches, dim=1)
        latent = self._encode(patches, coordinates, everything, rows)
        if rows is None:
            return latent.mean(dim=1)
        weights = rows.to(latent)[..., None]
        return (latent * weights).sum(dim=1) / weights.sum(dim=1)

    def draw_noise(self, n_windows: int, n_parcels: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the noise [B, N] that hides tokens after the config."""
        return draw_noise(self.config.mask, (n_windows, n_parcels, self.config.window.n_patches), generator)

    def _encode(self, patches: Tensor, coordinates: Tensor, visible: Tensor, visible_valid: Tensor | None) -> Tensor:
        places = self.encoder_place(coordinates).flatten(1, 2)  # [B, N, D]
        tokens = self.embed(_gather(patches, visible)) + _gather(places, visible)
        for block in self.encoder:
            tokens = block(tokens, visible_valid)
        return self.encoder_norm(tokens)

    def _patches(self, signal: Tensor, coordinates: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Cut the windows into tokens [B, N, patch], after checking all shapes."""
        window = self.config.window
        if signal.ndim != 3 or signal.shape[2] != window.n_frames:
            raise ShapeError(
                f"signal has shape {list(signal.shape)}; expected [windows, parcels, {window.n_frames} frames]."
            )
        if coordinates.shape != (*signal.shape[:2], 3):
            raise ShapeError(f"coordinates have shape {list(coordinates.shape)}; expected {[*signal.shape[:2], 3]}.")
        if valid is not None and (valid.shape != signal.shape[:2] or valid.dtype != torch.bool):
            raise ShapeError(
                f"valid is {valid.dtype} {list(valid.shape)}; expected torch.bool {list(signal.shape[:2])}."
            )
        if valid is not None and bool(valid.all()):
            valid = None
        return signal.unflatten(2, (-1, window.patch_frames)).flatten(1, 2), valid

    @staticmethod
    def _unpatch(patches: Tensor, shape: torch.Size) -> Tensor:
        """[B, N, patch] → [B, P, T]."""
        return patches.reshape(shape)

    @staticmethod
    def _scatter(patches: Tensor, index: Tensor, values: Tensor, scored: Tensor) -> Tensor:
        """Put `values` in the place of the scored tokens of `patches`."""
        kept = _gather(patches, index)
        chosen = torch.where(scored[..., None] > 0, values, kept)
        return patches.scatter(1, index[..., None].expand_as(chosen), chosen)


def sinusoid(position: Tensor, width: int) -> Tensor:
    """Sine-cosine code [len(position), width] of integer positions (Vaswani et al. 2017)."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = position[:, None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters())


def _gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Take rows `index` [B, M] of `tokens` [B, N, D] → [B, M, D]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
