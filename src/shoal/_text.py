"""How numbers, durations and parameters read, in one place so that terminal, report and JSON lines agree.

JSON has no NaN and no infinity, yet a diverged trial has both: `json_ready` writes them as the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"``, which Python's ``float`` and JavaScript's ``Number`` both read back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from shoal.records import Json


def format_number(value: float, digits: int = 5) -> str:
    """A number with `digits` significant digits; integers in full.

    >>> format_number(0.98123456), format_number(3e-05), format_number(120000)
    ('0.98123', '3e-05', '120000')
    """
    if isinstance(value, int):
        return str(value)
    return f"{value:.{digits}g}"


def format_value(value: float) -> str:
    """The value of an objective: whole numbers in full, since they count something.

    >>> format_value(183028.0), format_value(0.98123456)
    ('183028', '0.98123')
    """
    return format_number(int(value) if float(value).is_integer() else value)


def format_param(value: object) -> str:
    """One parameter's value as a person would type it: short floats, everything else as ``str``."""
    if isinstance(value, float):
        return format_number(value)
    return str(value)


def format_params(params: Mapping[str, object]) -> str:
    """Parameters on one line.

    >>> format_params({"lr": 0.012345678, "width": 64})
    'lr=0.012346, width=64'
    """
    return ", ".join(f"{name}={format_param(value)}" for name, value in params.items())


def format_duration(seconds: float) -> str:
    """Seconds in the two largest units that say something.

    >>> [format_duration(s) for s in (0.42, 12.3, 75.0, 7260.0, 180000.0)]
    ['0.4 s', '12 s', '1 min 15 s', '2 h 1 min', '2 d 2 h']
    """
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    for big, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {big} {rest} {small}" if rest else f"{whole // size} {big}"
    return f"{whole} s"


def json_ready(value: object) -> Json:
    """The value with non-finite floats as strings, ready for ``json.dumps(..., allow_nan=False)``.

    Args:
        value: Nested mappings, iterables, numbers, strings, booleans and None; anything else becomes its ``str``.

    Returns:
        The same in JSON's own types.
    """
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [json_ready(item) for item in value]
    return str(value)
