from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest

from cohorts import Cohort, Recording


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Callable[..., Cohort]:
    """Makes a cohort of recordings, of refused ones as (recording_id, code, message), and what is known of people."""

    def make(stored: Sequence[Recording], refused: Sequence[tuple[str, str, str]] = (), **people: Sequence[object]):
        ids = pd.Series(sorted({recording.participant_id for recording in stored}), dtype="str")
        participants = pd.DataFrame({"participant_id": ids, **people})
        folder = tmp_path_factory.mktemp("shelf") / "bergen"
        cohort = Cohort.create(folder, atlas="schaefer100", participants=participants, preprocessing="fmriprep-24.1")
        for recording in stored:
            cohort.add(recording)
        for one in refused:
            cohort.quarantine(*one)
        return cohort

    return make


@pytest.fixture(scope="session")
def recorded() -> Callable[..., Recording]:
    """Makes a recording of noise about 1000, with a common signal, in schaefer100."""

    def make(name: str, n_frames: int = 120, common: float = 0.5, **fields: object) -> Recording:
        rng = np.random.default_rng(list(name.encode()))
        signal = 1000 + 10 * (rng.normal(size=(n_frames, 100)) + common * rng.normal(size=(n_frames, 1)))
        return Recording(**{"participant_id": name, "signal": signal.astype(np.float32), "t_r": 2.0, **fields})

    return make
