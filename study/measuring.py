"""Before training: sums over the frames of the training participants, within each atlas.

Quartiles, where the study scales robustly; then second moments of the scaled frames, for the linear Gaussian predictor.
"""

from typing import Any

from brainlm.config import WindowConfig
from brainlm.scaling import QUARTILES, Scaling
from exchange.key_roster import MIN_SITES
from exchange.messages import FrameSpec, join
from harmonization import Analysis, Quantiles, SecondMoments
from study.errors import StudyError
from study.question import by_atlas
from study.settings import Study
from study.state import Measure, State
from study.sums import Task, Tasks

MEASURING = "measuring"


def quartile_tasks(study: Study, state: State) -> Tasks:
    """Quartiles of the unscaled frames of each atlas, where the study needs them."""
    if not study.needs_quartiles():
        return {}
    unscaled = study.model.window.model_copy(update={"scaling": "none"})
    return _by_atlas(study, state, Quantiles(QUARTILES), unscaled)


def keep_scaling(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Scale by the quartiles from now on."""
    scaling = {atlas.of: Scaling.from_quartiles(model.quantiles) for atlas, model in answers.items()}
    return state.holding(scaling=join(**{atlas: scale.to_arrays() for atlas, scale in scaling.items()}))


def moment_tasks(study: Study, state: State) -> Tasks:
    """Second moments of the scaled frames of each atlas, where the study needs them."""
    if not study.needs_moments():
        return {}
    window = study.model.window
    return _by_atlas(study, state, SecondMoments(window.n_frames), window)


def keep_moments(study: Study, state: State, answers: dict[Measure, Any]) -> State:
    """Keep the moments; a StudyError if the model needs what too few sites share an atlas to sum securely."""
    after = state.holding(moments=join(**{atlas.of: moments.to_arrays() for atlas, moments in answers.items()}))
    needed = {"scaling": "window.scaling: robust"} if study.needs_quartiles() else {}
    needed |= {"moments": "residual: gaussian"} if study.starts_from_linear_prediction else {}
    for part, setting in needed.items():
        for atlas in by_atlas(state.sites, secure=study.privacy.secure_sums):
            if not after.part(f"{part}/{atlas}"):
                raise StudyError(
                    f"{setting} needs sums over the sites with atlas {atlas}, which are fewer than the {MIN_SITES} "
                    "that a secure sum takes. Change the model, or leave the atlas out."
                )
    return after


def _by_atlas(study: Study, state: State, analysis: Analysis, window: WindowConfig) -> Tasks:
    """Return a task for each atlas that enough sites share."""
    sums = {"window": window.model_dump(mode="json"), "holdout": study.training.holdout, "seed": study.seed}
    groups = by_atlas(state.sites, secure=study.privacy.secure_sums)
    return {
        Measure(of=atlas): Task(analysis, FrameSpec(atlas=atlas, **sums), tuple(sites))
        for atlas, sites in groups.items()
        if sites
    }
