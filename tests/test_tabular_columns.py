"""What columns are taken for, and what becomes of their cells: scikit-learn's transformers are the oracle."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OrdinalEncoder, QuantileTransformer, StandardScaler

from shoal.errors import DataError, StorageError
from shoal.tabular import Table
from shoal.tabular._columns import (
    ABSENT,
    MAX_CATEGORIES,
    UNKNOWN,
    Category,
    Column,
    Date,
    Number,
    as_numbers,
    as_texts,
    column_from_json,
    learn_column,
)
from shoal.tabular._prepare import Preparation, learn, preparation_from_json
from tabular_helpers import people

RNG = np.random.default_rng(0)


def learnt(cells: Any, name: str = "c") -> Column:
    column, _ = learn_column(name, series(cells))
    assert column is not None
    return column


def series(cells: Any) -> Any:
    return pd.Series(cells, dtype=object if isinstance(cells, list) and isinstance(cells[0], str) else None)


NUMBERS: dict[str, Any] = {
    "normal": RNG.normal(5.0, 3.0, 300),
    "whole": RNG.integers(0, 50, 300),
    "huge": RNG.normal(0, 1, 300) * 1e200,
    "tiny": RNG.normal(0, 1, 300) * 1e-200 + 1e-199,
    "skewed": RNG.lognormal(0, 2, 300),
    "mostly zero": np.where(RNG.random(300) < 0.1, RNG.lognormal(6, 1, 300), 0.0),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", [False, True])
def test_numbers_are_scaled_as_scikit_learn_does(name: str, text: bool) -> None:
    values = np.asarray(NUMBERS[name], dtype=np.float64)
    column = learnt([repr(float(v)) for v in values] if text else values)
    assert isinstance(column, Number) and column.width == 1
    new = np.concatenate([values, values[:50] * 1.1])
    unit = {"huge": 1e200, "tiny": 1e-200}.get(name, 1.0)  # scikit-learn's own squares would leave float64
    oracle: Any
    if name in ("skewed", "mostly zero"):
        oracle = QuantileTransformer(n_quantiles=len(column.knots), output_distribution="normal", subsample=None)
    else:
        assert not column.knots
        oracle = StandardScaler()
    want = np.clip(oracle.fit(values[:, None] / unit).transform(new[:, None] / unit), -10, 10)[:, 0]
    found = column.apply(series(new))[:, 0]
    # Ties at the lower end: scikit-learn gives them its bound (-5.2), which would drown all else; here they get their middle.
    compared = new > 0 if name == "mostly zero" else np.ones(len(new), dtype=bool)
    assert np.allclose(found[compared], want[compared], rtol=1e-6, atol=1e-6)
    share = float(np.mean(values == 0))
    assert name != "mostly zero" or np.allclose(found[new == 0], NormalDist().inv_cdf(share / 2), atol=0.02)


def test_missing_numbers_are_the_median_and_say_so() -> None:
    values = RNG.normal(size=200)
    values[::7] = np.nan
    column = learnt(values)
    filled = SimpleImputer(strategy="median", add_indicator=True).fit_transform(values[:, None])
    found = column.apply(series(values))
    assert isinstance(column, Number) and column.fill == np.nanmedian(values)
    assert np.allclose(found[:, 0], (filled[:, 0] - np.nanmean(values)) / np.nanstd(values))
    assert np.array_equal(found[:, 1], filled[:, 1])


def test_categories_are_the_frequent_values_in_order() -> None:
    cells = ["b"] * 5 + ["a"] * 9 + ["c"] * 3 + ["rare", "rarer"] + ["", "?", "NaN"]
    column = learnt(cells)
    assert column == Category("c", ("a", "b", "c"))
    assert column.apply(series(["c", " a ", "rare", "never seen", "", None])).tolist() == [4, 2, 0, 0, 1, 1]
    oracle = OrdinalEncoder(categories=[["a", "b", "c"]], handle_unknown="use_encoded_value", unknown_value=-2).fit(
        [["a"]]
    )
    known = ["a", "c", "b", "z"]
    assert np.array_equal(column.apply(series(known)), oracle.transform([[k] for k in known])[:, 0] + 2)


def test_dates_become_time_and_its_cycles() -> None:
    dates = [datetime(2020, 1, 1 + i % 28, (i * 5) % 24) for i in range(40)]
    column = learnt([day.isoformat() for day in dates])
    assert isinstance(column, Date) and column.clock and column.width == 7
    days = np.asarray([(day - datetime(1970, 1, 1)).total_seconds() / 86400 for day in dates])
    want = [(days - days.mean()) / days.std()]
    for period in (365.2425, 7.0, 1.0):
        want += [np.sin(2 * math.pi * days / period), np.cos(2 * math.pi * days / period)]
    assert np.allclose(column.apply(series([day.isoformat() for day in dates])), np.stack(want, 1))


@pytest.mark.parametrize(
    ("form", "example"),
    [
        ("ISO8601", "2020-02-28"),
        ("ISO8601", "2020-02-28T12:30:00+02:00"),
        ("%d/%m/%Y", "28/02/2020"),
        ("%m/%d/%Y", "02/28/2020"),
        ("%d.%m.%Y", "28.02.2020"),
        ("%d.%m.%Y %H:%M", "28.02.2020 14:05"),
        ("%d %b %Y", "28 Feb 2020"),
        ("ISO8601", "5727-01-01"),
    ],
)
def test_forms_of_dates(form: str, example: str) -> None:
    other = example.replace("28", "27", 1).replace("5727", "1827")
    column, note = learn_column("d", series([example, other] * 20))
    assert isinstance(column, Date) and column.format == form
    assert note == ("" if form == "ISO8601" else f"column 'd' is read as dates of the form {form}")


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        ([""] * 30, "column 'c' is left out: it is empty"),
        ([np.nan] * 30, "column 'c' is left out: it is empty"),
        ([3.0] * 30, "column 'c' is left out: it is the same in every row"),
        (["x"] * 30, "column 'c' is left out: it is the same in every row"),
        (["2020-01-01"] * 30, "column 'c' is left out: it is the same in every row"),
        (list(range(7, 60, 2)), "column 'c' is left out: it numbers the rows"),
        ([f"id {i}" for i in range(40)], "column 'c' is left out: nearly every row has another text"),
        (["inf"] * 30, "column 'c' is left out: it is empty"),
        (["inf"] * 10 + ["-inf"] * 10, "column 'c' is left out: it is empty"),
    ],
)
def test_what_says_nothing_is_left_out(cells: list[Any], note: str) -> None:
    column, said = learn_column("c", series(cells))
    assert (column, said) == (None, note)


def test_odd_cells_and_many_categories_are_said() -> None:
    column, note = learn_column("c", series([str(i % 50) for i in range(98)] + ["n.n.", "-1e999"]))
    assert isinstance(column, Number) and note == "column 'c' holds numbers but for 2 cells, which count as missing"
    column, note = learn_column("c", series([f"c{i % 900}" for i in range(3000)]))
    assert isinstance(column, Category) and len(column.values) == MAX_CATEGORIES
    assert note == "column 'c' has 900 categories; the 250 most frequent count, all others are one"


def test_cells_read_alike_from_every_type() -> None:
    assert as_texts(np.asarray([3, 3.0, " 3 ", True, None, float("nan"), "N/A", 2.5], dtype=object)).tolist() == [
        "3", "3", "3", "True", None, None, None, "2.5",
    ]  # fmt: skip
    numbers = as_numbers(series(["1", " 2.5 ", "1e3", "x", "", "inf", "9" * 400]))
    assert np.array_equal(numbers, [1, 2.5, 1000, np.nan, np.nan, np.nan, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("cells", "dtype", "texts"),
    [
        ([1, 2, None], "Int64", ["1", "2", None]),
        ([1.5, 2.0, None], "Float64", ["1.5", "2", None]),
        ([True, False, None], "boolean", ["True", "False", None]),
        (["1", "x", None], "string", ["1", "x", None]),
        (["1", "x", None], "category", ["1", "x", None]),
        ([Decimal("1.5"), Decimal("2"), None], object, ["1.5", "2", None]),
        ([date(2020, 1, 2), date(2021, 1, 2), None], object, ["2020-01-02", "2021-01-02", None]),
        ([1, 1.0, True, "1", None], object, ["1", "1", "True", "1", None]),
    ],
)
def test_types_of_data_frames_are_read_as_their_csv(cells: list[Any], dtype: Any, texts: list[str | None]) -> None:
    column = pd.Series(cells, dtype=dtype)
    plain = pd.Series(["" if text is None else text for text in texts], dtype=object)
    assert as_texts(column).tolist() == texts == as_texts(plain).tolist()
    assert np.array_equal(as_numbers(column), as_numbers(plain), equal_nan=True) or dtype == "boolean"
    mine, theirs = (learn_column("c", pd.concat([c] * 20, ignore_index=True))[0] for c in (column, plain))
    assert mine == theirs and mine is not None


# -- all columns ------------------------------------------------------------------------------------------------------


def table(columns: dict[str, list[str]] | None = None) -> Table:
    return Table(pd.DataFrame(columns or people(), dtype=object), (), "t.csv")


def test_learning_looks_at_the_training_rows_alone() -> None:
    rows = np.arange(0, 120, 2)
    mine, _ = learn(table(), rows, ["bought"])
    other = people()
    for name, cells in other.items():
        other[name] = [cell if i % 2 == 0 else f"{cell}9" for i, cell in enumerate(cells)]
    theirs, _ = learn(table(other), rows, ["bought"])
    assert mine == theirs and len(mine.columns) == 6


def test_a_preparation_survives_json() -> None:
    preparation, notes = learn(table(), np.arange(120), ["bought"])
    assert [type(column) for column in preparation.columns] == [Number, Category, Number, Date, Number, Number]
    assert notes == [
        "column 'id' is left out: it numbers the rows",
        "column 'name' is left out: nearly every row has another text",
    ]
    again = preparation_from_json(json.loads(json.dumps(preparation.to_json(), allow_nan=False)))
    assert again == preparation
    inputs, said = again.apply(table())
    assert not said and [tuple(t.shape) for t in inputs] == [(120, preparation.n_numbers), (120, 1)]
    assert int(inputs[1].max()) < preparation.sizes[0] == 5


def test_a_new_table_may_lack_columns_and_have_others() -> None:
    preparation, _ = learn(table(), np.arange(120), ["bought"])
    new = {"city": ["Rome", "Atlantis", ""], "income": ["1", "much", "9e999"], "shoe": ["1", "2", "3"]}
    inputs, notes = preparation.apply(table(new))
    assert inputs[1][:, 0].tolist() == [preparation.columns[1].apply(series(["Rome"]))[0], UNKNOWN, ABSENT]
    assert notes[0] == "column 'age' is not there; its cells count as missing"
    assert "column 'city' has 1 cells of categories unknown to the model, such as 'Atlantis'" in notes
    assert "column 'income' has 2 cells that are no numbers; they count as missing" in notes
    assert all(bool(tensor.isfinite().all()) for tensor in inputs)
    with pytest.raises(
        DataError, match=re.escape("t.csv has none of the columns that the model was trained on ('age',")
    ):
        preparation.apply(table({"shoe": ["1"]}))


def test_unbent_numbers_are_scaled_linearly() -> None:
    preparation, _ = learn(table(), np.arange(120), ["bought"])
    income = preparation.unbent().columns[2]
    assert (
        isinstance(income, Number)
        and not income.knots
        and preparation.columns[2]
        == replace(
            income,
            knots=preparation.columns[2].knots,  # type: ignore[union-attr]
        )
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "the preparation, columns needs"),
        ("text", "the preparation needs 'columns' as list; it has 'text'"),
        ([3], "needs 'entry' as dict; it has 3"),
        ([{"kind": "category", "name": "c", "values": ["a", 3]}], "a column, values needs 'entry' as str; it has 3"),
        ([{"kind": "category", "name": "c", "values": ["a"] * 251}], "a column has 251 entries in 'values'"),
        ([{"kind": "number", "name": 3}], "a column needs 'name' as str; it has 3"),
        ([{"kind": "number", "name": "c", "fill": "x"}], "a column needs 'fill' as float; it has 'x'"),
        ([{"kind": "number", "name": "c", "fill": float("nan")}], "a column needs 'fill' as float; it has nan"),
        ([{"kind": "number", "name": "c", "fill": True}], "a column needs 'fill' as float; it has True"),
        ([{"kind": "number", "name": "c", "fill": 1, "mean": 1, "flag": 1}], "a column needs 'flag' as bool; it has 1"),
    ],
)
def test_damaged_preparations_are_refused(change: Any, message: str) -> None:
    if change == []:
        assert preparation_from_json([]) == Preparation(())
        return
    with pytest.raises(StorageError, match=re.escape(message)):
        preparation_from_json(change)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(max_size=8) | st.floats().map(str) | st.integers().map(str) | st.just(""), min_size=1, max_size=60)
)
def test_any_column_is_learnt_and_survives_json(cells: list[str]) -> None:
    column, note = learn_column("c", series(cells))
    if column is None:
        assert note.startswith("column 'c' is left out")
        return
    again = column_from_json(json.loads(json.dumps(column.to_json(), allow_nan=False)))
    found = again.apply(series([*cells, "new", "", "1e300"]))
    assert again == column and np.isfinite(found).all() and len(found) == len(cells) + 3
