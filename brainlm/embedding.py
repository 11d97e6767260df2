"""Subject embeddings, by recipes that have an id, and the baseline of functional connectivity.

A recipe's meaning never changes; a variant gets an id of its own.
"""

from collections.abc import Callable, Mapping
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
from cohorts import Cohort, Recording

EMBEDDING, UNTRAINED, CONNECTIVITY = "embedding", "untrained", "connectivity"
"""What a site makes of its recordings: with the trained model, with one of random weights, and the baseline."""


@dataclass(frozen=True)
class Recipe:
    """How recordings become one vector a participant."""

    id: str
    """Logged with every vector."""
    summary: str
    """The steps, in words."""
    encode: Callable[[AnyModel, WindowSet, str], Tensor]
    """Model, windows and the id of a recording → its vector [D]; those of a participant's recordings are averaged."""
    components: int
    """Most dimensions that the projection keeps; fewer where features or participants are few."""
    residualize: tuple[str, ...]
    """Covariates whose linear effects are removed at the end."""


def _mean_of_segments(model: AnyModel, windows: WindowSet, recording_id: str) -> Tensor:
    """Encode without masking; mean over tokens, then over a recording's segments."""
    device = next(model.parameters()).device
    batches = (batch.to(device) for batch in windows.segments(batch_size=8, recording_id=recording_id))
    tokens = [model.encode(batch.signal, batch.coordinates, batch.valid) for batch in batches]
    return torch.cat(tokens).double().mean(dim=0)


RECIPES: dict[str, Recipe] = {
    recipe.id: recipe
    for recipe in [
        Recipe(
            id="rsfmri_brainlm_segments_v1",
            summary=(
                "encode without masking; mean over latent tokens, then over segments, then over recordings; project "
                "to at most 512 components; residualize age, sex, site, mean FD and tSNR"
            ),
            encode=_mean_of_segments,
            components=512,
            residualize=("age", "sex", "site", "mean_fd", "tsnr"),
        )
    ]
}


def find_recipe(recipe_id: str) -> Recipe:
    """Return the recipe of that id; a BrainLMError says which there are."""
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
    windows = WindowSet(cohort, model.config.window, scale=scale)
    features = embed_each({EMBEDDING: model}, windows, recipe, device=device)
    return feature_frame(features[EMBEDDING], windows.participants)


@torch.no_grad()
def embed_each(
    models: Mapping[str, AnyModel],
    windows: WindowSet,
    recipe: str,
    *,
    device: torch.device | str = "cpu",
    connectivity: bool = False,
) -> dict[str, np.ndarray]:
    """Embed the participants of windows with several models, of which each recording is read once.

    Parameters
    ----------
    models : mapping
        Name → model; all of them have the windows' settings.
    windows : WindowSet
        Keeps what it prepared, up to its bound, for whoever reads the windows next.
    connectivity : bool
        Add the baseline of `functional_connectivity`, as ``connectivity``, over all recordings of the participants:
        those that are too short for a window, too.

    Returns
    -------
    dict
        Name → array [n, D], n participants in the order of ``windows.participants``.
    """
    encode = find_recipe(recipe).encode
    for model in models.values():
        model.to(torch.device(device)).eval()
    every = windows.cohort.recordings.groupby("participant_id")["recording_id"].agg(list)
    features: dict[str, list[np.ndarray]] = {}
    for participant in windows.participants:
        usable = windows.recordings_of(participant)
        vectors: dict[str, list[Tensor]] = {name: [] for name in models}
        correlations = []
        for recording_id in every[participant] if connectivity else usable:
            recording = windows.cohort.read(recording_id)
            if connectivity:
                correlations.append(_correlations(recording))
            if recording_id in usable:
                windows.hold(recording)
                for name, model in models.items():
                    vectors[name].append(encode(model, windows, recording_id))
        for name, of_recordings in vectors.items():
            features.setdefault(name, []).append(torch.stack(of_recordings).mean(dim=0).cpu().numpy())
        if connectivity:
            features.setdefault(CONNECTIVITY, []).append(_mean_of_known(np.stack(correlations)))
    return {name: np.stack(rows) for name, rows in features.items()}


def feature_sizes(config: AnyConfig, n_parcels: int) -> dict[str, int]:
    """How many features each set has that a site makes of its recordings with a model of that configuration."""
    width = config.width if isinstance(config, ModelConfig) else config.hidden_size
    return {EMBEDDING: width, UNTRAINED: width, CONNECTIVITY: n_parcels * (n_parcels - 1) // 2}


def functional_connectivity(cohort: Cohort, participants: list[str] | None = None) -> pd.DataFrame:
    """Compute the baseline: Fisher-z correlations of all pairs of parcels, averaged over recordings.

    Returns participant_id, e0 … e{P(P-1)/2-1}, in the order of the upper triangle; NaN where no recording of a
    participant has both parcels of a pair.
    """
    index = cohort.recordings
    of_people = index if participants is None else index[index["participant_id"].isin(participants)]
    means = {
        participant: _mean_of_known(np.stack([_correlations(cohort.read(recording_id)) for recording_id in ids]))
        for participant, ids in of_people.groupby("participant_id")["recording_id"]
    }
    return feature_frame(np.stack(list(means.values())), list(means))


def _correlations(recording: Recording) -> np.ndarray:
    """Fisher-z correlations [P(P-1)/2] of a recording's parcels; NaN for pairs with one that it lacks."""
    signal = recording.signal.astype(np.float64) - recording.signal.mean(axis=0, dtype=np.float64)
    norms = np.linalg.norm(signal, axis=0)
    scaled = np.where(recording.coverage, signal / np.where(norms > 0, norms, 1), np.nan)
    pairs = np.triu_indices(signal.shape[1], 1)
    return np.arctanh(np.clip((scaled.T @ scaled)[pairs], -1 + 1e-7, 1 - 1e-7))


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
