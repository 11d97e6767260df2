"""The 2023 release of BrainLM (``model_type: brainlm_mae``): dense attention over all tokens of one parcel each.

Tokens of one parcel and `patch_frames` frames get a linear code of the parcel's coordinates and a sine-cosine code of
time. Blocks normalise after each residual path; attention is softmax attention plus a depth-wise convolution of the
values along the sequence, the residual branch of the Nystromformer (Xiong et al., AAAI 2021), whose landmarks the
release never uses. Encoder tokens stand in the order of their noise, which the convolution sees.

Shapes: B windows, P parcels, T frames, N = P * T / patch_frames tokens, D encoder width, E decoder width.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from base.errors import SettingsError
from brainlm.model import initialise
from brainlm.released.base import (
    ACTIVATIONS,
    Decoder,
    Embeddings,
    ReleasedConfig,
    ReleasedModel,
    SelfAttention,
    ViT,
    dense,
)

_TIME_DROPOUT = 0.1
"""Dropout after the time code while training; no setting of the release changes it."""


class DenseConfig(ReleasedConfig):
    """Settings of the dense release, named as in its ``config.json``."""

    CODE_UNIT = 2
    architecture: Literal["brainlm_mae"] = "brainlm_mae"
    num_brain_voxels: int = Field(ge=1)
    """Parcels."""
    loss_fn: Literal["mse", "mae"] = "mse"
    use_tanh_decoder: bool = False
    """End the decoder with a tanh."""
    conv_kernel_size: int | None = Field(65, ge=1)
    """Tokens that the convolution on the values spans; null for none."""
    num_landmarks: int = 64
    segment_means_seq_len: int = 64
    """The release computes exact attention only where these two are equal."""
    patch_size: int = Field(16, ge=1)
    """With `num_channels` the size of the head `decoder.decoder_pred`, which files hold and nothing uses."""

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.num_landmarks != self.segment_means_seq_len:
            yield (
                f"num_landmarks {self.num_landmarks} differs from segment_means_seq_len {self.segment_means_seq_len}: "
                "Nystrom attention is not supported. Load a model with exact attention, where both are equal."
            )
        if self.conv_kernel_size is not None and self.conv_kernel_size % 2 == 0:
            yield f"conv_kernel_size {self.conv_kernel_size} is even; expected an odd number. Correct it."
        if self.decoder_hidden_size != self.hidden_size:
            yield (
                f"decoder_hidden_size {self.decoder_hidden_size} differs from hidden_size {self.hidden_size}, whose "
                "place codes the decoder adds. Make them equal."
            )

    @classmethod
    def _window_fields(cls, content: dict[str, Any]) -> dict[str, Any]:
        names = {"n_frames": "num_timepoints_per_voxel", "patch_frames": "timepoint_patching_size"}
        if missing := [name for name in names.values() if name not in content]:
            raise SettingsError(f"'{missing[0]}' is missing. Add it.")
        return {field: content[name] for field, name in names.items()}

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "timepoint_patching_size": self.window.patch_frames}


class ConvolvedAttention(SelfAttention):
    """Self-attention plus a depth-wise convolution of each head's values along the sequence."""

    def __init__(self, width: int, heads: int, kernel: int | None) -> None:
        super().__init__(width, heads)
        if kernel is not None:
            self.conv = nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), bias=False, groups=heads)
        self.convolves = kernel is not None

    def _refined(self, mixed: Tensor, values: Tensor) -> Tensor:
        return mixed + self.conv(values) if self.convolves else mixed


class ResidualNorm(nn.Module):
    """A linear layer, a residual path around it, and the norm after both."""

    def __init__(self, inputs: int, width: int, config: DenseConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, values: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(values)) + residual)


class PostNormBlock(nn.Module):
    """Attention and a perceptron, each normalised after its residual path."""

    def __init__(self, width: int, heads: int, hidden: int, config: DenseConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                "self": ConvolvedAttention(width, heads, config.conv_kernel_size),
                "output": ResidualNorm(width, width, config),
            }
        )
        self.intermediate = dense(width, hidden)
        self.output = ResidualNorm(hidden, width, config)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.attention["output"](self.attention["self"](tokens), tokens)
        return self.output(self.activation(self.intermediate(tokens)), tokens)


