import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cohorts import Recording, load_atlas
from cohorts.atlas import Atlas
from cohorts.quality import QualityRules, measure
from cohorts.recording import Quality

ABOUT = ["recording_id", "participant_id", "t_r", "n_frames", "n_missing_parcels", "digest"]


@dataclass
class Shelf:
    """What a report reads of a cohort, in memory."""

    stored: Sequence[Recording]
    atlas: Atlas
    quarantined: pd.DataFrame
    name: str = "bergen"
    preprocessing: str = "fmriprep-24.1"
    remarks: tuple[str, ...] = ()
    notices: dict[str, int] = field(default_factory=dict)
    people: dict[str, Sequence[object]] = field(default_factory=dict)
    about: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(software={"fedbrainlm": "0.1.0"}))

    @property
    def recordings(self) -> pd.DataFrame:
        columns = ABOUT + [one.name for one in fields(Quality)]
        return pd.DataFrame([self._row(recording) for recording in self.stored], columns=columns)

    def covariates(self) -> pd.DataFrame:
        names = pd.DataFrame({"participant_id": sorted({recording.participant_id for recording in self.stored})})
        return names.assign(mean_fd=np.nan, tsnr=np.nan, **self.people)

    def read(self, recording_id: str) -> Recording:
        return next(recording for recording in self.stored if recording.recording_id == recording_id)

    def _row(self, recording: Recording) -> dict[str, object]:
        quality = measure(recording, self.atlas, QualityRules())
        counts = (len(recording.signal), int((~recording.coverage).sum()))
        digest = hashlib.sha256(recording.signal.tobytes()).hexdigest()
        about = (recording.recording_id, recording.participant_id, recording.t_r, *counts, digest)
        return dict(zip(ABOUT, about, strict=True)) | asdict(quality)


@pytest.fixture(scope="session")
def shelf() -> Callable[..., Shelf]:
    """Makes a shelf of recordings, and of refused ones as (recording_id, code, message)."""

    def make(stored: Sequence[Recording], refused: Sequence[tuple[str, str, str]] = (), atlas: str = "schaefer100"):
        table = pd.DataFrame(list(refused), columns=["recording_id", "code", "message"])
        return Shelf(stored, load_atlas(atlas), table)

    return make


@pytest.fixture(scope="session")
def recorded() -> Callable[..., Recording]:
    """Makes a recording of noise about 1000, with a common signal, in schaefer100."""

    def make(name: str, n_frames: int = 120, common: float = 0.5, **fields: object) -> Recording:
        rng = np.random.default_rng(list(name.encode()))
        signal = 1000 + 10 * (rng.normal(size=(n_frames, 100)) + common * rng.normal(size=(n_frames, 1)))
        return Recording(**{"participant_id": name, "signal": signal.astype(np.float32), "t_r": 2.0, **fields})

    return make
