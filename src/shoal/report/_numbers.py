"""Small questions that several parts of the report ask of a study, and how numbers are rounded for the page."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Iterable
from typing import Final

from shoal._text import format_number, json_ready
from shoal.records import Json, StudyRecord

DIGITS: Final = 5
_LIMIT: Final = 3.4e38


def metric_name(record: StudyRecord) -> str:
    """The metric that the study is judged by."""
    return str(record.meta.get("metric") or "value")


def elapsed_s(record: StudyRecord) -> float:
    """How long the study ran: what it says itself, or the latest time anywhere in it."""
    said = record.meta.get("elapsed_s")
    times = [event.time_s for event in record.events]
    times += [trial.time_s for trial in record.trials]
    times += [trial.rows[-1].time_s for trial in record.trials if trial.rows]
    if isinstance(said, int | float):
        times.append(float(said))
    return max((t for t in times if math.isfinite(t)), default=0.0)


def rounded(value: float | None) -> Json:
    """Five significant digits, as JSON: numbers that JSON does not have become strings (see `shoal._text`)."""
    if value is None or not math.isfinite(value):
        return json_ready(value)
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def text(value: object) -> str:
    """A number as people read it, NaN and infinities included."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    return format_number(value) if isinstance(value, int | float) else str(value)


def packed(values: Iterable[float]) -> str:
    """Numbers as little-endian float32 in base64."""
    # float32 has no room for 1e300: to a figure such a value is infinite.
    numbers = array("f", (v if abs(v) < _LIMIT or v != v else math.copysign(math.inf, v) for v in values))
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def unpacked(text: str) -> list[float]:
    """What `packed` made into text.

    >>> unpacked(packed([0.5, float("inf")]))
    [0.5, inf]
    """
    numbers = array("f", base64.b64decode(text))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
