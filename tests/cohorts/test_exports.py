import json
import shutil

import numpy as np
import pandas as pd
import pytest

from base.errors import FileError
from cohorts import Cohort, CohortError, Recording, load_atlas
from cohorts import exports as module
from cohorts.exports import PseudonymousCohort, export_bids, export_huggingface
from cohorts.identities import KeyedNames
from cohorts.participants import ParticipantsTable, read_participants
from cohorts.sources.matrices import MatrixSource
from tests.support.cohorts import contents

ATLAS = load_atlas("schaefer100")
RNG = np.random.default_rng(0)


@pytest.fixture
def cohort(tmp_path):
    people = pd.DataFrame(
        {
            "participant_id": ["sub-a1", "sub-b2", "sub-c3"],
            "age": [30.25, np.nan, 50.0],
            "sex": ["F", "M", "F"],
            "site": ["x", "x", "y"],
            "dob": ["2001-01-01", "1990-02-02", "1980-03-03"],
            "source": ["/data/secret-1", "/data/secret-2", "/data/secret-3"],
        }
    )
    made = Cohort.create(tmp_path / "cohort", atlas=ATLAS, participants=people, preprocessing="fmriprep-24")
    for name, participant, n_frames in (
        ("sub-a1_run-1", "sub-a1", 50),
        ("sub-a1_run-2", "sub-a1", 60),
        ("sub-b2", "sub-b2", 45),
    ):
        signal = (RNG.normal(size=(n_frames, 100)) * 10.0 ** RNG.integers(-30, 14, (n_frames, 100))).astype(np.float32)
        signal[:4] = [[-1e14], [1e14], [-1e14], [1e14]]  # every parcel changes as much, and in more than one frame
        signal[:, 7] = 0
        made.add(Recording(participant, signal, 0.8, recording_id=name, mean_fd=0.125))
    made.save()
    (made.path / "site-only").mkdir()
    (made.path / "site-only" / "key.txt").write_text("secret")
    return Cohort.open(made.path)


def test_bids_files_are_named_and_described(cohort, tmp_path):
    files = contents(export_bids(cohort, tmp_path / "bids"))

    series = "func/sub-b2_atlas-schaefer100_stat-mean_timeseries"
    assert f"sub-b2/{series}.tsv" in files
    assert "sub-a1/func/sub-a1_atlas-schaefer100_desc-suba1run1_stat-mean_timeseries.tsv" in files
    sidecar = json.loads(files[f"sub-b2/{series}.json"])
    assert (sidecar["RepetitionTime"], sidecar["SamplingFrequency"]) == (0.8, 1.25)
    assert sidecar["Quality"].items() >= {"n_frames": 45, "n_missing_parcels": 1, "mean_fd": 0.125}.items()
    about = json.loads(files["dataset_description.json"])
    assert (about["DatasetType"], about["GeneratedBy"][0]["Name"]) == ("derivative", "fedbrainlm")
    parcels = pd.read_csv(tmp_path / "bids/atlases/atlas-schaefer100_dseg.tsv", sep="\t")
    assert parcels["name"].tolist() == list(ATLAS.labels)
    assert list(parcels) == ["index", "name", "x", "y", "z", "network"]
    people = read_participants(tmp_path / "bids" / "participants.tsv")
    assert people["participant_id"].tolist() == ["sub-a1", "sub-b2"]
    assert people["age"][0] == 30.25
    assert json.loads(files["participants.json"])["age"]["Units"] == "year"


def test_bids_series_imported_again_are_equal(cohort, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in export_bids(cohort, tmp_path / "bids").glob("sub-*/**/*_timeseries.tsv"):
        shutil.copy(path, flat)
    source = MatrixSource(flat, ATLAS, participants=("sub-a1", "sub-b2"))

    back = [source.read(run).signal for run in source.runs()]

    for signal, recording in zip(back, cohort, strict=True):
        assert np.isnan(signal[:, 7]).all()
        np.testing.assert_array_equal(np.nan_to_num(signal), recording.signal)


def test_sessions_tasks_and_runs_become_entities(cohort, tmp_path, monkeypatch):
    index = cohort.recordings.assign(session=["1", "2", ""], task=["rest", "rest", ""], run=["1", "1", ""])
    monkeypatch.setattr(Cohort, "recordings", property(lambda self: index))

    files = contents(export_bids(cohort, tmp_path / "bids"))

    assert [name for name in files if name.endswith("timeseries.tsv")] == [
        "sub-a1/ses-1/func/sub-a1_ses-1_task-rest_run-1_atlas-schaefer100_stat-mean_timeseries.tsv",
        "sub-a1/ses-2/func/sub-a1_ses-2_task-rest_run-1_atlas-schaefer100_stat-mean_timeseries.tsv",
        "sub-b2/func/sub-b2_atlas-schaefer100_stat-mean_timeseries.tsv",
    ]


@pytest.mark.parametrize("export", [export_bids, export_huggingface])
def test_exports_are_the_same_each_time_and_tell_nobody(cohort, tmp_path, export):
    first, second = contents(export(cohort, tmp_path / "1")), contents(export(Cohort.open(cohort.path), tmp_path / "2"))

    assert first == second
    told = b"".join(first.values()) + " ".join(first).encode()
    for secret in (b"secret", b"/data", b"2001-01-01", b"dob", b"site-only", str(tmp_path).encode()):
        assert secret not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "cohort"]


