"""A cohort in formats that other tools read: BIDS derivatives, and Parquet for Hugging Face ``datasets``.

What is exported is what the cohort holds: no path, no column of the participants table that tells who somebody is, and
pseudonyms alone where the cohort was prepared with them, or else is looked at as a `PseudonymousCohort`. Exporting
twice gives equal bytes.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from base.files import atomic_folder
from cohorts.atlas import Atlas
from cohorts.cohort import Cohort
from cohorts.errors import CohortError
from cohorts.identities import Identity, KeyedNames
from cohorts.participants import identifying_columns, read_descriptions, write_participants
from cohorts.recording import Quality, Recording
from cohorts.sources.kinds import Run

_BIDS_VERSION = "1.10.0"
_MEASURES = ("n_frames", "n_missing_parcels", *(field.name for field in fields(Quality)))
_LABELS = ["recording_id", "participant_id", "session", "task", "run"]
_ROW_GROUP_BYTES = 2**24
_SHARD_BYTES = 2**29


class PseudonymousCohort(Cohort):
    """A view of a cohort whose ids are the site's own, as if it had been prepared under pseudonyms.

    What it shows bears pseudonyms, what it reads is the cohort's. It is not for writing.
    """

    def __init__(self, cohort: Cohort, names: KeyedNames) -> None:
        super().__init__(cohort.path, cohort.about, cohort.atlas)
        self._cohort = cohort
        self._identities: dict[str, tuple[Identity, str]] = {}
        for row in cohort.recordings.to_dict("records"):
            run = Run(row["recording_id"], row["participant_id"], row["session"], row["task"], row["run"])
            identity = names.of(run)
            self._identities[identity.recording_id] = identity, run.name
            self._rows[identity.recording_id] = {**row, **asdict(identity)}
        if len(self._rows) < len(cohort):
            raise CohortError(f"{cohort.path}: has recordings that get one pseudonym, as of 01 and sub-01. Rename one.")
        people, visits = (  # beside pseudonyms, columns that repeat the ids could not be told from others
            _without_identifying(table).assign(participant_id=table["participant_id"].map(names.participant))
            for table in (cohort.participants, cohort.sessions)
        )
        self._participants = people
        self._sessions = visits.assign(session_id=visits["session_id"].map(names.label))

    def read(self, recording_id: str) -> Recording:
        identity, own_name = self._identities[recording_id]
        return replace(self._cohort.read(own_name), **asdict(identity))


def export_bids(cohort: Cohort, out: str | Path) -> Path:
    """Write a cohort as a BIDS-derivative dataset.

    ::

        <out>/
          dataset_description.json
          participants.tsv, participants.json
          atlases/atlas-<atlas>_dseg.tsv
          sub-<label>/[ses-<label>/]func/<entities>_atlas-<atlas>_stat-mean_timeseries.tsv and .json

    The columns of a time series are the parcels, n/a throughout where one is missing. Nine digits bring every float32
    back exactly. Labels are the cohort's ids without the signs that BIDS does not allow. Where session, task and run do
    not tell two recordings of a participant apart, entity ``desc`` holds their recording ids.

    Parameters
    ----------
    out : path
        A new folder; it appears whole, or not at all. It is returned.

    Raises
    ------
    FileError
        If `out` exists.
    CohortError
        If the cohort has no recordings, or ids differ only in signs that BIDS does not allow.
    """
    with _new_folder(cohort, Path(out)) as partial:
        participants = _without_identifying(cohort.covariates())
        labels = {one: f"sub-{_label(one.removeprefix('sub-'))}" for one in participants["participant_id"]}
        names = _bids_names(cohort, labels)
        generated = {"Name": "fedbrainlm", "Version": version("fedbrainlm")}
        about = {"Name": cohort.name, "BIDSVersion": _BIDS_VERSION, "DatasetType": "derivative"}
        _write_json(partial / "dataset_description.json", about | {"GeneratedBy": [generated]})
        participants["participant_id"] = participants["participant_id"].map(labels)
        write_participants(participants, partial, read_descriptions(cohort.path / "participants.tsv"))
        _write_atlas(cohort.atlas, partial / "atlases" / f"atlas-{_label(cohort.atlas.name)}_dseg.tsv")
        measures = cohort.recordings.set_index("recording_id")[list(_MEASURES)].to_dict("index")
        for recording in cohort:
            file = partial / names[recording.recording_id]
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_series(recording, cohort.atlas, file)
            _write_json(file.with_suffix(".json"), _sidecar(recording, measures[recording.recording_id], cohort))
    return Path(out)


def export_huggingface(cohort: Cohort, out: str | Path) -> Path:
    """Write a cohort as Parquet shards with a dataset card, one row a recording.

    ``datasets.load_dataset("parquet", data_files="<out>/data/*.parquet")`` and `pandas.read_parquet` read them. Column
    ``signal`` holds [T, P] float32 as lists of frames, 0 throughout where ``coverage`` says that a parcel is missing;
    what is known of its participant at that visit stands beside each recording, and the atlas in ``atlas.json``. Takes
    the memory of a few recordings, whatever the size of the cohort. Beware: `load_dataset` makes a copy in its own
    cache, outside of `out`, unless told to stream.

    `out` and what is raised are as of `export_bids`, but that ids may be of any form.
    """
    with _new_folder(cohort, Path(out)) as partial:
        table = _by_recording(cohort)
        schema = _schema(table, cohort.atlas.n_parcels)
        (partial / "data").mkdir()
        for number, shard in enumerate(_shards(_batches(cohort, table, schema))):
            path = partial / "data" / f"recordings-{number:05d}.parquet"
            with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
                for batch in shard:
                    writer.write_batch(batch, row_group_size=batch.num_rows)
        (partial / "atlas.json").write_text(cohort.atlas.to_json(), encoding="utf-8")
        (partial / "README.md").write_text(_card(cohort, schema), encoding="utf-8")
    return Path(out)


@contextmanager
def _new_folder(cohort: Cohort, out: Path) -> Iterator[Path]:
    if not len(cohort):
        raise CohortError(f"{cohort.path}: has no recordings to export. Prepare some first.")
    with atomic_folder(out) as partial:
        yield partial
        os.sync()  # one for all files, before the folder gets its name


def _without_identifying(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=[*identifying_columns(table), "source"], errors="ignore")


def _label(text: str) -> str:
    """Text as a label of BIDS: letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _bids_names(cohort: Cohort, labels: dict[str, str]) -> dict[str, Path]:
    """File of every recording, below the dataset's folder."""
    shared = next((label for label, count in Counter(labels.values()).items() if count > 1), None)
    if shared or "sub-" in labels.values():
        raise CohortError(
            f"{cohort.path}: has participants whose ids are not told apart by letters and digits alone "
            f"({shared or 'sub-'}), as BIDS needs. Prepare the cohort again, under pseudonyms."
        )
    entities = {}
    for recording_id, participant, *texts in cohort.recordings[_LABELS].itertuples(index=False):
        known = zip(("ses", "task", "run"), map(_label, texts), strict=True)
        entities[recording_id] = (labels[participant], *(f"{key}-{label}" for key, label in known if label))
    taken = Counter(entities.values())
    names = {}
    for recording_id, parts in entities.items():
        description = f"_desc-{_label(recording_id)}" if taken[parts] > 1 else ""
        folder = Path(parts[0], *(part for part in parts if part.startswith("ses-")), "func")
        stem = f"{'_'.join(parts)}_atlas-{_label(cohort.atlas.name)}{description}"
        names[recording_id] = folder / f"{stem}_stat-mean_timeseries.tsv"
    if len(set(names.values())) < len(names):
        raise CohortError(
            f"{cohort.path}: has recordings whose ids are not told apart by letters and digits alone, as BIDS needs. "
            "Prepare the cohort again, under pseudonyms."
        )
    return names


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_atlas(atlas: Atlas, path: Path) -> None:
    path.parent.mkdir(parents=True)
    table = pd.DataFrame({"index": range(1, atlas.n_parcels + 1), "name": atlas.labels})
    table[["x", "y", "z"]] = atlas.coordinates
    if atlas.networks:
        table["network"] = atlas.networks
    table.to_csv(path, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
    about: dict[str, Any] = {"Name": atlas.title or atlas.name, "Space": atlas.space, "License": atlas.license}
    about |= {"ReferencesAndLinks": [atlas.reference] if atlas.reference else [], "SHA256": atlas.content_hash}
    _write_json(path.with_suffix(".json"), {key: value for key, value in about.items() if value})


def _write_series(recording: Recording, atlas: Atlas, path: Path) -> None:
    cells = ["%.9g" if covered else "n/a" for covered in recording.coverage]
    line = "\t".join(cells) + "\n"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("\t".join(atlas.labels) + "\n")
        for frame in recording.signal[:, recording.coverage].tolist():
            file.write(line % tuple(frame))


def _sidecar(recording: Recording, measures: dict[Any, Any], cohort: Cohort) -> dict[str, Any]:
    return {
        "RepetitionTime": recording.t_r,
        "SamplingFrequency": 1 / recording.t_r,
        "Atlas": cohort.atlas.name,
        "AtlasSHA256": cohort.atlas.content_hash,
        "Preprocessing": cohort.preprocessing,
        "Scaling": cohort.scaling,
        "Quality": {name: value for name, value in measures.items() if math.isfinite(value)},
    }


def _by_recording(cohort: Cohort) -> pd.DataFrame:
    """One row a recording, as they lie in the cohort: its labels and measures, and what is known of its participant.

    Covariates are those at that visit, where they are known.
    """
    index = cohort.recordings[[*_LABELS, "t_r", *_MEASURES]]
    covariates = _without_identifying(cohort.recording_covariates().drop(columns=["recording_id", "session_id"]))
    return index.join(covariates[covariates.columns.difference(index.columns, sort=False)])


def _schema(table: pd.DataFrame, n_parcels: int) -> pa.Schema:
    """Columns of the Parquet files, and what ``datasets`` wants to know of them."""
    columns = {str(name): _type(values) for name, values in table.items()}
    columns |= {"coverage": pa.list_(pa.bool_(), n_parcels), "signal": pa.list_(pa.list_(pa.float32(), n_parcels))}
    features = {name: _feature(kind) for name, kind in columns.items()}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _type(column: pd.Series) -> pa.DataType:
    if pd.api.types.is_bool_dtype(column):
        return pa.bool_()
    if pd.api.types.is_integer_dtype(column):
        return pa.int64()
    return pa.float64() if pd.api.types.is_numeric_dtype(column) else pa.string()


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """A column's type in the words of ``datasets``, as all of its versions read them."""
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "Sequence"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    name = {pa.float64(): "float64", pa.float32(): "float32"}.get(kind, str(kind))
    return {"dtype": name, "_type": "Value"}


def _batches(cohort: Cohort, table: pd.DataFrame, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A few recordings at a time, in order."""
    recordings: list[Recording] = []
    for done, recording in enumerate(cohort, start=1):
        recordings.append(recording)
        if done == len(cohort) or sum(one.signal.nbytes for one in recordings) >= _ROW_GROUP_BYTES:
            yield _batch(recordings, table[done - len(recordings) : done], schema)
            recordings = []


def _batch(recordings: list[Recording], rows: pd.DataFrame, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [_cells(rows[name], schema.field(name).type) for name in rows]
    covered = pa.array(np.concatenate([recording.coverage for recording in recordings]))
    arrays.append(pa.FixedSizeListArray.from_arrays(covered, type=schema.field("coverage").type))
    kind = schema.field("signal").type
    frames = pa.array(np.concatenate([recording.signal.ravel() for recording in recordings]))
    frames = pa.FixedSizeListArray.from_arrays(frames, type=kind.value_type)
    ends = np.cumsum([0, *(len(recording.signal) for recording in recordings)])
    arrays.append(pa.ListArray.from_arrays(pa.array(ends, pa.int32()), frames, type=kind))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _cells(values: pd.Series, kind: pa.DataType) -> pa.Array:
    """Cells of one column, null where a value is missing."""
    values = values.astype("str") if pa.types.is_string(kind) else values
    return pa.array(values.tolist(), kind, from_pandas=True)


def _shards(batches: Iterator[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Batches in groups of about `_SHARD_BYTES`, each to be used up before the next is asked for."""
    following = next(batches, None)

    def shard() -> Iterator[pa.RecordBatch]:
        nonlocal following
        size = 0
        while following is not None and size < _SHARD_BYTES:
            size += following.nbytes
            yield following
            following = next(batches, None)

    while following is not None:
        yield shard()


def _card(cohort: Cohort, schema: pa.Schema) -> str:
    """Dataset card: front matter that ``datasets`` reads, and what a person should know."""
    index, atlas = cohort.recordings, cohort.atlas
    front = {
        "pretty_name": cohort.name,
        "tags": ["fmri", "parcellated-time-series"],
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }
    repetition = ", ".join(f"{value:g}" for value in sorted(index["t_r"].unique()))
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {cohort.name}\n\n"
        f"Resting or task fMRI of {index['participant_id'].nunique()} people in {len(index)} recordings: the mean BOLD "
        "signal of every parcel over time. **Data of individuals**: share it only as their consent allows.\n\n"
        f"- Atlas: {atlas.name}, {atlas.n_parcels} parcels, SHA-256 `{atlas.content_hash}` (`atlas.json`)\n"
        f"- Repetition times: {repetition} s\n- Preprocessing: {cohort.preprocessing}; scaling: {cohort.scaling}\n"
        f"- Written by fedbrainlm {version('fedbrainlm')}\n\n"
        "| column | type |\n|---|---|\n"
        + "".join(f"| {name} | {kind} |\n" for name, kind in zip(schema.names, schema.types, strict=True))
        + "\n`signal` is [frames, parcels] in the order of `atlas.json`; a parcel that is missing in a recording is 0 "
        "in it, and false in `coverage`.\n"
    )
