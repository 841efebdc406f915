"""From a file or a data frame to columns, with every fault of the file either named or mended and the mending stated.

CSV files are read as text, cell by cell: what a column holds is decided later (``_columns``), from the training rows
alone and by the same rules for every file, so that a new file cannot be read in another way than the one trained on.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shoal.errors import DataError, UsageError, did_you_mean

CSV_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
_SEPARATORS: Final = (",", ";", "\t", "|")
_MAX_UNPACKED: Final = 4 * 2**30  # bytes
_MAX_CELL: Final = 10_000_000  # characters; a quote that is never closed swallows the rest of the file


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Columns by name, and what was mended on the way. ``frame`` is a pandas data frame with unique string names."""

    frame: Any
    notes: tuple[str, ...]
    name: str

    @property
    def n(self) -> int:
        """How many rows there are."""
        return len(self.frame)

    def column(self, name: str, role: str) -> Any:
        """One column.

        Raises:
            UsageError: If there is none of this name; `role` says what it was wanted for.
        """
        if name not in self.frame.columns:
            raise UsageError(f"{self.name} has no column {name!r} ({role}).{did_you_mean(name, self.frame.columns)}")
        return self.frame[name]


def is_table(path: str | Path) -> bool:
    """Whether a file is one that `read_table` reads, going by its name."""
    return str(path).lower().endswith((*CSV_SUFFIXES, *PARQUET_SUFFIXES))


def read_table(source: Any) -> Table:
    """Read a CSV or Parquet file, or take a pandas data frame.

    Args:
        source: A path, or a data frame; a table is returned as it is.

    Returns:
        The table: cells of a CSV file are strings (None where a row ends early), columns of Parquet files and data frames
        keep their types.

    Raises:
        UsageError: If the file is missing or of another kind, or pandas is not installed.
        DataError: If its content cannot be read as a table; the message names the line.
    """
    if isinstance(source, Table):
        return source
    pandas = need_pandas()
    if isinstance(source, pandas.DataFrame):
        return _from_frame(source, "the data frame", pandas)
    if not isinstance(source, str | Path):
        raise UsageError(f"a table is a path or a pandas data frame, not {type(source).__qualname__}.")
    path = Path(source)
    if not path.exists():
        near = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UsageError(f"there is no file {str(path)!r}.{did_you_mean(path.name, near) if near else ''}")
    if path.is_dir() or not is_table(path):
        known = ", ".join((*CSV_SUFFIXES, *PARQUET_SUFFIXES))
        raise UsageError(f"{str(path)!r} is not a table that can be read: its name must end in one of {known}.")
    if path.name.lower().endswith(PARQUET_SUFFIXES):
        return _from_frame(_read_parquet(path, pandas), path.name, pandas)
    return _read_csv(path, pandas)


