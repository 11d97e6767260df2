import re

import pytest

from cohorts.identities import KeyedNames, Linkage
from cohorts.sources.kinds import Run


def test_a_message_tells_nobody_however_it_spells_them(tmp_path):
    names = KeyedNames(tmp_path / "key")
    run = Run("sub-0050003_ses-20190304_task-rest", "50003", "20190304", "rest")

    for message in (
        "sub-0050003_ses-20190304_task-rest_desc-confounds_timeseries.tsv: is cut off.",
        "sub-0050003_task-rest_bold.json: is no JSON.",
        "sub-50003_bold.json: is of 0050003 and of 50003 in session 20190304.",
    ):
        told = names.redact(message, run)
        assert "50003" not in told.replace(names.of(run).recording_id, "").replace(names.participant("50003"), "")
        assert "20190304" not in told


def test_numbers_of_a_sentence_are_nobody(tmp_path):
    names = KeyedNames(tmp_path / "key")

    assert names.redact("x: has 12 frames of 0 s.", Run("sub-0012", "sub-0012")) == "x: has 12 frames of 0 s."
    assert names.redact("x: has 0 frames.", Run("sub-0000", "sub-0000")) == "x: has 0 frames."


def test_the_linkage_gives_every_name_back(tmp_path):
    names = ["a\rb", "a\nb", "a\tb", 'a"b', "NA", " a ", "é", ""]
    linkage = Linkage({f"id{number}": (name, "sub-1") for number, name in enumerate(names)})

    linkage.write(tmp_path)

    assert Linkage.read(tmp_path) == linkage
    assert linkage.only({"id0"}).names == {"id0": ("a\rb", "sub-1")}


@pytest.mark.parametrize("label", ["20190304", "2019-03-04", "04.03.2019", "4Mar2019", "201903"])
def test_labels_that_look_like_dates_are_replaced_however_they_are_written(tmp_path, label):
    names = KeyedNames(tmp_path / "key")

    plain = ["1", "baseline2", "followup12", "V3T1"]
    assert re.fullmatch("x[0-9a-f]{8}", names.label(label))
    assert [names.label(one) for one in plain] == plain
