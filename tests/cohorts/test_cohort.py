from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from base.files import save_arrays
from cohorts import Cohort, CohortError, Recording, RecordingError, load_atlas
from cohorts.checking import check_cohort
from cohorts.recording import read_facts


def recording(name: str, n_frames: int = 60, **fields: object) -> Recording:
    signal = np.random.default_rng(len(name)).normal(size=(n_frames, 100)).astype(np.float32)
    return Recording(**{"participant_id": name, "signal": signal, "t_r": 2.0, **fields})


def made(path: Path, *recordings: Recording, **about: object) -> Cohort:
    cohort = Cohort.create(path, atlas="schaefer100", **about)
    for one in recordings:
        cohort.add(one)
    cohort.save()
    return cohort


def test_what_goes_in_comes_out(tmp_path):
    signal = np.where(np.arange(100) == 7, 0, recording("sub-01").signal)
    first = recording("sub-01", signal=signal, mean_fd=0.1, tsnr=55.0)
    second = recording("sub-02", recording_id="sub-02_ses-1", t_r=0.72)
    made(tmp_path / "c", first, second, preprocessing="fmriprep-24")

    opened = Cohort.open(tmp_path / "c")
    assert (opened.name, opened.preprocessing, opened.atlas.name, len(opened)) == ("c", "fmriprep-24", "schaefer100", 2)
    back = opened.read("sub-01")
    np.testing.assert_array_equal(back.signal, first.signal)
    assert (back.t_r, back.mean_fd, back.tsnr, back.participant_id) == (2.0, 0.1, 55.0, "sub-01")
    assert back.coverage.sum() == 99
    assert not back.coverage[7]
    assert opened.recordings["n_missing_parcels"].tolist() == [1, 0]
    assert opened.recordings["t_r"].tolist() == [2.0, 0.72]
    assert [r.recording_id for r in opened] == ["sub-01", "sub-02_ses-1"]


def test_recordings_need_no_save_to_survive(tmp_path):
    made = Cohort.create(tmp_path / "c", atlas="schaefer100")
    for n in range(5):
        made.add(recording(f"sub-{n}"))

    cohort = Cohort.open(tmp_path / "c")

    assert cohort.recordings["recording_id"].tolist() == [f"sub-{n}" for n in range(5)]
    assert cohort.participants["participant_id"].tolist() == [f"sub-{n}" for n in range(5)]


def test_a_cohort_from_before_the_parcels_were_renamed_holds_the_same_columns(tmp_path):
    today = load_atlas("schaefer400")
    before = replace(today, labels=today.former_labels, former_labels=None)
    Cohort.create(tmp_path / "c", atlas=before).save()

    assert Cohort.open(tmp_path / "c").atlas.content_hash == today.content_hash


def test_notices_go_with_their_recordings(tmp_path):
    codes = ("further-columns", "former-names")
    made(tmp_path / "c", recording("sub-01", notices=codes[:1]), recording("sub-02", notices=codes))

    opened = Cohort.open(tmp_path / "c")
    assert opened.notices == {"further-columns": 2, "former-names": 1}
    assert opened.read("sub-01").notices == ("further-columns",)


def test_a_cohort_from_before_there_were_notices_opens_and_is_whole(tmp_path):
    made(tmp_path / "c", recording("sub-01"))
    path, index = tmp_path / "c" / "recordings" / "sub-01.safetensors", tmp_path / "c" / "recordings.parquet"
    save_arrays(path, load_file(path), {name: fact for name, fact in read_facts(path).items() if name != "notices"})
    pd.read_parquet(index).drop(columns="notices").to_parquet(index)

    opened = Cohort.open(tmp_path / "c")
    assert (opened.notices, opened.read("sub-01").notices) == ({}, ())
    assert check_cohort(opened) == []


def test_covariates_average_over_recordings(tmp_path):
    people = pd.DataFrame({"participant_id": ["sub-01", "sub-02", "sub-03"], "age": [30.0, 40.0, 50.0]})
    people["mean_fd"] = [9.0, 0.5, 0.6]
    runs = [recording("sub-01", recording_id=f"sub-01_run-{n}", mean_fd=0.2 * n - 0.1) for n in (1, 2)]

    table = made(tmp_path / "c", *runs, recording("sub-02"), participants=people).covariates()

    assert table["participant_id"].tolist() == ["sub-01", "sub-02"]
    assert table["age"].tolist() == [30.0, 40.0]
    assert table["mean_fd"].tolist() == pytest.approx([0.2, 0.5])  # measured where known, else as the table states


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ({"signal": np.zeros((50, 99), np.float32)}, "wrong-shape"),
        ({"signal": np.full((50, 100), np.nan, np.float32)}, "not-finite"),
        ({"t_r": 0.0}, "bad-tr"),
        ({"recording_id": "../../etc/passwd"}, "bad-id"),
        ({"participant_id": "a/b", "recording_id": "ok"}, "bad-id"),
        ({"recording_id": "sub-00"}, "duplicate"),
    ],
)
def test_refuses_what_does_not_fit(tmp_path, broken, code):
    cohort = made(tmp_path / "c", recording("sub-00"))

    with pytest.raises(RecordingError) as refused:
        cohort.add(recording("sub-01", **broken))

    assert refused.value.code == code
    assert len(Cohort.open(tmp_path / "c")) == 1


def test_one_opens_from_within_and_the_root_is_none(tmp_path, monkeypatch):
    Cohort.create(tmp_path / "here", atlas=load_atlas("schaefer100"))
    monkeypatch.chdir(tmp_path / "here")

    assert Cohort.open(".").name == "here"
    with pytest.raises(CohortError, match=r"^/: is not a cohort"):
        Cohort.open("/")


def test_where_a_disk_may_not_be_mounted_that_is_asked_first(tmp_path):
    for folder, said in ((tmp_path, "is empty"), (tmp_path / "gone", "is not there")):
        with pytest.raises(CohortError, match=f"{said}; expected a cohort's folder.*whether its disk is mounted"):
            Cohort.open(folder)
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(CohortError, match=r"is not a cohort; expected a folder with cohort\.yaml"):
            Cohort.open(path)


def test_refuses_folders_that_are_not_whole(tmp_path):
    made(tmp_path / "c", recording("sub-01"))
    with pytest.raises(CohortError, match="exists already"):
        Cohort.create(tmp_path / "c", atlas="schaefer100")

    stored = tmp_path / "c" / "recordings" / "sub-01.safetensors"
    stored.write_bytes(stored.read_bytes()[:100])
    with pytest.raises(CohortError, match=r"sub-01\.safetensors: is damaged"):
        Cohort.open(tmp_path / "c").read("sub-01")
    stored.unlink()
    with pytest.raises(CohortError, match="is gone"):
        Cohort.open(tmp_path / "c")
    (tmp_path / "c" / "atlas.json").write_text(Cohort.create(tmp_path / "d", atlas="aal116").atlas.to_json())
    with pytest.raises(CohortError, match=r"atlas\.json: differs"):
        Cohort.open(tmp_path / "c")


def test_an_id_that_leads_elsewhere_removes_nothing_there(tmp_path):
    cohort = Cohort.create(tmp_path / "c", atlas="schaefer100")
    (tmp_path / "c" / "quarantine").mkdir()
    (tmp_path / "mine.safetensors").write_text("keep")

    for name in ("../../mine", "x" * 300):
        cohort.quarantine(name, "bad-id", "Rename it.")
        cohort.forget(name)

    assert (tmp_path / "mine.safetensors").read_text() == "keep"
