import math

import numpy as np
import pandas as pd
import pytest

from cohorts import Cohort, Recording, load_atlas
from cohorts.contract import CohortContract
from harmonization import Categorical, Design
from harmonization.core.errors import DesignError

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
    path = Cohort.create(tmp_path / "c", atlas="schaefer100").path / "cohort.yaml"
    path.write_text(path.read_text().replace("scaling: raw\n", ""))

    assert "scaling" not in path.read_text()
    assert Cohort.open(tmp_path / "c").scaling == "raw"


@pytest.fixture
def coded(tmp_path):
    """A cohort whose people have a number, a text, and a category that is coded by numbers, one of them missing."""
    people = pd.DataFrame({"participant_id": list("abcdef"), "iq": [90.0, 95, 100, 105, 110, 115]})
    people["dx"] = ["ASD", "ASD", "TDC", "Aut", "Aut", "aut"]
    people["group"] = [1, 1, 2, 2, 2, math.nan]
    people["nothing"] = math.nan
    return Cohort.open(made(tmp_path / "c", people).path)


@pytest.mark.parametrize(
    ("name", "levels", "said"),
    [
        ("iq", (), None),
        ("group", ("1", "2"), None),
        ("group", ("1", "3"), "group has levels outside 1, 3: '2' (3 participants). Recode them"),
        ("dx", ("ASD", "TDC"), "dx has levels outside ASD, TDC: 'Aut' (2 participants), 'aut' (1 participants)."),
        ("dx", (), "dx holds text, such as 'ASD' (2 participants), 'Aut' (2 participants)"),
        ("dx", (), "Ask for the study to name its levels: covariates: {dx: {levels: [ASD, Aut, TDC, aut]}}."),
        ("iqq", (), "knows no participant's iqq, which harmonization.keep asks for. Add the column"),
        ("nothing", (), "knows no participant's nothing, which harmonization.keep asks for"),
    ],
)
def test_a_column_is_what_the_study_takes_it_for(coded, name, levels, said):
    contract = CohortContract(atlases=ATLASES, covariates={name: levels}, asked_by={name: ("harmonization.keep",)})

    found = [mismatch.message for mismatch in contract.mismatches(coded)]

    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_the_levels_of_a_contract_are_those_that_a_design_codes(coded):
    people = coded.covariates().dropna(subset=["group"])

    design = Design((Categorical("group", ("1", "2")),)).encode(people, len(people))

    np.testing.assert_array_equal(design[:, 0], people["group"] == 2)
    with pytest.raises(DesignError, match=r"levels outside the agreed 1, 3: '2' \(3 rows\)"):
        Design((Categorical("group", ("1", "3")),)).encode(people, len(people))
