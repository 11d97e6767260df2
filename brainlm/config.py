"""Settings of the model and of its training: YAML in, checked, with a sentence for each field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from base.settings import Settings, read_settings


class WindowConfig(Settings):
    """What the model sees of a recording."""

    t_r: float = Field(2.0, ge=0.01, le=20)
    """Seconds a frame."""
    temporal: Literal["resample", "adaptive"] = "resample"
    """What becomes of recordings with another TR. ``resample``: they are resampled to ``t_r``, band-limited.
    ``adaptive``: they keep their frames; a patch lasts as long at every site and holds as many frames as its TR gives,
    and the weights that read and write it are resized to that number."""
    n_frames: int = Field(200, ge=1, le=100_000)
    """Frames a window."""
    patch_frames: int = Field(20, ge=1, le=100_000)
    """Frames of one parcel in a token."""
    scaling: Literal["zscore", "robust", "none"] = "zscore"
    """``zscore``: every parcel has mean 0 and sd 1 over its recording. ``robust``: minus the parcel's median, over its
    interquartile range, both over the training frames of all sites with the atlas."""

    def conflicts(self) -> Iterator[str]:
        if self.n_frames % self.patch_frames:
            yield f"n_frames {self.n_frames} is no multiple of patch_frames {self.patch_frames}. Change one of them."

    @property
    def n_patches(self) -> int:
        """Tokens a parcel."""
        return self.n_frames // self.patch_frames

    @property
    def seconds(self) -> float:
        return self.n_frames * self.t_r

    def frames_of(self, t_r: float) -> int:
        """Frames of a window of a recording with this TR, as the model is given it."""
        if self.temporal == "resample":
            return self.n_frames
        return self.n_patches * max(1, round(self.patch_frames * self.t_r / t_r))


class MaskConfig(Settings):
    """What is hidden from the encoder."""

    kind: Literal["random", "parcel", "time", "future", "mixed"] = "random"
    """``random``: tokens; ``parcel``: whole parcels; ``time``: whole time spans; ``future``: the last ones;
    ``mixed``: another of these for every batch, drawn by ``weights``."""
    ratio: float = Field(0.75, ge=0, lt=1)
    """Fraction hidden."""
    initial_ratio: float | None = Field(None, ge=0, lt=1)
    """Fraction hidden when training begins; it moves to ``ratio`` in a straight line. Null: ``ratio`` throughout."""
    weights: dict[Literal["random", "parcel", "time", "future"], Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict
    )
    """With ``mixed``: how often each kind is drawn, as a share of their sum."""

    def conflicts(self) -> Iterator[str]:
        if (self.kind == "mixed") != bool(self.weights):
            yield (
                f"mask.weights and kind '{self.kind}' do not go together: kind 'mixed' needs weights, such as "
                "{random: 3, future: 1}, and no other kind has them."
            )


class ModelConfig(Settings):
    """The masked autoencoder. The defaults are those of ``configs/models/small.yaml``."""

    window: WindowConfig = WindowConfig()
    mask: MaskConfig = MaskConfig()
    objective: Literal["reconstruction", "latent"] = "reconstruction"
    """``reconstruction``: predict the hidden signal. ``latent``: predict what a slowly moving copy of the encoder makes
    of it when it sees everything, as in Brain-JEPA (Dong et al., NeurIPS 2024)."""
    target_decay: float = Field(0.99, ge=0, lt=1)
    """With ``latent``: the share of the slow copy that every step keeps."""
    residual: Literal["none", "gaussian"] = "none"
    """``gaussian``: the decoder starts from what a linear Gaussian predictor makes of the visible signal and learns
    what that misses. Its covariance is one more sum over the sites."""
    parcels_per_token: int = Field(1, ge=1, le=10_000)
    """Neighbouring parcels in a token. More make tokens fewer and the model faster, and the picture coarser."""
    width: int = Field(128, ge=8, le=16_384)
    """Width of the encoder's tokens."""
    depth: int = Field(4, ge=1, le=512)
    """Blocks of the encoder."""
    heads: int = Field(4, ge=1, le=1024)
    """Attention heads of each of its blocks: a divisor of ``width``."""
    decoder_width: int = Field(128, ge=8, le=16_384)
    """Width of the decoder, which only predicts: a small one keeps the knowledge in the encoder."""
    decoder_depth: int = Field(2, ge=1, le=512)
    """Blocks of the decoder."""
    decoder_heads: int = Field(4, ge=1, le=1024)
    """Attention heads of each of its blocks: a divisor of ``decoder_width``."""
    decode_every: int = Field(4, ge=1, le=10_000)
    """In training, predict every n-th of the tokens hidden at random, which is faster. Evaluation predicts all, and so
    does training where whole parcels or spans are hidden."""
    mlp_ratio: float = Field(2.0, ge=0.5, le=64)
    """Hidden width of a block's perceptron over its token width."""

    def conflicts(self) -> Iterator[str]:
        if self.residual == "gaussian" and self.window.temporal == "adaptive":
            yield (
                "residual 'gaussian' and window.temporal 'adaptive' do not go together: a covariance over frames needs "
                "one TR. Use temporal 'resample', or residual 'none'."
            )
        for width, heads, name in (
            (self.width, self.heads, "heads"),
            (self.decoder_width, self.decoder_heads, "decoder_heads"),
        ):
            if width % heads or width % 2:
                yield f"{name} {heads} does not divide the even width {width}. Change one of them."


