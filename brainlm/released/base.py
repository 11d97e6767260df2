"""What the two released BrainLM architectures share: settings, the call, and attention.

Released models differ from ours in three ways: they predict every token from its place among all of them, they know
a fixed number of parcels, and their names of settings and weights are those of the released files, so that files go
in and out unchanged.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from base.settings import Settings
from brainlm.attention import take_rows
from brainlm.config import MaskConfig, WindowConfig
from brainlm.errors import ShapeError
from brainlm.model import MAEOutput

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


class Prediction(NamedTuple):
    """What an architecture makes of prepared windows.

    Attributes
    ----------
    values : torch.Tensor
        [B, P, T], the prediction of every value.
    hidden : torch.Tensor
        [B, P, T] bool, True where the encoder did not see a value.
    latent : torch.Tensor
        [B, N_visible + 1, D], CLS first.
    """

    values: Tensor
    hidden: Tensor
    latent: Tensor


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
        """Hide part of each window and reconstruct all of it.

        Parameters
        ----------
        signal : torch.Tensor
            [B, P, T], scaled.
        coordinates : torch.Tensor
            [B, P, 3], parcel centroids in millimetres.
        noise : torch.Tensor, optional
            [B, N]; the tokens of smallest noise stay visible. Drawn after the config if not given.
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

        Raises
        ------
        ShapeError
            If a shape does not fit the model.
        """
        self._check(signal, coordinates, valid)
        if noise is None:
            noise = self.draw_noise(self.config.mask, *signal.shape[:2]).to(signal.device)
        if noise.shape != (len(signal), self.n_tokens):
            raise ShapeError(f"noise has shape {list(noise.shape)}; expected {[len(signal), self.n_tokens]}.")
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
        return [*self.vit.encoder.layer, *self.decoder.decoder_layers]

    def after_step(self) -> None:
        """Nothing follows the weights of these models."""

    def encode(self, signal: Tensor, coordinates: Tensor, valid: Tensor | None = None) -> Tensor:
        """Encode windows with nothing hidden and average their tokens, without CLS.

        Returns
        -------
        torch.Tensor
            [B, D].
        """
        self._check(signal, coordinates, valid)
        prepared, places, order = self._prepared(signal, coordinates, valid)
        if valid is not None and order is not None:
            valid = valid.gather(1, order)
        return self._mean_of_tokens(self._encode_all(prepared, places), valid)

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

    @abstractmethod
    def draw_noise(
        self, mask: MaskConfig, n_windows: int, n_parcels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw the noise [B, N] that hides tokens after the config, whose mask `mask` is."""

    @abstractmethod
    def _predict(self, signal: Tensor, coordinates: Tensor, noise: Tensor) -> Prediction:
        """Encode what stays visible and predict every value."""

    @abstractmethod
    def _encode_all(self, signal: Tensor, coordinates: Tensor) -> Tensor:
        """Encode with nothing hidden → [B, N + 1, D]."""

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
        if coordinates.shape != (*signal.shape[:2], 3):
            raise ShapeError(f"coordinates have shape {list(coordinates.shape)}; expected {[*signal.shape[:2], 3]}.")
        if valid is not None and (valid.shape != signal.shape[:2] or valid.dtype != torch.bool):
            raise ShapeError(
                f"valid is {valid.dtype} {list(valid.shape)}; expected torch.bool {list(signal.shape[:2])}."
            )


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


def split_by_noise(noise: Tensor, n_visible: int) -> tuple[Tensor, Tensor]:
    """Order tokens by noise.

    Returns
    -------
    order, hidden : torch.Tensor
        Token indices [B, N] in ascending order of noise, of which the first `n_visible` stay visible, and [B, N]
        bool, True where a token does not.
    """
    order = noise.argsort(dim=1, stable=True)
    hidden = torch.ones_like(noise, dtype=torch.bool).scatter(1, order[:, :n_visible], False)
    return order, hidden


def with_mask_tokens(visible: Tensor, mask_token: Tensor, order: Tensor) -> Tensor:
    """Put encoded tokens [B, N_visible, E] back in their places, the mask token [1, 1, E] elsewhere → [B, N, E]."""
    n_hidden = order.shape[1] - visible.shape[1]
    shuffled = torch.cat([visible, mask_token.to(visible).expand(len(visible), n_hidden, -1)], dim=1)
    return take_rows(shuffled, order.argsort(dim=1))


class Dense(nn.Module):
    """A linear layer under the name that files have for it."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)

    def forward(self, values: Tensor) -> Tensor:
        return self.dense(values)


class Layers(nn.Module):
    """Blocks under the name that files have for them; `block` takes width, heads, the perceptron's width and config."""

    def __init__(self, config: ReleasedConfig, block: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            block(config.hidden_size, config.num_attention_heads, config.intermediate_size, config)
            for _ in range(config.num_hidden_layers)
        )


Embeddings = TypeVar("Embeddings", bound=nn.Module)


class ViT(nn.Module, Generic[Embeddings]):
    """The encoder under its original names."""

    def __init__(self, config: ReleasedConfig, embeddings: Embeddings, block: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = Layers(config, block)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode embedded tokens [B, M, D]."""
        for block in self.encoder.layer:
            tokens = block(tokens)
        return self.layernorm(tokens)


class Decoder(nn.Module):
    """Blocks over all tokens, and a head that predicts what is in each."""

    decoder_layers: nn.ModuleList
    mask_token: nn.Parameter
