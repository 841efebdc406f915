"""What a column is, learnt from its training rows: numbers, categories or dates, each plain data that JSON can hold.

Glossary: ``n`` rows; a column gives ``(n, width)`` float64 numbers, or one int64 category per row. A cell is *missing*
when it is empty, not a number or not a date where the column has these, infinite, or one of the usual marks (``MISSING``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from shoal.records import Json
from shoal.tabular._json import Fields
from shoal.tabular._read import need_pandas

Numbers: TypeAlias = npt.NDArray[np.float64]
Texts: TypeAlias = npt.NDArray[np.object_]

MISSING: Final = frozenset(
    (
        *(
            "",
            "?",
            "-",
            "--",
            "na",
            "n/a",
            "n.a.",
            "nan",
            "null",
            "none",
            "nil",
            "missing",
            "unknown",
            "#n/a",
            "<na>",
            "nat",
        ),
        *("inf", "-inf", "+inf", "infinity", "-infinity"),
    )
)
UNKNOWN: Final = 0  # category of values that training did not see, or saw too rarely
ABSENT: Final = 1  # category of missing cells
MAX_CATEGORIES: Final = 250  # per column, the two above not counted
MAX_KNOTS: Final = 200
_MIN_COUNT: Final = 3  # a value seen less often says too little to have a vector of its own
_SKEWED: Final = 3.0
_CLIP: Final = 10.0  # standard deviations; one wild cell in a new file must not decide a prediction alone
_MOSTLY: Final = 0.95
_FORMATS: Final = (
    "ISO8601",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%d-%m-%Y",
    "%Y/%m/%d",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M",
    "%d.%m.%Y %H:%M",
    "%d %b %Y",
    "%b %d, %Y",
)


@dataclass(frozen=True, slots=True)
class Number:
    """A column of numbers, scaled to mean 0 and standard deviation 1, or (``knots`` not empty) to normal quantiles.

    A missing cell becomes the median; with ``flag``, a second number says that it was missing.
    """

    name: str
    fill: float
    mean: float
    std: float
    flag: bool
    knots: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers a cell becomes."""
        return 2 if self.flag else 1

    def apply(self, column: Any) -> Numbers:
        """The column as (n, width)."""
        return _with_flag(self.scale, as_numbers(column), self.fill, self.flag)

    def scale(self, values: Numbers) -> Numbers:
        """Finite numbers (n,) to their scaled form (n,)."""
        if self.knots:
            return _normal_quantiles(values, np.asarray(self.knots))
        with np.errstate(over="ignore"):  # what is infinite in units of a tiny deviation is cut off with the rest
            return np.clip((values - self.mean) / self.std, -_CLIP, _CLIP)

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {
            "kind": "number",
            "name": self.name,
            "fill": self.fill,
            "mean": self.mean,
            "std": self.std,
            "flag": self.flag,
            "knots": list(self.knots),
        }


