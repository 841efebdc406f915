"""Early stopping of each trial by its own curve alone, for when trials should not be compared with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from shoal.errors import UsageError
from shoal.schedulers._base import Decision, Observation, Verdict, check_whole, in_order


@dataclass(slots=True)
class _Curve:
    best: float
    best_epoch: int
    last_epoch: int


@final
class Patience:
    """Stops a trial after ``patience`` epochs without an improvement larger than ``min_delta``.

    A value improves if ``value < best - min_delta``; NaN never does. Rows of a trial that was put back to an earlier
    epoch are known already and change nothing.

    Args:
        patience: epochs to wait, 1 or more.
        min_delta: how much better than the best so far counts as better, 0 or more, in units of the metric.

    Raises:
        UsageError: an argument is out of its range.

    Example:
        >>> scheduler = Patience(patience=2)
        >>> curve = [Observation(trial=0, epoch=e, value=v) for e, v in enumerate([0.5, 0.4, 0.4, 0.6], start=1)]
        >>> [list(scheduler.observe([row])) for row in curve]
        [[], [], [], [0]]
    """

    name = "patience"

    def __init__(self, patience: int = 10, *, min_delta: float = 0.0) -> None:
        self.patience = check_whole("patience", patience, at_least=1)
        if not (isinstance(min_delta, int | float) and math.isfinite(min_delta) and min_delta >= 0):
            raise UsageError(f"min_delta must be a finite number, 0 or more; got {min_delta!r}.")
        self.min_delta = float(min_delta)
        self._curves: dict[int, _Curve] = {}

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Stop the trials whose last improvement is ``patience`` epochs ago."""
        verdicts: dict[int, Verdict] = {}
        for row in in_order(rows):
            curve = self._curves.setdefault(row.trial, _Curve(math.inf, row.epoch, row.epoch - 1))
            if row.epoch > curve.last_epoch:
                curve.last_epoch = row.epoch
                if row.value < curve.best - self.min_delta:
                    curve.best, curve.best_epoch = row.value, row.epoch
            waited = curve.last_epoch - curve.best_epoch
            # A restarted trial is judged only once it is back where it was: there it gets its old verdict again.
            if row.epoch == curve.last_epoch and waited >= self.patience:
                reason = f"no improvement in {waited} epochs (best at epoch {curve.best_epoch})"
                verdicts.setdefault(row.trial, Verdict(Decision.STOP, reason))
        return verdicts

    def __repr__(self) -> str:
        return f"Patience({self.patience}, min_delta={self.min_delta})"
