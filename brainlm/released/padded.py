"""The ICLR 2024 release of BrainLM (``model_type: vit_mae``; 111M and 650M): the window as a padded square image.

Parcels are rows and frames are columns of an image of three equal channels, padded with -1 to a square of
`image_size`, cut into square patches, and given to a vision-transformer masked autoencoder (He et al., CVPR 2022).
Predictions are averaged over the channels, and only the window itself is scored.

Shapes: B windows, P parcels, T frames, G = image_size / patch_size patches a side, N = G² tokens, D encoder width,
E decoder width.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from brainlm.config import MaskConfig
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

_PADDING = -1.0
_DEFAULT_FRAMES = 200
"""Frames of a window where ``config.json`` does not say it."""


class PaddedConfig(ReleasedConfig):
    """Settings of the padded release, named as in its ``config.json``.

    `window.patch_frames` has no meaning here: patches are squares of the image.
    """

    CODE_UNIT = 4
    architecture: Literal["vit_mae"] = "vit_mae"
    image_size: int = Field(ge=1)
    """Side of the padded image: 432 with patches of 16, 434 with patches of 14."""
    qkv_bias: bool = True
    attention_probs_dropout_prob: float = Field(0.0, ge=0, lt=1)
    norm_pix_loss: Literal[False] = False
    """Whether targets are normalised by patch. No release does: the error is taken after patches were put together."""
    train_mode: Literal["auto_encode", "predict_last", "predict_last_pixel"] = "auto_encode"
    """What is hidden: random tokens; the tokens that cover the last `mask_ratio` of the frames; or those that lie
    wholly in it, and the remaining frames by zeros."""

    @field_validator("image_size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        """Take [432, 432] as 432."""
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            return value[0]
        return value

    @property
    def mask(self) -> MaskConfig:
        return MaskConfig(kind="random" if self.train_mode == "auto_encode" else "future", ratio=self.mask_ratio)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.image_size % self.patch_size:
            yield f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}. Change one of them."
        if max(self.num_brain_voxels, self.window.n_frames) > self.image_size:
            yield (
                f"{self.num_brain_voxels} parcels of {self.window.n_frames} frames do not fit into image_size "
                f"{self.image_size}. Enlarge it."
            )

    @classmethod
    def _window_fields(cls, content: dict[str, Any]) -> dict[str, Any]:
        # The release pads whatever it is given and never reads this field: a value that does not fit says nothing.
        n_frames = content.get("num_timepoints_per_voxel", _DEFAULT_FRAMES)
        if isinstance(n_frames, int) and isinstance(content.get("image_size"), int):
            n_frames = n_frames if n_frames <= content["image_size"] else _DEFAULT_FRAMES
        return {"n_frames": n_frames, "patch_frames": n_frames}


class LastFrames(NamedTuple):
    """What forecasting hides, in columns of patches and in frames."""

    first: int
    end: int
    """Columns of patches whose tokens are hidden."""
    n_scored: int | None
    """Frames at the end that are scored; None for every value of the hidden tokens."""
    n_zeroed: int
    """Frames before the hidden tokens that enter as zeros."""


class PreNormBlock(nn.Module):
    """Attention and a perceptron, each with a residual path and the norm before it."""

    def __init__(self, width: int, heads: int, hidden: int, config: PaddedConfig) -> None:
        super().__init__()
        attention = SelfAttention(width, heads, bias=config.qkv_bias, dropout=config.attention_probs_dropout_prob)
        self.attention = nn.ModuleDict({"attention": attention, "output": dense(width, width)})
        self.intermediate = dense(width, hidden)
        self.output = dense(hidden, width)
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.attention["attention"](self.layernorm_before(tokens))
        tokens = tokens + self.dropout(self.attention["output"](mixed))
        hidden = self.activation(self.intermediate(self.layernorm_after(tokens)))
        return tokens + self.dropout(self.output(hidden))


class PaddedEmbeddings(Embeddings):
    """Tokens of the image's patches, with where they are."""

    def __init__(self, config: PaddedConfig) -> None:
        super().__init__(config.hidden_size)
        side = config.image_size // config.patch_size
        self.position_embeddings = nn.Parameter(position_code(side, config.hidden_size), requires_grad=False)
        projection = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.patch_embeddings = nn.ModuleDict({"projection": projection})

    def cls(self) -> Tensor:
        return self.cls_token + self.position_embeddings[:, :1]


