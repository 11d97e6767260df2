"""A site's recordings: how they come in, are checked, stored and simulated."""

from cohorts.atlas import Atlas, atlas_names, load_atlas
from cohorts.cohort import Cohort
from cohorts.errors import AtlasError, CohortError, ParticipantsError, RecordingError
from cohorts.recording import Recording

__all__ = [
    "Atlas",
    "AtlasError",
    "Cohort",
    "CohortError",
    "ParticipantsError",
    "Recording",
    "RecordingError",
    "atlas_names",
    "load_atlas",
]
