"""The participants table, after BIDS: one row a participant or a session, missing values as n/a."""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cohorts.errors import ParticipantsError
from cohorts.files import atomic_path, decode_text, read_bytes, read_json, write_text
from cohorts.tables import MISSING, SEPARATORS

Descriptions = dict[str, dict[str, Any]]
"""What each column means, as ``participants.json`` holds it: Description, Units, Levels."""
MissingRule = Literal["keep", "quarantine", "refuse"]
"""What becomes of participants without a value: they stay, their recordings are quarantined, or all is refused."""

#: What the columns that FedBrainLM knows mean; any other column is kept as it is.
COLUMNS: Descriptions = {
    "participant_id": {"Description": "Unique participant identifier"},
    "session_id": {"Description": "Session label"},
    "age": {"Description": "Age at the recording", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "mean_fd": {"Description": "Mean framewise displacement", "Units": "mm"},
    "tsnr": {"Description": "Median over parcels of temporal signal-to-noise ratio"},
    "t_r": {"Description": "Repetition time", "Units": "s"},
}
_LIMITS = {
    "age": (0, 120, "years"),
    "mean_fd": (0, 100, "millimetres"),
    "tsnr": (0, math.inf, "a ratio"),
    "t_r": (0, 20, "seconds"),
}
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}

_KEPT_KEYS = ("LongName", "Description", "Units", "Levels", "TermURL")
_MOST_LEVELS = 20
# How often a year has each unit of age: 365.25 days, 12 months.
_AGE_UNITS = {
    **dict.fromkeys(("", "n/a", "year", "yr", "y", "a"), ("years", 1.0)),
    **dict.fromkeys(("month", "mo"), ("months", 12.0)),
    **dict.fromkeys(("week", "wk", "w"), ("weeks", 365.25 / 7)),
    **dict.fromkeys(("day", "d"), ("days", 365.25)),
}
# Columns that tell who somebody is or when they came (45 CFR 164.514(b)(2)); pseudonyms would be worth nothing
# beside them.
_IDENTIFYING = re.compile(
    r"(?:(?:first|last|given|family|full|middle|patient|subject|participant|maiden)_?)?name|surname|forename|initials"
    r"|dob|birth_?da(?:y|te)|date_of_birth|mrn|(?:medical|health|hospital)_record(?:_number)?|patient_?(?:id|number)"
    r"|(?:home_|street_)?address|street|city|zip(?:_?code)?|post(?:al)?_?code|(?:tele|mobile_|home_)?phone(?:_number)?"
    r"|mobile|fax|e_?mail(?:_address)?|ssn|social_security(?:_number)?|insurance_?(?:id|number)|acq_time"
    r"|(?:scan|acq|acquisition|visit|admission|discharge)_?date|date|file_?(?:name|path)|path"
    r"|nhs(?:_(?:no|number))?|cpr|fnr|personn?ummer|person_?number|hospital_?(?:no|number|id)|mri_?(?:no|number|id)"
    r"|fallnummer|patientennummer|birth_?year|year_of_birth|yob|nachname|vorname|etternavn|fornavn|navn|namn|nom|prenom"
    r"|apellidos?|nombre|geburts(?:datum|tag|jahr)|fodselsdato|adresse?|telefone?|tlf|notes?|comments?|remarks?"
)


_DATE_LIKE = r"\s*(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./](?:19|20)\d{2}|(?:19|20)\d{6})(?:[ T].*)?\s*"
_FEW = 6
"""Of fewer people than this, all may differ in what tells nothing of who they are."""