class PaddedDecoder(Decoder):
    """The head predicts a patch's pixels, the mean of their channels."""

    def __init__(self, config: PaddedConfig) -> None:
        super().__init__(config, PreNormBlock)
        self.n_channels = config.num_channels

    def _add_places(self, config: PaddedConfig) -> None:
        side, width = config.image_size // config.patch_size, config.decoder_hidden_size
        self.decoder_pos_embed = nn.Parameter(position_code(side, width), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        pixels = self.decoder_pred(self.decode(tokens + self.decoder_pos_embed.to(tokens)))[:, 1:]
        return pixels.float().unflatten(2, (-1, self.n_channels)).mean(dim=3)


class PaddedBrainLM(ReleasedModel):
    """The padded release. Its loss is the squared error whatever `loss_fn` a file names, as in the original."""

    config: PaddedConfig
    vit: ViT[PaddedEmbeddings]
    decoder: PaddedDecoder
    rebuilt = ("embeddings.position_embeddings", "decoder.decoder_pos_embed")

    def __init__(self, config: PaddedConfig) -> None:
        super().__init__(config)
        self.vit = ViT(config, PaddedEmbeddings(config), PreNormBlock)
        self.decoder = PaddedDecoder(config)
        self.side = config.image_size // config.patch_size
        rows, columns = (config.image_size - size for size in (config.num_brain_voxels, config.window.n_frames))
        self.padding = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]  # left, right, top, bottom
        self.last = None if config.train_mode == "auto_encode" else last_frames(config, self.padding[0])
        self._initialise()

    @property
    def n_tokens(self) -> int:
        return self.side**2

    @property
    def n_visible(self) -> int:
        return super().n_visible if self.last is None else self.side * (self.side - self.last.end + self.last.first)

    def seen_and_predicted(self) -> tuple[int, int]:
        """As of the base; where the last frames are hidden, frames are counted, since padding is always visible."""
        if self.last is None:
            return super().seen_and_predicted()
        n_frames = self.config.window.n_frames
        n_seen = self.last.first * self.config.patch_size - self.padding[0] - self.last.n_zeroed
        n_seen = min(n_frames, max(0, n_seen))
        return n_seen, n_frames - n_seen if self.last.n_scored is None else self.last.n_scored

    def draw_noise(
        self, mask: MaskConfig, n_windows: int, n_parcels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        if self.last is None:
            return torch.rand(n_windows, self.n_tokens, generator=generator)
        noise = torch.zeros(n_windows, self.side, self.side)
        noise[:, :, self.last.first : self.last.end] = 1
        return noise.flatten(1)

    def _predict(self, signal: Tensor, coordinates: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict every value; where the config says to forecast, it decides what is hidden, not `noise`."""
        if self.last is not None:
            noise = self.draw_noise(self.config.mask, len(signal), signal.shape[1]).to(signal.device)
        values, hidden, latent = super()._predict(signal, coordinates, noise)
        if self.last is not None and self.last.n_scored is not None:
            hidden = torch.zeros_like(hidden)
            hidden[:, :, self.config.window.n_frames - self.last.n_scored :] = True
        return values, hidden, latent

    def _tokens(self, signal: Tensor, coordinates: Tensor, *, whole: bool = False) -> Tensor:
        """Pad the windows and embed their patches; `whole` keeps frames that forecasting zeroes."""
        image = F.pad(signal, self.padding, value=_PADDING)
        if self.last is not None and self.last.n_zeroed and not whole:
            end = self.last.first * self.config.patch_size
            image[:, :, end - self.last.n_zeroed : end] = 0
        channels = image[:, None].expand(-1, self.config.num_channels, -1, -1)
        embeddings = self.vit.embeddings
        tokens = embeddings.patch_embeddings["projection"](channels).flatten(2).transpose(1, 2)
        return tokens + embeddings.position_embeddings[:, 1:].to(tokens)

    def _on_frames(self, tokens: Tensor) -> Tensor:
        """Put patches [B, N, patch_size²] together and cut the padding."""
        size = self.config.patch_size
        squares = tokens.unflatten(2, (size, size)).unflatten(1, (self.side, self.side))  # [B, G, G, row, column]
        image = squares.transpose(2, 3).reshape(len(tokens), self.config.image_size, self.config.image_size)
        return F.pad(image, [-width for width in self.padding])

    def _initialise(self) -> None:
        """Draw fresh weights: normal, as in He et al.; the patch projection like a linear layer."""
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        (projection,) = (module for module in self.modules() if isinstance(module, nn.Conv2d))
        nn.init.xavier_uniform_(projection.weight.flatten(1))
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        for token in (self.vit.embeddings.cls_token, self.decoder.mask_token):
            nn.init.normal_(token, std=std)


def last_frames(config: PaddedConfig, left: int) -> LastFrames:
    """Work out what forecasting the last ``int(mask_ratio * T)`` frames hides; the window begins at column `left`."""
    size, n_frames = config.patch_size, config.window.n_frames
    n_last = int(config.mask_ratio * n_frames)
    end_of_window = left + n_frames
    end = math.ceil(end_of_window / size)
    # Columns of patches back from the end of the window's last one.
    n_whole, rest = divmod(end * size - (end_of_window - n_last), size)
    if config.train_mode == "predict_last":
        return LastFrames(end - n_whole - (rest > 0), end, None, 0)
    first = end - n_whole
    return LastFrames(first, end, n_last, max(0, n_last - (end_of_window - first * size)))


def position_code(side: int, width: int) -> Tensor:
    """Fixed code [1, 1 + side², width] of CLS, which is zero, and of the patches, row by row.

    The first half of the width codes a patch's column and the second its row, each as sines, then cosines
    (He et al., CVPR 2022).
    """
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, width / 2]
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, dim=0)
    patches = torch.cat([columns, rows], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches])[None].float()
