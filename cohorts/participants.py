"""The participants table, after BIDS: one row a participant or a session, missing values as n/a.

What single cells mean stands in `cohorts.cells`.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from base.files import atomic_path, decode_text, read_bytes, read_json, write_text
from cohorts.cells import ColumnRules, TableRules, read_column
from cohorts.errors import ParticipantsError
from cohorts.persons import PersonPattern, by_person
from cohorts.tables import SEPARATORS

Descriptions = dict[str, dict[str, Any]]
"""What each column means, as ``participants.json`` holds it: Description, Units, Levels."""
MissingRule = Literal["keep", "quarantine", "refuse"]
"""What becomes of participants without a value: they stay, though studies leave them out; their recordings are
quarantined; or all is refused, and nothing is made."""

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
_KEPT_KEYS = ("LongName", "Description", "Units", "Levels", "TermURL")
_RULE_KEYS = ("MissingValues", "TopCoded", "Ranges")
"""What descriptions say of how cells are read: it is done once."""
_MOST_LEVELS = 20
_AGE_UNITS = {
    "years": r"\b(?:years?|yrs?|y)\b|^a$",
    "months": r"\b(?:months?|mos?)\b",
    "weeks": r"\b(?:weeks?|wks?|w)\b",
    "days": r"\b(?:days?|d)\b",
}
_ERRORS = ("#n/a", "#null!", "#value!", "#div/0!", "#ref!", "#num!", "#name?")
_ABSENT = ("", "n/a", "na", "nan", ".", "null", "<na>", *_ERRORS)
"""What people, statistics packages and spreadsheets write for no value, in lower case."""
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
    """All that a site's participants table says."""

    participants: pd.DataFrame
    """One row a participant, as `read_participants` returns it. Of a table with sessions: the values that stay the same
    over a participant's sessions, and the age at the first."""
    sessions: pd.DataFrame
    """One row a participant and session (session_id without ``ses-``), with every column; no rows where the table has
    no column session_id."""
    descriptions: Descriptions = field(default_factory=dict)
    """What the columns mean, out of the ``.json`` beside the table."""
    left_out: tuple[str, ...] = ()
    """Columns that tell who a participant is, and are in neither table."""
    notices: tuple[str, ...] = ()
    """What was not taken as it stands, a sentence each."""
    scans: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Where ids name a visit, too: id → participant and session."""
    person_column: str = ""
    """Column that named the participants of these ids; empty if a pattern did."""


def read_participants(path: Path) -> pd.DataFrame:
    """Read and check a participants table (.tsv, or .csv) of one row a participant.

    A ``.json`` of the same name beside it is heeded: the unit of age (years, months, weeks or days), the levels of sex,
    and what stands for a missing value. What is no value is missing; `load_participants` says what that was.

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
    table, _ = _checked(path, read_descriptions(path), TableRules(judge=False))
    _refuse_repeated(table, ["participant_id"], "expected one row a participant. Merge the rows.", path)
    return table.reset_index(drop=True)


def load_participants(
    path: Path, rules: TableRules | None = None, *, pattern: PersonPattern | None = None, person_column: str = ""
) -> ParticipantsTable:
    """Read a participants table with its descriptions, its sessions if it has any, and without identifying columns.

    Parameters
    ----------
    rules : TableRules, optional
        What becomes of cells that are no plain value. By default what is known by a bound or a range alone, and what
        can only be a code for a missing value, is missing.
    pattern : PersonPattern, optional
        Finds the participants, and perhaps their sessions, in ids that name both.
    person_column : str
        A column that names the participants, where ids are those of visits; these are numbered in their order if there
        is no column session_id.

    Raises
    ------
    ParticipantsError
        As `read_participants`; a participant may stand more than once if column session_id tells the rows apart.
    """
    path = Path(path)
    descriptions = read_descriptions(path)
    table, said = _checked(path, descriptions, rules or TableRules(), person_column)
    try:
        table, scans = by_person(table, pattern, person_column)
    except ParticipantsError as error:
        raise ParticipantsError(f"{path}: {error}") from None
    left_out = identifying_columns(table)
    table = table.drop(columns=list(left_out))
    if "session_id" in table:
        sessions = _sessions(table, path)
        participants = _over_sessions(sessions)
    else:
        apart = "by a second group of --participant-pattern" if scans else "in a column session_id"
        remedy = f"expected one row a participant. Merge the rows, or tell them apart {apart}."
        _refuse_repeated(table, ["participant_id"], remedy, path)
        sessions, participants = table.iloc[:0].assign(session_id=pd.Series(dtype="str")), table
    described = {column: _settled(column, about) for column, about in descriptions.items() if column in table}
    notices = tuple(notice for column, more in said.items() if column not in left_out for notice in more)
    participants, sessions = participants.reset_index(drop=True), sessions.reset_index(drop=True)
    return ParticipantsTable(participants, sessions, described, left_out, notices, scans, person_column)