@dataclass(frozen=True)
class ParticipantsTable:
    """All that a site's participants table says.

    Attributes
    ----------
    participants : pandas.DataFrame
        One row a participant, as `read_participants` returns it. Of a table with sessions: the values that stay the
        same over a participant's sessions, and the age at the first.
    sessions : pandas.DataFrame
        One row a participant and session (session_id without ``ses-``), with every column; no rows where the table has
        no column session_id.
    descriptions : dict
        What the columns mean, out of the ``.json`` beside the table.
    left_out : tuple of str
        Columns that tell who a participant is, and are in neither table.
    notices : tuple of str
        What was changed on reading, a sentence each.
    """

    participants: pd.DataFrame
    sessions: pd.DataFrame
    descriptions: Descriptions = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def read_participants(path: Path) -> pd.DataFrame:
    """Read and check a participants table (.tsv, or .csv) of one row a participant.

    A ``.json`` of the same name beside it is heeded: the unit of age (years, months, weeks or days) and the levels of
    sex.

    Returns
    -------
    pandas.DataFrame
        participant_id as text and unique, with ``sub-`` or without; age in years, mean_fd, tsnr and t_r as numbers; sex
        as F or M; other columns as they are; missing values NaN.

    Raises
    ------
    ParticipantsError
        If the file or one of these columns is broken; the message names the row.
    """
    path = Path(path)
    table = _checked(path, read_descriptions(path))
    _refuse_repeated(table, ["participant_id"], "expected one row a participant. Merge the rows.", path)
    return table


def load_participants(path: Path) -> ParticipantsTable:
    """Read a participants table with its descriptions, its sessions if it has any, and without identifying columns.

    Raises
    ------
    ParticipantsError
        As `read_participants`; a participant may stand more than once if column session_id tells the rows apart.
    """
    path = Path(path)
    descriptions = read_descriptions(path)
    table = _checked(path, descriptions)
    left_out = identifying_columns(table)
    table = table.drop(columns=list(left_out))
    if "session_id" in table:
        sessions = _sessions(table, path)
        participants = _over_sessions(sessions)
    else:
        _refuse_repeated(
            table,
            ["participant_id"],
            "expected one row a participant. Merge the rows, or tell them apart in a column session_id.",
            path,
        )
        sessions, participants = table.iloc[:0].assign(session_id=pd.Series(dtype="str")), table
    described = {column: _settled(column, about) for column, about in descriptions.items() if column in table}
    unit, per_year = _age_unit(descriptions, path)
    converted = "age" in table and per_year != 1
    notices = (f"{path.name}: age is in {unit} there, and was converted to years.",) if converted else ()
    return ParticipantsTable(participants, sessions, described, left_out, notices)


def read_descriptions(path: Path) -> Descriptions:
    """Read what the columns of a table mean from the ``.json`` of the same name beside it; empty if there is none.

    Raises
    ------
    ParticipantsError
        If that file is broken.
    """
    path = Path(path).with_suffix(".json")
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise ParticipantsError(
            f"{path}: cannot be read; expected a JSON object that describes each column. Correct it, or move it away."
        ) from None
    return {
        column: {key: about[key] for key in _KEPT_KEYS if key in about}
        for column, about in content.items()
        if isinstance(about, dict)
    }


def write_participants(table: pd.DataFrame, folder: Path, descriptions: Descriptions | None = None) -> None:
    """Write ``participants.tsv`` and ``participants.json`` into `folder`.

    Parameters
    ----------
    descriptions : dict, optional
        What the columns mean; what a ``participants.json`` there says already if not given. Columns that FedBrainLM
        knows are described in any case, and columns of a few texts list them as levels.
    """
    given = read_descriptions(folder / "participants.tsv") if descriptions is None else descriptions
    with atomic_path(folder / "participants.tsv") as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
    described = {str(column): _described(table[column], given.get(column, {})) for column in table}
    known = {column: about for column, about in described.items() if about}
    write_text(folder / "participants.json", json.dumps(known, indent=2) + "\n")


def as_levels(values: pd.Series) -> pd.Series:
    """Text of known values as people write it: a table with a missing value makes 2.0 of the code 2."""
    return values.map(lambda value: str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))


