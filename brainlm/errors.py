"""What can go wrong with the model, and what to do about each."""

from base.errors import FedBrainLMError


class BrainLMError(FedBrainLMError):
    """A setting, a checkpoint or an input does not fit the model. The message says what was expected."""


class ShapeError(BrainLMError):
    """An input has the wrong shape for the model's window. Prepare it with `brainlm.windows`."""


class CheckpointError(BrainLMError):
    """A checkpoint is absent, damaged, or of another model. Name the right file."""


class DivergenceError(BrainLMError):
    """The loss became NaN or infinite. Lower the learning rate, or look for broken recordings."""