class PrivacyConfig(Settings):
    """Differentially private training: noise hides whether any one participant took part.

    Gradients are clipped participant by participant, and noise is added to their sum (DP-SGD: Abadi et al., Deep
    Learning with Differential Privacy, CCS 2016). A participant with many recordings counts as one.
    """

    clip: float = Field(1.0, gt=0, le=1e6)
    """Largest length (L2) of a participant's gradient; longer ones are shortened to it. The noise is in proportion."""
    epsilon: float | None = Field(None, ge=0.1, le=50)
    """What all steps of all rounds together may tell of a participant. Each site adds the noise that this takes."""
    noise_multiplier: float | None = Field(None, ge=1e-4, le=10_000)
    """Instead of ``epsilon``: standard deviation of the noise over ``clip``."""
    delta: float = Field(1e-5, ge=1e-10, lt=0.1)
    """Probability with which ``epsilon`` may not hold. It must be below 1 / participants of every site: at that,
    to show one of them outright would be within the rules."""

    def conflicts(self) -> Iterator[str]:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            yield "epsilon and noise_multiplier decide the same noise. Give one of them, such as 'epsilon: 8'."


class SummaryNoise(Settings):
    """Differentially private sums: noise hides whether any one participant is in them."""

    clip: float = Field(gt=0)
    """Largest length (L2) of all that a participant adds to a round's sums together; more is shortened to it."""
    noise_multiplier: float = Field(ge=1e-4, le=10_000)
    """Standard deviation of the noise on every number, over ``clip``."""


class TrainingConfig(Settings):
    """Local training at a site, in every round."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``sgd`` is plain gradient descent, whose federated average equals a pooled step exactly."""
    learning_rate: float = Field(1e-3, gt=0, le=1000)
    """Peak of the cosine schedule."""
    final_fraction: float = Field(0.05, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak."""
    warmup_steps: int = Field(20, ge=0, le=100_000_000)
    """Global steps of linear warm-up."""
    weight_decay: float = Field(0.05, ge=0, le=100)
    """AdamW's pull of matrices towards zero; each step takes learning rate times this of a weight."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """How much of the first and second moments AdamW keeps in a step."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest gradient norm of a step; null for no clipping. With ``privacy`` null, since ``privacy.clip`` clips."""
    batch_size: int = Field(8, ge=1, le=1_000_000)
    """Windows a step, each of another participant where the site has that many; with ``privacy`` on average."""
    accumulation: int = Field(1, ge=1, le=1_000_000)
    """Parts that a batch is cut into, one after the other in memory. The step is that of the whole batch."""
    checkpointing: bool = False
    """Compute what is inside blocks again for the gradients, not keep it: less memory, one more forward pass."""
    workers: int = Field(0, ge=0, le=64)
    """Processes that read windows ahead of the model; 0 reads them between steps. The windows are the same."""
    keep_optimizer_state: bool = False
    """Whether AdamW's moments stay on each site's disk and go on in the next round; else every round starts afresh.
    With ``privacy`` they are made of gradients with noise, and so cost none of it."""
    steps_per_round: int = Field(75, ge=1, le=1_000_000)
    """Local steps between two averages. The schedule counts them globally, over all rounds. A model that had too few is
    worse than linear prediction, and the report says so."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the processor multiplies it natively, float32 elsewhere."""
    holdout: float = Field(0.2, ge=0, lt=1)
    """Fraction of each site's participants that is never trained on."""
    privacy: PrivacyConfig | None = None
    """Differential privacy of the training participants; null for none."""

    @model_validator(mode="before")
    @classmethod
    def _privacy_clips(cls, content: Any) -> Any:
        """Let ``clip_norm`` be null where there is privacy, unless it is stated."""
        if isinstance(content, dict) and content.get("privacy") is not None:
            return {"clip_norm": None, **content}
        return content

    def conflicts(self) -> Iterator[str]:
        if self.privacy is not None and self.clip_norm is not None:
            yield (
                "clip_norm and privacy do not go together: privacy.clip bounds every participant's gradient. Leave "
                "clip_norm out."
            )
        if self.privacy is not None and self.checkpointing:
            yield (
                "checkpointing and privacy do not go together: gradients of single windows need what blocks keep. "
                "Leave checkpointing out; accumulation saves memory, too."
            )


def load_model_config(path: str | Path) -> ModelConfig:
    """Read a model's YAML file."""
    return read_settings(Path(path), ModelConfig)
