"""Tables under a header of names, as BIDS derivatives hold them and as people export them.

The participants table is read by `cohorts.participants`, which owes people a sentence about each wrong row, and text of
matrices by `cohorts.sources.matrix_files`, where a header is not needed and values are float32 from the start.
"""

import csv
import io
import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from base.files import decode_text, read_bytes
from cohorts.errors import RecordingError

MISSING = ("n/a", "N/A", "NA", "nan", "NaN", "")
"""Cells that stand for a missing value."""
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
"""What stands between the cells of a table, and what it is called."""
MAX_TABLE_BYTES = 2**28
"""Largest table that is read, 256 MiB: thousands of columns for an hour of frames."""


def read_numbers(path: Path, text: Collection[str] = ()) -> pd.DataFrame:
    """Read a table of a run, as `read_text_table` does, of numbers: float64, NaN for n/a.

    Parameters
    ----------
    text : collection of str
        Columns that are not of numbers.

    Raises
    ------
    RecordingError
        With code ``unreadable``, ``empty``, ``no-header`` or ``text``.
    """
    try:
        table = read_text_table(path, text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RecordingError(
            "unreadable",
            f"{path.name}: cannot be read ({why}); expected columns under a header, separated by tabs. Restore it.",
        ) from None
    if pd.to_numeric(table.columns, errors="coerce").notna().all():
        raise RecordingError(
            "no-header",
            f"{path.name}: begins with numbers; expected a header that names the columns. Export it with its header.",
        )
    if table.empty:
        raise RecordingError(
            "empty", f"{path.name}: has a header and no rows; expected one row a frame. Make it again."
        )
    numbers = [column for column in table if column not in text]
    strange = next((column for column in numbers if table[column].dtype.kind not in "iuf"), None)
    if strange is not None:
        raise RecordingError(
            "text",
            f"{path.name}: holds text between the numbers of column '{strange}'; expected numbers and n/a, separated "
            "by tabs. Make it again.",
        )
    return table.astype(dict.fromkeys(numbers, "float64"))


def read_text_table(path: Path, text: Collection[str] = ()) -> pd.DataFrame:
    r"""Read a table with a header, and n/a as NaN.

    The separator is the one of tab, comma and semicolon that the header has most of, whatever the extension says; a
    byte order mark decides between UTF-8 and UTF-16, and lines may end in ``\n`` or ``\r\n``.

    Parameters
    ----------
    text : collection of str
        Columns to take as they are, even if they hold numbers.

    Raises
    ------
    ValueError
        Saying in a few words why it is no table. pandas' and Python's decoding errors are of this kind.
    OSError
        If it cannot be read.
    """
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(f"is larger than {MAX_TABLE_BYTES >> 20} MiB")
    try:
        content = decode_text(read_bytes(path))
    except UnicodeError:
        raise ValueError("is not UTF-8 text") from None
    header = content.partition("\n")[0]
    if not header.strip() or "\0" in content:
        raise ValueError("is empty" if not content.strip() else "has no header of column names")
    separator = max(SEPARATORS, key=header.count)
    _refuse_repeated(header, separator)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(content),
                sep=separator,
                dtype=dict.fromkeys(text, "str"),
                na_values=MISSING,
                keep_default_na=False,
                index_col=False,
                low_memory=False,
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning):
        raise ValueError("has rows of different lengths") from None
    table.columns = [str(column).strip() for column in table.columns]
    return table


def _refuse_repeated(header: str, separator: str) -> None:
    """Refuse names that stand twice, before pandas numbers them."""
    try:
        names = next(csv.reader([header.strip("\r")], delimiter=separator))
    except csv.Error:
        raise ValueError("has no header of column names") from None
    counts = Counter(name.strip() for name in names)
    repeated = next((name for name, count in counts.items() if name and count > 1), None)
    if repeated is not None:
        raise ValueError(f"names '{repeated[:60]}' twice in its header")
