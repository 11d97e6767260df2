"""What the two released BrainLM architectures share: settings, the call, and attention.

Released models differ from ours in three ways: they predict every token from its place among all of them, they know
a fixed number of parcels, and their names of settings and weights are those of the released files, so that files go
in and out unchanged.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from base.settings import Settings
from brainlm.attention import take_rows
from brainlm.config import MaskConfig, WindowConfig
from brainlm.errors import ShapeError
from brainlm.model import MAEOutput
from brainlm.patches import check_noise, check_parcels

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda values: F.gelu(values, approximate="tanh"),
    "relu": F.relu,
    "selu": F.selu,
}


class ReleasedConfig(Settings, ABC):
    """Settings that both architectures have; where a field names no default, ``config.json`` must say it."""

    architecture: str
    """``model_type`` of ``config.json``."""
    window: WindowConfig
    """Length and TR of what the model sees, and the scaling of recordings."""
    sort_parcels: bool = False
    """Feed parcels in ascending order of their y coordinate (stable), as the original notebooks feed the padded ViT.
    Reconstructions come back in the caller's order; the noise counts tokens in the model's."""
    signal_scale: float = Field(1.0, gt=0)
    """The signal is divided by it before it enters, and the reconstruction multiplied by it."""
    num_brain_voxels: int = Field(424, ge=1)
    """Parcels."""
    patch_size: int = Field(ge=1)
    num_channels: int = Field(3, ge=1)
    mask_ratio: float = Field(ge=0, lt=1)
    """Fraction hidden."""
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    decoder_hidden_size: int = Field(ge=1)
    decoder_num_hidden_layers: int = Field(ge=1)
    decoder_num_attention_heads: int = Field(ge=1)
    decoder_intermediate_size: int = Field(ge=1)
    hidden_act: Literal["gelu", "gelu_new", "relu", "selu"] = "gelu"
    hidden_dropout_prob: float = Field(0.0, ge=0, lt=1)
    layer_norm_eps: float = Field(1e-12, gt=0)
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of fresh weights that no other rule sets."""

    OPTIONS: ClassVar[tuple[str, ...]] = ("window", "sort_parcels", "signal_scale")
    """Fields that ``config.json`` of a released folder does not have."""
    CODE_UNIT: ClassVar[int]
    """Widths are multiples of it, for the sines and cosines of the place codes."""

    @property
    def mask(self) -> MaskConfig:
        """What is hidden, in the words of our own model."""
        return MaskConfig(ratio=self.mask_ratio)

    def conflicts(self) -> Iterator[str]:
        for prefix in ("", "decoder_"):
            size, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
            if size % heads or size % self.CODE_UNIT:
                yield (
                    f"{prefix}hidden_size {size} is no multiple of {self.CODE_UNIT} and of "
                    f"{prefix}num_attention_heads {heads}. Change one of them."
                )

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Take this class's fields from a released ``config.json``; what the model does not use drops out."""
        fields = {name: content[name] for name in cls.model_fields if name in content and name not in cls.OPTIONS}
        return {**fields, "window": cls._window_fields(content)}

    @classmethod
    @abstractmethod
    def _window_fields(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Take ``n_frames`` and ``patch_frames`` from a released ``config.json``."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a released ``config.json``."""
        fields = self.model_dump(mode="json", exclude={"architecture", *self.OPTIONS})
        return {"model_type": self.architecture, **fields, "num_timepoints_per_voxel": self.window.n_frames}


class ReleasedModel(nn.Module, ABC):
    """A released architecture with the call of `brainlm.model.BrainLM`."""

    rebuilt: ClassVar[tuple[str, ...]] = ()
    """Endings of names of fixed codes that a file may leave out or hold: they are made from the sizes."""

    vit: "ViT[Any]"
    decoder: "Decoder"

    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        self.config = config
        self.about: dict[str, Any] = {}  # what the checkpoint says that it was read from; empty if made here

    def forward(
        self,
        signal: Tensor,
        coordinates: Tensor,
        noise: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        mask: MaskConfig | None = None,
    ) -> MAEOutput:
        """Hide part of each window and reconstruct all of it: the call of `brainlm.model.BrainLM`, and its errors.

        Parameters
        ----------
        valid : torch.Tensor, optional
            [B, P] bool, False for missing parcels. The released models know none: a missing parcel enters as zeros,
            the mean of a z-scored signal, and is not scored.
        mask : MaskConfig, optional
            For the sake of the common call: these models hide what their own settings say.

        Returns
        -------
        MAEOutput
            `reconstruction` holds the prediction everywhere, where values were visible, too; `latent` begins with
            the CLS token. `loss` is in the model's units (after `signal_scale`) and weighted so that its mean over
            the batch is the original's loss: the error over all hidden values of the batch, also where windows hide
            different numbers of them.
        """
        self._check(signal, coordinates, valid)
        if noise is None:
            noise = self.draw_noise(self.config.mask, *signal.shape[:2]).to(signal.device)
        check_noise(noise, len(signal), self.n_tokens)
        prepared, places, order = self._prepared(signal, coordinates, valid)
        values, hidden, latent = self._predict(prepared, places, noise)
        if order is not None:
            back = order.argsort(dim=1)
            values, hidden, prepared = (take_rows(tensor, back) for tensor in (values, hidden, prepared))
        scored = hidden if valid is None else hidden & valid[..., None]
        values = values.float()
        error = self._error(values - prepared.float()) * scored
        loss = error.sum(dim=(1, 2)) * (len(signal) / scored.sum().clamp(min=1))
        return MAEOutput(loss, values * self.config.signal_scale, scored.to(values), latent)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks, which hold most of what a step must remember."""
        return [*self.vit.encoder["layer"].children(), *self.decoder.decoder_layers]

    def after_step(self) -> None:
        """Nothing follows the weights of these models."""

    def encode(self, signal: Tensor, coordinates: Tensor, valid: Tensor | None = None) -> Tensor:
        """Encode windows with nothing hidden and average their tokens, without CLS → [B, D]."""
        self._check(signal, coordinates, valid)
        prepared, places, order = self._prepared(signal, coordinates, valid)
        if valid is not None and order is not None:
            valid = valid.gather(1, order)
        return self._mean_of_tokens(self._encode(self._tokens(prepared, places, whole=True)), valid)

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """Tokens of a window, N."""

    @property
    def n_visible(self) -> int:
        """Tokens of a window that stay visible where they are hidden at random."""
        return int(self.n_tokens * (1 - self.config.mask_ratio))

    def seen_and_predicted(self) -> tuple[int, int]:
        """Count the tokens of a window that the encoder sees, and those that it does not and that are scored."""
        return self.n_visible, self.n_tokens - self.n_visible

    def draw_noise(
        self, mask: MaskConfig, n_windows: int, n_parcels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw the noise [B, N] that hides tokens after the config, whose mask `mask` is."""
        return torch.rand(n_windows, self.n_tokens, generator=generator)

    def _predict(self, signal: Tensor, coordinates: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict every value [B, P, T]; say as bool where the encoder saw none; return its tokens, CLS first."""
        order = noise.argsort(dim=1, stable=True)
        visible = order[:, : self.n_visible]
        latent = self._encode(take_rows(self._tokens(signal, coordinates), visible))

        embedded = self.decoder.decoder_embed(latent)  # [B, N_visible + 1, E]
        masked = self.decoder.mask_token.to(embedded).expand(len(embedded), self.n_tokens - self.n_visible, -1)
        tokens = take_rows(torch.cat([embedded[:, 1:], masked], dim=1), order.argsort(dim=1))
        predicted = self.decoder(torch.cat([embedded[:, :1], self._placed(tokens, coordinates)], dim=1))
        hidden = torch.ones_like(noise, dtype=torch.bool).scatter(1, visible, False)
        return self._on_frames(predicted), self._on_frames(hidden[..., None].expand_as(predicted)), latent

    @abstractmethod
    def _tokens(self, signal: Tensor, coordinates: Tensor, *, whole: bool = False) -> Tensor:
        """Embed windows, of which nothing is to be hidden if `whole` → [B, N, D]."""

    def _placed(self, tokens: Tensor, coordinates: Tensor) -> Tensor:
        """Tell the decoder's tokens [B, N, E] where they are, if it does not know by their order."""
        return tokens

    @abstractmethod
    def _on_frames(self, tokens: Tensor) -> Tensor:
        """Put the values of tokens [B, N, values of a token] in their places → [B, P, T]."""

    def _encode(self, tokens: Tensor) -> Tensor:
        """[B, M, D] → [B, M + 1, D], CLS first."""
        cls = self.vit.embeddings.cls().to(tokens).expand(len(tokens), -1, -1)
        return self.vit(torch.cat([cls, tokens], dim=1))

    def _mean_of_tokens(self, latent: Tensor, valid: Tensor | None) -> Tensor:
        """Mean over the tokens but CLS; `valid` is in the model's order of parcels."""
        return latent[:, 1:].mean(dim=1)

    def _error(self, difference: Tensor) -> Tensor:
        return difference.square()

    def _prepared(
        self, signal: Tensor, coordinates: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Signal and coordinates as the model takes them, and the order of parcels if it is another."""
        signal = signal / self.config.signal_scale
        if valid is not None:
            signal = signal.masked_fill(~valid[..., None], 0)
        if not self.config.sort_parcels:
            return signal, coordinates, None
        order = coordinates[..., 1].argsort(dim=1, stable=True)
        return take_rows(signal, order), take_rows(coordinates, order), order

    def _check(self, signal: Tensor, coordinates: Tensor, valid: Tensor | None) -> None:
        expected = (self.config.num_brain_voxels, self.config.window.n_frames)
        if signal.ndim != 3 or signal.shape[1:] != expected:
            raise ShapeError(
                f"signal has shape {list(signal.shape)}; expected [windows, {expected[0]} parcels, "
                f"{expected[1]} frames], which this released model was made for."
            )
        check_parcels(signal, coordinates, valid)


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate query, key and value weights, in one fused kernel."""

    def __init__(self, width: int, heads: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # [B, heads, N, D / heads]
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self._refined(mixed, v).transpose(1, 2).flatten(2)

    def _refined(self, mixed: Tensor, values: Tensor) -> Tensor:
        return mixed


def dense(inputs: int, width: int) -> nn.Sequential:
    """Make a linear layer under the name that files have for it."""
    return nn.Sequential(OrderedDict(dense=nn.Linear(inputs, width)))


class Embeddings(nn.Module, ABC):
    """What makes tokens of windows, and the token that stands before them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))

    def cls(self) -> Tensor:
        """CLS as the encoder sees it, [1, 1, D]."""
        return self.cls_token


AnyEmbeddings = TypeVar("AnyEmbeddings", bound=Embeddings)
Block = Callable[..., nn.Module]
"""Makes a block of a width, a number of heads, the perceptron's width and the settings."""


class ViT(nn.Module, Generic[AnyEmbeddings]):
    """The encoder under its original names."""

    def __init__(self, config: ReleasedConfig, embeddings: AnyEmbeddings, block: Block) -> None:
        super().__init__()
        self.embeddings = embeddings
        sizes = config.hidden_size, config.num_attention_heads, config.intermediate_size
        layers = nn.ModuleList(block(*sizes, config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode embedded tokens [B, M, D]."""
        for block in self.encoder["layer"].children():
            tokens = block(tokens)
        return self.layernorm(tokens)


class Decoder(nn.Module, ABC):
    """Blocks over all tokens, and a head that predicts what is in each: [B, N + 1, E] → [B, N, values of a token]."""

    def __init__(self, config: ReleasedConfig, block: Block) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self._add_places(config)
        sizes = width, config.decoder_num_attention_heads, config.decoder_intermediate_size
        self.decoder_layers = nn.ModuleList(block(*sizes, config) for _ in range(config.decoder_num_hidden_layers))
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(width, config.patch_size**2 * config.num_channels)

    @abstractmethod
    def _add_places(self, config: Any) -> None:
        """Make what says where a token is: before the blocks, since fresh weights are drawn in this order."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Let tokens know of each other, [B, N + 1, E] → [B, N + 1, E]."""
        for block in self.decoder_layers:
            tokens = block(tokens)
        return self.decoder_norm(tokens)
