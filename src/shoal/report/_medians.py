"""The median curve of some trials, with an interval that assumes no distribution; the page's script does the same.

The interval is between two order statistics whose ranks follow from the binomial distribution with p = 1/2: the median
lies between the j-th and the (n + 1 - j)-th of n values with a probability of 1 - 2 P(Bin(n, 1/2) < j).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.records import TrialRecord, TrialState


@dataclass(frozen=True, slots=True)
class MedianPoint:
    """One epoch: the median of ``n`` trials, and the ends of its 95 % interval."""

    epoch: int
    n: int
    median: float
    low: float
    high: float


def median_curve(trials: Sequence[TrialRecord], last_epoch: int, *, maximize: bool) -> list[MedianPoint]:
    """Medians over trials, epoch by epoch.

    A trial that was stopped stays with its last value, so that every epoch compares the same trials; one that is still
    running leaves. A value that is not finite counts as worse than any number.

    Args:
        trials: With rows; others are left out.
        last_epoch: Where the curve ends.
        maximize: Whether larger values are better.

    Returns:
        A point for each epoch that some trial has reached.
    """
    worst = -math.inf if maximize else math.inf
    points: list[MedianPoint] = []
    for epoch in range(1, last_epoch + 1):
        values: list[float] = []
        for trial in trials:
            if not trial.rows or trial.rows[0].epoch > epoch:
                continue
            if trial.rows[-1].epoch < epoch and trial.state is TrialState.RUNNING:
                continue
            row = next(r for r in reversed(trial.rows) if r.epoch <= epoch)
            values.append(row.value if math.isfinite(row.value) else worst)
        if values:
            values.sort()
            low, high = median_ranks(len(values))
            points.append(MedianPoint(epoch, len(values), values[len(values) // 2], values[low], values[high]))
    return points


def median_ranks(n: int) -> tuple[int, int]:
    """Ranks, from 0, between which the median of ``n`` values lies with at least 95 % confidence, or nearly for n > 500.

    >>> median_ranks(5), median_ranks(10), median_ranks(100)
    ((0, 4), (1, 8), (39, 60))
    """
    low = round(n / 2 - 0.98 * math.sqrt(n)) - 1
    if n <= 500:
        term = tail = 0.5**n
        low = -1
        while tail <= 0.025:
            low += 1
            term *= (n - low) / (low + 1)
            tail += term
    return max(0, low), min(n - 1, n - 1 - low)
