"""Rungs: where they are, and who has come to them in which order."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import final

from shoal.errors import UsageError
from shoal.schedulers._base import Observation, Rank, check_whole, rank

# A rung nearer to the end than this share of all epochs would stop trials that are as good as paid for.
_LAST_RUNG = 2 / 3
# Replays of 2,000 random configurations of the digits example (docs/benchmarks.md): of the sets of rungs tried, those at a
# fifteenth and a fifth cost least in quality for the epochs that they save.
_SHARE = 5


@final
class Rung:
    """What one rung has seen: the first value of each trial, best first."""

    __slots__ = ("epoch", "ranks", "trials")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.ranks: list[Rank] = []
        self.trials: set[int] = set()

    def arrive(self, row: Observation) -> bool:
        """Count a trial in; False when it was here before, as after a restart, and is not counted twice."""
        if row.trial in self.trials:
            return False
        self.trials.add(row.trial)
        insort(self.ranks, rank(row))
        return True

    def place(self, key: Rank) -> int:
        """1 for the best that ever came, and so on."""
        return bisect_left(self.ranks, key) + 1

    def best(self, n: int) -> list[int]:
        """The best ``n`` trials, best first."""
        return [key[2] for key in self.ranks[:n]]


def rung_epochs(max_epochs: int, eta: int, min_epochs: int | None) -> tuple[int, ...]:
    """The epochs of the rungs, ascending.

    At ``max_epochs / (5 * eta)`` and ``max_epochs / 5``, rounded; or counted up from ``min_epochs``, as ``min_epochs *
    eta**k``, when that is given, none beyond two thirds of ``max_epochs``.

    Raises:
        UsageError: ``min_epochs`` is not a whole number below ``max_epochs``.

    >>> rung_epochs(30, 3, None), rung_epochs(30, 3, 1), rung_epochs(4, 3, None)
    ((2, 6), (1, 3, 9), (1,))
    """
    if min_epochs is None:
        counted = [round(max_epochs / (_SHARE * eta**k)) for k in (1, 0)]
    else:
        check_whole("min_epochs", min_epochs, at_least=1)
        if min_epochs >= max_epochs:
            raise UsageError(
                f"min_epochs must be below max_epochs, or there is no rung to stop at; "
                f"got min_epochs={min_epochs}, max_epochs={max_epochs}. Lower min_epochs, or pass scheduler='none'."
            )
        counted = [min_epochs]
        while counted[-1] * eta < max_epochs:
            counted.append(counted[-1] * eta)
    last = max(max_epochs * _LAST_RUNG, min_epochs or 1)
    return tuple(sorted({epoch for epoch in counted if 1 <= epoch <= last and epoch < max_epochs}))