def apply_missing_rule(table: pd.DataFrame, columns: Iterable[str], rule: MissingRule) -> dict[str, str]:
    """Decide about participants without a value in one of `columns`.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a participant.
    columns : iterable of str
        The covariates that are wanted of everybody.
    rule : {"keep", "quarantine", "refuse"}
        ``keep``: n/a stays, and studies leave these people out. ``quarantine``: their recordings are to be
        quarantined. ``refuse``: nothing is made.

    Returns
    -------
    dict
        participant_id → why their recordings are to be quarantined; empty with ``keep``.

    Raises
    ------
    ParticipantsError
        If the table has no such column, or by the rule ``refuse``.
    """
    missing: dict[str, str] = {}
    for column in columns:
        if column not in table:
            raise ParticipantsError(
                f"the participants table has no column '{column}' (columns: {', '.join(map(str, table.columns))}). "
                "Add it, or do not ask for it."
            )
        absent = table.loc[table[column].isna(), "participant_id"]
        if rule == "refuse" and len(absent):
            raise ParticipantsError(
                f"the participants table: {len(absent)} of {len(table)} participants have no {column}; expected a "
                "value for each. Fill it in, or choose another rule (--missing keep or quarantine)."
            )
        for participant in absent if rule == "quarantine" else ():
            missing.setdefault(
                participant,
                f"has no {column} in the participants table. Fill it in, or choose another rule (--missing keep).",
            )
    return missing


def identifying_columns(table: pd.DataFrame) -> tuple[str, ...]:
    """Columns that tell who a participant is: by their names, such as ``dob``, or since they repeat the ids."""
    return tuple(str(column) for column in table if _identifies(str(column), table))


def bare_id(participant: str) -> str:
    """Return what an id is without ``sub-`` and, if it is a number, without leading zeros."""
    bare = participant.removeprefix("sub-")
    return bare.lstrip("0") or "0" if bare.isdecimal() else bare


def _checked(path: Path, descriptions: Descriptions) -> pd.DataFrame:
    """Read every row, and check and convert the columns that FedBrainLM knows."""
    table = _read_table(path)
    if "participant_id" not in table:
        raise ParticipantsError(
            f"{path}: has no column participant_id (columns: {', '.join(map(str, table.columns))}). "
            "Add it, and separate columns by tabs in .tsv and by commas in .csv files."
        )
    table["participant_id"] = _ids(table["participant_id"], path)
    for column, (least, most, unit) in _LIMITS.items():
        if column in table:
            unit, factor = _age_unit(descriptions, path) if column == "age" else (unit, 1.0)
            table[column] = _numbers(table[column], least, most * factor, unit, path) / factor
    if "sex" in table:
        table["sex"] = _sexes(table["sex"], descriptions.get("sex", {}).get("Levels"), path)
    return table


def _read_table(path: Path) -> pd.DataFrame:
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    try:
        text = decode_text(read_bytes(path))
        header = _header(text, separator, path)
        return pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=0,
            names=header,
            dtype=dict.fromkeys(COLUMNS, "str"),
            keep_default_na=False,
            na_values=MISSING,
        )
    except FileNotFoundError:
        raise ParticipantsError(f"{path}: no such participants table. Check the path.") from None
    except (csv.Error, UnicodeError, OSError, ValueError):
        raise ParticipantsError(
            f"{path}: cannot be read as a table; expected UTF-8 text with a header row, columns separated by tabs "
            "(.tsv) or commas (.csv). Save it so."
        ) from None


