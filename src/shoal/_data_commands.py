"""What the command line does with a data file or a folder instead of FILE.py: options, notes, and ``shoal predict``.

pandas and scikit-learn are loaded only when such a file is named.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from shoal.errors import StorageError, UsageError

_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".parquet", ".pq")
OPTIONS: Final = ("target", "task", "group", "time", "ignore")


def is_data(spec: str) -> bool:
    """Whether what was typed as FILE names a table or a folder rather than Python code."""
    return spec.lower().endswith(_SUFFIXES) or Path(spec).is_dir()


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
    """See that none of these options came with FILE.py or a folder.

    Raises:
        UsageError: If one did.
    """
    for name in OPTIONS:
        if hasattr(arguments, name):
            raise UsageError(
                f"--{name} is for data files; {arguments.file!r} is none (known endings: {', '.join(_SUFFIXES)})."
                + (" The classes of a folder are its own folders." if Path(arguments.file).is_dir() else "")
            )


def prepare(arguments: argparse.Namespace, seed: int) -> Any:
    """The data file or folder ready for `tune`, what was mended or left out said on standard error.

    Raises:
        UsageError: If there is no target, or an option makes no sense; DataError if the file cannot be learnt from.
    """
    tabular = _package("tabular")
    if Path(arguments.file).is_dir():
        refuse_options(arguments)
        return _said(_package("folders").prepare_folder(arguments.file, seed=seed), arguments)
    if not hasattr(arguments, "target"):
        names = [str(name) for name in tabular.read_table(arguments.file).frame.columns]
        shown = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
        raise UsageError(f"name the column to predict: --target NAME. {arguments.file} has {shown}.")
    given = {name: getattr(arguments, name) for name in OPTIONS if hasattr(arguments, name)}
    return _said(tabular.prepare_table(arguments.file, seed=seed, **given), arguments)


def tune(ready: Any, keywords: Mapping[str, Any]) -> Any:
    """Run the study of what `prepare` returned: a ``TableStudy`` or ``FolderStudy``."""
    folders = _package("folders")
    run = (
        folders.tune_prepared_folder if isinstance(ready, folders.PreparedFolder) else _package("tabular").tune_prepared
    )
    return run(ready, **keywords)


def resume(storage: str, arguments: argparse.Namespace, keywords: Mapping[str, Any]) -> Any:
    """Go on with the study of a data file or folder, under the seed that it was started with."""
    folders, tabular = _package("folders"), _package("tabular")
    ready = prepare(arguments, tabular.seed_of(storage, keywords.get("study_name")))
    is_folder = isinstance(ready, folders.PreparedFolder)
    run = folders.resume_prepared_folder if is_folder else tabular.resume_prepared
    return run(storage, ready, **keywords)


def _said(ready: Any, arguments: argparse.Namespace) -> Any:
    if not (getattr(arguments, "quiet", False) or getattr(arguments, "json", False)):
        for note in ready.notes:
            print(f"shoal: {note}", file=sys.stderr)
    return ready


def again(arguments: argparse.Namespace) -> list[str]:
    """FILE and its options as they were typed, for the command that goes on with the study."""
    words = [arguments.file]
    for name in OPTIONS:
        values = getattr(arguments, name, [])
        for value in values if isinstance(values, list) else [values]:
            words += [f"--{name}", value]
    return words


def study_name(file: str) -> str:
    """``data/adult.csv.gz`` gives ``adult.db``, ``photos/`` gives ``photos.db``: a study file in the current folder."""
    name = Path(file).name
    suffix = max((s for s in _SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return f"{name[: len(name) - len(suffix)] or 'data'}.db"


def run_predict(arguments: argparse.Namespace) -> int:
    """``shoal predict``: the model beside a study file, on new rows or files."""
    tabular, folders = _package("tabular"), _package("folders")
    is_folder = folders.is_folder_model(arguments.study)
    model = (folders.load_folder_model if is_folder else tabular.load_table_model)(arguments.study)
    predictions, notes = model.predict_with_notes(arguments.file)
    for note in notes:
        print(f"shoal: {note}", file=sys.stderr)
    path = Path(arguments.output or f"{study_name(arguments.file)[:-3]}.predictions.csv")
    if path.exists() and path.samefile(arguments.file):
        raise UsageError(f"{str(path)!r} is what to predict for; name another file with -o PATH.")
    try:
        predictions.to_csv(path, index=False)
    except OSError as error:
        raise StorageError(f"cannot write the predictions to {path}: {error}") from error
    print(path)
    return 0


def _package(name: str) -> Any:
    try:
        importlib.import_module("sklearn")
    except ImportError as error:
        raise UsageError("data files need pandas and scikit-learn: run `pip install 'shoal[tabular]'`.") from error
    return importlib.import_module(f"shoal.{name}")
