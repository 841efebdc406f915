"""A session: one run of the engine over a study, from the first ask to the last row."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from shoal.asking import Asker
from shoal.data import Datasets
from shoal.engine import Engine
from shoal.errors import FuseError, RecipeError, ReplayError, StudyError, blame
from shoal.history import History
from shoal.lanes.pool import Candidate
from shoal.lanes.workers import Trainer
from shoal.progress import ProgressMode, make_progress
from shoal.recipe import Recipe
from shoal.records import EpochRow, Event, Progress, TrialResult, TrialSpec, TrialState
from shoal.replay import Define, replay, run_define
from shoal.signature import Signer, lane_trial
from shoal.weights import WeightStore

if TYPE_CHECKING:
    from shoal.storage import StudyStore

# After this many trials in a row without one that trained, the fault is in ``define`` or the data, not in the trials.
_HOPELESS = 5


class Session:
    """One run of the engine over a study: the engine's ledger."""

    def __init__(
        self,
        history: History,
        *,
        define: Define,
        data: Datasets,
        asker: Asker,
        store: StudyStore | None,
        weights: WeightStore,
        signer: Signer,
        n_trials: int,
        pending: Sequence[TrialSpec],
        best_epoch: bool,
    ) -> None:
        self.history, self.n_trials, self.pending = history, n_trials, list(pending)
        self._define, self._data, self._asker, self._signer = define, data, asker, signer
        self._store, self._weights, self._best_epoch = store, weights, best_epoch
        self.interrupted = self.timed_out = False
        spent = history.meta.get("elapsed_s")
        self._started = time.time() - (float(spent) if isinstance(spent, int | float) else 0.0)
        self._failures: list[str] = []

    def clock(self) -> float:
        """Seconds of work on this study, earlier sessions included."""
        return time.time() - self._started

    def run(self, engine: Engine, timeout_s: float | None, progress: ProgressMode) -> None:
        """Run the engine until it has no more to do, time is up, or someone presses Ctrl-C."""
        sink = make_progress(progress)
        try:
            with _interruptible() as asked_to_stop:
                engine.run(clock=self.clock, stop=asked_to_stop, report=sink.update, timeout_s=timeout_s)
                self.interrupted = len(self.history.results) < self.n_trials
                self.timed_out = self.interrupted and not asked_to_stop()
        finally:
            sink.close()
            self.history.meta["elapsed_s"] = self.clock()

    @property
    def n_asked(self) -> int:
        return len(self.history.specs)

    @property
    def more(self) -> bool:
        return bool(self.pending) or self.n_asked < self.n_trials

    def again(self, number: int) -> list[Candidate]:
        spec = self.history.specs[number]
        try:
            return [self._candidate(spec, replay(self._define, spec, self._data.train.n))]
        except ReplayError:
            raise  # not this trial's fault: the code is not what made the study
        except Exception as e:
            failed = TrialResult(number, TrialState.FAILED, None, 0, _said(number, e), self.clock())
            self.record([], [failed], [])
            return []

    def ask(self, n: int) -> list[Candidate]:
        out: list[Candidate] = []
        asked: list[TrialSpec] = []
        failed: list[TrialResult] = []
        history = self.history
        while len(out) < n and self.pending:
            out += self.again(self.pending.pop(0).number)
        while len(out) < n and self.n_asked < self.n_trials:
            trial = self._asker.ask()
            seed = self._asker.trial_seed(trial.number)
            error: str | None = None
            try:
                recipe = run_define(self._define, trial, seed, self._data.train.n)
            except Exception as e:  # whatever the user's code raises fails this trial, and no other
                error = _said(trial.number, e)
            spec = self._asker.spec(trial)
            history.specs[spec.number] = spec
            asked.append(spec)
            if error is None:
                out.append(self._candidate(spec, recipe))
                continue
            failed.append(TrialResult(spec.number, TrialState.FAILED, None, 0, error, self.clock()))
            self._failures.append(error)
            if len(self._failures) >= _HOPELESS and all(s.number < _HOPELESS for s in asked):
                break
        if asked and self._store is not None:
            self._store.asked(asked)
        if failed:
            self.record([], failed, [])
        return out

    def _check_hopeless(self) -> None:
        results = self.history.results
        first = [results.get(i) for i in range(_HOPELESS)]
        if all(r is not None and r.state is TrialState.FAILED for r in first):
            reason = first[0].reason if first[0] is not None else ""
            if self._store is not None:
                self._store.flush()
            raise StudyError(
                f"the first {_HOPELESS} trials all failed, so the study was stopped. The first one: {reason}"
            )

    def _candidate(self, spec: TrialSpec, recipe: Recipe) -> Candidate:
        return candidate(spec, recipe, self._signer, self._data.train.tensors[-1])

    def record(self, rows: Sequence[EpochRow], results: Sequence[TrialResult], events: Sequence[Event]) -> None:
        history = self.history
        for row in rows:
            history.rows.setdefault(row.trial, []).append(row)
        for result in results:
            history.results[result.number] = result
            self._asker.tell(result)
        history.events.extend(events)
        if self._store is not None:
            self._store.recorded(rows)
            self._store.ended(results)
            self._store.happened(events)
        if any(r.number < _HOPELESS for r in results):
            self._check_hopeless()

    def pause(self, provisional: TrialResult) -> None:
        self._asker.tell(provisional)

    def keep_weights(self, result: TrialResult, pool: Trainer) -> None:
        assert result.value is not None
        number = result.number
        self._weights.offer(number, result.value, lambda: pool.state_dict(number, remembered=self._best_epoch))

    def progress(self, pool: Trainer, epochs_per_s: float, elapsed_s: float) -> Progress:
        history = self.history
        states = [r.state for r in history.results.values()]
        finished = [r for r in history.results.values() if r.state is TrialState.FINISHED and r.value is not None]
        best = min(finished, key=lambda r: (history.sign * cast(float, r.value), r.number), default=None)
        done = len(states)
        remaining = elapsed_s / done * (self.n_trials - done) if done else None
        return Progress(
            n_trials=self.n_trials,
            running=pool.n_running,
            finished=len(finished),
            stopped=states.count(TrialState.STOPPED),
            failed=states.count(TrialState.FAILED),
            lanes_busy=pool.n_running,
            lanes_total=pool.n_lanes,
            fleets=pool.n_fleets,
            best_number=best.number if best else None,
            best_value=best.value if best else None,
            best_params=dict(history.specs[best.number].params) if best else {},
            metric=str(history.meta["metric"]),
            epochs_done=sum(len(r) for r in history.rows.values()),
            epochs_per_s=epochs_per_s,
            elapsed_s=elapsed_s,
            remaining_s=remaining,
        )


def _said(number: int, error: Exception) -> str:
    """What ``define`` raised, or what is wrong with what it returned, naming the trial."""
    return str(error) if isinstance(error, RecipeError) else f"trial {number}: define raised {blame(error)}"


def candidate(spec: TrialSpec, recipe: Recipe, signer: Signer, target: torch.Tensor) -> Candidate:
    """A trial that is ready to start, in a lane or, when it has no lane form, solo."""
    try:
        signature = signer.sign(recipe)
        trial = lane_trial(spec, recipe, target)
    except FuseError as error:
        return Candidate(spec, recipe, None, reason=str(error))
    except Exception as error:  # alone, the trial either trains or fails with the user's own error
        return Candidate(spec, recipe, None, reason=f"it cannot be prepared for a lane ({blame(error)})")
    return Candidate(spec, recipe, trial, signature.key, signature.quantum, signature.exact)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the engine to stop after the epoch it is in; a second one interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