@dataclass(frozen=True, slots=True)
class Category:
    """A column of categories: ``values[i]`` is category i + 2; see ``UNKNOWN`` and ``ABSENT``."""

    name: str
    values: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many categories there are, unknown and missing ones included."""
        return len(self.values) + 2

    def apply(self, column: Any) -> npt.NDArray[np.int64]:
        """The column as categories (n,)."""
        place = {value: i for i, value in enumerate(self.values, start=2)}
        codes, texts = _cells(column)
        found = [ABSENT if text is None else place.get(text, UNKNOWN) for text in texts]
        return np.asarray(found, dtype=np.int64)[codes]

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {"kind": "category", "name": self.name, "values": list(self.values)}


@dataclass(frozen=True, slots=True)
class Date:
    """A column of dates: days since 1970, scaled; sine and cosine of the time of year, of the week and, with ``clock``, of
    the day. A missing date becomes the median; with ``flag``, one more number says that it was missing."""

    name: str
    format: str
    fill: float
    mean: float
    std: float
    flag: bool
    clock: bool

    @property
    def width(self) -> int:
        """How many numbers a cell becomes."""
        return 5 + 2 * self.clock + self.flag

    def apply(self, column: Any) -> Numbers:
        """The column as (n, width)."""
        return _with_flag(self._parts, as_days(column, self.format), self.fill, self.flag)

    def _parts(self, days: Numbers) -> Numbers:
        periods = [365.2425, 7.0, *([1.0] if self.clock else [])]
        angles = [2 * np.pi * days / period for period in periods]
        scaled = np.clip((days - self.mean) / self.std, -_CLIP, _CLIP)
        return np.stack([scaled, *[f(a) for a in angles for f in (np.sin, np.cos)]], axis=1)

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {
            "kind": "date",
            "name": self.name,
            "format": self.format,
            "fill": self.fill,
            "mean": self.mean,
            "std": self.std,
            "flag": self.flag,
            "clock": self.clock,
        }


Column: TypeAlias = Number | Category | Date


def column_from_json(value: object) -> Column:
    """A column from its plain data.

    Raises:
        StorageError: If the data are not those of a column.
    """
    fields = Fields(value, "a column")
    kind, name = fields.take("kind", str), fields.take("name", str)
    if kind == "category":
        return Category(name, fields.many("values", str, MAX_CATEGORIES))
    fill, mean, flag = fields.take("fill", float), fields.take("mean", float), fields.take("flag", bool)
    std = max(fields.take("std", float), 1e-300)
    if kind == "date":
        return Date(name, fields.take("format", str), fill, mean, std, flag, fields.take("clock", bool))
    return Number(name, fill, mean, std, flag, fields.many("knots", float, MAX_KNOTS))


# -- learning ----------------------------------------------------------------------------------------------------------


def learn_column(name: str, column: Any) -> tuple[Column | None, str]:
    """What a column is, from its training rows.

    Returns:
        The column and a note (or ""); None with a note that says why it is left out.
    """
    kind = getattr(column.dtype, "kind", "O")
    if kind in "iuf":
        return _learn_number(name, as_numbers(column))
    if kind == "M":
        return _learn_date(name, column, "")
    texts = as_texts(column)
    present = np.asarray([text for text in texts if text is not None], dtype=object)
    if len(present) == 0:
        return None, f"column {name!r} is left out: it is empty"
    if kind == "b":
        return _learn_category(name, present, len(texts))
    numbers = as_numbers(present)
    share = float(np.mean(~np.isnan(numbers)))
    if share >= _MOSTLY:
        learnt, note = _learn_number(name, as_numbers(column))
        n_odd = int(np.isnan(numbers).sum())
        if learnt is not None and n_odd:
            note = f"column {name!r} holds numbers but for {n_odd} cells, which count as missing"
        return learnt, note
    form = date_format(present)
    return _learn_date(name, column, form) if form else _learn_category(name, present, len(texts))


def _learn_number(name: str, values: Numbers) -> tuple[Number | None, str]:
    present = values[~np.isnan(values)]
    flag = len(present) < len(values)
    if len(present) == 0:
        return None, f"column {name!r} is left out: it is empty"
    if present.min() == present.max() and not flag:
        return None, f"column {name!r} is left out: it is the same in every row"
    if not flag and _numbers_rows(present):
        return None, f"column {name!r} is left out: it numbers the rows"
    # In a wide enough range that no square overflows.
    scale = float(np.abs(present).max()) or 1.0
    mean = float(np.mean(present / scale)) * scale
    std = float(np.std(present / scale)) * scale
    std = std if std > 1e-12 * scale else 1.0
    skew = float(np.mean(((present - mean) / std) ** 3))
    knots: tuple[float, ...] = ()
    if abs(skew) > _SKEWED and len(np.unique(present)) > 10:
        n_knots = min(MAX_KNOTS, len(present))
        knots = tuple(float(q) for q in np.quantile(present, np.linspace(0.0, 1.0, n_knots)))
    return Number(name, float(np.median(present)), mean, std, flag, knots), ""


def _numbers_rows(values: Numbers) -> bool:
    """Whether whole numbers go up from row to row, in steps as small as those of row numbers of which some are not here."""
    steps = np.diff(values)
    whole = bool((values == np.round(values)).all())
    return len(values) >= 20 and whole and bool((steps > 0).all()) and float(np.mean(steps)) < 3.0


def _learn_category(name: str, present: Texts, n: int) -> tuple[Category | None, str]:
    found, counts = np.unique(present.astype(str), return_counts=True)
    if len(found) == 1 and len(present) == n:
        return None, f"column {name!r} is left out: it is the same in every row"
    if len(found) > max(20, len(present) // 2):
        return None, f"column {name!r} is left out: nearly every row has another text"
    order = np.lexsort((found, -counts))
    kept = [str(found[i]) for i in order if counts[i] >= _MIN_COUNT][:MAX_CATEGORIES]
    note = ""
    if len(found) - len(kept) > MAX_CATEGORIES:
        note = f"column {name!r} has {len(found)} categories; the {len(kept)} most frequent count, all others are one"
    return Category(name, tuple(kept)), note


def _learn_date(name: str, column: Any, form: str) -> tuple[Date | None, str]:
    days = as_days(column, form)
    present = days[~np.isnan(days)]
    if len(present) == 0:
        return None, f"column {name!r} is left out: it is empty"
    flag = len(present) < len(days)
    if present.min() == present.max() and not flag:
        return None, f"column {name!r} is left out: it is the same in every row"
    clock = bool((present != np.floor(present)).any())
    std = float(np.std(present)) or 1.0
    note = "" if form in ("", "ISO8601") else f"column {name!r} is read as dates of the form {form}"
    return Date(name, form, float(np.median(present)), float(np.mean(present)), std, flag, clock), note


def date_format(present: Texts) -> str:
    """The first of the known forms that nearly all cells have, or "" for none."""
    sample = present[:: max(1, len(present) // 500)]
    best, form = _MOSTLY, ""
    for candidate in _FORMATS:
        share = float(np.mean(~np.isnan(as_days(sample, candidate))))
        if share > best or (share == best and not form):
            best, form = share, candidate
    return form


# -- cells -------------------------------------------------------------------------------------------------------------


def _cells(column: Any) -> tuple[npt.NDArray[np.intp], Texts]:
    """Which of the column's different texts each cell has (n,), and these texts, the last of which is None.

    Looking at each different text once is what makes long columns fast.
    """
    pandas = need_pandas()
    cells = np.asarray(column, dtype=object)
    if pandas.api.types.infer_dtype(cells, skipna=True) == "string":
        codes, found = pandas.factorize(cells)
    else:  # mixed types: 1, 1.0 and True would count as one
        codes, found = np.arange(len(cells)), cells
    texts = np.empty(len(found) + 1, dtype=object)
    for i, cell in enumerate(found):
        text = "" if cell is None or cell is pandas.NA or cell != cell else _text(cell)
        texts[i] = None if text.lower() in MISSING else text
    return codes, texts  # a code of -1, for None and NaN, is the last text


def as_texts(column: Any) -> Texts:
    """Cells as text without blanks around them, None where missing: (n,). Whole numbers read alike from any type."""
    codes, texts = _cells(column)
    return np.asarray(texts[codes], dtype=object)


def _text(cell: object) -> str:
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def as_numbers(column: Any) -> Numbers:
    """Cells as numbers (n,), NaN where a cell is missing, infinite or no number."""
    pandas = need_pandas()
    if getattr(getattr(column, "dtype", None), "kind", "O") in "iuf":
        values = np.asarray(pandas.Series(column).to_numpy(dtype=np.float64, na_value=np.nan, copy=True))
    else:
        codes, texts = _cells(column)
        found = pandas.Series(["nan" if text is None else text for text in texts], dtype=object)
        values = np.array(pandas.to_numeric(found, errors="coerce"), dtype=np.float64)[codes]
    values[~np.isfinite(values)] = np.nan
    return values


def as_days(column: Any, form: str) -> Numbers:
    """Dates as days since 1970 (n,), NaN where a cell is missing or no date; "" is for columns that hold dates already."""
    pandas = need_pandas()
    if getattr(getattr(column, "dtype", None), "kind", "O") == "M":
        codes, dates = np.arange(len(column)), pandas.Series(pandas.to_datetime(column, utc=True, errors="coerce"))
    else:
        codes, texts = _cells(column)
        found = pandas.Series(list(texts), dtype=object)
        dates = pandas.to_datetime(found, format=form or "ISO8601", errors="coerce", utc=True)
    # In seconds: pandas' nanoseconds end in 2262, and dates of a file need not.
    seconds = dates.dt.tz_convert(None).to_numpy(dtype="datetime64[s]")
    days: Numbers = (seconds - np.datetime64(0, "s")) / np.timedelta64(86400, "s")
    return days[codes]


def _with_flag(parts: Any, values: Numbers, fill: float, flag: bool) -> Numbers:
    missing = np.isnan(values)
    filled = np.where(missing, fill, values)
    made = np.asarray(parts(filled), dtype=np.float64).reshape(len(values), -1)
    return np.concatenate([made, missing[:, None].astype(np.float64)], axis=1) if flag else made


def _normal_quantiles(values: Numbers, knots: Numbers) -> Numbers:
    """scikit-learn's ``QuantileTransformer`` to a normal distribution: mean of the two ways through equal knots.

    Ties at either end get the middle of their ranks, as ties elsewhere do, and not the end's bound.
    """
    levels = np.linspace(0.0, 1.0, len(knots))
    up = np.interp(values, knots, levels)
    down = -np.interp(-values, -knots[::-1], -levels[::-1])
    within = np.clip(0.5 * (up + down), 1e-7, 1.0 - 1e-7)
    normal: Numbers = torch.special.ndtri(torch.from_numpy(within)).numpy()
    return normal


def columns_to_json(columns: Sequence[Column]) -> list[Json]:
    """All columns as plain data."""
    out: list[Mapping[str, Json]] = [column.to_json() for column in columns]
    return [dict(column) for column in out]