@pytest.mark.parametrize("export", [export_bids, export_huggingface])
def test_exports_are_whole_or_absent(cohort, tmp_path, export):
    (cohort.path / "recordings" / "sub-b2.safetensors").write_bytes(b"damaged")
    with pytest.raises(CohortError, match="is damaged"):
        export(cohort, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort"]

    with pytest.raises(FileError, match="exists already"):
        export(cohort, cohort.path)
    with pytest.raises(CohortError, match="no recordings"):
        export(Cohort.create(tmp_path / "empty", atlas=ATLAS), tmp_path / "new")


def test_ids_that_bids_cannot_tell_apart_are_refused(tmp_path):
    made = Cohort.create(tmp_path / "cohort", atlas=ATLAS)
    for name in ("sub-a_1", "sub-a1"):
        made.add(Recording(name, RNG.normal(size=(50, 100)).astype(np.float32), 2.0))

    with pytest.raises(CohortError, match="letters and digits"):
        export_bids(made, tmp_path / "out")


def test_pandas_reads_the_shards(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROW_GROUP_BYTES", 1)
    monkeypatch.setattr(module, "_SHARD_BYTES", 30_000)

    out = export_huggingface(cohort, tmp_path / "hf")

    shards = sorted((out / "data").iterdir())
    table = pd.concat([pd.read_parquet(shard) for shard in shards], ignore_index=True)
    assert len(shards) == 2
    assert table["recording_id"].tolist() == ["sub-a1_run-1", "sub-a1_run-2", "sub-b2"]
    assert table["sex"].tolist() == ["F", "F", "M"]
    assert table["age"].isna().tolist() == [False, False, True]
    for signal, coverage, recording in zip(table["signal"], table["coverage"], cohort, strict=True):
        np.testing.assert_array_equal(np.stack(signal), recording.signal)
        np.testing.assert_array_equal(coverage, recording.coverage)
    assert (out / "README.md").read_text().startswith("---\npretty_name: cohort\n")
    assert load_atlas(out / "atlas.json").content_hash == ATLAS.content_hash


def test_hugging_face_reads_the_shards(cohort, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed; it is optional")
    out = export_huggingface(cohort, tmp_path / "hf")

    loaded = datasets.load_dataset(
        "parquet", data_files=str(out / "data" / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )

    assert loaded.features["age"].dtype == "float64"
    for row, recording in zip(loaded.with_format("numpy"), cohort, strict=True):
        assert row["participant_id"] == recording.participant_id
        np.testing.assert_array_equal(np.stack(row["signal"]), recording.signal)


@pytest.mark.parametrize("export", [export_bids, export_huggingface])
def test_a_cohort_with_own_ids_is_exported_under_pseudonyms(cohort, tmp_path, export):
    names = KeyedNames(tmp_path / "key")

    files = contents(export(PseudonymousCohort(cohort, names), tmp_path / "out"))

    pseudonym = names.participant("sub-a1")
    assert not [path for path, data in files.items() if b"sub-a1" in data or "sub-a1" in path]
    assert [path for path, data in files.items() if pseudonym.encode() in data or pseudonym in path]
    np.testing.assert_array_equal(
        PseudonymousCohort(cohort, names).read(f"{pseudonym}_run-1").signal, cohort.read("sub-a1_run-1").signal
    )


def test_each_visit_has_its_own_covariates_and_no_column_repeats_the_ids(tmp_path):
    made = Cohort.create(tmp_path / "cohort", atlas=ATLAS)
    for visit in ("1", "2019-03-04"):
        name = f"sub-a1_ses-{visit[:1]}"
        made.add(Recording("sub-a1", RNG.normal(size=(50, 100)).astype(np.float32), 2.0, name, session=visit))
    people = pd.DataFrame({"participant_id": ["sub-a1"], "age": [30.0], "sex": ["F"], "alias": ["a1"]})
    visits = people.loc[[0, 0]].assign(session_id=["1", "2019-03-04"], age=[30.0, 31.5])
    made.describe_participants(ParticipantsTable(people, visits.reset_index(drop=True)))
    made.save()

    out = export_huggingface(PseudonymousCohort(Cohort.open(made.path), KeyedNames(tmp_path / "key")), tmp_path / "hf")

    table = pd.read_parquet(next((out / "data").iterdir()))
    assert table["age"].tolist() == [30.0, 31.5]
    assert "alias" not in table
    assert not table["session"].str.contains("2019").any()
