"""All columns of a table as the two tensors that a model takes: numbers and categories.

Glossary: ``n`` rows; ``numbers`` float32 (n, n_numbers), ``categories`` int64 (n, n_categories); either may have no
column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from shoal.errors import DataError
from shoal.records import Json
from shoal.tabular._columns import (
    UNKNOWN,
    Category,
    Column,
    Number,
    as_numbers,
    as_texts,
    column_from_json,
    columns_to_json,
    learn_column,
)
from shoal.tabular._json import Fields
from shoal.tabular._read import Table, need_pandas

MAX_COLUMNS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Preparation:
    """What was learnt from the training rows about each column that is used, in the table's order."""

    columns: tuple[Column, ...]

    @property
    def n_numbers(self) -> int:
        """Numbers per row."""
        return sum(column.width for column in self.columns if not isinstance(column, Category))

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many categories each category column has."""
        return tuple(column.size for column in self.columns if isinstance(column, Category))

    def apply(self, table: Table) -> tuple[tuple[Tensor, ...], list[str]]:
        """A table's rows as a model's inputs, and notes about what was not as in training.

        Raises:
            DataError: If the table has none of the columns.
        """
        notes: list[str] = []
        here = [column.name for column in self.columns if column.name in table.frame.columns]
        if not here:
            wanted = ", ".join(repr(column.name) for column in self.columns[:5])
            raise DataError(f"{table.name} has none of the columns that the model was trained on ({wanted}, ...).")
        numbers, categories = [], []
        for column in self.columns:
            if column.name in here:
                cells = table.frame[column.name]
            else:
                cells = need_pandas().Series([None] * table.n, dtype=object)
                notes.append(f"column {column.name!r} is not there; its cells count as missing")
            if isinstance(column, Category):
                codes = column.apply(cells)
                categories.append(codes)
                notes += _new_values(column, cells, codes)
            else:
                numbers.append(column.apply(cells))
                n_odd = _n_odd(cells) if isinstance(column, Number) else 0
                if n_odd:
                    notes.append(f"column {column.name!r} has {n_odd} cells that are no numbers; they count as missing")
        inputs: list[Tensor] = []
        if numbers:
            inputs.append(torch.from_numpy(np.concatenate(numbers, axis=1).astype(np.float32)))
        if categories:
            inputs.append(torch.from_numpy(np.stack(categories, axis=1)))
        return tuple(inputs), notes

    def unbent(self) -> Preparation:
        """The same with every number scaled by mean and standard deviation only, as a linear model wants it."""
        return Preparation(tuple(replace(c, knots=()) if isinstance(c, Number) else c for c in self.columns))

    def to_json(self) -> list[Json]:
        """As plain data."""
        return columns_to_json(self.columns)


def preparation_from_json(value: object) -> Preparation:
    """A preparation from its plain data.

    Raises:
        StorageError: If the data are not those of one.
    """
    columns = Fields({"columns": value}, "the preparation").many("columns", dict, MAX_COLUMNS)
    return Preparation(tuple(column_from_json(column) for column in columns))


def learn(table: Table, rows: np.typing.NDArray[np.int64], leave_out: Sequence[str]) -> tuple[Preparation, list[str]]:
    """Learn every column from the training rows.

    Args:
        table: All rows.
        rows: Those to learn from.
        leave_out: Columns that are no inputs: targets, groups, times, and what the user wants ignored.

    Raises:
        DataError: If no column is left.
    """
    columns, notes = [], []
    for name in table.frame.columns:
        if name in leave_out:
            continue
        learnt, note = learn_column(name, table.frame[name].iloc[rows])
        if learnt is not None:
            columns.append(learnt)
        if note:
            notes.append(note)
    if not columns:
        raise DataError(f"{table.name} has no column to learn from. " + "; ".join(notes[:5]))
    if len(columns) > MAX_COLUMNS:
        raise DataError(f"{table.name} has {len(columns)} columns to learn from; at most {MAX_COLUMNS} can be used.")
    return Preparation(tuple(columns)), notes


def _new_values(column: Category, cells: object, codes: np.typing.NDArray[np.int64]) -> list[str]:
    """A note when many cells of a new table hold values that training never had, or had too rarely."""
    n_unknown = int((codes == UNKNOWN).sum())
    if not n_unknown:
        return []
    example = next(text for text, code in zip(as_texts(cells), codes, strict=True) if code == UNKNOWN)
    return [f"column {column.name!r} has {n_unknown} cells of categories unknown to the model, such as {example!r:.60}"]


def _n_odd(cells: object) -> int:
    texts = as_texts(cells)
    return int((np.isnan(as_numbers(cells)) & np.asarray([text is not None for text in texts])).sum())
