"""Means with 95 % intervals (Student's t), of values and of paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float], digits: int = 4, sign: str = "") -> str:
    """Mean and half the width of its interval; a dash if some value is not finite; a single value as it is."""
    if not all(map(math.isfinite, values)):
        return "-"
    if len(values) == 1:
        return f"{values[0]:{sign}.{digits}f}"
    return f"{statistics.fmean(values):{sign}.{digits}f} ± {half_width(values):.{digits}f}"


def worse(mine: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether ``mine`` is significantly higher: the 95 % interval of the difference of means (Welch) lies above zero."""
    a, b = (statistics.variance(v) / len(v) for v in (mine, theirs))
    if a + b == 0.0:
        return statistics.fmean(mine) > statistics.fmean(theirs)
    freedom = (a + b) ** 2 / (a**2 / (len(mine) - 1) + b**2 / (len(theirs) - 1))
    bound = float(student.ppf(0.975, freedom)) * math.sqrt(a + b)
    return statistics.fmean(mine) - statistics.fmean(theirs) > bound
