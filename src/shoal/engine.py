"""The only loop: promote and ask, admit, train an epoch, observe, apply, record."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

from shoal.errors import RecipeError
from shoal.lanes.lane import Measured
from shoal.lanes.pool import Candidate
from shoal.lanes.workers import Trainer
from shoal.records import Copied, EpochRow, Event, Json, Progress, TrialResult, TrialSpec, TrialState
from shoal.schedulers import Decision, Explorer, Observation, Promoter, Room, Scheduler, Verdict, rungs_of


class Ledger(Protocol):
    """What the engine needs of a study: trials to run, and somewhere to put what came of them."""

    @property
    def n_asked(self) -> int:
        """Trials that were started so far; their numbers count up from 0."""
        ...

    @property
    def more(self) -> bool:
        """Whether ``ask`` may still give new trials."""
        ...

    def ask(self, n: int) -> Iterable[Candidate]:
        """At most ``n`` trials that are ready to start, one after the other; none when the study has no more. Once the last one has
        been taken, they are recorded."""
        ...

    def again(self, number: int) -> list[Candidate]:
        """A trial that starts once more from its first epoch; empty when ``define`` raises, which ends it."""
        ...

    def record(self, rows: Sequence[EpochRow], results: Sequence[TrialResult], events: Sequence[Event]) -> None: ...

    def spec(self, trial: int) -> TrialSpec:
        """What a trial trains with now."""
        ...

    def so_far(self, provisional: TrialResult) -> None:
        """Called for every trial that is paused, or that a rung lets pass, with the result that it would have if it ended here."""
        ...

    def judge(self, result: TrialResult, rows: Sequence[EpochRow], pool: Trainer) -> TrialResult:
        """Called for every trial that finished or was stopped, while what it trained is still in the pool, with this round's rows:
        the result as it is to be recorded."""
        ...

    def progress(self, pool: Trainer, epochs_per_s: float, elapsed_s: float) -> Progress: ...

    def snapshot(self, standing: Standing, pool: Trainer, *, last: bool) -> None:
        """Called between two rounds, when everything that happened was recorded; ``last`` if none follows for now."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the engine stands between two rounds.

    Attributes:
        tick: Rounds that have been run.
        running, paused: Trial -> its last recorded epoch.
        bare: Paused trials of which nothing but rows is kept: when promoted, they train again from the start, unseen until they are
            past their last row.
    """

    tick: int = 0
    running: Mapping[int, int] = field(default_factory=dict)
    paused: Mapping[int, int] = field(default_factory=dict)
    bare: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Rules:
    """How trials are judged. ``value_of`` turns a measurement into the study's value; ``sign`` makes it one to minimise."""

    max_epochs: int
    sign: float
    value_of: Callable[[Measured], float]
    best_epoch: bool  # a trial is judged by its best epoch, not by its last
    hopeless: Callable[[TrialSpec], str] | None = None  # why a trial cannot be best whatever it learns, or ""


