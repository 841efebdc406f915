"""What the command line does with a data file instead of FILE.py: options, notes, scores, and ``shoal predict``.

pandas and scikit-learn are loaded only when such a file is named.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any, Final

from shoal.errors import StorageError, UsageError

_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".parquet", ".pq")
_OPTIONS: Final = ("target", "task", "group", "time", "ignore")


def is_data_file(spec: str) -> bool:
    """Whether what was typed as FILE names a table rather than Python code."""
    return spec.lower().endswith(_SUFFIXES)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what to learn from a data file."""
    group = parser.add_argument_group("for data files")
    absent = argparse.SUPPRESS
    many = {"metavar": "COLUMN", "action": "append", "default": absent}
    group.add_argument("--target", **many, help="column to predict; again for several labels or numbers")  # type: ignore[arg-type]
    group.add_argument(
        "--task",
        choices=["classes", "labels", "numbers"],
        default=absent,
        help="what the target is (default: by its values)",
    )
    group.add_argument("--group", metavar="COLUMN", default=absent, help="keep rows of equal value in one part")
    group.add_argument("--time", metavar="COLUMN", default=absent, help="train on the first rows, test on the last")
    group.add_argument("--ignore", **many, help="column that is no input; again for more")  # type: ignore[arg-type]


def refuse_options(arguments: argparse.Namespace) -> None:
    """See that none of these options came with FILE.py.

    Raises:
        UsageError: If one did.
    """
    for name in _OPTIONS:
        if hasattr(arguments, name):
            raise UsageError(
                f"--{name} is for data files; {arguments.file!r} is none (known endings: {', '.join(_SUFFIXES)})."
            )


def prepare(arguments: argparse.Namespace, seed: int) -> Any:
    """The data file as a ``Prepared`` table, what was mended or left out said on standard error.

    Raises:
        UsageError: If there is no target, or an option makes no sense; DataError if the file cannot be learnt from.
    """
    tabular = _tabular()
    if not hasattr(arguments, "target"):
        names = [str(name) for name in tabular.read_table(arguments.file).frame.columns]
        shown = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
        raise UsageError(f"name the column to predict: --target NAME. {arguments.file} has {shown}.")
    given = {name: getattr(arguments, name) for name in _OPTIONS if hasattr(arguments, name)}
    ready = tabular.prepare_table(arguments.file, seed=seed, **given)
    if not (getattr(arguments, "quiet", False) or getattr(arguments, "json", False)):
        for note in ready.notes:
            print(f"shoal: {note}", file=sys.stderr)
    return ready


def again(arguments: argparse.Namespace) -> list[str]:
    """FILE and its options as they were typed, for the command that goes on with the study."""
    words = [arguments.file]
    for name in _OPTIONS:
        values = getattr(arguments, name, [])
        for value in values if isinstance(values, list) else [values]:
            words += [f"--{name}", value]
    return words


def study_name(file: str) -> str:
    """``data/adult.csv.gz`` gives ``adult.db``: the study file of a data file, in the current folder."""
    name = Path(file).name
    suffix = max((s for s in _SUFFIXES if name.lower().endswith(s)), key=len)
    return f"{name[: -len(suffix)] or 'table'}.db"


def run_predict(arguments: argparse.Namespace) -> int:
    """``shoal predict``: the model beside a study file, on new rows."""
    tabular = _tabular()
    model = tabular.load_table_model(arguments.study)
    predictions, notes = model.predict_with_notes(arguments.file)
    for note in notes:
        print(f"shoal: {note}", file=sys.stderr)
    path = Path(arguments.output or f"{study_name(arguments.file)[:-3]}.predictions.csv")
    if path.exists() and path.samefile(arguments.file):
        raise UsageError(f"{str(path)!r} is the file with the rows; name another with -o PATH.")
    try:
        predictions.to_csv(path, index=False)
    except OSError as error:
        raise StorageError(f"cannot write the predictions to {path}: {error}") from error
    print(path)
    return 0


def _tabular() -> Any:
    try:
        importlib.import_module("sklearn")
    except ImportError as error:
        raise UsageError("data files need pandas and scikit-learn: run `pip install 'shoal[tabular]'`.") from error
    return importlib.import_module("shoal.tabular")
