"""A session: one run of the engine over a study, from the first ask to the last row."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from shoal._text import format_value
from shoal.asking import Asker
from shoal.bystander import Bystander
from shoal.data import Datasets
from shoal.engine import Engine, Standing
from shoal.errors import FuseError, RecipeError, ReplayError, StudyError, blame
from shoal.extend._by_validation import by_validation
from shoal.lanes.limits import SETUP_S, at_most
from shoal.lanes.noise_scale import batch_size
from shoal.lanes.parts import Parts
from shoal.lanes.pool import Candidate
from shoal.lanes.regularised import held_out_of
from shoal.lanes.workers import Trainer
from shoal.loggers._base import Logging
from shoal.measuring import properties_of
from shoal.objectives import Objectives
from shoal.progress import ProgressMode, make_progress
from shoal.recipe import Recipe
from shoal.records import EpochRow, Event, Progress, TrialRecord, TrialResult, TrialSpec, TrialState, changes_of
from shoal.replay import Define, replay, run_define
from shoal.samplers import quiet
from shoal.signature import Signer, lane_trial
from shoal.snapshots import Snapshot
from shoal.spaces import PointKey, point_key
from shoal.stages import Stage
from shoal.stopping import Limits, Tally

if TYPE_CHECKING:
    from shoal.restoring import Restored
    from shoal.storage import StudyStore

# After this many trials in a row without one that trained, the fault is in ``define`` or the data, not in the trials.
_HOPELESS = 5
# So often is a sampler asked again for a configuration that is not in training already.
_REASKS = 10


class Session:
    """One run of the engine over a study: the engine's ledger."""

    def __init__(
        self,
        *,
        define: Define,
        data: Datasets,
        asker: Asker,
        store: StudyStore | None,
        signer: Signer,
        n_trials: int,
        max_epochs: int,
        start: Restored,
        best_epoch: bool,
        limits: Limits,
        objectives: Objectives,
        device: torch.device,
        logging: Logging,
        parts: Parts | None = None,
        trial_timeout_s: float | None = None,
    ) -> None:
        self._limit_s = trial_timeout_s
        self._objectives, self._device = objectives, device
        history, weights = start.history, start.weights
        self.history, self.n_trials, self.pending = history, n_trials, list(start.pending)
        self._asked_before = deque(start.asked_before)
        self._ended_before = dict(start.ended_before)
        self._snapshots = start.snapshots
        self._define, self._data, self._asker, self._signer = define, data, asker, signer
        self._store, self._weights, self._best_epoch = store, weights, best_epoch
        self._logging = logging
        self._parts = parts or Parts()
        self._n_train = self._parts.n_train(0, data.train.n)  # what ``define`` is told when a trial is asked
        self._bystander = Bystander()
        self.interrupted = self.timed_out = self.terminated = False
        self.stop_reason = ""
        self._tally = Tally.of(limits, objectives, history.rows, history.results, history.events)
        self._started = time.monotonic() - history.elapsed_s
        self._failures: list[str] = []
        # Of each recipe that was made anew, whether it follows a hyper-validation gradient.
        self._followed: list[bool] = []
        self._max_epochs = max_epochs
        self._resting: set[str] = set()  # kinds of extensions of which it was said that they never move
        # Configurations that are in training, if discrete; for a sampler that tries each once, those that were as well.
        self._points: dict[PointKey, set[int]] = {}
        for number, spec in history.specs.items():
            if asker.exhaustive or number not in history.results:
                self._occupy(spec)

    def _occupy(self, spec: TrialSpec) -> None:
        key = point_key(spec.params, spec.distributions)
        if key is not None:
            self._points.setdefault(key, set()).add(spec.number)

    def clock(self) -> float:
        """Seconds of work on this study, earlier sessions included."""
        return time.monotonic() - self._started

    def run(self, engine: Engine, timeout_s: float | None, progress: ProgressMode, opening: str = "") -> None:
        """Run the engine until it has no more to do, a limit is reached, time is up, or someone presses Ctrl-C.

        Args:
            opening: Said first.
        """
        sink = make_progress(progress)
        sent: list[int] = []
        try:
            if opening:
                sink.message(opening)
            with _interruptible(sent) as asked_to_stop:

                def stop() -> bool:
                    return asked_to_stop() or bool(self._tally.reason)

                sink.stage(Stage("tracing and timing the first trials"))
                engine.run(clock=self.clock, stop=stop, report=sink.update, timeout_s=timeout_s)
                unfinished = self.more or len(self.history.results) < self.n_asked
                if unfinished and not asked_to_stop():
                    self.stop_reason = self._tally.reason
                self.interrupted = unfinished and not self.stop_reason
                self.timed_out = self.interrupted and not asked_to_stop()
                self.terminated = signal.SIGTERM in sent
                if self.stop_reason:
                    sink.message(f"stopped: {self.stop_reason}")
            self._say_if_idle()
        finally:
            sink.close()
            self.history.meta["elapsed_s"] = self.clock()

    def _say_if_resting(self, number: int, recipe: Recipe) -> None:
        """Once of each kind of extension that has no update left to move for."""
        per_epoch = math.ceil(self._n_train / recipe.batch_size)
        for e in recipe.extensions:
            kind, after = type(e).__name__, e.moves_after(per_epoch)
            if e.on and e.step > 0 and after >= per_epoch * self._max_epochs and kind not in self._resting:
                self._resting.add(kind)
                warnings.warn(
                    f"trial {number}: shoal.extend.{kind} never moves: it would after {after} updates, and a trial has "
                    f"{per_epoch * self._max_epochs} ({self._max_epochs} epochs of {per_epoch}). Train longer, in smaller batches, "
                    "or with a smaller warmup or every.",
                    RuntimeWarning,
                    stacklevel=4,
                )

    def _say_if_idle(self) -> None:
        """Rows that are kept from training for nothing are worth a word."""
        held_out = self._data.held_out
        if held_out is not None and self._followed and not any(self._followed):
            warnings.warn(
                f"hyper_valid= keeps {held_out.n} rows from training, and none of {len(self._followed)} recipes of this run has "
                "an extension that takes its gradient on them (shoal.extend.WeightDecay, Dropout, ...); leave hyper_valid out, "
                "or add one.",
                RuntimeWarning,
                stacklevel=4,
            )

    @property
    def n_asked(self) -> int:
        return len(self.history.specs)

    @property
    def more(self) -> bool:
        waiting = bool(self.pending or self._asked_before)
        return waiting or (self.n_asked < self.n_trials and not self._asker.exhausted)

    def spec(self, trial: int) -> TrialSpec:
        return self.history.spec(trial)

    def again(self, number: int) -> list[Candidate]:
        spec = self.history.spec(number)
        try:
            return self._candidates(spec, replay(self._define, spec, self._n_train, self._data.train.form))
        except ReplayError:
            raise  # not this trial's fault: the code is not what made the study
        except Exception as e:
            failed = TrialResult(number, TrialState.FAILED, None, 0, _said(number, e), self.clock())
            self.record([], [failed], [])
            return []

    def ask(self, n: int) -> Iterator[Candidate]:
        asked: list[TrialSpec] = []
        failed: list[TrialResult] = []
        history = self.history
        left = n * len(self._parts)
        while left > 0 and self.pending:
            again = self.again(self.pending.pop(0).number)
            left -= len(again)
            yield from again
        while left > 0 and not self.pending and self.more:
            got = self._next_again() if self._asked_before else self._next()
            if got is None:
                break
            spec, recipe, error = got
            history.specs[spec.number] = spec
            self._occupy(spec)
            asked.append(spec)
            if recipe is not None:
                try:
                    ready = self._candidates(spec, recipe)
                except Exception as e:  # as below, of a fold after the first
                    error = _said(spec.number, e)
                else:
                    left -= len(ready)
                    yield from ready
                    continue
            failed.append(TrialResult(spec.number, TrialState.FAILED, None, 0, error, self.clock()))
            self._failures.append(error)
            if len(self._failures) >= _HOPELESS and all(s.number < _HOPELESS for s in asked):
                break
        if self._store is not None:
            first = self._store.n_trials
            self._store.asked([spec for spec in asked if spec.number >= first])
        if failed:
            self.record([], failed, [])

    def _next(self) -> tuple[TrialSpec, Recipe | None, str] | None:
        """A new trial, its recipe or what ``define`` raised instead; None when the space has been tried out.

        A configuration that is in training already is asked for once more, a few times over: a sampler that looks at ended
        trials has no reason to avoid it. In a space smaller than the number of lanes it is then run under another seed.
        """
        trial = self._asker.ask()
        for attempt in range(1, _REASKS + 2):
            recipe, error = None, ""
            try:
                seed, form = self._asker.trial_seed(trial.number), self._data.train.form
                with self._bystander.looking_on():
                    recipe = run_define(self._define, trial, seed, self._n_train, form)
            except Exception as e:  # whatever the user's code raises fails this trial, and no other
                error = _said(trial.number, e)
            if recipe is not None:
                self._say_if_resting(trial.number, recipe)
                self._followed.append(bool(by_validation(recipe)))
                if self._followed[-1]:
                    held_out_of(recipe, self._data)  # no trial starts without
            spec = self._asker.spec(trial)
            key = point_key(spec.params, spec.distributions)
            self._bystander.keep(recipe)
            if key is None or key not in self._points or self._asker.is_fixed(spec.number):
                break
            if attempt > _REASKS:
                if self._asker.exhaustive:
                    self._asker.take_back(trial)
                    return None
                break
            trial = self._asker.ask_again(trial, attempt)
        return spec, recipe, error

    def _next_again(self) -> tuple[TrialSpec, Recipe | None, str]:
        """A trial that was asked for in a round that is run again, with the parameters that it was given then."""
        spec = self._asked_before.popleft()
        self._asker.restore([TrialRecord(spec, TrialState.RUNNING, None, 0, "", ())])
        try:
            return spec, replay(self._define, spec, self._n_train, self._data.train.form), ""
        except ReplayError:
            raise
        except Exception as e:
            return spec, None, _said(spec.number, e)

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

    def _candidates(self, spec: TrialSpec, recipe: Recipe) -> list[Candidate]:
        """A trial's parts, ready to start; ``recipe`` is that of the first."""
        target, parts = self._data.train.tensors[-1], self._parts
        first, *others = parts.split(spec)
        out = [candidate(first, recipe, self._signer, target, parts, self._limit_s)]
        for other in others:
            train = self._data.train
            again = replay(self._define, other, parts.n_train(other.part, train.n), train.form)
            out.append(candidate(other, again, self._signer, target, parts, self._limit_s))
        return out

    def record(self, rows: Sequence[EpochRow], results: Sequence[TrialResult], events: Sequence[Event]) -> None:
        history = self.history
        for row in rows:
            history.rows.setdefault(row.trial, []).append(row)
        if len(self._parts) > 1:
            results = [self._with_lanes(r) for r in results]
        results = [self._with_schedule(r) for r in results]
        with quiet():
            for result in results:
                self._asker.tell(result, history.rows.get(result.number, ()))
        for result in results:
            history.results[result.number] = result
            if not self._asker.exhaustive:
                self._leave(history.specs[result.number])
            self._compare(result)
        history.events.extend(events)
        self._tally.count(rows, results, events)
        self._logging.record(history.specs, rows, results)
        if self._snapshots is not None and any(e.kind in ("narrowed", "cut off") for e in events):
            self._snapshots.hurry()
        if self._store is not None:
            self._store.happened(events)  # first: whatever depends on what was decided is stored after it
            self._store.recorded(rows)
            self._store.ended(results)
        if any(r.number < _HOPELESS for r in results):
            self._check_hopeless()

    def _with_lanes(self, result: TrialResult) -> TrialResult:
        """A result with what its trial's lanes had in the epoch that it is judged by."""
        row = next((r for r in self.history.rows.get(result.number, ()) if r.epoch == result.epoch), None)
        if row is None or result.value is None:
            return result
        return replace(result, lanes=row.lanes, standard_error=row.standard_error)

    def _with_schedule(self, result: TrialResult) -> TrialResult:
        """A result with the changes of its trial's hyperparameters, if there were any."""
        changes = changes_of(self.history.rows.get(result.number, ()))
        return replace(result, schedule=changes) if changes else result

    def _leave(self, spec: TrialSpec) -> None:
        key = point_key(spec.params, spec.distributions)
        if key in self._points:
            self._points[key].discard(spec.number)
            if not self._points[key]:
                del self._points[key]

    def _compare(self, result: TrialResult) -> None:
        """A round that is run again must give what it gave."""
        before = self._ended_before.pop(result.number, None)
        if before is None or (before.state, before.value, before.epoch) == (result.state, result.value, result.epoch):
            return
        warnings.warn(
            f"trial {result.number} was {before.state} with {before.value} at epoch {before.epoch} before the interruption, "
            f"and is {result.state} with {result.value} at epoch {result.epoch} now: something that it uses does not repeat "
            "(code, a library, this machine). What holds is what it gave now.",
            RuntimeWarning,
            stacklevel=4,
        )

    def snapshot(self, standing: Standing, pool: Trainer, *, last: bool) -> None:
        """Take a snapshot if it is time for one, or if no round follows for now."""
        taking, store = self._snapshots, self._store
        if taking is None or store is None or not (last or taking.due()):
            return
        now = Snapshot(
            standing.tick,
            self.clock(),
            self.n_asked,
            len(self.history.events),
            {**standing.running, **standing.paused},
            standing.paused,
            sorted(standing.bare),
            [spec.number for spec in self.pending],
        )
        with taking.counted():
            self._weights.sync()  # of trials that had ended, and will not be trained again
            if taking.take(now, pool.snapshot):
                self.history.meta["snapshots"] = taking.as_json()
                store.set_meta({"snapshots": taking.as_json()})
                store.flush()
                taking.tidy()

    def so_far(self, provisional: TrialResult) -> None:
        self._asker.tell(provisional)

    def judge(self, result: TrialResult, rows: Sequence[EpochRow], pool: Trainer) -> TrialResult:
        """A result with all that its trial is judged by; the weights of the best are kept."""
        if result.state is TrialState.FAILED or result.value is None:
            return result
        judged = self._judge(result, rows, pool)
        point = self._objectives.point(judged) if judged.state is TrialState.FINISHED else None
        if (
            point is not None and not self._parts.folds
        ):  # with folds, the winner is trained again, on all of them together
            number = result.number
            values = judged.outcome.values or (result.value,)
            self._weights.offer(number, values, lambda: pool.state_dict(number, remembered=self._best_epoch))
        return judged

    def _judge(self, result: TrialResult, rows: Sequence[EpochRow], pool: Trainer) -> TrialResult:
        """A result with its outcome; of a finished trial that cannot be judged, how it failed."""
        wanted, number, value = self._objectives, result.number, cast(float, result.value)
        if wanted.plain:
            return result
        epochs = [*self.history.rows.get(number, ()), *(r for r in rows if r.trial == number)]
        metrics: Mapping[str, float] = next((r.metrics for r in reversed(epochs) if r.epoch == result.epoch), {})
        try:
            if result.state is not TrialState.FINISHED:
                known = self._properties(number, pool, [n for n in wanted.properties if n != "latency_ms"])
                return replace(result, outcome=wanted.judge_stopped(value, metrics, known))
            if missing := wanted.missing(metrics):
                raise RecipeError(no_outputs(missing), trial=number)
            outcome = wanted.judge(value, metrics, self._properties(number, pool, wanted.properties))
            if odd := wanted.odd(outcome):
                raise RecipeError(f"its {odd} was not a number in epoch {result.epoch}.", trial=number)
        except Exception as error:
            return replace(result, state=TrialState.FAILED, value=None, reason=_said(number, error))
        return replace(result, outcome=outcome)

    def _properties(self, number: int, pool: Trainer, names: Sequence[str]) -> dict[str, float]:
        """What is measured of a trial's model. In a round that is run again it is what was measured then."""
        before = self._ended_before.get(number)
        if before is not None and all(name in before.outcome.measured for name in names):
            return {name: before.outcome.measured[name] for name in names}
        if not names:
            return {}
        spec = self._parts.split(self.history.specs[number])[0]
        recipe = replay(self._define, spec, self._n_train, self._data.train.form)
        if "latency_ms" in names:
            trained = pool.state_dict(number, remembered=self._best_epoch)
            recipe.model.load_state_dict(trained, strict=False)  # tied parameters are there once
        sample = tuple(t[:1].to(self._device) for t in self._data.valid.tensors)
        return properties_of(recipe, names, sample, self._device)

    def progress(self, pool: Trainer, epochs_per_s: float, elapsed_s: float) -> Progress:
        history = self.history
        states = [r.state for r in history.results.values()]
        finished = [r for r in history.results.values() if r.state is TrialState.FINISHED and r.value is not None]
        feasible = [r for r in finished if r.outcome.feasible]
        best = min(feasible, key=lambda r: (history.sign * cast(float, r.value), r.number), default=None)
        paused = self.n_asked - len(self.pending) - len(states) - pool.n_running
        done = len(states) + paused  # most of those that are paused never go on
        remaining = elapsed_s / done * (self.n_trials - done) if done else None
        return Progress(
            n_trials=self.n_trials,
            running=pool.n_running,
            finished=len(finished),
            stopped=states.count(TrialState.STOPPED),
            failed=states.count(TrialState.FAILED),
            lanes_busy=pool.n_running * len(self._parts),
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
            paused=paused,
            message=self._in_words(len(finished) - len(feasible)),
        )

    def _in_words(self, n_broken: int) -> str:
        """The Pareto front, and how many finished trials break a constraint; nothing where one metric is all."""
        wanted, points = self._objectives, self._tally.front.points
        said = []
        if wanted.several and points:
            values = [self.history.results[number].outcome.values for number in points]
            ranges = [
                f"{name} {format_value(min(own))} to {format_value(max(own))}"
                for name, own in zip(wanted.names, zip(*values, strict=True), strict=True)
            ]
            said.append(f"Pareto front: {len(points)} trial{'s' if len(points) > 1 else ''}, {', '.join(ranges)}")
        if n_broken:
            said.append(f"{n_broken} finished trial{'s break' if n_broken > 1 else ' breaks'} a constraint")
        return "; ".join(said)


