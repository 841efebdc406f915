"""``shoal lr``, ``batch``, ``epochs`` and ``compare``: the finders from a shell, each with its text and its picture."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from shoal._text import json_ready
from shoal.errors import UsageError

_SHARED: Final = ("epochs", "seeds", "seed", "device", "metric", "direction")
# What each command calls, and the options that are its own.
COMMANDS: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    "lr": ("find a learning rate: a grid at once, and the range test", "find_lr", ("param", "low", "high", "n_rates")),
    "batch": ("find a batch size", "find_batch_size", ("param",)),
    "epochs": ("find how many epochs to train for", "find_epochs", ("max_epochs",)),
    "compare": ("compare the choices of a hyperparameter over seeds", "compare", ("over",)),
}


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The options of one of the commands."""
    absent = argparse.SUPPRESS

    def option(flag: str, kind: Callable[[str], Any], text: str, **settings: Any) -> None:
        parser.add_argument(flag, type=kind, default=absent, help=text, **settings)

    if command == "compare":
        parser.add_argument(
            "--over", metavar="NAME", required=True, help="the hyperparameter to compare the choices of"
        )
        parser.add_argument(
            "--choice", metavar="VALUE", action="append", help="a value to compare; again for more (default: all)"
        )
    if command in ("lr", "batch"):
        option("--param", str, "the hyperparameter, where it cannot be told", metavar="NAME")
    if command == "lr":
        option("--low", float, "smallest rate (default: of the search space)", metavar="RATE")
        option("--high", float, "largest rate (default: of the search space)", metavar="RATE")
        option("--n-rates", int, "rates of the grid (default: 21)", metavar="N")
    if command == "epochs":
        option("--max-epochs", int, "epochs to train for (default: 60)", metavar="N")
    else:
        option("--epochs", int, "epochs of each run (default: the file's max_epochs, else 30)", metavar="N")
    option("--seeds", int, "runs of each, with weights and orders of their own", metavar="N")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a hyperparameter's value; again for more (default: the middle of each range, and each first choice)",
    )
    option("--metric", str, "metric to measure (default: the file's, else accuracy for class targets)", metavar="M")
    option("--direction", str, "minimize or maximize the metric", choices=["minimize", "maximize"])
    option("--seed", int, "seed of everything random", metavar="N")
    option("--device", str, "auto, cpu, cuda, ...", metavar="D")
    parser.add_argument("-o", "--output", metavar="PATH", help="figure to write: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="show no progress, only the result")


def run(command: str, arguments: argparse.Namespace, user: Any) -> int:
    """Run a finder on FILE.py, print what it found, and draw it if matplotlib is there."""
    _, function, own = COMMANDS[command]
    keywords: dict[str, Any] = {
        k: user.options[k] for k in ("metric", "direction", "seed", "device", "prepare") if k in user.options
    }
    if command != "epochs" and "max_epochs" in user.options:
        keywords["epochs"] = user.options["max_epochs"]
    keywords |= {k: getattr(arguments, k) for k in (*_SHARED, *own) if hasattr(arguments, k)}
    if getattr(arguments, "choice", None):
        keywords["choices"] = [_value(text) for text in arguments.choice]
    keywords["params"] = dict(_pair(text) for text in arguments.set)
    keywords["progress"] = not (arguments.quiet or arguments.json)
    has_figures = importlib.util.find_spec("matplotlib") is not None
    if arguments.output and not has_figures:
        raise UsageError("figures are drawn by matplotlib: run `pip install matplotlib`.")
    finding = getattr(importlib.import_module("shoal"), function)(
        user.define, train=user.train, valid=user.valid, **keywords
    )
    figure = Path(arguments.output or f"{user.path.stem}_{command}.png") if has_figures else None
    if figure is not None:
        finding.plot(figure)
    if arguments.json:
        print(json.dumps({**json_facts(finding), "figure": None if figure is None else str(figure)}, allow_nan=False))
    else:
        print(finding)
        if figure is not None:
            print(f"figure: {figure}")
    if figure is None:
        print("shoal: no figure, since matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
    return 0


def json_facts(finding: Any) -> dict[str, Any]:
    """A finding as JSON: every field, arrays as lists."""

    def plain(value: Any) -> Any:
        if hasattr(value, "__dataclass_fields__"):
            return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return json_ready(value.tolist() if hasattr(value, "tolist") else value)

    facts: dict[str, Any] = plain(finding)
    return facts


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set takes NAME=VALUE, such as --set width=64; got {text!r}.")
    return name, _value(value)


def _value(text: str) -> Any:
    """A number, true, false or null as JSON has them; any other text as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool) or value is None else text
