"""A second table of vectors of the same participants, such as gene embeddings: ``<cohort>/vectors/<name>.parquet``."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from base.files import atomic_path
from cohorts.cohort import Cohort
from cohorts.errors import VectorsError
from cohorts.identities import Linkage
from cohorts.participants import bare_id
from cohorts.recording import check_identifier

_IDS = {"participant_id": "str"}  # zeros in front are part of an id
_READERS = {
    ".parquet": pd.read_parquet,
    ".csv": lambda path: pd.read_csv(path, dtype=_IDS),
    ".tsv": lambda path: pd.read_csv(path, dtype=_IDS, sep="\t"),
}


@dataclass(frozen=True)
class Vectors:
    """One vector a participant."""

    participants: list[str]
    """The n participants."""
    matrix: np.ndarray
    """[n, r]."""


def import_vectors(cohort: Cohort, source: Path, name: str) -> Vectors:
    """Check a table of vectors and keep it in the cohort, replacing one of the same name.

    Returns those of participants that the cohort knows; others are left out.

    Parameters
    ----------
    source : Path
        A .parquet, .csv or .tsv with the column participant_id, and one numeric column a dimension, as v0, v1, …. Ids
        are the cohort's, or the site's own, which its linkage knows.
    name : str
        What studies call it.

    Raises
    ------
    VectorsError
        If the table is broken; the message names the column or the participant.
    """
    _path(cohort, name)  # a name that cannot be one is refused before the table is read
    table = _called_as_in(cohort, _checked(source), source)
    known = table[table["participant_id"].isin(set(cohort.recordings["participant_id"]))]
    if known.empty:
        raise VectorsError(
            f"{source}: none of its {len(table)} participants has a recording in cohort {cohort.name}. "
            "Use the participants' ids of the cohort, or the site's own."
        )
    vectors = _split(known)
    save_vectors(cohort, vectors, name)
    return vectors


def save_vectors(cohort: Cohort, vectors: Vectors, name: str) -> None:
    """Keep vectors in a cohort, replacing those of the same name."""
    table = pd.DataFrame(vectors.matrix, columns=_columns(vectors.matrix.shape[1]))
    table.insert(0, "participant_id", vectors.participants)
    with atomic_path(_path(cohort, name)) as temporary:
        table.to_parquet(temporary, index=False)


def read_vectors(cohort: Cohort, name: str) -> Vectors:
    """Read the vectors of that name; a VectorsError if the cohort has none, or they cannot be read."""
    path = _path(cohort, name)
    if not path.is_file():
        raise VectorsError(
            f"cohort {cohort.name} has no vectors '{name}'. Add them: fedbrainlm cohort vectors {cohort.path} FILE "
            f"--name {name}"
        )
    return _split(_checked(path))


def _path(cohort: Cohort, name: str) -> Path:
    return cohort.path / "vectors" / f"{check_identifier(name, 'name of vectors')}.parquet"


def _columns(n: int) -> list[str]:
    return [f"v{index}" for index in range(n)]


def _checked(source: Path) -> pd.DataFrame:
    """Read a table, with ids as text and numbers as float64, or say what is wrong with it."""
    if source.suffix not in _READERS:
        raise VectorsError(f"{source}: expected a .parquet, .csv or .tsv file. Convert it.")
    if not source.is_file():
        raise VectorsError(f"{source}: no such file. Check the path.")
    try:
        table = _READERS[source.suffix](source)
    except Exception as error:  # whatever a broken file makes of a reader
        raise VectorsError(f"{source}: cannot be read as {source.suffix[1:]} ({type(error).__name__}).") from None
    if "participant_id" not in table:
        raise VectorsError(f"{source}: has no column participant_id. Add it.")
    ids = table["participant_id"].astype("str")
    if ids.duplicated().any():
        raise VectorsError(f"{source}: participant '{ids[ids.duplicated()].iloc[0]}' stands twice. Keep one row each.")
    values = table.drop(columns="participant_id")
    if values.empty:
        raise VectorsError(f"{source}: has no numeric columns beside participant_id. Add one a dimension.")
    for column in values:
        if not pd.api.types.is_numeric_dtype(values[column]):
            raise VectorsError(f"{source}: column '{column}' holds text; expected numbers. Leave it out.")
    finite = np.isfinite(values.to_numpy(np.float64)).all(axis=1)
    if not finite.all():
        raise VectorsError(
            f"{source}: participant '{ids[~finite].iloc[0]}' has a missing or infinite value. Leave the row out."
        )
    renamed = values.astype(np.float64).set_axis(_columns(values.shape[1]), axis=1)
    return pd.concat([ids, renamed], axis=1)


def _called_as_in(cohort: Cohort, table: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Call everybody as the cohort does, whether the table does or has the site's own ids."""
    index = dict(cohort.recordings[["recording_id", "participant_id"]].to_numpy())
    linked = Linkage.read(cohort.path).names.items()
    own = {bare_id(participant): index[run] for run, (_, participant) in linked if run in index}
    ids = table["participant_id"].map(lambda one: own.get(bare_id(one), one))
    if ids.duplicated().any():
        twice = table.loc[ids.duplicated(), "participant_id"].iloc[0]
        raise VectorsError(f"{source}: participant '{twice}' stands twice, in two spellings. Keep one row each.")
    return table.assign(participant_id=ids)


def _split(table: pd.DataFrame) -> Vectors:
    return Vectors(table["participant_id"].tolist(), table.drop(columns="participant_id").to_numpy())
