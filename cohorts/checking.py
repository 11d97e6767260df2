"""Whether a cohort on the disk is what its index says."""

from collections.abc import Callable
from pathlib import Path

from base.errors import FedBrainLMError
from cohorts.cohort import Cohort
from cohorts.errors import RecordingError
from cohorts.recording import check_recording, digest_of, load_recording, read_facts


def check_cohort(cohort: Cohort, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Read every recording of a cohort; return a sentence for each that is damaged, or unlike its row in the index."""
    rows = cohort.recordings.to_dict("records")
    found = []
    for done, row in enumerate(rows, start=1):
        path = cohort.path / "recordings" / f"{row['recording_id']}.safetensors"
        found += _faults(path, cohort, row)
        progress(done, len(rows))
    return found


def _faults(path: Path, cohort: Cohort, row: dict[str, object]) -> list[str]:
    try:
        facts, recording = read_facts(path), load_recording(path)
        check_recording(recording, cohort.atlas.n_parcels, cohort.atlas.name)
    except RecordingError as fault:
        return [f"{path.name}: {fault}"]
    except FedBrainLMError as fault:
        return [str(fault)]
    # NaN is unlike itself; repr is not.
    different = [name for name, value in row.items() if repr(facts.get(name)) != repr(value)]
    if different or digest_of(recording) != row["digest"]:
        return [
            f"{path.name}: differs from recordings.parquet in {', '.join(different) or 'its signal'}; expected the "
            "recording that was indexed. Restore it, or delete it and prepare the cohort again."
        ]
    return []
