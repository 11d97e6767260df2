"""What training asks of the model besides reconstruction: predicting latents, as in Brain-JEPA."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainlm.attention import Chosen
from brainlm.patches import Patches


class LatentPrediction(nn.Module):
    """Predict what a slow copy of the encoder, which sees everything, makes of the hidden tokens.

    After Assran et al., I-JEPA (CVPR 2023) and Dong et al., Brain-JEPA (NeurIPS 2024). The copy is an exponential
    moving average of the encoder's weights. It is a part of the model's state, and so sites average it, too.

    Parameters
    ----------
    encoder : torch.nn.Module
        `brainlm.model.Encoder`; it is copied.
    width, decoder_width : int
        Of the encoder's tokens, D, and the decoder's states, E.
    decay : float
        Share of the copy that `follow` keeps.
    """

    def __init__(self, encoder: nn.Module, width: int, decoder_width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        self.predict = nn.Linear(decoder_width, width)

    def forward(self, patches: Patches, hidden: Chosen, states: Tensor) -> Tensor:
        """Compare the prediction from the decoder's states [B, M, E] with the copy's tokens → loss [B]."""
        everything = Chosen.of(patches.everything())
        with torch.no_grad():
            tokens = everything.put(self.target(patches, everything).values)
            target = hidden.take(tokens.flatten(1, 2)).float()
        error = F.smooth_l1_loss(self.predict(states).float(), target, reduction="none").mean(dim=2)
        return (error * hidden.there).sum(dim=1) / hidden.there.sum(dim=1).clamp(min=1)

    @torch.no_grad()
    def follow(self, encoder: nn.Module) -> None:
        """Move the copy towards the encoder."""
        for mine, theirs in zip(self.target.parameters(), encoder.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)
