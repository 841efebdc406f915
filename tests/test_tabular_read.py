"""Data files: every fault is named or mended, and the mending is said. Never a traceback."""

from __future__ import annotations

import builtins
import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.cli import main
from shoal.data import load
from shoal.errors import DataError, StudyError, UsageError
from shoal.tabular import prepare_table, read_table
from tabular_helpers import as_csv, people, write_people


def table_of(folder: Path, content: str | bytes, name: str = "t.csv") -> Any:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"])
def test_separators_encodings_and_ends_of_lines(tmp_path: Path, separator: str, encoding: str, line: str) -> None:
    text = line.join(separator.join(row) for row in (["name", "größe"], ["Zoë", "1"], ["", ""], ['"a\nb"', "2"]))
    table = table_of(tmp_path, text.encode(encoding))
    # Line ends inside quotes are part of the cell.
    assert table.frame.to_dict("list") == {"name": ["Zoë", "a\nb"], "größe": ["1", "2"]}
    assert [note for note in table.notes if "Windows-1252" in note] == list(table.notes)
    assert bool(table.notes) is (encoding == "cp1252")


def test_compressed_files_are_read(tmp_path: Path) -> None:
    assert table_of(tmp_path, gzip.compress(b"a,b\n1,2\n"), "t.csv.gz").n == 1


@pytest.mark.parametrize(
    ("content", "columns", "note"),
    [
        (
            "a,a,,a\n1,2,3,4\n",
            ["a", "a (2)", "column 3", "a (3)"],
            "t.csv has several columns 'a'; number 2 is called 'a (2)'",
        ),
        ("a,b,c\n1,2,3\n1,2\n1,2,3\n", ["a", "b", "c"], "1 rows end early (the first is line 3); the rest is missing"),
        ("a,b\n1,2,\n3,4,,\n", ["a", "b"], ""),
        ("\n\na,b\n\n1,2\n", ["a", "b"], ""),
    ],
)
def test_small_faults_are_mended(tmp_path: Path, content: str, columns: list[str], note: str) -> None:
    table = table_of(tmp_path, content)
    assert list(table.frame.columns) == columns
    assert any(note in text for text in table.notes) if note else not table.notes


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "t.csv", "t.csv is empty."),
        (" \n \n", "t.csv", "t.csv is empty."),
        (",,\n", "t.csv", "t.csv is empty."),
        ("a,b\n", "t.csv", "t.csv has a header and no rows below it."),
        (b"a,b\n1,\x00\n", "t.csv", "t.csv is no text file (it contains zero bytes). Save it as CSV in UTF-8."),
        (b"\xff\xfea\xd8", "t.csv", "t.csv begins like utf-16 text and is not"),
        (b"no gzip", "t.csv.gz", "t.csv.gz cannot be read: "),
        (
            "a,b\n1,2\n1,2,3\n",
            "t.csv",
            "t.csv, line 3: 3 cells, but the header has 2. Is a cell with ',' in it missing its quotes?",
        ),
        ('a,b\n1,"' + "x" * 10_000_001 + "\n", "t.csv", "t.csv, line "),
        ("a,b,c\n1\n2\n3,4,5\n", "t.csv", "2 of 3 rows have fewer cells than the header has (3); the first is line 2."),
        (b"PAR1 nonsense", "t.parquet", "t.parquet cannot be read as Parquet"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path: Path, content: str | bytes, name: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        table_of(tmp_path, content, name)


def test_what_is_not_there_or_not_known_is_refused(tmp_path: Path) -> None:
    write_people(tmp_path / "people.csv")
    with pytest.raises(UsageError, match=r"there is no file .*peple\.csv'\. Did you mean 'people\.csv'"):
        read_table(tmp_path / "peple.csv")
    (tmp_path / "people.xlsx").touch()
    with pytest.raises(UsageError, match=r"its name must end in one of \.csv"):
        read_table(tmp_path / "people.xlsx")
    with pytest.raises(UsageError, match="a table is a path or a pandas data frame, not list"):
        read_table([1, 2])
    with pytest.raises(DataError, match="the data frame has no rows"):
        read_table(pd.DataFrame({"a": []}))
    with pytest.raises(DataError, match="the data frame has no columns"):
        read_table(pd.DataFrame(index=[0]))
    with pytest.raises(DataError, match="column names of several levels"):
        read_table(pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])))


@pytest.mark.parametrize("missing", ["pandas", "pyarrow"])
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "t.parquet")
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(f"no {name}")
        return real(name, *arguments, **keywords)

    if missing == "pyarrow":
        monkeypatch.setattr(pd, "read_parquet", lambda path: without("pyarrow"))
    else:
        monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'shoal\[tabular\]'"):
        read_table(tmp_path / "t.parquet")


def test_a_data_frame_and_its_files_give_the_same_tensors(tmp_path: Path) -> None:
    write_people(tmp_path / "people.csv")
    frame = pd.read_csv(tmp_path / "people.csv", parse_dates=["joined"])
    frame.to_parquet(tmp_path / "people.parquet")
    ways = [tmp_path / "people.csv", tmp_path / "people.parquet", frame, frame.astype({"city": "category"})]
    found = [prepare_table(way, target="bought") for way in ways]
    for other in found[1:]:
        for mine, theirs in zip(found[0].train, other.train, strict=True):
            assert mine.dtype == theirs.dtype and np.allclose(mine, theirs, atol=1e-6)


