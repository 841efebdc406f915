"""The user's FILE.py: found, imported and checked, with messages about the user's code and not about ours.

A file that the command line trains from defines ``define(trial)``, ``data()`` and perhaps ``options``. It is ordinary
Python and is run as such: a study file never names code, the person at the shell does.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from shoal.errors import ShoalError, UsageError, did_you_mean

# Modules that a file beside them would hide from everything that is imported later.
_TAKEN: Final = frozenset(
    {"shoal", "torch", "optuna", "numpy", "sklearn", "scipy", "rich", "safetensors", "sqlalchemy", "alembic"}
)


@dataclass(frozen=True, slots=True)
class UserFile:
    """What the command line needs of FILE.py. ``train``, ``valid`` and ``test`` are data sets; ``spec`` is as typed."""

    spec: str
    path: Path
    define: Callable[..., object]
    train: object
    valid: object | None
    test: object | None
    options: Mapping[str, object]


def load_user_file(spec: str, known_options: Iterable[str]) -> UserFile:
    """Import ``FILE.py[:define]`` and read its data.

    Args:
        spec: A path, and after a colon perhaps the name of the function to use as ``define``.
        known_options: The keys that the file's ``options`` may have.

    Returns:
        The file's function, data and options.

    Raises:
        UsageError: The file is missing, cannot be imported, or lacks what it should define.
    """
    path, name = split_spec(spec)
    module = _import(path)
    define = _function(module, path, name or "define", "which takes a trial and returns a shoal.Recipe")
    options = _options(module, path, known_options)
    data = _function(module, path, "data", "which returns (train, valid, test), (train, valid) or train")
    try:
        splits = data()
    except ShoalError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"data() in {path} raised:\n{_their_traceback(error, path)}") from None
    train, valid, test = _splits(splits, path)
    return UserFile(spec, path, define, train, valid, test, options)


def split_spec(spec: str) -> tuple[Path, str | None]:
    """``"a/b.py:define"`` as (path, name); the name is None when there is none.

    >>> split_spec("a.py:define"), split_spec("a.py")
    ((PosixPath('a.py'), 'define'), (PosixPath('a.py'), None))
    """
    head, colon, name = spec.rpartition(":")
    # A drive letter is no file name: "C:\\a.py" has a colon and no function.
    if not colon or len(head) <= 1 or "/" in name or "\\" in name:
        return Path(spec), None
    if not name.isidentifier():
        raise UsageError(f"after the colon must come the name of a function; got {name!r} in {spec!r}.")
    return Path(head), name


def _import(path: Path) -> ModuleType:
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder. Name the Python file in it that has define() and data().")
    if not path.is_file():
        names = [other.name for other in path.parent.glob("*.py")]
        near = difflib.get_close_matches(path.name, names, n=1)
        raise UsageError(f"there is no file {str(path)!r}.{did_you_mean(path.name, near) if near else ''}")
    if path.suffix != ".py":
        raise UsageError(f"{str(path)!r} must be a Python file whose name ends in '.py'.")
    path = path.resolve()
    stem = path.stem
    there = sys.modules.get(stem)
    if stem in sys.stdlib_module_names or stem in _TAKEN or (there is not None and _file_of(there) != path):
        raise UsageError(f"'{path.name}' would hide the module {stem!r} that other code imports. Rename the file.")
    spec = importlib.util.spec_from_file_location(stem, path)
    assert spec is not None and spec.loader is not None  # true of every path that ends in ".py"
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    # Registered before it runs, as Python does it, so that its classes can be found and pickled by name.
    sys.modules[stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(stem, None)
        raise UsageError(f"{path.name} cannot be imported:\n{_their_traceback(error, path)}") from None
    return module


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _their_traceback(error: BaseException, path: Path) -> str:
    """The traceback from the first line of the user's file on; a syntax error brings its own line."""
    frames = error.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename).resolve() != path.resolve():
        frames = frames.tb_next
    lines = traceback.format_exception(type(error), error.with_traceback(frames), frames)
    return "".join(lines).rstrip()


def _function(module: ModuleType, path: Path, name: str, what: str) -> Callable[..., object]:
    found = getattr(module, name, None)
    if found is None:
        functions = [key for key, item in vars(module).items() if callable(item) and not key.startswith("_")]
        own = [key for key in functions if getattr(vars(module)[key], "__module__", None) == module.__name__]
        hint = did_you_mean(name, own) if own else ""
        raise UsageError(f"{path} must define {name}(), {what}; it has no {name!r}.{hint}")
    if not callable(found):
        raise UsageError(f"{name!r} in {path} must be a function, {what}; it is {type(found).__name__}.")
    function: Callable[..., object] = found
    return function


def _options(module: ModuleType, path: Path, known: Iterable[str]) -> Mapping[str, object]:
    options = getattr(module, "options", {})
    if not isinstance(options, Mapping):
        raise UsageError(
            f"'options' in {path} must be a dict of keywords of shoal.tune; it is {type(options).__name__}."
        )
    names = list(known)
    for key in options:
        if key not in names:
            raise UsageError(f"'options' in {path} has an unknown key {key!r}.{did_you_mean(str(key), names)}")
    return dict(options)


def _splits(splits: object, path: Path) -> tuple[object, object | None, object | None]:
    if not isinstance(splits, tuple | list):
        if splits is None:
            raise UsageError(f"data() in {path} returned None. Return (train, valid, test), (train, valid) or train.")
        return splits, None, None
    if not 1 <= len(splits) <= 3:
        raise UsageError(f"data() in {path} must return one to three data sets; got {len(splits)}.")
    if any(hasattr(split, "shape") for split in splits):
        # (inputs, targets) and (train, valid) look alike, and guessing wrong would train on the targets.
        raise UsageError(
            f"data() in {path} returned bare arrays. Wrap inputs and targets in torch.utils.data.TensorDataset, "
            "and return (train, valid, test), (train, valid) or train."
        )
    if splits[0] is None:
        raise UsageError(f"data() in {path} returned None as the training set.")
    padded = [*splits, None, None]
    return padded[0], padded[1], padded[2]
