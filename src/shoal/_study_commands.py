"""What the command line does with a study file: ``shoal init``, ``shoal check``, and study.toml in place of FILE.py."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal import _data_commands as data_files
from shoal.errors import StorageError, UsageError


def add_commands(add: Any) -> None:
    """The two commands that are about study files alone; `add` makes a command's parser."""
    init = add("init", "write a commented study.toml to fill in", run_init)
    init.add_argument(
        "file", metavar="STUDY.toml", nargs="?", default="study.toml", help="file to write (default: study.toml)"
    )
    init.add_argument("--data", metavar="FILE", default="data.csv", help="the table to learn from (default: data.csv)")
    init.add_argument("--target", metavar="COLUMN", default="target", help="its column to predict (default: target)")
    init.add_argument("--schema", action="store_true", help="print the JSON schema for editors instead")
    check = add("check", "validate a study.toml and say what would run", run_check)
    check.add_argument("file", metavar="STUDY.toml", help="study file")


def is_study(spec: str) -> bool:
    """Whether what was typed as FILE names a study file."""
    return spec.lower().endswith(".toml")


def run_init(arguments: argparse.Namespace) -> int:
    """``shoal init``: writes the template, over nothing that is there."""
    package = importlib.import_module("shoal.study_file")
    if arguments.schema:
        print(json.dumps(package.json_schema(), indent=2))
        return 0
    path = Path(arguments.file)
    if path.suffix.lower() != ".toml":
        raise UsageError(f"a study file's name ends in .toml; got {arguments.file!r}.")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(package.template(arguments.data, arguments.target))
    except FileExistsError as error:
        raise UsageError(f"{path} exists already; name another file, or check it: shoal check {path}") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}.") from error
    print(path)
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """``shoal check``: everything but the training."""
    if not is_study(arguments.file):
        raise UsageError(f"{arguments.file!r} is no study file: its name must end in .toml. `shoal init` writes one.")
    ready = prepare(arguments, {})
    print(importlib.import_module("shoal.study_file").summary(ready))
    return 0


def prepare(arguments: argparse.Namespace, overrides: Mapping[str, Any], seed: int | None = None) -> Any:
    """The study of a study file, ready to run; what was mended or left out is said on standard error.

    Raises:
        UsageError: If the file makes no sense, or options for data files came with it.
    """
    for name in data_files.OPTIONS:
        if hasattr(arguments, name):
            raise UsageError(f"--{name} is for data files; write it into {arguments.file}, under [data].")
    ready = importlib.import_module("shoal.study_file").prepare_study(arguments.file, overrides, seed=seed)
    if not (getattr(arguments, "quiet", False) or getattr(arguments, "json", False)):
        for note in ready.notes:
            print(f"shoal: {note}", file=sys.stderr)
    return ready


def tune(ready: Any, progress: Mapping[str, Any]) -> tuple[Any, Any]:
    """Run it: (``Study``, what a data file gives besides or None)."""
    found: tuple[Any, Any] = importlib.import_module("shoal.study_file").tune_study(ready, **progress)
    return found


def resume(storage: str, arguments: argparse.Namespace, keywords: Mapping[str, Any]) -> tuple[Any, Any]:
    """Go on with the study of a study file, under the seed that it was started with."""
    seed = importlib.import_module("shoal.tabular").seed_of(storage, keywords.get("study_name"))
    ready = prepare(arguments, {}, seed)
    found: tuple[Any, Any] = importlib.import_module("shoal.study_file").resume_study(storage, ready, **keywords)
    return found