# -- whatever comes ---------------------------------------------------------------------------------------------------

CELLS = st.sampled_from(
    [
        "",
        "?",
        "nan",
        "inf",
        "-inf",
        "1e308",
        "-1e400",
        "x",
        "3",
        "0.5",
        "2020-02-30",
        "2020-01-01",
        "yes",
        "é",
        "9" * 400,
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """`people` with a few faults in it."""
    columns = people(draw(st.sampled_from([6, 25, 60])), seed=1)
    names = list(columns)
    n = len(columns["id"])
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names))
        match draw(st.integers(0, 7)):
            case 0:
                columns[name] = [draw(CELLS)] * n
            case 1:
                for row in draw(st.lists(st.integers(0, n - 1), max_size=10)):
                    columns[name][row] = draw(CELLS)
            case 2:
                columns[name] = [f"category {i}" for i in range(n)]
            case 3:
                columns.pop(name, None)
                names = list(columns)
            case 4:
                columns[name] = [draw(CELLS) for _ in range(n)]
            case 5:
                columns[name] = [columns[name][0]] * n
            case 6:
                columns[name] = [f"{10.0 ** (i % 300)}" for i in range(n)]
            case _:
                columns[name] = [["a", "b"][i == 0] for i in range(n)]
        if not names:
            break
    lines = as_csv(columns).splitlines() if columns else [""]
    match draw(st.integers(0, 7)):
        case 0:
            lines[0] = lines[0].replace("age", "city")
        case 1:
            lines[-1] += ",one more"
        case 2:
            lines[len(lines) // 2] = lines[len(lines) // 2].rsplit(",", 3)[0]
        case 3:
            lines[-1] += '"'
        case 4:
            lines = lines[:1]
        case _:
            pass
    content = "\n".join(lines).encode(
        draw(st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "cp1252"])), errors="replace"
    )
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=mutated(),
    target=st.sampled_from(["bought", "spent", "city", "joined"]),
    how=st.sampled_from(
        [[], ["--group", "household"], ["--time", "joined"], ["--ignore", "age"], ["--task", "labels"]]
    ),
)
def test_any_file_is_learnt_from_or_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    target: str,
    how: list[str],
) -> None:
    path = tmp_path / "mutated.csv"
    path.write_bytes(content)
    accepted: list[Any] = []

    def instead_of_training(ready: Any, **keywords: Any) -> None:
        accepted.append(ready)
        raise StudyError("accepted")

    with monkeypatch.context() as patch:
        patch.setattr("shoal.tabular.tune_prepared", instead_of_training)
        code = main(["tune", str(path), "--target", target, *how])
    error = capsys.readouterr().err
    assert "Traceback" not in error and code == (1 if accepted else 2)
    if not accepted:
        assert error.splitlines()[-1].startswith("shoal: error: ") and "Error:" not in error
        return
    # What is accepted can be trained on: `load` finds nothing wrong, and the recipe's first loss is a number.
    (ready,) = accepted
    data = load(ready.train, ready.valid, ready.test)
    *inputs, answers = data.train.tensors
    torch.manual_seed(0)
    recipe = ready.define(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask())
    assert recipe.is_criterion and recipe.batch_size <= data.train.n
    loss = recipe.loss(recipe.model(*inputs), answers)
    assert loss.isfinite()


@pytest.fixture(scope="module")
def preparation() -> Any:
    return prepare_table(pd.DataFrame(people(), dtype=object), target="bought").preparation


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=mutated())
def test_any_new_file_is_predicted_for_or_refused(tmp_path: Path, preparation: Any, content: bytes) -> None:
    path = tmp_path / "new.csv"
    path.write_bytes(content)
    try:
        table = read_table(path)
        inputs, _ = preparation.apply(table)
    except DataError as error:
        assert str(error)
        return
    assert all(len(tensor) == table.n and bool(tensor.isfinite().all()) for tensor in inputs)
    assert inputs[1].min() >= 0 and (inputs[1].amax(0) < torch.tensor(preparation.sizes)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c | {"bought": ["yes"] * 120},
            "the target 'bought' has one class only ('yes'); there is nothing to learn.",
        ),
        (lambda c: c | {"bought": [""] * 120}, "the target 'bought' is empty: every cell is missing."),
        (lambda c: {k: v for k, v in c.items() if k != "bought"}, "has no column 'bought' (the target)."),
        (lambda c: {k: v[:9] for k, v in c.items()}, "people.csv has 9 rows with a target; at least 20 are needed."),
        (
            lambda c: {k: c[k] for k in ("id", "name", "bought")},
            "people.csv has no column to learn from. column 'id' is left out",
        ),
        (
            lambda c: c | {"bought": [f"b{i}" for i in range(120)]},
            "has 120 different values in 120 rows, too many for classes.",
        ),
    ],
)
def test_hopeless_tables_exit_with_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, list[str]]], dict[str, list[str]]],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("people.csv").write_text(as_csv(change(people())), encoding="utf-8")
    assert main(["tune", "people.csv", "--target", "bought"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("people.db").exists()