class DenseEmbeddings(Embeddings):
    """Tokens of the windows, with where and when they are."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__(config.hidden_size)
        self.signal_embedding_projection = nn.Linear(config.window.patch_frames, config.hidden_size)
        self.xyz_embedding_projection = nn.Linear(3, config.hidden_size)


class DenseDecoder(Decoder):
    """The head predicts a token's frames."""

    def __init__(self, config: DenseConfig) -> None:
        # `decoder_pred` is left over from the image model that the release extends: never used or trained.
        super().__init__(config, PostNormBlock)
        width = config.decoder_hidden_size
        self.decoder_pred1 = nn.Linear(width, width // 2)
        self.decoder_pred2 = nn.Linear(width // 2, config.window.patch_frames)
        self.ends_with_tanh = config.use_tanh_decoder

    def _add_places(self, config: DenseConfig) -> None:
        self.decoder_xyz_projection = nn.Linear(3, config.decoder_hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.decoder_pred1(self.decode(tokens)), 0.1)
        predicted = self.decoder_pred2(hidden)[:, 1:]
        return predicted.tanh() if self.ends_with_tanh else predicted


class DenseBrainLM(ReleasedModel):
    """The dense release."""

    config: DenseConfig
    vit: ViT[DenseEmbeddings]
    decoder: DenseDecoder
    time_code: Tensor
    rebuilt = (".pos_embedding.pe",)

    def __init__(self, config: DenseConfig) -> None:
        super().__init__(config)
        self.vit = ViT(config, DenseEmbeddings(config), PostNormBlock)
        self.decoder = DenseDecoder(config)
        self.time_dropout = nn.Dropout(_TIME_DROPOUT)
        self.register_buffer("time_code", _time_code(config.window.n_patches, config.hidden_size), persistent=False)
        self.apply(initialise)
        for token in (self.vit.embeddings.cls_token, self.decoder.mask_token):
            nn.init.normal_(token, std=config.initializer_range)

    @property
    def n_tokens(self) -> int:
        return self.config.num_brain_voxels * self.config.window.n_patches

    def _on_frames(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(len(tokens), self.config.num_brain_voxels, -1)

    def _mean_of_tokens(self, latent: Tensor, valid: Tensor | None) -> Tensor:
        """Mean over the tokens of the parcels that are there."""
        if valid is None:
            return super()._mean_of_tokens(latent, None)
        weights = valid.repeat_interleave(self.config.window.n_patches, dim=1).to(latent)[..., None]
        return (latent[:, 1:] * weights).sum(dim=1) / weights.sum(dim=1)

    def _error(self, difference: Tensor) -> Tensor:
        return difference.square() if self.config.loss_fn == "mse" else difference.abs()

    def _tokens(self, signal: Tensor, coordinates: Tensor, *, whole: bool = False) -> Tensor:
        embeddings = self.vit.embeddings
        patches = signal.unflatten(2, (-1, self.config.window.patch_frames)).flatten(1, 2)
        tokens = embeddings.signal_embedding_projection(patches)
        return self._timed(tokens, embeddings.xyz_embedding_projection(coordinates))

    def _placed(self, tokens: Tensor, coordinates: Tensor) -> Tensor:
        return self._timed(tokens, self.decoder.decoder_xyz_projection(coordinates))

    def _timed(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Add codes of place [B, P, width] and of time to tokens [B, P * patches, width]."""
        placed = tokens.unflatten(1, (places.shape[1], -1)) + places[:, :, None]
        return self.time_dropout((placed + self.time_code).flatten(1, 2))


def _time_code(n_patches: int, width: int) -> Tensor:
    """Sine-cosine code [patches, width] of a patch's number, sines and cosines alternating (Vaswani et al. 2017)."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(n_patches)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
