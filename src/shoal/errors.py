"""What can go wrong, written for the person who gets it.

Every message says what must hold, what came instead, which trial and lane it concerns, and what to do next.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

_HERE = str(Path(__file__).parent)
_PYTHON = str(Path(traceback.__file__).parent)


class ShoalError(Exception):
    """Base of everything Shoal raises on purpose."""


class UsageError(ShoalError, ValueError):
    """An argument of the caller does not make sense; the command line exits with 2."""


class DataError(UsageError):
    """A data set is empty, ragged, not finite, or not the same when read twice."""


class RecipeError(UsageError):
    """``define`` returned something that cannot be trained. Carries the trial's number."""

    def __init__(self, message: str, *, trial: int | None = None) -> None:
        self.trial = trial
        super().__init__(message if trial is None else f"trial {trial}: {message}")


class ReplayError(ShoalError):
    """``define`` asked for other parameters than it did the first time: its code or its search space changed."""


class FuseError(ShoalError):
    """A recipe cannot be traced into a fleet. Caught by the engine, which then trains the trial solo."""


class StudyError(ShoalError):
    """The study cannot go on: too many trials failed, or nothing finished."""


class StorageError(ShoalError):
    """The study file cannot be read or written, or is not what it should be."""


class StudyLockedError(StorageError):
    """Another process owns the study file."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'accuracy'?"`` when a known word is close, otherwise the list of known words."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(names)}."


def own_line(file: str, line: int) -> str:
    """``"model.py, line 12"`` if that is the user's own code, else ""."""
    own = not file.startswith((_HERE, "<")) and "site-packages" not in file and not file.startswith(_PYTHON)
    return f"{Path(file).name}, line {line}" if own else ""


def _own_lines(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [f for f in frames if not f.filename.startswith((_HERE, "<")) and "site-packages" not in f.filename]


def line_of(error: BaseException) -> str:
    """``" (model.py, line 12: return x.item())"``: the last line of the user's own code that was running, or ""."""
    own = _own_lines(error)
    if not own:
        return ""
    code = f": {own[-1].line.strip()[:100]}" if own[-1].line else ""
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}{code})"


def blame(error: BaseException) -> str:
    """``"ValueError: bad width (model.py, line 12)"``: an error of the user's code, and the last line of it that was running."""
    last = next(iter(reversed(_own_lines(error) or traceback.extract_tb(error.__traceback__))), None)
    place = f" ({Path(last.filename).name}, line {last.lineno})" if last is not None else ""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:500]}{place}"
