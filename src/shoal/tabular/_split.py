"""Which rows train, which judge trials, and which are kept for the end: stratified, in whole groups, or by time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.errors import DataError, UsageError
from shoal.tabular._columns import as_days, as_numbers, as_texts, date_format
from shoal.tabular._read import Table

Rows = npt.NDArray[np.int64]
MIN_ROWS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Row numbers of each part; in order of time when the table is ordered by it, else ascending."""

    train: Rows
    valid: Rows
    test: Rows
    notes: tuple[str, ...] = ()


def split(
    table: Table,
    rows: Rows,
    classes: npt.NDArray[np.int64] | None,
    *,
    group: str | None,
    time: str | None,
    valid: float,
    test: float,
    seed: int,
) -> Parts:
    """Split rows into three parts.

    Args:
        table: All columns.
        rows: The rows to split, those whose target is there.
        classes: Classes of all rows of the table, to keep proportions; or None.
        group: A column whose equal values stay together.
        time: A column to order by: the last rows are the test part, those before them the validation part.
        valid, test: Fractions of `rows`.
        seed: Of the random splits.

    Raises:
        UsageError: If `group` and `time` are both given, a fraction makes no sense, or a column is not there.
        DataError: If there are too few rows, groups or times.
    """
    for name, fraction in (("valid", valid), ("test", test)):
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0.0 < fraction < 0.5:
            raise UsageError(f"{name} must be a fraction of the rows, above 0 and below 0.5; got {fraction!r}.")
    if group is not None and time is not None:
        raise UsageError("a split is either by group or by time; give one of them.")
    if len(rows) < MIN_ROWS:
        raise DataError(f"{table.name} has {len(rows)} rows with a target; at least {MIN_ROWS} are needed.")
    if time is not None:
        return _by_time(table, rows, time, valid, test)
    if group is not None:
        return _by_group(table, rows, group, valid, test, seed)
    parts = draw_parts(None if classes is None else classes[rows], valid=valid, test=test, seed=seed, n=len(rows))
    return Parts(rows[parts.train], rows[parts.valid], rows[parts.test], parts.notes)


def draw_parts(
    classes: npt.NDArray[np.int64] | None, *, valid: float, test: float, seed: int, n: int | None = None
) -> Parts:
    """Three random parts of `n` samples, or of as many as there are `classes` (n,), which then keep their proportions."""
    notes: list[str] = []
    places = np.arange(len(classes) if classes is not None else n or 0)
    rest, held = _draw(places, classes, test, seed, notes)
    train, judge = _draw(rest, classes, valid / (1.0 - test), seed, [])
    return Parts(train, judge, held, tuple(notes))


def _state(seed: int) -> int:
    """A seed as scikit-learn takes it, which knows 32 bits.

    Raises:
        UsageError: If it is not a whole number, 0 or more.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed must be a whole number of at least 0, not {seed!r}.")
    return seed % 2**32


def _draw(
    places: Rows, classes: npt.NDArray[np.int64] | None, fraction: float, seed: int, notes: list[str]
) -> tuple[Rows, Rows]:
    """Places split in two, classes in proportion; classes too rare for that stay in the first part."""
    from sklearn.model_selection import train_test_split

    size = max(2, round(fraction * len(places)))
    if classes is None:
        kept, drawn = train_test_split(places, test_size=size, random_state=_state(seed))
        return np.sort(kept), np.sort(drawn)
    mine = classes[places]
    counts = np.bincount(mine)
    rare = counts[mine] < 4
    n_often = len(np.unique(mine[~rare]))
    if rare.any():
        notes.append(f"{int((counts[counts > 0] < 4).sum())} classes have fewer than 4 rows; these are trained on only")
    often = places[~rare]
    if n_often == 0 or size < n_often or len(often) - size < n_often:
        return _draw(places, None, fraction, seed, notes)
    kept, drawn = train_test_split(often, test_size=size, random_state=_state(seed), stratify=mine[~rare])
    return np.sort(np.concatenate([kept, places[rare]])), np.sort(drawn)


def _by_group(table: Table, rows: Rows, group: str, valid: float, test: float, seed: int) -> Parts:
    from sklearn.model_selection import GroupShuffleSplit

    texts = as_texts(table.column(group, "the group"))[rows]
    # A row without a group is one of its own: nothing says that it belongs to any other.
    names = np.asarray([f"={text}" if text is not None else f"#{i}" for i, text in enumerate(texts)])
    if len(set(names)) < 5:
        raise DataError(f"splitting by {group!r} needs at least 5 groups; there are {len(set(names))}.")
    splitter = GroupShuffleSplit(1, test_size=test, random_state=_state(seed))
    rest, held = next(splitter.split(rows, groups=names))
    splitter = GroupShuffleSplit(1, test_size=valid / (1.0 - test), random_state=_state(seed))
    train, judge = next(splitter.split(rest, groups=names[rest]))
    return Parts(rows[np.sort(rest[train])], rows[np.sort(rest[judge])], rows[np.sort(held)])


def _by_time(table: Table, rows: Rows, time: str, valid: float, test: float) -> Parts:
    when = _times(table.column(time, "the time"), time)[rows]
    known = ~np.isnan(when)
    notes = []
    if not known.all():
        notes.append(f"{int((~known).sum())} rows without a {time!r} are left out")
    rows, when = rows[known], when[known]
    if len(rows) < MIN_ROWS or when.min() == when.max():
        raise DataError(f"{len(rows)} rows have a {time!r}; at least {MIN_ROWS} of different times are needed.")
    ordered = rows[np.argsort(when, kind="stable")]
    n_test, n_valid = max(2, round(test * len(rows))), max(2, round(valid * len(rows)))
    first_test, first_valid = len(rows) - n_test, len(rows) - n_test - n_valid
    return Parts(ordered[:first_valid], ordered[first_valid:first_test], ordered[first_test:], tuple(notes))


def _times(column: Any, name: str) -> npt.NDArray[np.float64]:
    """Numbers or dates, whichever most cells are."""
    if getattr(column.dtype, "kind", "O") == "M":
        return as_days(column, "")
    present = np.asarray([text for text in as_texts(column) if text is not None], dtype=object)
    if len(present) == 0:
        raise DataError(f"the column {name!r} is empty; it cannot order the rows.")
    numbers = as_numbers(column)
    if np.isnan(as_numbers(present)).mean() <= 0.05:
        return numbers
    form = date_format(present)
    if not form:
        raise DataError(f"the column {name!r} holds neither numbers nor dates, such as {str(present[0])!r:.60}.")
    return as_days(column, form)