def _header(text: str, separator: str, path: Path) -> list[str]:
    """Names of the columns, once every row is found to have as many cells."""
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    if not rows or not any(rows[0]):
        raise ValueError("empty")
    header = [name.strip() for name in rows[0]]
    header = [name.lower() if name.lower() in COLUMNS else name for name in header]
    if len(header) == 1 and (other := next((mark for mark in SEPARATORS if mark in header[0]), None)):
        raise ParticipantsError(
            f"{path}: separates its columns by {SEPARATORS[other]}; expected {SEPARATORS[separator]} in a "
            f"{path.suffix} file. Save it so."
        )
    repeated = next((name for name, count in Counter(header).items() if count > 1), None)
    if repeated is not None:
        raise ParticipantsError(f"{path}: has more than one column '{repeated}'. Rename or remove all but one.")
    uneven = next((n for n, row in enumerate(rows, start=1) if len(row) != len(header)), None)
    if uneven:
        raise ParticipantsError(
            f"{path}: row {uneven} has {len(rows[uneven - 1])} cells, and the header {len(header)}; expected as many "
            "in each, with n/a where a value is missing. Correct it."
        )
    return header


def _ids(column: pd.Series, path: Path) -> pd.Series:
    """Ids as the table spells each first: ``01`` and ``sub-01`` are one person."""
    ids = column.str.strip()
    absent = (ids.isna() | (ids == "")).to_numpy()
    if absent.any():
        raise ParticipantsError(f"{path}: row {absent.argmax() + 2} has no participant_id. Fill it in.")
    spelled: dict[str, str] = {}
    return ids.map(lambda one: spelled.setdefault(one.removeprefix("sub-"), one))


def _refuse_repeated(table: pd.DataFrame, columns: list[str], remedy: str, path: Path) -> None:
    repeated = table.duplicated(columns).to_numpy()
    if repeated.any():
        row = int(repeated.argmax())
        session = f" with session '{table['session_id'].iloc[row]}'" if "session_id" in columns else ""
        raise ParticipantsError(
            f"{path}: participant '{table['participant_id'].iloc[row]}' stands twice{session} "
            f"(again in row {row + 2}); {remedy}"
        )