def need_pandas() -> Any:
    """pandas, or a message that says how to get it.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UsageError(
            "reading data files needs pandas and scikit-learn: run `pip install 'shoal[tabular]'`."
        ) from error
    return pandas


def _read_parquet(path: Path, pandas: Any) -> Any:
    try:
        return pandas.read_parquet(path)
    except ImportError as error:
        raise UsageError(f"reading {path.name} needs pyarrow: run `pip install 'shoal[tabular]'`.") from error
    except Exception as error:  # a damaged file raises whatever its faults lead to, in pyarrow and in pandas
        cause = next(iter(str(error).splitlines()), "")
        raise DataError(f"{path.name} cannot be read as Parquet: {type(error).__name__}: {cause:.300}") from error


def _from_frame(frame: Any, name: str, pandas: Any) -> Table:
    if isinstance(frame.columns, pandas.MultiIndex):
        raise DataError(f"{name} has column names of several levels; join them into one first.")
    names, notes = unique_names([str(column).strip() for column in frame.columns], name)
    if not names:
        raise DataError(f"{name} has no columns.")
    if len(frame) == 0:
        raise DataError(f"{name} has no rows.")
    frame = frame.reset_index(drop=True)
    frame.columns = names
    return Table(frame, tuple(notes), name)


# -- CSV ---------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, pandas: Any) -> Table:
    text, notes = _decode(path)
    if not text.strip():
        raise DataError(f"{path.name} is empty.")
    separator = _separator(text)
    header, rows, more = _rows(text, separator, path.name)
    names, renamed = unique_names([cell.strip() for cell in header], path.name)
    if not rows:
        raise DataError(f"{path.name} has a header and no rows below it.")
    frame = pandas.DataFrame(dict(zip(names, zip(*rows, strict=True), strict=True)), dtype=object)
    return Table(frame, (*notes, *renamed, *more), path.name)


def _decode(path: Path) -> tuple[str, list[str]]:
    """The file's text, in the encoding that its first bytes or its content show."""
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path) as packed:  # a megabyte of gzip may unpack to a thousand
                raw = packed.read(_MAX_UNPACKED + 1)
        else:
            raw = path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from error
    if len(raw) > _MAX_UNPACKED and path.name.lower().endswith(".gz"):
        raise DataError(
            f"{path.name} unpacks to more than {_MAX_UNPACKED:,} bytes: unpack it yourself if that is right."
        )
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    encoding = next((name for mark, name in marks.items() if raw.startswith(mark)), "utf-8")
    notes: list[str] = []
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise DataError(f"{path.name} begins like {encoding} text and is not: {error}") from error
        text = raw.decode("cp1252", errors="replace")
        notes.append(f"{path.name} is not UTF-8; it was read as Windows-1252")
    if "\0" in text:
        raise DataError(f"{path.name} is no text file (it contains zero bytes). Save it as CSV in UTF-8.")
    return text, notes


def _separator(text: str) -> str:
    """The separator that makes the most columns of the first lines, and as many in each."""
    head = "\n".join(text.splitlines()[:20])

    def score(separator: str) -> tuple[bool, int]:
        try:
            widths = [len(row) for row in csv.reader(io.StringIO(head), delimiter=separator) if row]
        except csv.Error:
            return False, 0
        return widths[0] > 1 and len(set(widths)) == 1, widths[0]

    return max(_SEPARATORS, key=score)


def _rows(text: str, separator: str, name: str) -> tuple[list[str], list[Sequence[str | None]], list[str]]:
    """Header and rows of one length; short rows are filled with None, longer ones are refused."""
    before = csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows: list[Sequence[str | None]] = []
    n_short, first_short = 0, 0
    try:
        header = next(row for row in reader if any(cell.strip() for cell in row))
        n_columns = len(header)
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > n_columns:
                # A separator at the end of the line is no cell.
                if any(cell.strip() for cell in row[n_columns:]):
                    raise DataError(
                        f"{name}, line {reader.line_num}: {len(row)} cells, but the header has {n_columns}. Is a cell with "
                        f"{separator!r} in it missing its quotes?"
                    )
                row = row[:n_columns]
            if len(row) < n_columns:
                n_short, first_short = n_short + 1, first_short or reader.line_num
                rows.append([*row, *[None] * (n_columns - len(row))])
            else:
                rows.append(row)
    except StopIteration:
        raise DataError(f"{name} is empty.") from None
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: {error}. Is a quote not closed?") from error
    finally:
        csv.field_size_limit(before)
    if n_short > len(rows) / 2:
        raise DataError(
            f"{name}: {n_short} of {len(rows)} rows have fewer cells than the header has ({n_columns}); the first is line "
            f"{first_short}. The separator was taken to be {separator!r}."
        )
    notes = [] if not n_short else [f"{n_short} rows end early (the first is line {first_short}); the rest is missing"]
    return header, rows, notes


def unique_names(names: Sequence[str], table: str) -> tuple[list[str], list[str]]:
    """Column names, none empty and none twice, and notes about those that had to be changed.

    >>> unique_names(["a", "", "a"], "t.csv")[0]
    ['a', 'column 2', 'a (2)']
    """
    out: list[str] = []
    notes: list[str] = []
    for place, name in enumerate(names, start=1):
        new = name or f"column {place}"
        base, count = new, 1
        while new in out:
            count += 1
            new = f"{base} ({count})"
        if count > 1:
            notes.append(f"{table} has several columns {base!r}; number {count} is called {new!r}")
        out.append(new)
    return out, notes