def no_outputs(metric: str) -> str:
    """What to do about a metric that could not be measured."""
    return (
        f"the metric {metric!r} is measured on outputs, and a callable loss shows none: add predict=lambda model, batch: ... to "
        "the recipe, or use metric='loss'."
    )


def _said(number: int, error: Exception) -> str:
    """What ``define`` raised, or what is wrong with what it returned, naming the trial."""
    return str(error) if isinstance(error, RecipeError) else f"trial {number}: define raised {blame(error)}"


def candidate(
    spec: TrialSpec,
    recipe: Recipe,
    signer: Signer,
    target: torch.Tensor,
    parts: Parts | None = None,
    limit_s: float | None = None,
) -> Candidate:
    """A trial, or a part of one, that is ready to start, in a lane or, when it has no lane form, solo.

    Solo too if finding out takes too long.
    """
    try:
        with at_most(limit_s and limit_s + SETUP_S):
            signature = signer.sign(recipe)
            trial = lane_trial(spec, recipe, target)
    except FuseError as error:
        _needs_parts(spec, recipe, str(error))
        return Candidate(spec, recipe, None, reason=str(error))
    except Exception as error:  # alone, the trial either trains or fails with the user's own error
        _needs_parts(spec, recipe, f"it cannot be prepared for a lane ({blame(error)})")
        return Candidate(spec, recipe, None, reason=f"it cannot be prepared for a lane ({blame(error)})")
    if signature.exact:
        _needs_parts(spec, recipe, signature.whole)
    key = signature.key
    if parts is not None and parts.folds:
        trial.rows, trial.valid_rows = rows, valid_rows = parts.folds[spec.part % parts.n_folds]
        if signature.exact:  # lanes that train whole batches together have as many
            key = f"{key} of {len(rows)} + {len(valid_rows)} rows"
    return Candidate(spec, recipe, trial, key, signature.quantum, signature.exact)


