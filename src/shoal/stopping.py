"""What ends a study before its last trial, besides its clock and Ctrl-C. Plain data in, a reason out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from shoal.errors import UsageError
from shoal.records import EpochRow, Event, TrialResult, TrialState


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop; None means never.

    Args:
        max_total_epochs: Start no further round once all trials together have trained so many epochs, 1 or more.
        target_value: Stop once a finished trial is as good as this value, or better.
        patience_trials: Stop once so many trials in a row, 1 or more, have ended or been paused without the best getting better.

    Raises:
        UsageError: A limit is out of its range.
    """

    max_total_epochs: int | None = None
    target_value: float | None = None
    patience_trials: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_total_epochs", "patience_trials"):
            number = getattr(self, name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise UsageError(f"{name} must be a whole number of at least 1, or None; not {number!r}.")
        bad = isinstance(self.target_value, bool) or not isinstance(self.target_value, int | float | None)
        if bad or (self.target_value is not None and math.isnan(self.target_value)):
            raise UsageError(f"target_value must be a number, or None; not {self.target_value!r}.")


@final
class Tally:
    """Counts what limits look at, round by round.

    Args:
        limits: When to stop.
        sign: 1 when lower values are better, -1 when higher ones are.
    """

    def __init__(self, limits: Limits, sign: float) -> None:
        self._limits, self._sign = limits, sign
        self._epochs = 0
        self._best: TrialResult | None = None
        self._since: set[int] = set()  # trials that have left their lanes since the best one ended

    @classmethod
    def of(
        cls,
        limits: Limits,
        sign: float,
        rows: Mapping[int, Sequence[EpochRow]],
        results: Mapping[int, TrialResult],
        events: Sequence[Event],
    ) -> Tally:
        """A tally of what happened in earlier sessions, in the order of its times."""
        tally = cls(limits, sign)
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
            if r.state is not TrialState.FINISHED or r.value is None:
                continue
            if self._best is None or self._better(r.value, self._best.value):
                self._best, self._since = r, set()

    def _better(self, a: float, b: float | None) -> bool:
        return b is None or self._sign * a < self._sign * b

    @property
    def reason(self) -> str:
        """Why the study should stop now, or ""."""
        limits, best = self._limits, self._best
        if limits.max_total_epochs is not None and self._epochs >= limits.max_total_epochs:
            return f"{self._epochs:,} epochs in all, the limit is {limits.max_total_epochs:,}"
        if best is None or best.value is None:
            return ""
        if limits.target_value is not None and not self._better(limits.target_value, best.value):
            return f"trial {best.number} has reached the target: {best.value:.6g}"
        if limits.patience_trials is not None and len(self._since) >= limits.patience_trials:
            return f"{len(self._since)} trials without an improvement on trial {best.number}"
        return ""
