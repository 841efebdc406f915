"""A metric's value on a split with a confidence interval, as users read it; and Wilson's interval for a share of samples.

Glossary: ``n`` samples, ``hits`` of them right, ``level`` the confidence level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from shoal._text import format_number


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value on ``n`` samples of a split, and its confidence interval.

    Attributes:
        value: On the whole split.
        low, high: Ends of the interval at ``level``; NaN where none can be had.
        n: Samples of the split.
        level: 0.95.
        method: "wilson" for the share of samples that are right, "bootstrap" for other metrics, "" without an interval.

    Example:
        >>> print(Score(0.95, 0.9112, 0.9726, 200, 0.95, "wilson"))
        0.95 (95 % interval 0.9112 to 0.9726, n = 200)
    """

    value: float
    low: float
    high: float
    n: int
    level: float
    method: str

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{format_number(self.value)} (n = {self.n})"
        ends = f"{format_number(self.low, 4)} to {format_number(self.high, 4)}"
        return f"{format_number(self.value)} ({self.level:.0%} interval {ends}, n = {self.n})".replace("%", " %")


def wilson(hits: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share.

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   p = hits / n

    Unlike the interval of the normal approximation it never leaves 0 to 1, and it has a width where all samples are right.

    Args:
        hits: Samples that are right, 0 to n.
        n: Samples, at least 1.
        level: Confidence, in (0, 1).

    Returns:
        The ends of the interval.

    Example:
        >>> [round(end, 4) for end in wilson(190, 200)]
        [0.9104, 0.9726]

    References:
        Wilson (1927), Probable inference, the law of succession, and statistical inference; Brown, Cai and DasGupta (2001).
    """
    z, p = NormalDist().inv_cdf((1 + level) / 2), hits / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not put the share itself outside.
    return max(0.0, min(p, (centre - half) / scale)), min(1.0, max(p, (centre + half) / scale))


def scores_of(split: object) -> dict[str, Score]:
    """The scores that `shoal.winner.split_scores` wrote down for a split; none for anything else."""
    if not isinstance(split, Mapping):
        return {}
    nan, n, level = math.nan, int(split["n"]), float(split["level"])
    return {
        name: Score(entry["value"], entry.get("low", nan), entry.get("high", nan), n, level, entry.get("method", ""))
        for name, entry in split["scores"].items()
    }
