"""Settings of the model and of its training: YAML in, checked, with a sentence for each field."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cohorts.settings import Settings, read_settings


class WindowConfig(Settings):
    """What the model sees of a recording."""

    t_r: float = Field(2.0, gt=0, le=20)
    """Seconds a frame. Recordings with another TR are resampled to it, band-limited."""
    n_frames: int = Field(200, ge=1)
    """Frames a window."""
    patch_frames: int = Field(20, ge=1)
    """Frames of one parcel in a token."""
    scaling: Literal["zscore", "robust", "none"] = "zscore"
    """``zscore``: every parcel has mean 0 and sd 1 over its recording. ``robust``: minus the parcel's median, over its
    interquartile range, both over the training frames of all sites with the atlas."""

    @model_validator(mode="after")
    def _whole_patches(self) -> "WindowConfig":
        if self.n_frames % self.patch_frames:
            raise ValueError(
                f"n_frames {self.n_frames} is no multiple of patch_frames {self.patch_frames}. Change one of them."
            )
        return self

    @property
    def n_patches(self) -> int:
        """Tokens a parcel."""
        return self.n_frames // self.patch_frames

    @property
    def seconds(self) -> float:
        return self.n_frames * self.t_r


class MaskConfig(Settings):
    """What is hidden from the encoder."""

    kind: Literal["random", "parcel"] = "random"
    """``random``: tokens; ``parcel``: whole parcels."""
    ratio: float = Field(0.75, ge=0, lt=1)
    """Fraction hidden."""


class ModelConfig(Settings):
    """The masked autoencoder. Sizes follow Ortega Caro et al., BrainLM (ICLR 2024)."""

    window: WindowConfig = WindowConfig()
    mask: MaskConfig = MaskConfig()
    width: int = Field(256, ge=8)
    """Width of the encoder's tokens."""
    depth: int = Field(4, ge=1)
    """Blocks of the encoder."""
    heads: int = Field(4, ge=1)
    decoder_width: int = Field(128, ge=8)
    """Width of the decoder, which only predicts: a small one keeps the knowledge in the encoder."""
    decoder_depth: int = Field(2, ge=1)
    decoder_heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of a block's perceptron over its token width."""

    @model_validator(mode="after")
    def _whole_heads(self) -> "ModelConfig":
        for width, heads, name in (
            (self.width, self.heads, "heads"),
            (self.decoder_width, self.decoder_heads, "decoder_heads"),
        ):
            if width % heads or width % 2:
                raise ValueError(f"{name} {heads} does not divide the even width {width}. Change one of them.")
        return self


class TrainingConfig(Settings):
    """Local training at a site, in every round."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``sgd`` is plain gradient descent, whose federated average equals a pooled step exactly."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak of the cosine schedule."""
    final_fraction: float = Field(0.05, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak."""
    warmup_steps: int = Field(20, ge=0)
    """Global steps of linear warm-up."""
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest gradient norm of a step; null for no clipping."""
    batch_size: int = Field(8, ge=1)
    """Windows a step, each of another participant where the site has that many."""
    steps_per_round: int = Field(20, ge=1)
    """Local steps between two averages. The schedule counts them globally, over all rounds."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the processor multiplies it natively, float32 elsewhere."""
    holdout: float = Field(0.2, ge=0, lt=1)
    """Fraction of each site's participants that is never trained on."""


def load_model_config(path: str | Path) -> ModelConfig:
    """Read a model's YAML file.

    Raises
    ------
    cohorts.errors.SettingsError
        If the file or a setting in it is wrong.
    """
    return read_settings(Path(path), ModelConfig)
