"""FILE.py: every way in which it can be wrong gets a message about it and not about Shoal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from shoal._user_file import load_user_file
from shoal.errors import UsageError

KNOWN = ("metric", "n_trials", "storage")
FILE = """
class Data:
    pass

train, valid, test = Data(), Data(), Data()
options = {"metric": "accuracy", "n_trials": 7}

def define(trial):
    return "recipe"

def other(trial):
    return "other"

def data():
    return train, valid, test
"""


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_digits", None)


def write(text: str, name: str = "my_digits.py") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_digit.py", "there is no file 'my_digit.py'. Did you mean 'my_digits.py'"),
        ("nowhere/x.py", "there is no file 'nowhere/x.py'."),
        (".", "'.' is a folder"),
        ("notes.txt", "'notes.txt' must be a Python file whose name ends in '.py'"),
        ("json.py", "'json.py' would hide the module 'json' that other code imports. Rename the file."),
        ("optuna.py", "'optuna.py' would hide the module 'optuna'"),
        ("my_digits.py:othr", "my_digits.py must define othr(), which takes a trial and returns a shoal.Recipe; "),
        ("my_digits.py:othr", "it has no 'othr'. Did you mean 'other'?"),
        ("my_digits.py:a-b", "after the colon must come the name of a function; got 'a-b'"),
        ("my_digits.py:", "after the colon must come the name of a function; got ''"),
        ("my_digits.py:options", "'options' in my_digits.py must be a function"),
    ],
)
def test_wrong_file_names_are_explained(spec: str, message: str) -> None:
    for name in ("my_digits.py", "json.py", "optuna.py", "notes.txt"):
        write(FILE, name)
    expect_usage_error(spec, message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def define", "def defin", "it has no 'define'. Did you mean 'defin'?"),
        ("def data", "def load", "must define data(), which returns (train, valid, test), (train, valid) or train; "),
        (
            '"n_trials"',
            '"n_trails"',
            "'options' in my_digits.py has an unknown key 'n_trails'. Did you mean 'n_trials'?",
        ),
        ('"n_trials"', '"train"', "'options' in my_digits.py has an unknown key 'train'."),
        (
            "options = ",
            "options = 3  #",
            "'options' in my_digits.py must be a dict of keywords of shoal.tune; it is int.",
        ),
        ("return train, valid, test", "pass", "data() in my_digits.py returned None."),
        ("return train, valid, test", "return None, valid", "returned None as the training set"),
        ("return train", "return 1, train", "must return one to three data sets; got 4."),
        ("pass", "shape = (3,)", "returned bare arrays. Wrap inputs and targets in torch.utils.data.TensorDataset"),
    ],
)
def test_wrong_file_contents_are_explained(old: str, new: str, message: str) -> None:
    assert old in FILE
    expect_usage_error(write(FILE.replace(old, new)), message)


def expect_usage_error(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load_user_file(spec, KNOWN)


def test_file_that_hides_a_loaded_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_digits", SimpleNamespace(__file__="elsewhere.py"))
    expect_usage_error(write(FILE), "'my_digits.py' would hide the module 'my_digits'")


@pytest.mark.parametrize(
    ("text", "head", "shown"),
    [
        ("import my_missing_package\n", "my_digits.py cannot be imported:", "No module named 'my_missing_package'"),
        ("def f():\n    return 1 / 0\n\nf()\n", "my_digits.py cannot be imported:", "    return 1 / 0"),
        ("x = (\n", "my_digits.py cannot be imported:", "SyntaxError"),
        ("raise SystemExit('bye')\n", "my_digits.py cannot be imported:", "SystemExit: bye"),
        (FILE.replace("return train", "return 1 / 0"), "data() in my_digits.py raised:", "ZeroDivisionError"),
    ],
)
def test_errors_in_the_file_show_its_own_lines_only(text: str, head: str, shown: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_user_file(write(text), KNOWN)
    said = str(caught.value)
    assert said.startswith(head + "\n") and shown in said and 'my_digits.py", line' in said
    assert "_user_file" not in said and "importlib" not in said
    # A file that failed half-way is not left behind as if it had been imported.
    assert ("my_digits" in sys.modules) is head.startswith("data()")
