import pytest
import yaml

from cohorts import Cohort, load_atlas
from cohorts.contract import CohortContract

ATLASES = {"schaefer100": load_atlas("schaefer100").content_hash}


@pytest.mark.parametrize(("stored", "allowed"), [("raw", True), ("zscore", False)])
def test_robust_scaling_takes_only_recordings_that_kept_their_units(tmp_path, stored, allowed):
    Cohort.create(tmp_path / "c", atlas="schaefer100", scaling=stored)
    cohort = Cohort.open(tmp_path / "c")

    found = CohortContract(atlases=ATLASES, scalings=("raw",)).mismatches(cohort)

    assert cohort.scaling == stored
    assert [mismatch.kind for mismatch in found] == ([] if allowed else ["scaling"])
    if not allowed:
        assert "stored as zscore; the study needs raw ones. Prepare them as they were" in found[0].message
    assert CohortContract(atlases=ATLASES).mismatches(cohort) == []


def test_a_cohort_that_does_not_state_its_scaling_is_raw(tmp_path):
    Cohort.create(tmp_path / "c", atlas="schaefer100")
    path = tmp_path / "c" / "cohort.yaml"
    about = yaml.safe_load(path.read_text())
    del about["scaling"]
    path.write_text(yaml.safe_dump(about))

    assert Cohort.open(tmp_path / "c").scaling == "raw"