def _sessions(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Rows with session labels without ``ses-``, each once a participant."""
    labels = table["session_id"].str.strip().str.removeprefix("ses-")
    absent = (labels.isna() | (labels == "")).to_numpy()
    if absent.any():
        raise ParticipantsError(
            f"{path}: row {absent.argmax() + 2} has no session_id; expected one in each row of a table with that "
            "column. Fill it in."
        )
    table = table.assign(session_id=labels)
    _refuse_repeated(table, ["participant_id", "session_id"], "expected one row a session. Merge the rows.", path)
    return table


def _over_sessions(sessions: pd.DataFrame) -> pd.DataFrame:
    """What stays the same over each participant's sessions, and the least age, which is that at the first."""
    people = sessions.groupby("participant_id", sort=False)
    changing = people.nunique().gt(1).any()
    constant = [column for column in sessions if not changing.get(column, False) and column != "session_id"]
    table = people[[column for column in constant if column != "participant_id"]].first()
    if "age" in sessions:
        table["age"] = people["age"].min()
    order = [column for column in sessions if column in table]
    return table[order].reset_index()


def _numbers(column: pd.Series, least: float, most: float, unit: str, path: Path) -> pd.Series:
    values = pd.to_numeric(column, errors="coerce")
    bad = ((values.isna() & column.notna()) | (values < least) | (values > most)).to_numpy()
    if bad.any():
        row = int(bad.argmax())
        text = str(column.iloc[row])
        raise ParticipantsError(
            f"{path}: row {row + 2} has {column.name} '{text}'; expected a number in {unit} "
            f"from {least:g} to {most:g}, or n/a. {_remedy(str(column.name), text)}"
        )
    return values.astype(float)


def _remedy(column: str, text: str) -> str:
    """What to do about a cell that is no number in its range."""
    if re.fullmatch(r"\d+,\d+", text):
        return "Write it with a decimal point."
    if re.fullmatch(r"\d+ ?\+", text):
        return f"Write {text.strip(' +')} to count top-coded values at their bound, or n/a to leave them out."
    if not re.fullmatch(r"-?\d+(\.\d*)?", text):
        return "Write the number alone."
    if column == "age":
        return 'Correct it; if ages are in months, say so in a .json beside it: {"age": {"Units": "month"}}.'
    return "Correct it."


def _age_unit(descriptions: Descriptions, path: Path) -> tuple[str, float]:
    """Unit of the column age, and how many of it a year has."""
    stated = str(descriptions.get("age", {}).get("Units", "")).strip()
    unit = _AGE_UNITS.get(stated.lower().removesuffix("s"))
    if unit is None:
        raise ParticipantsError(
            f"{path.with_suffix('.json')}: says that age is in '{stated}'; expected year, month, week or day. "
            "Correct it."
        )
    return unit


def _sexes(column: pd.Series, levels: Any, path: Path) -> pd.Series:
    """Sex as F or M, by its own words or by what the levels say of its codes."""
    spoken = dict(_SEXES)
    for code, meaning in levels.items() if isinstance(levels, dict) else ():
        said = meaning.get("Description", "") if isinstance(meaning, dict) else meaning
        if str(said).strip().lower() in _SEXES:
            spoken[str(code).strip().lower()] = _SEXES[str(said).strip().lower()]
    found = column.map(lambda value: spoken.get(str(value).strip().lower()), na_action="ignore")
    bad = (found.isna() & column.notna()).to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise ParticipantsError(
            f"{path}: row {row + 2} has sex '{column.iloc[row]}'; expected F, M or n/a. Recode it, or give its Levels "
            f"in {path.with_suffix('.json').name}: which number means which sex cannot be guessed."
        )
    return found


def _identifies(column: str, table: pd.DataFrame) -> bool:
    """Whether a column tells who its participants are: by its name, or since it repeats their ids."""
    if column in COLUMNS:
        return False
    if _IDENTIFYING.fullmatch(re.sub(r"[^a-z0-9]+", "_", str(column).lower()).strip("_")):
        return True
    values = table[column].dropna()
    if _single_people(values):
        return True
    ids = table.loc[values.index, "participant_id"].map(bare_id)
    numeric = pd.api.types.is_numeric_dtype(values)
    texts = values.map(lambda value: f"{value:.0f}" if numeric else str(value).strip())
    own = sum(
        bare_id(text) == one or (not numeric and len(one) > 2 and one in text)
        for text, one in zip(texts, ids, strict=True)
    )
    # Small numbers can be ids by chance, so all of them must be; of others, most.
    telling = {one for one in table["participant_id"] if len(bare_id(one)) > 3 or not bare_id(one).isdecimal()}
    least = len(values) / 2 if telling else len(values) - 1
    return bool(len(values)) and max(own, int(texts.isin(telling).sum())) > least


def _single_people(values: pd.Series) -> bool:
    """Whether a column's values single people out: dates, texts that are hardly ever shared, or long numbers."""
    if pd.api.types.is_numeric_dtype(values):
        whole = np.isclose(values % 1, 0).all() and (values.abs() >= 10_000).all()
        return bool(len(values) >= _FEW and whole and values.is_unique)
    texts = values.map(str)
    if texts.str.fullmatch(_DATE_LIKE).any():
        return True
    return len(texts) >= _FEW and texts.nunique() > len(texts) / 2


def _described(column: pd.Series, given: dict[str, Any]) -> dict[str, Any]:
    """Description of a column: what is known of it, what was said of it, and the levels that a few texts make."""
    about = _settled(str(column.name), {**COLUMNS.get(str(column.name), {}), **given})
    if str(column.name) in COLUMNS or "Levels" in about or pd.api.types.is_numeric_dtype(column):
        return about
    levels = sorted(column.dropna().astype("str").unique())
    if len(levels) > min(_MOST_LEVELS, len(column) / 2):
        return about
    return {**about, "Levels": {level: level for level in levels}}


def _settled(column: str, about: dict[str, Any]) -> dict[str, Any]:
    """Description of a column with the units and levels that it has once it is read."""
    return {**about, **{key: value for key, value in COLUMNS.get(column, {}).items() if key != "Description"}}
