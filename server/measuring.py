"""Before training: sums over the frames of the training participants, within each atlas.

Quartiles, where the study scales robustly; then second moments of the scaled frames, for the linear Gaussian predictor.
"""

from dataclasses import dataclass, field
from typing import Any

from base.files import save_arrays
from brainlm.config import WindowConfig
from brainlm.scaling import QUARTILES, Scaling
from exchange.messages import Arrays, FrameSpec
from exchange.roster import MIN_SITES
from harmonization import Analysis, Moments, Quantiles, SecondMoments
from harmonization.core.declared import Widths
from server.errors import StudyError
from server.journal import Journal
from server.roster import Roster
from server.sums import Task, solve_together
from study.settings import Study

STAGE = "measuring"


@dataclass(frozen=True)
class Measures:
    """What was measured, by atlas; empty where the study does not need it."""

    scaling: dict[str, Scaling] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)

    def scaling_parts(self) -> dict[str, Arrays]:
        """Return parts of a request, ``scaling/<atlas>``."""
        return {f"scaling/{atlas}": scale.to_arrays() for atlas, scale in self.scaling.items()}

    def moments_parts(self) -> dict[str, Arrays]:
        """Return parts of a request, ``moments/<atlas>``."""
        return {f"moments/{atlas}": moments.to_arrays() for atlas, moments in self.moments.items()}


def n_sums(study: Study, journal: Journal) -> int:
    """Count the sums over frames that are to come, as long as no site falls silent."""
    return max(0, study.frame_sums - journal.last_question(STAGE))


def measure(study: Study, roster: Roster, journal: Journal) -> Measures:
    """Measure what the study needs, and write it to ``scaling/`` and ``moments/`` of the run's folder.

    A site that falls silent here is left out of the study: sums need a fixed set of sites.
    """
    scaled = Measures(_scaling(study, roster))
    measures = Measures(scaled.scaling, _moments(study, roster, scaled))
    _require_measures(study, roster, measures)
    about = {"study": study.study, "seed": study.seed, "scaling": study.model.window.scaling}
    for name, arrays in (measures.scaling_parts() | measures.moments_parts()).items():
        save_arrays(journal.folder / f"{name}.safetensors", arrays, about)
    return measures


def _require_measures(study: Study, roster: Roster, measures: Measures) -> None:
    """Refuse to train without what the model needs, where too few sites share an atlas to sum it securely."""
    needed = [("window.scaling: robust", measures.scaling)] if study.needs_quartiles() else []
    needed += [("residual: gaussian", measures.moments)] if study.starts_from_linear_prediction else []
    for setting, measured in needed:
        for atlas in roster.by_atlas().keys() - measured.keys():
            raise StudyError(
                f"{setting} needs sums over the sites with atlas {atlas}, which are fewer than the {MIN_SITES} that "
                "a secure sum takes. Change the model, or leave the atlas out."
            )


def _scaling(study: Study, roster: Roster) -> dict[str, Scaling]:
    if not study.needs_quartiles():
        return {}
    unscaled = study.model.window.model_copy(update={"scaling": "none"})
    solved = _solve(study, roster, Quantiles(QUARTILES), unscaled, {})
    return {atlas: Scaling.from_quartiles(model.quantiles) for atlas, model in solved.items()}


def _moments(study: Study, roster: Roster, scaled: Measures) -> dict[str, Moments]:
    if not study.needs_moments():
        return {}
    window = study.model.window
    return _solve(study, roster, SecondMoments(window.n_frames), window, scaled.scaling_parts())


def _solve(
    study: Study, roster: Roster, analysis: Analysis, window: WindowConfig, scaling: dict[str, Arrays]
) -> dict[str, Any]:
    """Run an analysis of frames for all atlases at once; return the final state of each."""

    def tasks() -> dict[str, Task]:
        found = {}
        for atlas, sites in roster.by_atlas().items():
            spec = FrameSpec(
                atlas=atlas,
                window=window.model_dump(mode="json"),
                holdout=study.training.holdout,
                seed=study.seed,
            )
            if sites:
                found[atlas] = Task(analysis, spec, tuple(sites))
        return found

    if not tasks():
        return {}

    def widths_of(spec: FrameSpec) -> Widths:
        return Widths.of_frames(roster.atlases[spec.atlas])

    return solve_together(tasks, widths_of, study.study, roster, STAGE, scaling, study.privacy.frame_noise)
