import numpy as np
import pandas as pd
import pytest
import yaml

from cohorts import Cohort, Recording, load_atlas
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


def made(path, table):
    """A cohort of one recording a participant of the table."""
    cohort = Cohort.create(path, atlas="schaefer100", participants=table)
    for number, one in enumerate(table["participant_id"]):
        signal = np.random.default_rng(number).normal(size=(40, 100)).astype(np.float32)
        cohort.add(Recording(one, signal, t_r=1.0 + number))
    cohort.save()
    return cohort


def test_codes_of_a_category_are_levels_also_where_some_are_missing(tmp_path):
    cohort = made(tmp_path / "c", pd.DataFrame({"participant_id": list("abc"), "dx": [1.0, 2.0, np.nan]}))
    written = Cohort.open(tmp_path / "c")

    for one in (cohort, written):
        assert CohortContract(atlases=ATLASES, covariates={"dx": ("1", "2")}).mismatches(one) == []
        assert CohortContract(atlases=ATLASES, covariates={"dx": ("1", "3")}).mismatches(one) != []


def test_people_are_complete_if_every_covariate_is_known(tmp_path):
    table = pd.DataFrame({"participant_id": list("abc"), "age": [1.0, np.nan, 3.0], "sex": ["F", "M", None]})
    covariates = table.set_index("participant_id")
    contract = CohortContract(atlases=ATLASES, covariates={"age": (), "sex": ("F", "M")})

    assert contract.complete(covariates, ["c", "b", "a", "d"]) == ["a"]
    assert CohortContract(atlases=ATLASES).complete(covariates, ["c", "b"]) == ["c", "b"]
    assert CohortContract(atlases=ATLASES, covariates={"iq": ()}).complete(covariates, ["a"]) == []


def test_recordings_of_another_tr_are_counted(tmp_path):
    cohort = made(tmp_path / "c", pd.DataFrame({"participant_id": list("abc")}))

    (found,) = CohortContract(atlases=ATLASES, max_t_r=1.5).mismatches(cohort)

    assert "the study allows 0 to 1.5 s, and 2 of 3 lie outside" in found.message


def test_a_cohort_that_does_not_state_its_scaling_is_raw(tmp_path):
    Cohort.create(tmp_path / "c", atlas="schaefer100")
    path = tmp_path / "c" / "cohort.yaml"
    about = yaml.safe_load(path.read_text())
    del about["scaling"]
    path.write_text(yaml.safe_dump(about))

    assert Cohort.open(tmp_path / "c").scaling == "raw"
