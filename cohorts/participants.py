"""The participants table, after BIDS: one row a participant, missing values as n/a."""

import json
import math
from pathlib import Path

import pandas as pd

from cohorts.errors import ParticipantsError
from cohorts.files import atomic_path, write_text

#: What the columns that FedBrainLM knows mean; any other column is kept as it is.
COLUMNS = {
    "participant_id": {"Description": "Unique participant identifier"},
    "age": {"Description": "Age at the recording", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "mean_fd": {"Description": "Mean framewise displacement", "Units": "mm"},
    "tsnr": {"Description": "Median over parcels of temporal signal-to-noise ratio"},
    "t_r": {"Description": "Repetition time", "Units": "s"},
}
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
_MISSING = ["n/a", "N/A", "NA", "nan", "NaN", ""]


def read_participants(path: Path) -> pd.DataFrame:
    """Read and check a participants table (.tsv, or .csv).

    Returns
    -------
    pandas.DataFrame
        participant_id as text and unique; age, mean_fd, tsnr and t_r as numbers; sex as F or M; other columns
        as they are; missing values NaN.

    Raises
    ------
    ParticipantsError
        If the file or one of these columns is broken; the message names the row.
    """
    path = Path(path)
    table = _read_table(path)
    if "participant_id" not in table:
        raise ParticipantsError(
            f"{path}: has no column participant_id (columns: {', '.join(map(str, table.columns))}). "
            "Add it, and separate columns by tabs in .tsv and by commas in .csv files."
        )
    ids = table["participant_id"]
    if ids.isna().any():
        raise ParticipantsError(f"{path}: row {ids.isna().argmax() + 2} has no participant_id. Fill it in.")
    if ids.duplicated().any():
        raise ParticipantsError(
            f"{path}: participant '{ids[ids.duplicated()].iloc[0]}' stands twice; expected one row a participant. "
            "Merge the rows."
        )
    for column, (least, most, unit) in {
        "age": (0, 120, "years"),
        "mean_fd": (0, 100, "millimetres"),
        "tsnr": (0, math.inf, "a ratio"),
        "t_r": (0, 20, "seconds"),
    }.items():
        if column in table:
            table[column] = _numbers(table[column], least, most, unit, path)
    if "sex" in table:
        table["sex"] = _sexes(table["sex"], path)
    return table


def write_participants(table: pd.DataFrame, folder: Path) -> None:
    """Write ``participants.tsv`` and ``participants.json`` into `folder`."""
    with atomic_path(folder / "participants.tsv") as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
    known = {column: about for column, about in COLUMNS.items() if column in table}
    write_text(folder / "participants.json", json.dumps(known, indent=2) + "\n")


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(
            path,
            sep="," if path.suffix.lower() == ".csv" else "\t",
            dtype={"participant_id": "str"},
            encoding="utf-8-sig",
            keep_default_na=False,
            na_values=_MISSING,
        )
    except FileNotFoundError:
        raise ParticipantsError(f"{path}: no such participants table. Check the path.") from None
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, OSError, ValueError):
        raise ParticipantsError(
            f"{path}: cannot be read as a table; expected UTF-8 text with a header row, columns separated by tabs "
            "(.tsv) or commas (.csv). Save it so."
        ) from None


def _numbers(column: pd.Series, least: float, most: float, unit: str, path: Path) -> pd.Series:
    values = pd.to_numeric(column, errors="coerce")
    bad = (values.isna() & column.notna()) | (values < least) | (values > most)
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise ParticipantsError(
            f"{path}: row {row + 2} has {column.name} '{column.iloc[row]}'; expected a number in {unit} "
            f"from {least} to {most}, or n/a. Correct it."
        )
    return values.astype(float)


def _sexes(column: pd.Series, path: Path) -> pd.Series:
    levels = column.map(lambda value: _SEXES.get(str(value).strip().lower()), na_action="ignore")
    bad = (levels.isna() & column.notna()).to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise ParticipantsError(
            f"{path}: row {row + 2} has sex '{column.iloc[row]}'; expected F, M or n/a. "
            "Recode it: which number means which sex cannot be guessed."
        )
    return levels
