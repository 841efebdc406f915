"""The median stopping rule over the whole population, running trials included."""

from __future__ import annotations

import math
import statistics
from bisect import insort
from collections.abc import Mapping, Sequence
from typing import final

from shoal.schedulers._base import Decision, Observation, Verdict, check_whole, in_order


@final
class Median:
    """Stops a trial whose best value so far is worse than the median of all trials' values at the same epoch.

    All rows of a round are recorded before any is judged. NaN counts as infinitely bad. The best trial of an epoch is
    never stopped there: its best is no worse than its value, and that no worse than the median. A trial that was put
    back to an earlier epoch is not counted twice and is given its old verdicts again.

    Where we differ from Golovin et al. (2017), section 3.2: they compare with running averages of finished trials; we
    compare with values at the epoch itself, as Optuna does, and with running trials too.

    Args:
        warmup_epochs: nobody is stopped in the first so many epochs, 0 or more.
        min_trials: an epoch that fewer trials have reached stops nobody, 2 or more.

    Raises:
        UsageError: an argument is out of its range.

    Example:
        >>> scheduler = Median(warmup_epochs=0, min_trials=4)
        >>> wave = [Observation(trial=number, epoch=1, value=float(number)) for number in range(4)]
        >>> sorted(scheduler.observe(wave))
        [2, 3]

    References:
        Golovin et al., "Google Vizier: A Service for Black-Box Optimization", KDD 2017, section 3.2.
    """

    name = "median"

    def __init__(self, *, warmup_epochs: int = 1, min_trials: int = 5) -> None:
        self.warmup_epochs = check_whole("warmup_epochs", warmup_epochs, at_least=0)
        self.min_trials = check_whole("min_trials", min_trials, at_least=2)
        self._values: dict[int, list[float]] = {}  # epoch -> every trial's value there, ascending
        self._best: dict[int, dict[int, float]] = {}  # trial -> epoch -> best value up to that epoch
        self._stopped: dict[tuple[int, int], Verdict] = {}  # (trial, epoch) -> what it was told there

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Record the rows, then stop those that lie behind the median of their epoch."""
        ordered = in_order(rows)
        new = [row for row in ordered if self._record(row)]
        for row in new:
            self._judge(row)
        verdicts: dict[int, Verdict] = {}
        for row in ordered:
            if verdict := self._stopped.get((row.trial, row.epoch)):
                verdicts.setdefault(row.trial, verdict)
        return verdicts

    def _record(self, row: Observation) -> bool:
        """Whether the row was new."""
        curve = self._best.setdefault(row.trial, {})
        if row.epoch in curve:
            return False
        value = math.inf if math.isnan(row.value) else row.value
        insort(self._values.setdefault(row.epoch, []), value)
        # In-order rows make the last entry the best so far; after a restart old epochs are known and never come here.
        curve[row.epoch] = min(value, curve[next(reversed(curve))]) if curve else value
        return True

    def _judge(self, row: Observation) -> None:
        values = self._values[row.epoch]
        if row.epoch <= self.warmup_epochs or len(values) < self.min_trials:
            return
        if self._best[row.trial][row.epoch] > statistics.median(values):
            reason = f"best so far behind the median of {len(values)} trials at epoch {row.epoch}"
            self._stopped[row.trial, row.epoch] = Verdict(Decision.STOP, reason)

    def __repr__(self) -> str:
        return f"Median(warmup_epochs={self.warmup_epochs}, min_trials={self.min_trials})"
