"""Subject embeddings, by recipes that have an id, and the baseline of functional connectivity.

A recipe's meaning never changes; a variant gets an id of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from brainlm.architectures import AnyConfig, AnyModel
from brainlm.config import ModelConfig
from brainlm.errors import BrainLMError
from brainlm.provenance import check_cohort
from brainlm.scaling import Scaling
from brainlm.windows import WindowSet
from cohorts import Cohort


@dataclass(frozen=True)
class Recipe:
    """How recordings become one vector a participant.

    Attributes
    ----------
    id : str
        Logged with every vector.
    summary : str
        The steps, in words.
    embed : callable
        Model, cohort, device and scaling → array [n, D] and the n participants in order.
    components : int
        Most dimensions that the projection keeps; fewer where features or participants are few.
    residualize : tuple of str
        Covariates whose linear effects are removed at the end.
    """

    id: str
    summary: str
    embed: Callable[[AnyModel, Cohort, torch.device, Scaling | None], tuple[np.ndarray, list[str]]]
    components: int
    residualize: tuple[str, ...]


@torch.no_grad()
def _mean_of_segments(
    model: AnyModel, cohort: Cohort, device: torch.device, scale: Scaling | None
) -> tuple[np.ndarray, list[str]]:
    """Encode without masking; mean over tokens, then a recording's segments, then a participant's recordings."""
    model.to(device).eval()
    windows = WindowSet(cohort, model.config.window, scale=scale)

    def encode(recording: str) -> Tensor:
        batches = (batch.to(device) for batch in windows.segments(batch_size=8, recording_id=recording))
        tokens = [model.encode(batch.signal, batch.coordinates, batch.valid) for batch in batches]
        return torch.cat(tokens).double().mean(dim=0)

    vectors = [
        torch.stack([encode(recording) for recording in windows.recordings_of(participant)]).mean(dim=0)
        for participant in windows.participants
    ]
    return torch.stack(vectors).cpu().numpy(), windows.participants


RECIPES: dict[str, Recipe] = {
    recipe.id: recipe
    for recipe in [
        Recipe(
            id="rsfmri_brainlm_segments_v1",
            summary=(
                "encode without masking; mean over latent tokens, then over segments, then over recordings; project "
                "to at most 512 components; residualize age, sex, site, mean FD and tSNR"
            ),
            embed=_mean_of_segments,
            components=512,
            residualize=("age", "sex", "site", "mean_fd", "tsnr"),
        )
    ]
}


def find_recipe(recipe_id: str) -> Recipe:
    """Return the recipe of that id.

    Raises
    ------
    BrainLMError
        If there is none.
    """
    if recipe_id not in RECIPES:
        raise BrainLMError(f"recipe '{recipe_id}' is not known; expected one of {', '.join(sorted(RECIPES))}.")
    return RECIPES[recipe_id]


def embed(
    model: AnyModel,
    cohort: Cohort,
    recipe: str = "rsfmri_brainlm_segments_v1",
    *,
    device: torch.device | str = "cpu",
    scale: Scaling | None = None,
    other_atlas: bool = False,
) -> pd.DataFrame:
    """Embed every participant whose recordings are a window long.

    Parameters
    ----------
    scale : Scaling, optional
        For a model with robust scaling: ``Scaling.from_checkpoint(about, cohort.atlas.name)``.
    other_atlas : bool
        Let a model read an atlas that its checkpoint does not name. Ours knows parcels by their coordinates, but has
        learned nothing of these.

    Returns
    -------
    pandas.DataFrame
        participant_id, e0 … e{D-1}, before projection, harmonization and residualization, which need all sites.

    Raises
    ------
    CheckpointError
        If the model was trained in other atlases, or its scaling needs units that the recordings have lost.
    """
    check_cohort(model, cohort, other_atlas=other_atlas, remedy="say other_atlas=True")
    vectors, participants = find_recipe(recipe).embed(model, cohort, torch.device(device), scale)
    return feature_frame(vectors, participants)


def feature_sizes(config: AnyConfig, n_parcels: int) -> dict[str, int]:
    """How many features each set has that a site makes of its recordings with a model of that configuration."""
    width = config.width if isinstance(config, ModelConfig) else config.hidden_size
    return {"embedding": width, "untrained": width, "connectivity": n_parcels * (n_parcels - 1) // 2}


def functional_connectivity(cohort: Cohort, participants: list[str] | None = None) -> pd.DataFrame:
    """Compute the baseline: Fisher-z correlations of all pairs of parcels, averaged over recordings.

    Returns
    -------
    pandas.DataFrame
        participant_id, e0 … e{P(P-1)/2-1}, in the order of the upper triangle; NaN where no recording of a participant
        has both parcels of a pair.
    """
    vectors: dict[str, list[np.ndarray]] = {}
    upper = np.triu_indices(cohort.atlas.n_parcels, 1)
    for recording in cohort:
        if participants is not None and recording.participant_id not in set(participants):
            continue
        signal = recording.signal.astype(np.float64) - recording.signal.mean(axis=0, dtype=np.float64)
        norms = np.linalg.norm(signal, axis=0)
        scaled = np.where(recording.coverage, signal / np.where(norms > 0, norms, 1), np.nan)
        correlation = np.clip((scaled.T @ scaled)[upper], -1 + 1e-7, 1 - 1e-7)
        vectors.setdefault(recording.participant_id, []).append(np.arctanh(correlation))
    names = sorted(vectors)
    return feature_frame(np.stack([_mean_of_known(np.stack(vectors[name])) for name in names]), names)


def feature_frame(features: np.ndarray, participants: list[str]) -> pd.DataFrame:
    """Table of participant_id and e0 … e{D-1}."""
    table = pd.DataFrame(features, columns=[f"e{index}" for index in range(features.shape[1])])
    table.insert(0, "participant_id", participants)
    return table


def _mean_of_known(rows: np.ndarray) -> np.ndarray:
    """Mean over rows of the values that are not NaN; NaN where none is."""
    known = ~np.isnan(rows)
    with np.errstate(invalid="ignore"):
        return np.where(known, rows, 0).sum(axis=0) / known.sum(axis=0)