def _needs_parts(spec: TrialSpec, recipe: Recipe, why: str) -> None:
    """Refuse a batch size that moves where batches cannot be taken apart.

    Raises:
        RecipeError: If the recipe asks for one.
    """
    if batch_size(recipe) is not None:
        raise RecipeError(
            f"trial {spec.number}: shoal.extend.BatchSize needs batches that can be taken in parts, and here they cannot: {why}. "
            "Leave the extension out, or use layers and a criterion that treat each sample by itself (LayerNorm for BatchNorm)."
        )


# A system that sends SIGTERM sends SIGKILL some time later (30 s in Kubernetes and Slurm, 10 s in Docker). An epoch that
# takes longer than this is not waited for; what was queued is still committed.
GRACE_S = 8.0


class Terminated(SystemExit):
    """SIGTERM came, and the epoch in progress did not end in time."""


@contextmanager
def _interruptible(sent: list[int]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask the engine to stop after the epoch it is in. A second Ctrl-C interrupts at once; so does the end of
    the time that SIGTERM leaves.

    Args:
        sent: The signal that came is added.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    timers: list[threading.Timer] = []

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(128 + number)
        asked.set()
        sent.append(number)
        if number == signal.SIGTERM:
            timers.append(threading.Timer(GRACE_S, os.kill, [os.getpid(), number]))
            timers[-1].daemon = True
            timers[-1].start()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        for timer in timers:
            timer.cancel()
