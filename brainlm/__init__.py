"""The model, and what one site does with it. Knows recordings, but nothing of federations."""

from brainlm.checkpoints import load_checkpoint, save_checkpoint
from brainlm.config import ModelConfig, TrainingConfig, WindowConfig, load_model_config
from brainlm.embedding import embed, functional_connectivity
from brainlm.errors import BrainLMError
from brainlm.model import BrainLM, MAEOutput
from brainlm.released.folders import load_model
from brainlm.scaling import Scaling

__all__ = [
    "BrainLM",
    "BrainLMError",
    "MAEOutput",
    "ModelConfig",
    "Scaling",
    "TrainingConfig",
    "WindowConfig",
    "embed",
    "functional_connectivity",
    "load_checkpoint",
    "load_model",
    "load_model_config",
    "save_checkpoint",
]
