"""Freeze-thaw: trials are paused and go on by what their learning curves promise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import final

from shoal.schedulers._base import Decision, Observation, Room, Verdict, check_whole, in_order
from shoal.schedulers._curves import Forecast, forecast

# With fewer curves nothing is known of where final values lie, and new trials come first.
_FEWEST_CURVES = 4
# A paused trial goes on as long as it is expected to improve on the best by this share of the spread of final values.
_LEAST_GAIN = 0.01


@final
class FreezeThaw:
    """Pauses every trial every few epochs, unless it is worth more per epoch than a new one, and thaws those that promise most.

    Each curve is extrapolated to the last epoch (a mixture of power laws and exponentials); what counts is its expected
    improvement on the best value so far, per epoch that is left to train. A new trial counts as what finished and
    extrapolated ones look like on average. When no new trial is left, paused ones go on until none of them promises a
    hundredth of the spread of final values any more.

    Args:
        max_epochs: Where a trial is finished, 2 or more.
        interval: Epochs from one look at a curve to the next; by default a fifteenth of ``max_epochs``.

    Raises:
        UsageError: An argument is out of its range.

    Example:
        >>> FreezeThaw(max_epochs=30)
        FreezeThaw(30, interval=2)

    References:
        Swersky, Snoek and Adams, "Freeze-Thaw Bayesian Optimization", 2014; Domhan, Springenberg and Hutter, "Speeding up
        Automatic Hyperparameter Optimization of Deep Neural Networks by Extrapolation of Learning Curves", IJCAI 2015.
        Differs in that curves are independent of hyperparameters (any sampler chooses those), and in that expected
        improvement per epoch takes the place of entropy search.
    """

    def __init__(self, max_epochs: int, *, interval: int | None = None) -> None:
        self.max_epochs = check_whole("max_epochs", max_epochs, at_least=2)
        self.interval = check_whole(
            "interval", max(1, round(max_epochs / 15)) if interval is None else interval, at_least=1
        )
        self._curves: dict[int, list[float]] = {}
        self._ranges: tuple[float, float] | None = None
        self._ranged_at = 0
        self._held: dict[tuple[int, int], Verdict | None] = {}  # (trial, epoch) -> what it was told there
        self._known: dict[int, tuple[int, tuple[float, float], Forecast]] = {}  # trial -> (length, scale, forecast)

    @property
    def name(self) -> str:
        """ "freeze_thaw"."""
        return "freeze_thaw"

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Take in the curves, then pause whoever is at a look and promises less per epoch than a new trial."""
        at_look = []
        for row in in_order(rows):
            curve = self._curves.setdefault(row.trial, [])
            if row.epoch == len(curve) + 1:  # else it comes by again, as after a crash
                curve.append(row.value if math.isfinite(row.value) else (curve[-1] if curve else math.inf))
            if row.epoch % self.interval == 0 and row.epoch < self.max_epochs:
                at_look.append(row)
        fresh = [row for row in at_look if (row.trial, row.epoch) not in self._held]
        if fresh:
            self._ranges = self._range()
            least = self._worth_of_new()
            why = "its curve promises less than a new trial at epoch"
            for row in fresh:
                pauses = self._worth(row.trial) < least
                self._held[row.trial, row.epoch] = Verdict(Decision.PAUSE, f"{why} {row.epoch}") if pauses else None
        found = {row.trial: self._held[row.trial, row.epoch] for row in at_look}
        return {trial: verdict for trial, verdict in found.items() if verdict is not None}

    def promote(self, room: Room) -> Mapping[int, Verdict]:
        """Thaw the paused trials that promise most per epoch, as long as they promise more than a new trial."""
        if room.free <= 0:
            return {}
        self._ranges = self._range()
        if self._ranges is None:
            return {} if room.more else self._longest(room)
        least = self._worth_of_new() if room.more else _LEAST_GAIN * self._ranges[1] / self.max_epochs
        worth = {trial: self._worth(trial) for trial in room.paused}
        chosen = sorted((t for t, w in worth.items() if w >= least), key=lambda t: (-worth[t], t))[: room.free]
        if not chosen and not room.more and not room.running and self._best() == math.inf:
            return self._longest(room)
        return {
            trial: Verdict(Decision.PROMOTE, f"its curve, at epoch {room.paused[trial]}, promises most")
            for trial in chosen
        }

    def _longest(self, room: Room) -> dict[int, Verdict]:
        """Too few curves to tell them apart: all go on."""
        chosen = sorted(room.paused, key=lambda t: (-room.paused[t], t))[: room.free]
        return {trial: Verdict(Decision.PROMOTE, "there are too few curves to compare") for trial in chosen}

    def _best(self) -> float:
        """The best value of a finished trial; without one, infinity."""
        return min((c[-1] for c in self._curves.values() if len(c) >= self.max_epochs), default=math.inf)

    def _range(self) -> tuple[float, float] | None:
        """Centre and spread of final values, by the latest of each curve; quantiles, so that what diverged does not count.

        Looked at again when there are a tenth more epochs: all forecasts depend on it.
        """
        n_epochs = sum(map(len, self._curves.values()))
        if self._ranges is not None and n_epochs < 1.1 * self._ranged_at:
            return self._ranges
        latest = sorted(c[-1] for c in self._curves.values() if c and math.isfinite(c[-1]))
        if len(latest) < _FEWEST_CURVES:
            return None
        self._ranged_at = n_epochs
        low, centre, high = statistics.quantiles(latest, n=4)
        spread = (high - low) / 1.35  # of a normal distribution
        return centre, max(spread, 1e-6 * abs(centre), 1e-12)

    def _forecast(self, trial: int) -> Forecast:
        assert self._ranges is not None
        curve, scale = self._curves[trial], self._ranges
        known = self._known.get(trial)
        if known is None or known[:2] != (len(curve), scale):
            found = forecast(curve, self.max_epochs, *scale) if math.isfinite(sum(curve)) else Forecast(math.inf, 0.0)
            known = self._known[trial] = (len(curve), scale, found)
        return known[2]

    def _goal(self) -> float:
        """What is to be improved on: the best there is, or is expected to be."""
        centre = [self._forecast(t).mean for t, c in self._curves.items() if len(c) < self.max_epochs]
        return min([self._best(), *(m for m in centre if math.isfinite(m))])

    def _worth(self, trial: int) -> float:
        """Expected improvement per epoch that is left."""
        if self._ranges is None:
            return 0.0
        left = max(1, self.max_epochs - len(self._curves[trial]))
        return self._forecast(trial).improvement(self._goal()) / left

    def _worth_of_new(self) -> float:
        """The same of a trial that nobody has seen: like those that were seen."""
        if self._ranges is None:
            return math.inf
        means = [m for m in (self._forecast(t).mean for t in self._curves) if math.isfinite(m)]
        if len(means) < 2:
            return math.inf
        mean, deviation = statistics.fmean(means), statistics.stdev(means)
        return Forecast(mean, deviation).improvement(self._goal()) / self.max_epochs

    def __repr__(self) -> str:
        return f"FreezeThaw({self.max_epochs}, interval={self.interval})"
