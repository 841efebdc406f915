"""What ends a study before its last trial, besides its clock and Ctrl-C. Plain data in, a reason out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

from shoal.errors import UsageError
from shoal.objectives import Objectives
from shoal.pareto import Front, Point, covers
from shoal.records import EpochRow, Event, TrialResult, TrialState, signed


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop; None means never.

    Args:
        max_total_epochs: Start no further round once all trials together have trained so many epochs, 1 or more.
        target_value: Stop once a finished trial is as good as this value, or better; of several objectives one each, all reached
            by the same trial.
        patience_trials: Stop once so many trials in a row, 1 or more, have ended or been paused without the best getting better.

    Raises:
        UsageError: A limit is out of its range.
    """

    max_total_epochs: int | None = None
    target_value: float | Sequence[float] | None = None
    patience_trials: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_total_epochs", "patience_trials"):
            number = getattr(self, name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise UsageError(f"{name} must be a whole number of at least 1, or None; not {number!r}.")
        for target in self.targets or ():
            if isinstance(target, bool) or not isinstance(target, int | float) or math.isnan(target):
                raise UsageError(f"target_value must be a number, or None; not {target!r}.")

    @property
    def targets(self) -> tuple[float, ...] | None:
        """The targets, one per objective."""
        target = self.target_value
        if isinstance(target, list | tuple):
            return tuple(target)
        return None if target is None else (cast(float, target),)


@final
class Tally:
    """Counts what limits look at, round by round.

    Args:
        limits: When to stop.
        objectives: Which way is better.

    Attributes:
        front: The values of the best so far, lower is better: of one objective a single trial's, of several the Pareto front's.
    """

    def __init__(self, limits: Limits, objectives: Objectives) -> None:
        self._limits, self._objectives = limits, objectives
        self.front = Front()
        self._epochs = 0
        self._best: TrialResult | None = None  # the last that was an improvement
        self._reached: TrialResult | None = None
        self._since: set[int] = set()  # trials that have left their lanes since the best one ended

    @classmethod
    def of(
        cls,
        limits: Limits,
        objectives: Objectives,
        rows: Mapping[int, Sequence[EpochRow]],
        results: Mapping[int, TrialResult],
        events: Sequence[Event],
    ) -> Tally:
        """A tally of what happened in earlier sessions, in the order of its times."""
        tally = cls(limits, objectives)
        tally._epochs = sum(len(r) for r in rows.values())
        rounds: dict[float, tuple[list[TrialResult], list[Event]]] = {}  # all of a round bears the same time
        for number in sorted(results):
            rounds.setdefault(results[number].time_s, ([], []))[0].append(results[number])
        for event in events:
            if event.kind == "paused":
                rounds.setdefault(event.time_s, ([], []))[1].append(event)
        for _, (ended, paused) in sorted(rounds.items()):
            tally.count([], ended, paused)
        return tally

    def count(self, rows: Sequence[EpochRow], results: Sequence[TrialResult], events: Sequence[Event]) -> None:
        """Take in what a round has brought."""
        self._epochs += len(rows)
        self._since |= {e.trial for e in events if e.kind == "paused" and e.trial is not None}
        for r in results:
            if r.state is not TrialState.FAILED:
                self._since.add(r.number)
        for r in results:
            point = self._objectives.point(r) if r.state is TrialState.FINISHED else None
            if point is None:
                continue
            if self.front.add(r.number, point):
                self._best, self._since = r, set()
            if self._reached is None and self._target is not None and covers(point, self._target):
                self._reached = r

    @property
    def _target(self) -> Point | None:
        targets = self._limits.targets
        return None if targets is None else signed(targets, self._objectives.directions)

    @property
    def reason(self) -> str:
        """Why the study should stop now, or ""."""
        limits, best = self._limits, self._best
        if limits.max_total_epochs is not None and self._epochs >= limits.max_total_epochs:
            return f"{self._epochs:,} epochs in all, the limit is {limits.max_total_epochs:,}"
        if best is None or best.value is None:
            return ""
        if self._reached is not None and self._objectives.several:
            values = ", ".join(f"{v:.6g}" for v in self._reached.outcome.values)
            return f"trial {self._reached.number} has reached the targets: {values}"
        if self._reached is not None:
            return f"trial {best.number} has reached the target: {best.value:.6g}"
        if limits.patience_trials is not None and len(self._since) >= limits.patience_trials:
            what = (
                "a new trial on the Pareto front"
                if self._objectives.several
                else f"an improvement on trial {best.number}"
            )
            return f"{len(self._since)} trials without {what}"
        return ""