class Engine:
    """Runs a study's trials on one device until there are none left, time is up, or someone says stop.

    Args:
        standing: Where an earlier session left off. The pool has whoever is running then, and whoever is paused and not bare.
        rows: Of those trials.
    """

    def __init__(
        self,
        ledger: Ledger,
        pool: Trainer,
        scheduler: Scheduler,
        rules: Rules,
        lanes: int,
        standing: Standing | None = None,
        rows: Mapping[int, Sequence[EpochRow]] | None = None,
    ) -> None:
        standing = standing or Standing()
        self.ledger, self.pool, self.scheduler, self.rules = ledger, pool, scheduler, rules
        self.lanes, self.tick = lanes, standing.tick
        self.epochs_done = 0
        self._running = set(standing.running)
        self._paused = dict(standing.paused)  # trial -> the epoch it was paused at
        self._bare = set(standing.bare)  # paused trials of which the pool has nothing
        self._reached: dict[int, int] = {}  # trial -> its last recorded epoch
        self._rungs = rungs_of(scheduler)
        self._best: dict[int, tuple[float, int]] = {}  # trial -> (value, epoch) of its best epoch
        self._last_finite: dict[int, tuple[float, int]] = {}
        self._events: list[Event] = []
        for trial, epoch in {**standing.running, **standing.paused}.items():
            if epoch:
                self._reached[trial] = epoch
            for row in (rows or {}).get(trial, ()):
                self._note_value(trial, row.value, row.epoch)

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
        while True:
            elapsed = time.perf_counter() - started
            over = stop() or (timeout_s is not None and elapsed >= timeout_s)
            self.ledger.snapshot(self._standing(), self.pool, last=over)
            if over:
                break
            self._fill(clock())
            if self.pool.n_running == 0:
                if self._paused:
                    self._stop_paused("", clock())  # nobody is left who could make room for them
                    report(self.ledger.progress(self.pool, self.epochs_done / max(elapsed, 1e-9), elapsed))
                break
            measured = self.pool.run_epoch()
            self.tick += 1
            self._apply(*self._judge(measured, clock()), clock())
            self.epochs_done += len(measured)
            elapsed = time.perf_counter() - started
            report(self.ledger.progress(self.pool, self.epochs_done / max(elapsed, 1e-9), elapsed))

    def _standing(self) -> Standing:
        reached = self._reached
        return Standing(
            self.tick, {n: reached.get(n, 0) for n in sorted(self._running)}, dict(self._paused), frozenset(self._bare)
        )

    # -- filling lanes ----------------------------------------------------------------------------------------------------

    def _fill(self, now: float) -> None:
        """Give free lanes to paused trials that are promoted, then to new ones."""
        back: list[int] = []
        candidates: list[Candidate] = []
        for trial, verdict in self._promotions().items():
            if verdict.decision is Decision.STOP:
                self._stop_paused(verdict.reason, now, trial)
            elif verdict.decision is Decision.PROMOTE:
                epoch = self._paused.pop(trial)
                self._events.append(Event(0, "promoted", trial, data={"epoch": epoch, "reason": verdict.reason}))
                if trial not in self._bare:
                    back.append(trial)
                    continue
                self._bare.discard(trial)
                candidates += self.ledger.again(trial)
        self._running |= {*back, *(c.spec.number for c in candidates)}
        fresh = self._noted(self.ledger.ask(self.lanes - len(self._running)))
        # One is asked for while pools make those before it ready.
        self.pool.admit(itertools.chain(candidates, fresh), back)

    def _noted(self, fresh: Iterable[Candidate]) -> Iterator[Candidate]:
        for c in fresh:
            self._running.add(c.spec.number)
            yield c

    def _promotions(self) -> Mapping[int, Verdict]:
        if not self._paused or not isinstance(self.scheduler, Promoter):
            return {}
        free = self.lanes - len(self._running)
        room = Room(
            free, frozenset(self._running), MappingProxyType(self._paused), self.ledger.n_asked, self.ledger.more
        )
        return {trial: v for trial, v in self.scheduler.promote(room).items() if trial in self._paused}

    def _stop_paused(self, reason: str, now: float, *trials: int) -> None:
        """End paused trials, or all of them, as stopped where they were paused."""
        results = []
        for trial in trials or tuple(self._paused):
            epoch = self._paused[trial]
            value, at = self._judged_by(trial)
            why = reason or f"paused at epoch {epoch}, and never promoted"
            results.append(TrialResult(trial, TrialState.STOPPED, value, at, why, now))
        if results:
            self._apply([], results, [], now)

    # -- judging ----------------------------------------------------------------------------------------------------------

    def _judge(
        self, measured: Sequence[Measured], now: float
    ) -> tuple[list[EpochRow], list[TrialResult], list[tuple[int, Verdict]]]:
        """Rows of this epoch, the trials that end with it, and those that are paused."""
        rules, explores = self.rules, isinstance(self.scheduler, Explorer)
        rows, results, seen = [], [], []
        lost: dict[int, Measured] = {}  # not finite: they end, unless they go on from another trial
        for m in measured:
            if m.error:
                results.append(TrialResult(m.trial, TrialState.FAILED, None, m.epoch, m.error, now))
                continue
            try:
                value = rules.value_of(m)
            except RecipeError as error:
                results.append(TrialResult(m.trial, TrialState.FAILED, None, m.epoch, str(error), now))
                continue
            new = m.epoch > self._reached.get(m.trial, 0)  # else it trains again what it had trained before
            if new:
                self._reached[m.trial] = m.epoch
                metrics = {"loss": m.valid_loss, **m.metrics}
                lanes = (m.lanes, m.standard_error)
                rows.append(EpochRow(m.trial, m.epoch, m.train_loss, value, metrics, now, *lanes, m.trajectories))
            params = self.ledger.spec(m.trial).params if explores else {}
            if not m.finite or value != value:
                lost[m.trial] = m
                if explores and new:
                    seen.append(Observation(m.trial, m.epoch, math.nan, params))
                continue
            if self._note_value(m.trial, value, m.epoch) and rules.best_epoch:
                self.pool.remember(m.trial)
            self.pool.epoch_done(m.trial, m.valid_loss, value)
            why = rules.hopeless(self.ledger.spec(m.trial)) if rules.hopeless is not None and m.epoch == 1 else ""
            if (
                why and rules.max_epochs > 1
            ):  # schedulers do not see it: it would take the place of one that can be best
                results.append(TrialResult(m.trial, TrialState.STOPPED, value, m.epoch, why, now))
                continue
            if m.epoch >= rules.max_epochs:
                results.append(TrialResult(m.trial, TrialState.FINISHED, *self._judged_by(m.trial), time_s=now))
            if new:
                seen.append(Observation(m.trial, m.epoch, rules.sign * value, params))
        verdicts = self.scheduler.observe(seen)
        copied = self._copy({n: v for n, v in verdicts.items() if v.decision is Decision.COPY and n in self._running})
        rows = [replace(row, copied=copied.get(row.trial)) if row.trial in copied else row for row in rows]
        results += [self._diverged(m, now) for trial, m in lost.items() if trial not in copied]
        ended, pauses = {r.number for r in results}, []
        for trial, verdict in verdicts.items():
            if trial in ended:
                continue
            if verdict.decision is Decision.PAUSE:
                pauses.append((trial, verdict))
            elif verdict.decision is Decision.STOP:
                value, epoch = self._judged_by(trial)
                results.append(TrialResult(trial, TrialState.STOPPED, value, epoch, verdict.reason, now))
        return rows, sorted(results, key=lambda r: r.number), sorted(pauses)

    def _copy(self, verdicts: Mapping[int, Verdict]) -> dict[int, Copied]:
        """Let trials go on from what others have learnt; with the others' own hyperparameters where those of the verdict do not
        do. How each of them goes on; a trial that is not named stays what it was.
        """
        done: dict[int, Copied] = {}
        for explored in (True, False):
            wanted: dict[int, Copied] = {}
            for trial, verdict in sorted(verdicts.items()):
                if trial not in done and verdict.source is not None:
                    source = self.ledger.spec(verdict.source)
                    origin = source.seed if source.origin is None else source.origin
                    wanted[trial] = Copied(verdict.source, verdict.params if explored else source.params, origin)
            moves = [
                (replace(self.ledger.spec(n), params=c.params, origin=c.origin), c.source) for n, c in wanted.items()
            ]
            for trial in sorted(self.pool.copy(moves) if moves else ()):
                done[trial] = wanted[trial]
                data: dict[str, Json] = {"source": wanted[trial].source, "epoch": self._reached[trial]}
                self._events.append(Event(0, "copied", trial, data={**data, "reason": verdicts[trial].reason}))
        return done

    def _apply(
        self,
        rows: Sequence[EpochRow],
        results: Sequence[TrialResult],
        pauses: Sequence[tuple[int, Verdict]],
        now: float,
    ) -> None:
        """Carry verdicts out: lanes are freed, weights and everything that happened go to the ledger."""
        results = [self.ledger.judge(r, rows, self.pool) for r in results]
        for result in results:
            if result.number not in self._bare:
                self.pool.remove(result.number)
            self._running.discard(result.number)
            self._bare.discard(result.number)
            for known in (self._paused, self._reached, self._best, self._last_finite):
                known.pop(result.number, None)
        for trial, verdict in pauses:
            self.pool.pause(trial)
            self._running.discard(trial)
            epoch = self._paused[trial] = self._reached[trial]
            self._events.append(Event(0, "paused", trial, data={"epoch": epoch, "reason": verdict.reason}))
        seen = {trial for trial, _ in pauses} | {row.trial for row in rows if row.epoch in self._rungs}
        for trial in sorted(seen - {r.number for r in results}):
            self.ledger.so_far(TrialResult(trial, TrialState.STOPPED, *self._judged_by(trial), time_s=now))
        happened, self._events = [*self.pool.drain_events(), *self._events], []
        events = [replace(e, tick=self.tick, time_s=now) for e in happened]
        self.ledger.record(rows, results, events)

    def _note_value(self, trial: int, value: float, epoch: int) -> bool:
        """Whether the trial has never been better."""
        if value != value:
            return False
        self._last_finite[trial] = (value, epoch)
        best, sign = self._best.get(trial), self.rules.sign
        if best is not None and best[1] < epoch and sign * value >= sign * best[0]:
            return False
        self._best[trial] = (value, epoch)
        return True

    def _judged_by(self, trial: int) -> tuple[float, int]:
        return (self._best if self.rules.best_epoch else self._last_finite)[trial]

    def _diverged(self, m: Measured, now: float) -> TrialResult:
        if m.trial in self._last_finite:
            value, epoch = self._judged_by(m.trial)
            reason = m.why or f"its {'value' if m.finite else 'loss'} was not finite{m.where} in epoch {m.epoch}"
            return TrialResult(m.trial, TrialState.STOPPED, value, epoch, reason, now)
        if m.why:
            reason = f"trial {m.trial}: {m.why}"
        elif m.finite:
            reason = (
                f"trial {m.trial}: its value was not a number{m.where} though its loss was finite: check the metric"
            )
        elif m.first_loss != m.first_loss or m.first_loss in (float("inf"), float("-inf")):
            reason = f"trial {m.trial}: its loss was not finite{m.where} from the first step: check the loss and the targets' range"
        else:
            reason = f"trial {m.trial}: its loss was not finite{m.where} in its first epoch: the learning rate may be too high"
        return TrialResult(m.trial, TrialState.FAILED, None, m.epoch, reason, now)
