"""BrainLM: a vision-transformer masked autoencoder over parcel time series.

A window [P, T] is cut into tokens of one parcel (or a few neighbours) and a span of time. The encoder sees the visible
tokens; the decoder predicts each hidden one from its place and from what the encoder made of the visible ones. After
Ortega Caro et al., BrainLM (ICLR 2024), He et al., Masked Autoencoders (CVPR 2022), and for the decoder that attends
only to visible tokens Fu et al., Rethinking Patch Dependence for MAE (2024).

Attention is factorised, as in Bertasius et al., TimeSformer (ICML 2021): a token looks at the other parcels during its
own time span, then at its own parcel during the other spans. What a parcel does is mostly told by what others do at
the same moment, so this learns sooner and costs less than attention among all tokens.

Shapes: B windows, P parcels, T frames; tokens lie on a grid of G groups of parcels and S spans of time, N = G * S, and
count group by group; M of them are chosen; D is the encoder's width, E the decoder's.
"""

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from brainlm.attention import Block, Chosen, Tokens, take_rows
from brainlm.config import MaskConfig, ModelConfig
from brainlm.errors import ShapeError
from brainlm.masking import choose_mask, draw_noise, predicted_in_training, split_tokens
from brainlm.objectives import LatentPrediction
from brainlm.patches import Patches, check_noise, cut
from brainlm.place import PlaceCode


class Predictor(Protocol):
    """Whatever predicts the hidden values of windows from the visible ones, such as those of `brainlm.gaussian`."""

    def predict(self, signal: Tensor, visible: Tensor, valid: Tensor) -> Tensor:
        """Predict a signal [B, P, T], of which `visible` [B, P, T] bool is known; `valid` [B, P] parcels are there."""


class MAEOutput(NamedTuple):
    """What `BrainLM` returns."""

    loss: Tensor
    """[B], mean squared error over each window's hidden values; with ``objective: latent``, the error of the hidden
    tokens' latents is added."""
    reconstruction: Tensor
    """[B, P, T], predictions where hidden, the signal itself elsewhere."""
    mask: Tensor
    """[B, P, T], 1 where a value was hidden and scored, else 0."""
    latent: Tensor
    """[B, N_visible, D], the encoder's tokens, those of least noise first. Rows of windows with fewer visible tokens
    end in zeros."""


class Encoder(nn.Module):
    """From patches to tokens that know of each other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        window, width = config.window, config.width
        self.embed = nn.Linear(window.patch_frames * config.parcels_per_token, width)
        self.place = PlaceCode(width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, window.n_patches) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Patches, visible: Chosen) -> Tokens:
        """Encode the visible tokens → values [B, M, D]."""
        place = visible.take(self.place(patches.coordinates).repeat_interleave(patches.n_spans, dim=1))  # [B, M, D]
        tokens = Tokens(self.embed(visible.take(patches.inputs)) + place, place, visible)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens._replace(values=self.norm(tokens.values))


class Decoder(nn.Module):
    """From the encoder's tokens to a state for every hidden one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        window, width = config.window, config.decoder_width
        self.place = PlaceCode(width)
        # An embedding of one row rather than a bare parameter: private training takes gradients window by window, and
        # Opacus knows a window by its place in a module's input.
        self.mask_token = nn.Embedding(1, width)
        self.prior = None
        if config.residual == "gaussian":
            self.prior = nn.Linear(window.patch_frames * config.parcels_per_token, width)
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.mlp_ratio, window.n_patches, config.width)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Patches, hidden: Chosen, context: Tokens, prior: Tensor | None) -> Tensor:
        """Return the hidden tokens' states [B, M, E]; `prior` [B, N, patch] is a first guess of their signal."""
        place = hidden.take(self.place(patches.coordinates).repeat_interleave(patches.n_spans, dim=1))
        values = place + self.mask_token(torch.zeros(len(place), 1, dtype=torch.long, device=place.device))
        if self.prior is not None and prior is not None:
            values = values + self.prior(hidden.take(prior))
        tokens = Tokens(values, place, hidden)
        for block in self.blocks:
            tokens = block(tokens, context)
        return self.norm(tokens.values)