def read_descriptions(path: Path) -> Descriptions:
    """Read what the columns of a table mean from the ``.json`` of the same name beside it; empty if there is none."""
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
        column: {key: about[key] for key in (*_KEPT_KEYS, *_RULE_KEYS) if key in about}
        for column, about in content.items()
        if isinstance(about, dict)
    }


def write_participants(table: pd.DataFrame, folder: Path, descriptions: Descriptions | None = None) -> None:
    """Write ``participants.tsv`` and ``participants.json`` into `folder`.

    If no descriptions are given, those of a ``participants.json`` there are kept. Columns that FedBrainLM knows are
    described in any case, and columns of a few texts list them as levels.
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
    """Decide about participants, a row each, without a value in one of `columns`, which are wanted of everybody.

    Returns participant_id → why their recordings are to be quarantined; empty with ``keep``. A ParticipantsError says
    if the table has no such column, or refuses by the rule.
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


def _checked(
    path: Path, descriptions: Descriptions, rules: TableRules, person_column: str = ""
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Read every row and every column; also say by column what was not taken as it stands."""
    table, notices = _read_table(path)
    if "participant_id" not in table:
        raise ParticipantsError(
            f"{path}: has no column participant_id (columns: {', '.join(map(str, table.columns))}). "
            "Add it, and separate columns by tabs in .tsv and by commas in .csv files."
        )
    unknown = next((f"{column}={value}" for column, value in rules.missing if column and column not in table), None)
    if unknown is not None:
        raise ParticipantsError(
            f"--missing-value {unknown}: {path} has no such column (columns: {', '.join(table.columns)}). Correct it."
        )
    table["participant_id"] = _ids(table["participant_id"], path)
    unit, said = _age_unit(descriptions, path), {"": notices}
    if "age" in table and unit != "years":
        said["age"] = [f"age: is in {unit} there, and was converted to years."]
    for column in table.columns.difference(["participant_id", "session_id", person_column], sort=False):
        try:
            of_column = ColumnRules.of(column, descriptions.get(column, {}), rules)
            table[column], more = read_column(table[column], of_column, unit)
        except ParticipantsError as error:
            raise ParticipantsError(f"{path}: {error}") from None
        said[column] = [*said.get(column, []), *more]
    return table, said


def _read_table(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Cells as stripped text, NaN where missing, by the number of their row; and what of the file is no part of it."""
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    try:
        text = decode_text(read_bytes(path))
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        # Spreadsheets count rows from 1, empty ones with the others.
        numbered = [(number, [_stripped(cell) for cell in row]) for number, row in enumerate(rows, start=1)]
        filled = [(number, row) for number, row in numbered if any(row)]
        given = [(number, row) for number, row in filled if any(row[1:]) or not row[0].startswith("#")]
        if not given:
            raise ValueError("empty")
    except FileNotFoundError:
        raise ParticipantsError(f"{path}: no such participants table. Check the path.") from None
    except (csv.Error, UnicodeError, OSError, ValueError):
        raise ParticipantsError(
            f"{path}: cannot be read as a table; expected UTF-8 text with a header row, columns separated by tabs "
            "(.tsv) or commas (.csv). Save it so."
        ) from None
    first = given[0][1]
    header, body = _header(first, separator, path), [(number, row) for number, row in given[1:] if row != first]
    table = _even(header, body, path)
    unnamed = [place for place, name in enumerate(header) if not name]
    notices = []
    if more := len(filled) - 1 - len(body):
        notices.append(f"{_counted(more, 'row')} left out: a comment, or the header again.")
    if unused := sum(table[place].notna().any() for place in unnamed):
        notices.append(f"{_counted(unused, 'column')} left out: without a name.")
    return table.drop(columns=unnamed).set_axis([name for name in header if name], axis=1), notices


def _counted(n: int, what: str) -> str:
    return f"{n} {what} was" if n == 1 else f"{n} {what}s were"


def _stripped(cell: str) -> str:
    """Return a cell without space around it, also of kinds that are not seen, and with a plain minus."""
    return cell.strip(" \t\r\n\v\f\u00a0\u2007\u202f\u200b\ufeff").replace("\u2212", "-")


def _header(cells: list[str], separator: str, path: Path) -> list[str]:
    """Names of the columns; empty where one has none, as when a separator ends the line."""
    names = [name.lower() if name.lower() in COLUMNS else name for name in cells]
    if len(names) == 1 and (other := next((mark for mark in SEPARATORS if mark in names[0]), None)):
        raise ParticipantsError(
            f"{path}: separates its columns by {SEPARATORS[other]}; expected {SEPARATORS[separator]} in a "
            f"{path.suffix} file. Save it so."
        )
    repeated = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if repeated is not None:
        raise ParticipantsError(f"{path}: has more than one column '{repeated}'. Rename or remove all but one.")
    return names


def _even(header: list[str], rows: list[tuple[int, list[str]]], path: Path) -> pd.DataFrame:
    """Cells by the number of their row and the place of their column, once each row is found to have all that is named.

    Empty cells beyond the header, and cells of columns without a name, may be there or not.
    """
    width, least = len(header), max(place for place, name in enumerate(header, start=1) if name)
    for number, row in rows:
        if len(row) < least or any(row[width:]):
            raise ParticipantsError(
                f"{path}: row {number} has {len(row)} cells, and the header {least}; expected as many in each, with "
                "n/a where a value is missing. Correct it."
            )
        row += [""] * (width - len(row))
    cells = [[None if cell.lower() in _ABSENT else cell for cell in row[:width]] for _, row in rows]
    return pd.DataFrame(cells, index=[number for number, _ in rows], columns=range(width), dtype="str")


def _ids(column: pd.Series, path: Path) -> pd.Series:
    """Ids as the table spells each first: ``01`` and ``sub-01`` are one person."""
    if column.isna().any():
        raise ParticipantsError(f"{path}: row {column.isna().idxmax()} has no participant_id. Fill it in.")
    spelled: dict[str, str] = {}
    return column.map(lambda one: spelled.setdefault(one.removeprefix("sub-"), one))


def _refuse_repeated(table: pd.DataFrame, columns: list[str], remedy: str, path: Path) -> None:
    repeated = table.duplicated(columns)
    if repeated.any():
        row = repeated.idxmax()
        session = f" with session '{table.loc[row, 'session_id']}'" if "session_id" in columns else ""
        raise ParticipantsError(
            f"{path}: participant '{table.loc[row, 'participant_id']}' stands twice{session} (again in row {row}); "
            f"{remedy}"
        )


def _sessions(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Rows with session labels without ``ses-``, each once a participant."""
    labels = table["session_id"].str.removeprefix("ses-")
    absent = labels.isna() | (labels == "")
    if absent.any():
        raise ParticipantsError(
            f"{path}: row {absent.idxmax()} has no session_id; expected one in each row of a table with that "
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


def _age_unit(descriptions: Descriptions, path: Path) -> str:
    """Unit of the column age."""
    stated = str(descriptions.get("age", {}).get("Units") or "").strip()
    named = {unit for unit, words in _AGE_UNITS.items() if re.search(words, stated, re.IGNORECASE)}
    if len(named) > 1 or (stated and stated != "n/a" and not named):
        raise ParticipantsError(
            f"{path.with_suffix('.json')}: says that age is in '{stated}'; expected year, month, week or day. "
            "Correct it."
        )
    return named.pop() if named else "years"


def _identifies(column: str, table: pd.DataFrame) -> bool:
    """Whether a column tells who its participants are: by its name, or since it repeats their ids."""
    if column in COLUMNS:
        return False
    if _IDENTIFYING.fullmatch(re.sub(r"[^a-z0-9]+", "_", str(column).lower()).strip("_")):
        return True
    values = table[["participant_id", column]].drop_duplicates()[column].dropna()  # of a person's visits, each once
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
    known = {key: value for key, value in COLUMNS.get(column, {}).items() if key != "Description"}
    return {**{key: value for key, value in about.items() if key not in _RULE_KEYS}, **known}
