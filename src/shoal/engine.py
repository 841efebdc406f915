"""The only loop: ask, admit, train an epoch, observe, apply, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from shoal.errors import RecipeError
from shoal.lanes.lane import Measured
from shoal.lanes.pool import Candidate
from shoal.lanes.workers import Trainer
from shoal.records import EpochRow, Event, Progress, TrialResult, TrialState
from shoal.schedulers import Decision, Observation, Scheduler


class Ledger(Protocol):
    """What the engine needs of a study: trials to run, and somewhere to put what came of them."""

    def ask(self, n: int) -> list[Candidate]:
        """At most ``n`` trials that are ready to start; none when the study has no more."""
        ...

    def record(self, rows: Sequence[EpochRow], results: Sequence[TrialResult], events: Sequence[Event]) -> None: ...

    def keep_weights(self, result: TrialResult, pool: Trainer) -> None:
        """Called for every trial that finished, while its weights are still in the pool."""
        ...

    def progress(self, pool: Trainer, epochs_per_s: float, elapsed_s: float) -> Progress: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """How trials are judged. ``value_of`` turns a measurement into the study's value; ``sign`` makes it one to minimise."""

    max_epochs: int
    sign: float
    value_of: Callable[[Measured], float]
    best_epoch: bool  # a trial is judged by its best epoch, not by its last


class Engine:
    """Runs a study's trials on one device until there are none left, time is up, or someone says stop."""

    def __init__(
        self, ledger: Ledger, pool: Trainer, scheduler: Scheduler, rules: Rules, lanes: int, tick: int = 0
    ) -> None:
        self.ledger, self.pool, self.scheduler, self.rules = ledger, pool, scheduler, rules
        self.lanes, self.tick = lanes, tick
        self.epochs_done = 0
        self._best: dict[int, tuple[float, int]] = {}  # trial -> (value, epoch) of its best epoch
        self._last_finite: dict[int, tuple[float, int]] = {}

    def run(
        self,
        *,
        clock: Callable[[], float],
        stop: Callable[[], bool],
        report: Callable[[Progress], None],
        timeout_s: float | None = None,
    ) -> None:
        """The loop. Trials that still run when it is told to stop stay unfinished in the study, for ``resume``."""
        started = time.perf_counter()
        while not stop():
            elapsed = time.perf_counter() - started
            if timeout_s is not None and elapsed >= timeout_s:
                break
            self.pool.admit(self.ledger.ask(self.lanes - self.pool.n_running))
            if self.pool.n_running == 0:
                break
            rows, results = self._judge(self.pool.run_epoch(), clock())
            self.tick += 1
            for result in results:
                if result.state is TrialState.FINISHED:
                    self.ledger.keep_weights(result, self.pool)
                self.pool.remove(result.number)
            now = clock()
            events = [replace(e, tick=self.tick, time_s=now) for e in self.pool.drain_events()]
            self.ledger.record(rows, results, events)
            self.epochs_done += len(rows)
            elapsed = time.perf_counter() - started
            report(self.ledger.progress(self.pool, self.epochs_done / max(elapsed, 1e-9), elapsed))

    def _judge(self, measured: Sequence[Measured], now: float) -> tuple[list[EpochRow], list[TrialResult]]:
        """Rows of this epoch, and the trials that end with it."""
        rules = self.rules
        rows, results, seen = [], [], []
        for m in measured:
            if m.error:
                results.append(TrialResult(m.trial, TrialState.FAILED, None, m.epoch, m.error, now))
                continue
            try:
                value = rules.value_of(m)
            except RecipeError as error:
                results.append(TrialResult(m.trial, TrialState.FAILED, None, m.epoch, str(error), now))
                continue
            row = EpochRow(m.trial, m.epoch, m.train_loss, value, {"loss": m.valid_loss, **m.metrics}, now)
            rows.append(row)
            if not m.finite or value != value:
                results.append(self._diverged(m, now))
                continue
            self._last_finite[m.trial] = (value, m.epoch)
            best = self._best.get(m.trial)
            if best is None or rules.sign * value < rules.sign * best[0]:
                self._best[m.trial] = (value, m.epoch)
                if rules.best_epoch:
                    self.pool.remember(m.trial)
            self.pool.epoch_done(m.trial, m.valid_loss, value)
            if m.epoch >= rules.max_epochs:
                results.append(TrialResult(m.trial, TrialState.FINISHED, *self._judged_by(m.trial), time_s=now))
            seen.append(Observation(m.trial, m.epoch, rules.sign * value))
        ended = {r.number for r in results}
        for trial, verdict in self.scheduler.observe(seen).items():
            if verdict.decision is Decision.STOP and trial not in ended:
                value, epoch = self._judged_by(trial)
                results.append(TrialResult(trial, TrialState.STOPPED, value, epoch, verdict.reason, now))
        for r in results:
            self._best.pop(r.number, None)
            self._last_finite.pop(r.number, None)
        return rows, sorted(results, key=lambda r: r.number)

    def _judged_by(self, trial: int) -> tuple[float, int]:
        return (self._best if self.rules.best_epoch else self._last_finite)[trial]

    def _diverged(self, m: Measured, now: float) -> TrialResult:
        if m.trial in self._last_finite:
            value, epoch = self._judged_by(m.trial)
            reason = f"its {'value' if m.finite else 'loss'} was not finite in epoch {m.epoch}"
            return TrialResult(m.trial, TrialState.STOPPED, value, epoch, reason, now)
        if m.finite:
            reason = f"trial {m.trial}: its value was not a number though its loss was finite: check the metric"
        elif m.first_loss != m.first_loss or m.first_loss in (float("inf"), float("-inf")):
            reason = (
                f"trial {m.trial}: its loss was not finite from the first step: check the loss and the targets' range"
            )
        else:
            reason = f"trial {m.trial}: its loss was not finite in its first epoch: the learning rate may be too high"
        return TrialResult(m.trial, TrialState.FAILED, None, m.epoch, reason, now)