class BrainLM(nn.Module):
    """The masked autoencoder.

    Attributes
    ----------
    prior : Predictor or None
        With ``residual: gaussian``, what predicts hidden values linearly. It belongs to an atlas, not to the weights,
        and is not saved with them; without it the model predicts as if the linear prediction were zero.
    about : dict
        What the checkpoint says that the model was read from (`brainlm.provenance`); empty for one made here.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.about: dict[str, Any] = {}
        self.prior: Predictor | None = None
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.predict = nn.Linear(config.decoder_width, config.window.patch_frames * config.parcels_per_token)
        self.apply(initialise)
        if config.residual == "gaussian":  # it begins as the linear predictor
            nn.init.zeros_(self.predict.weight)
        self.latent = None
        if config.objective == "latent":
            self.latent = LatentPrediction(self.encoder, config.width, config.decoder_width, config.target_decay)

    def forward(
        self,
        signal: Tensor,
        coordinates: Tensor,
        noise: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        mask: MaskConfig | None = None,
        prior: Predictor | None = None,
    ) -> MAEOutput:
        """Hide part of each window and reconstruct it.

        Parameters
        ----------
        signal : torch.Tensor
            [B, P, T], scaled. With ``temporal: adaptive``, T is any multiple of the number of spans.
        coordinates : torch.Tensor
            [B, P, 3], parcel centroids in millimetres.
        noise : torch.Tensor, optional
            [B, N] in [0, 1); the tokens of smallest noise stay visible. Drawn after the mask if not given.
        valid : torch.Tensor, optional
            [B, P] bool, False for missing parcels.
        mask : MaskConfig, optional
            What to hide; the config's if not given.
        prior : Predictor, optional
            Instead of the model's own.

        Raises
        ------
        ShapeError
            If a shape does not fit the window.
        """
        mask = mask or choose_mask(self.config.mask)
        signal = signal.to(self.predict.weight.dtype)
        patches = cut(signal, coordinates, valid, self.config)
        noise = self.draw_noise(mask, len(signal), signal.shape[1]).to(signal.device) if noise is None else noise
        check_noise(noise, len(signal), patches.n_tokens)
        seen, unseen, order = split_tokens(noise, mask, patches.n_spans, patches.tokens_valid())
        latent_valid = seen.gather(1, order)
        seen, unseen = (tokens.unflatten(1, patches.grid) for tokens in (seen, unseen))
        if self.training:
            unseen = unseen & predicted_in_training(mask, self.config.decode_every, noise).unflatten(1, patches.grid)
        visible, hidden = Chosen.of(seen), Chosen.of(unseen)

        first_guess = self._linear_prediction(patches, seen, prior or self.prior)
        context = self.encoder(patches, visible)
        states = self.decoder(patches, hidden, context, first_guess)
        latent_loss = 0.0
        if self.latent is not None:
            latent_loss = self.latent(patches, hidden, states)
            # The signal is still predicted, so that it can be scored, but what is learned of it teaches nothing else.
            states = states.detach()
        loss, predicted, scored = self._score(patches, hidden, states, first_guess)
        latent = take_rows(visible.put(context.values).flatten(1, 2), order) * latent_valid[..., None]
        return MAEOutput(loss + latent_loss, torch.where(scored, predicted, signal), scored.to(signal), latent)

    def encode(self, signal: Tensor, coordinates: Tensor, valid: Tensor | None = None) -> Tensor:
        """Encode windows with nothing hidden and average the tokens of the parcels that are there → [B, D]."""
        patches = cut(signal.to(self.predict.weight.dtype), coordinates, valid, self.config)
        if not bool(patches.parcels_valid().any(dim=1).all()):
            raise ShapeError("a window has no parcel that is there; expected one at least.")
        everything = Chosen.of(patches.everything())
        weights = everything.there[..., None]
        return (self.encoder(patches, everything).values * weights).sum(dim=1) / weights.sum(dim=1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks, which hold most of what a step must remember."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def draw_noise(
        self, mask: MaskConfig, n_windows: int, n_parcels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw the noise [B, N] for windows of so many parcels."""
        n_groups = math.ceil(n_parcels / self.config.parcels_per_token)
        return draw_noise(mask, (n_windows, n_groups, self.config.window.n_patches), generator)

    def after_step(self) -> None:
        """Let what follows the weights follow them. To be called after every step of an optimizer."""
        if self.latent is not None:
            self.latent.follow(self.encoder)

    def _linear_prediction(self, patches: Patches, seen: Tensor, prior: Predictor | None) -> Tensor | None:
        """Predict the hidden signal linearly → [B, N, patch], as the model is given patches; None without a prior."""
        if prior is None or self.config.residual == "none":
            return None
        predicted = prior.predict(patches.signal, patches.on_frames(seen), patches.parcels_valid())
        return patches.recut(predicted)

    def _score(
        self, patches: Patches, hidden: Chosen, states: Tensor, prior: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the hidden tokens' signal → loss [B], prediction [B, P, T] and where it counts, bool [B, P, T]."""
        guesses = hidden.put(self.predict(states).float())  # [B, G, S, patch]
        if prior is not None:
            guesses = guesses + prior.unflatten(1, patches.grid)
        predicted = patches.join(guesses)
        scored = patches.on_frames(hidden.on_grid)
        error = (predicted - patches.signal).square().masked_fill(~scored, 0.0)
        return error.sum(dim=(1, 2)) / scored.sum(dim=(1, 2)).clamp(min=1), predicted, scored


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def initialise(module: nn.Module) -> None:
    """Draw fresh weights of a module: linear layers after Glorot & Bengio (AISTATS 2010)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
