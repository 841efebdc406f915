"""``shoal export``: the winner of a study file in a folder that needs no Shoal."""

from __future__ import annotations

import argparse
import importlib
import json
from typing import Any, Final

from shoal._text import format_number

_FORMATS: Final = ("script", "weights", "pt2", "onnx")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``shoal export``."""
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="folder to write (default: the study's name with .export)"
    )
    parser.add_argument(
        "--format",
        metavar="F",
        action="append",
        dest="formats",
        help="script, weights, pt2 or onnx; again for more (default: script and weights)",
    )
    parser.add_argument(
        "--trial", metavar="N", type=int, help="another trial than the best, such as one of a Pareto front"
    )
    parser.add_argument("--check", action="store_true", help="run the script, and see that it measures the same")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run_export(arguments: argparse.Namespace, user: Any) -> int:
    """Write the folder and say what is in it."""
    study, storage = arguments.study, importlib.import_module("shoal.storage")
    name = arguments.study_name
    beside = storage.file_beside(storage.place_of(study), name or storage.DEFAULT_NAME, ".export")
    folder = arguments.output or beside.name
    exported = importlib.import_module("shoal.export._file").export_study(
        study,
        user.define,
        folder,
        study_name=name,
        train=user.train,
        valid=user.valid,
        test=user.test,
        prepare=user.options.get("prepare"),
        formats=arguments.formats or ("script", "weights"),
        check=arguments.check,
        trial=arguments.trial,
    )
    if arguments.json:
        facts = {
            "trial": exported.trial,
            "folder": str(exported.folder),
            "files": list(exported.files),
            "differences": dict(exported.differences),
            "again": exported.again,
        }
        print(json.dumps(facts))
        return 0
    print(f"{'trial':<12}{exported.trial}")
    for i, file in enumerate(f for f in exported.files if not f.startswith("plain/")):
        print(f"{'files' if i == 0 else '':<12}{exported.folder / file}")
    for name, off in exported.differences.items():
        print(f"{name:<12}outputs differ from the model's by {off:.2g} of the largest at most")
    if exported.again is not None:
        print(f"{'check':<12}train.py measures {format_number(exported.again)} again")
    return 0
