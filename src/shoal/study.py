"""``tune`` and ``resume``, and the study they return: the only owner of a study's history."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from shoal.asking import Asker, SamplerArgument
from shoal.data import Datasets, load
from shoal.engine import Engine, Rules
from shoal.errors import FuseError, RecipeError, ReplayError, ShoalError, StorageError, StudyError, UsageError, blame
from shoal.lanes.fleet import Work
from shoal.lanes.lane import Measured
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.solo import measure
from shoal.lanes.workers import Trainer, n_workers, pools
from shoal.metrics import Metric, resolve, standard_metrics
from shoal.planner import total_lanes
from shoal.progress import ProgressMode, make_progress
from shoal.recipe import Recipe
from shoal.records import (
    Direction,
    EpochRow,
    Event,
    Json,
    Progress,
    StudyRecord,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
)
from shoal.replay import Define, check_space, fingerprint, replay, run_define
from shoal.schedulers import Scheduler
from shoal.schedulers import resolve as resolve_scheduler
from shoal.signature import Signer, lane_trial
from shoal.weights import WeightStore, weights_file

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from shoal.storage import StudyStore

# After this many trials in a row without one that trained, the fault is in ``define`` or the data, not in the trials.
_HOPELESS = 5


class Study:
    """What ``tune`` returns: the history of a study, its best trial, and the model that won.

    Attributes:
        record: Everything as plain data (see ``shoal.records``).
        interrupted: Whether the last run was stopped by Ctrl-C or its time limit before all trials had ended.
        timed_out: Whether it was its time limit.
    """

    def __init__(
        self,
        *,
        name: str,
        direction: Direction,
        define: Define,
        data: Datasets,
        asker: Asker,
        store: StudyStore | None,
        weights: WeightStore,
        meta: dict[str, Json],
        previous: StudyRecord | None,
    ) -> None:
        self._name, self._direction, self._define, self._data = name, direction, define, data
        self._asker, self._store, self._weights, self._meta = asker, store, weights, meta
        self._specs: dict[int, TrialSpec] = {}
        self._rows: dict[int, list[EpochRow]] = {}
        self._results: dict[int, TrialResult] = {}
        self._events: list[Event] = []
        self.interrupted = self.timed_out = False
        if previous is not None:
            for t in previous.trials:
                self._specs[t.spec.number] = t.spec
                if t.state is not TrialState.RUNNING:
                    self._rows[t.spec.number] = list(t.rows)
                    self._results[t.spec.number] = TrialResult(
                        t.spec.number, t.state, t.value, t.epoch, t.reason, t.time_s
                    )
            self._events = list(previous.events)

    # -- what the user reads ----------------------------------------------------------------------------------------------

    @property
    def record(self) -> StudyRecord:
        """The study as plain data."""
        trials = []
        for number, spec in sorted(self._specs.items()):
            r = self._results.get(number)
            rows = tuple(self._rows.get(number, ()))
            if r is None:
                epoch = rows[-1].epoch if rows else 0
                trials.append(TrialRecord(spec, TrialState.RUNNING, None, epoch, "", rows))
            else:
                trials.append(TrialRecord(spec, r.state, r.value, r.epoch, r.reason, rows, r.time_s))
        return StudyRecord(self._name, self._direction, tuple(trials), tuple(self._events), dict(self._meta))

    def _best(self) -> TrialRecord:
        best = self.record.best()
        if best is None:
            counts = ", ".join(f"{s}: {sum(r.state is s for r in self._results.values())}" for s in TrialState)
            raise StudyError(
                f"no trial of study {self._name!r} has finished yet ({counts}); run more trials or epochs."
            )
        return best

    @property
    def best_trial(self) -> TrialRecord:
        """The finished trial with the best value.

        Raises:
            StudyError: If none has finished.
        """
        return self._best()

    @property
    def best_params(self) -> dict[str, Any]:
        """Parameters of the best trial."""
        return dict(self._best().spec.params)

    @property
    def best_value(self) -> float:
        """Value of the best trial, in the user's direction."""
        return cast(float, self._best().value)

    @property
    def test_metrics(self) -> dict[str, float]:
        """The winner's metrics on the test split; empty when there was none."""
        found = self._meta.get("test")
        return {k: float(cast(float, v)) for k, v in found.items()} if isinstance(found, dict) else {}

    def best_model(self) -> nn.Module:
        """The best trial's model with its trained weights, in evaluation mode, on the CPU.

        Raises:
            StudyError: If no trial has finished.
            StorageError: If its weights are gone.
        """
        return self._rebuild(self._best()).model

    def _rebuild(self, trial: TrialRecord) -> Recipe:
        recipe = replay(self._define, trial.spec, self._data.train.n)
        recipe.model.load_state_dict(self._weights.load(trial.spec.number), strict=False)
        recipe.model.eval()
        return recipe

    def trials_dataframe(self) -> pd.DataFrame:
        """All trials as a pandas data frame, with Optuna's column names.

        Raises:
            StudyError: If pandas is not installed.
        """
        try:
            import pandas  # noqa: F401  (Optuna needs it)
        except ImportError as error:
            raise StudyError("trials_dataframe() needs pandas: run `pip install pandas`.") from error
        return self.optuna_study.trials_dataframe()

    @property
    def optuna_study(self) -> optuna.Study:
        """The study as Optuna sees it: loaded from the study file, or the one in memory."""
        if self._store is None:
            return self._asker.study
        import optuna

        return optuna.load_study(study_name=self._name, storage=f"sqlite:///{self._store.path}")

    def report(self, path: str | Path) -> Path:
        """Write the report, one HTML file that needs nothing else; returns its path."""
        from shoal.report import write_report

        return write_report(self.record, path)

    def close(self) -> None:
        """Let go of the study file. Called by ``tune`` itself; a closed study can still be read."""
        if self._store is not None:
            self._store.close()

    def __repr__(self) -> str:
        done = sum(r.state is TrialState.FINISHED for r in self._results.values())
        return f"<shoal.Study {self._name!r}: {len(self._specs)} trials, {done} finished>"


class _Session:
    """One run of the engine over a study: the engine's ledger."""

    def __init__(
        self,
        study: Study,
        signer: Signer,
        n_trials: int,
        pending: Sequence[TrialSpec],
        metric_name: str,
        best_epoch: bool,
    ) -> None:
        self.study, self.signer, self.n_trials = study, signer, n_trials
        self.pending = list(pending)
        self.metric_name, self._best_epoch = metric_name, best_epoch
        self._sign = 1.0 if study._direction == "minimize" else -1.0
        spent = study._meta.get("elapsed_s")
        self.started = time.time() - (float(spent) if isinstance(spent, int | float) else 0.0)
        self._failures: list[str] = []

    def clock(self) -> float:
        """Seconds of work on this study, earlier sessions included."""
        return time.time() - self.started

    def ask(self, n: int) -> list[Candidate]:
        out: list[Candidate] = []
        asked: list[TrialSpec] = []
        failed: list[TrialResult] = []
        study = self.study
        while len(out) < n and self.pending:
            spec = self.pending.pop(0)
            try:
                out.append(self._candidate(spec, replay(study._define, spec, study._data.train.n)))
            except ReplayError:
                raise  # not this trial's fault: the code is not what made the study
            except Exception as e:
                failed.append(TrialResult(spec.number, TrialState.FAILED, None, 0, _said(spec.number, e), self.clock()))
        while len(out) < n and len(study._specs) < self.n_trials:
            trial = study._asker.ask()
            seed = study._asker.trial_seed(trial.number)
            error: str | None = None
            try:
                recipe = run_define(study._define, trial, seed, study._data.train.n)
            except Exception as e:  # whatever the user's code raises fails this trial, and no other
                error = _said(trial.number, e)
            spec = study._asker.spec(trial)
            study._specs[spec.number] = spec
            asked.append(spec)
            if error is None:
                out.append(self._candidate(spec, recipe))
                continue
            failed.append(TrialResult(spec.number, TrialState.FAILED, None, 0, error, self.clock()))
            self._failures.append(error)
            if len(self._failures) >= _HOPELESS and all(s.number < _HOPELESS for s in asked):
                break
        if asked and study._store is not None:
            study._store.asked(asked)
        if failed:
            self.record([], failed, [])
        return out

    def _check_hopeless(self) -> None:
        results = self.study._results
        first = [results.get(i) for i in range(_HOPELESS)]
        if all(r is not None and r.state is TrialState.FAILED for r in first):
            reason = first[0].reason if first[0] is not None else ""
            if self.study._store is not None:
                self.study._store.flush()
            raise StudyError(
                f"the first {_HOPELESS} trials all failed, so the study was stopped. The first one: {reason}"
            )

    def _candidate(self, spec: TrialSpec, recipe: Recipe) -> Candidate:
        return candidate(spec, recipe, self.signer, self.study._data.train.tensors[-1])

    def record(self, rows: Sequence[EpochRow], results: Sequence[TrialResult], events: Sequence[Event]) -> None:
        study = self.study
        for row in rows:
            study._rows.setdefault(row.trial, []).append(row)
        for result in results:
            study._results[result.number] = result
            study._asker.tell(result)
        study._events.extend(events)
        if study._store is not None:
            study._store.recorded(rows)
            study._store.ended(results)
            study._store.happened(events)
        if any(r.number < _HOPELESS for r in results):
            self._check_hopeless()

    def keep_weights(self, result: TrialResult, pool: Trainer) -> None:
        assert result.value is not None
        number = result.number
        self.study._weights.offer(number, result.value, lambda: pool.state_dict(number, remembered=self._best_epoch))

    def progress(self, pool: Trainer, epochs_per_s: float, elapsed_s: float) -> Progress:
        study = self.study
        states = [r.state for r in study._results.values()]
        finished = [r for r in study._results.values() if r.state is TrialState.FINISHED and r.value is not None]
        best = min(finished, key=lambda r: (self._sign * cast(float, r.value), r.number), default=None)
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
            best_params=dict(study._specs[best.number].params) if best else {},
            metric=self.metric_name,
            epochs_done=sum(len(r) for r in study._rows.values()),
            epochs_per_s=epochs_per_s,
            elapsed_s=elapsed_s,
            remaining_s=remaining,
        )


def tune(
    define: Define,
    *,
    train: Any,
    valid: Any = None,
    test: Any = None,
    metric: str | Callable[..., float] | None = None,
    direction: Direction | None = None,
    value: Literal["last", "best"] = "last",
    n_trials: int = 100,
    max_epochs: int = 30,
    sampler: SamplerArgument = None,
    scheduler: str | Scheduler | None = None,
    storage: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    reproducible: bool = False,
    timeout_s: float | None = None,
    progress: ProgressMode = True,
) -> Study:
    """Search for the best hyperparameters of ``define``, training many trials at once.

    Args:
        define: A function of an ``optuna.Trial`` that returns a ``shoal.Recipe``: ordinary PyTorch.
        train: A map-style ``Dataset``, or a tuple of tensors or arrays whose last one is the target.
        valid: Likewise, or the fraction of ``train`` to split off (default 0.2). Trials are judged on it.
        test: Likewise, or None. Touched once, for the winner.
        metric: A name ("accuracy", "f1", "loss", "rmse", ...) or a callable ``(outputs, targets) -> number``; by default accuracy
            for integer targets and the loss otherwise.
        direction: "minimize" or "maximize"; follows from a named metric.
        value: Which epoch a trial is judged by, and whose weights are kept: its "last" or its "best".
        n_trials: Trials in all. A study file that already has some is continued up to this number.
        max_epochs: Epochs of a trial that is not stopped early. A larger number than a study file was made with trains its
            finished trials again from the start, to the new length.
        sampler: "tpe" (default), "random", or an Optuna sampler.
        scheduler: "asha" (default from 4 epochs on), "median", "patience", "none", or an object of ``shoal.schedulers``.
        storage: An SQLite file (``sqlite:///digits.db`` or a path) that Optuna can open, or None to keep all in memory.
        seed: Everything random follows from it.
        device: "auto", "cpu", "cuda", ...
        reproducible: Never choose by measured time: what can be fused is, at widths that follow from counts alone.
        timeout_s: Start no further epoch after this many seconds. The study can be continued.
        progress: True for a live table (plain lines where there is no terminal), False for silence, "json", or a callable.

    Returns:
        The study, finished, or interrupted in a state that ``resume`` continues.

    Raises:
        UsageError: If an argument makes no sense.
        StorageError: If the study file cannot be used, or belongs to other code or data.
        StudyError: If the first five trials all fail.
    """
    _check_numbers(n_trials, max_epochs, timeout_s, seed)
    if value not in ("last", "best"):
        raise UsageError(f"value must be 'last' or 'best', not {value!r}.")
    if direction not in (None, "minimize", "maximize"):
        raise UsageError(f"direction must be 'minimize' or 'maximize', not {direction!r}.")
    if not callable(define):
        raise UsageError(f"define must be a function of a trial, not {type(define).__qualname__}.")
    where = _device(device)
    data = load(train, valid, test, seed=seed)
    target = data.train.tensors[-1] if len(data.train.tensors) > 1 else None
    chosen = resolve(metric, targets=target, direction=direction)
    way: Direction = chosen.direction if chosen is not None else (direction or "minimize")
    metric_name = chosen.name if chosen is not None else "loss"
    scheme = resolve_scheduler(scheduler, max_epochs=max_epochs, n_trials=n_trials)
    asker = Asker(sampler, way, seed)
    options: dict[str, Json] = {
        "metric": metric_name if not callable(metric) else None,
        "direction": way,
        "value": value,
        "n_trials": n_trials,
        "max_epochs": max_epochs,
        "sampler": asker.name if isinstance(sampler, str) or sampler is None else None,
        "scheduler": scheduler if isinstance(scheduler, str) else None,
        "seed": seed,
        "device": device,
        "reproducible": reproducible,
    }
    facts: dict[str, Json] = {
        "metric": metric_name,
        "options": options,
        "fingerprint": fingerprint(define),
        "data": data.fingerprint,
        "scheduler": scheme.name,
        "sampler": asker.name,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {where}",
    }
    work = Work(_to(data, where), _metrics(chosen, target), where)
    lanes = total_lanes(n_trials, learns=asker.learns)
    signer = Signer(work.data.train.tensors)

    def rebuild(spec: TrialSpec) -> Recipe:
        return replay(define, spec, data.train.n)

    def admission(spec: TrialSpec) -> Candidate:
        return candidate(spec, rebuild(spec), signer, data.train.tensors[-1])

    def make_pool() -> Pool:
        return Pool(work, rebuild, measure=not reproducible)

    count = n_workers(lanes, device=where, reproducible=reproducible)
    # Workers are forked before the study file is opened: its writer is a thread, and a fork is simplest without.
    with pools(make_pool, admission, count) as pool, _opened(storage, way) as (store, previous):
        if previous is not None:
            _check_same(previous, facts)
            check_space(define, [t.spec for t in previous.trials if t.state is not TrialState.FAILED][:1], data.train.n)
        study, pending = _restore(define, data, asker, store, previous, facts, max_epochs, way, storage)
        if previous is not None:
            _replay_rows(scheme, study, 1.0 if way == "minimize" else -1.0)
        session = _Session(study, signer, n_trials, pending, metric_name, value == "best")
        rules = Rules(max_epochs, 1.0 if way == "minimize" else -1.0, _value_of(chosen), value == "best")
        tick = max((e.tick for e in study._events), default=0)
        _run(session, Engine(session, pool, scheme, rules, lanes, tick), timeout_s, progress)
        _finish(study, work)
    return study


def resume(
    storage: str | Path,
    define: Define,
    *,
    train: Any,
    valid: Any = None,
    test: Any = None,
    n_trials: int | None = None,
    max_epochs: int | None = None,
    timeout_s: float | None = None,
    progress: ProgressMode = True,
) -> Study:
    """Continue a study from its file, with the options it was started with.

    Trials that had ended stay as they are. Trials that were running when the study was interrupted start again under their number
    and seed, so they give what they would have given.

    Args:
        storage: The study file.
        define: The code that made the study; the file holds none.
        train, valid, test: The data the study was started with.
        n_trials, max_epochs: Larger numbers than before, or None to complete what was asked for.
        timeout_s, progress: As for ``tune``.

    Raises:
        StorageError: If the file is missing, is no study, or belongs to other code or data.
        UsageError: If the study was started with an object (a metric, sampler or scheduler of your own) that no file can hold;
            call ``tune`` again with the same arguments instead.
    """
    from shoal.storage import load_study

    options = load_study(str(storage)).meta.get("options")
    if not isinstance(options, dict):
        raise StorageError(f"{storage} holds no options to resume with; call tune() with this storage instead.")
    if options.get("metric") is None or options.get("sampler") is None:
        raise UsageError(
            "this study was started with a metric or sampler object, which no file can hold; call tune() again with the same "
            "arguments and this storage, which continues it."
        )
    kept = {k: v for k, v in options.items() if k not in ("n_trials", "max_epochs")}
    if max_epochs is not None and max_epochs < cast(int, options["max_epochs"]):
        raise UsageError(f"max_epochs={max_epochs} is less than the study's {options['max_epochs']}.")
    return tune(
        define,
        train=train,
        valid=valid,
        test=test,
        n_trials=cast(int, options["n_trials"]) if n_trials is None else n_trials,
        max_epochs=cast(int, options["max_epochs"]) if max_epochs is None else max_epochs,
        storage=storage,
        timeout_s=timeout_s,
        progress=progress,
        **cast("dict[str, Any]", kept),
    )


def _said(number: int, error: Exception) -> str:
    """What ``define`` raised, or what is wrong with what it returned, naming the trial."""
    return str(error) if isinstance(error, RecipeError) else f"trial {number}: define raised {blame(error)}"


# -- the steps of a run -------------------------------------------------------------------------------------


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


def _value_of(chosen: Metric | None) -> Callable[[Measured], float]:
    if chosen is None:
        return lambda m: m.valid_loss
    name = chosen.name

    def value_of(m: Measured) -> float:
        if name == "loss":
            return m.metrics.get(name, m.valid_loss)
        if name not in m.metrics:
            raise RecipeError(
                f"the metric {name!r} is measured on outputs, and a callable loss shows none: add "
                "predict=lambda model, batch: ... to the recipe, or use metric='loss'.",
                trial=m.trial,
            )
        return m.metrics[name]

    return value_of


def _run(session: _Session, engine: Engine, timeout_s: float | None, progress: ProgressMode) -> None:
    study = session.study
    sink = make_progress(progress)
    try:
        with _interruptible() as asked_to_stop:
            engine.run(clock=session.clock, stop=asked_to_stop, report=sink.update, timeout_s=timeout_s)
            study.interrupted = len(study._results) < session.n_trials
            study.timed_out = study.interrupted and not asked_to_stop()
    finally:
        sink.close()
        study._meta["elapsed_s"] = session.clock()


def _finish(study: Study, work: Work) -> None:
    """Score the winner on the test split, once, and write down where everything lies."""
    best = study.record.best()
    meta = study._meta
    if (
        best is not None
        and work.data.test is not None
        and meta.get("test_trial") != best.spec.number
        and not study.interrupted
    ):
        recipe = study._rebuild(best)
        recipe.model.to(work.device)
        split = work.data.test
        loss, outputs = measure(recipe, split.tensors, best.spec.seed)
        scores: dict[str, Json] = {"loss": loss}
        if outputs is not None:
            scores.update({m.name: float(m.compute(outputs[None], split.tensors[-1])[0]) for m in work.metrics})
        meta["test"], meta["test_trial"] = scores, best.spec.number
    meta["weights"] = {str(n): file for n, file in sorted(study._weights.files.items())}
    meta["space"] = {k: v for t in study._specs.values() for k, v in t.distributions.items()}
    if study._store is not None:
        study._store.set_meta(meta)
        study._store.flush()


def _restore(
    define: Define,
    data: Datasets,
    asker: Asker,
    store: StudyStore | None,
    previous: StudyRecord | None,
    facts: dict[str, Json],
    max_epochs: int,
    way: Direction,
    storage: str | Path | None,
) -> tuple[Study, list[TrialSpec]]:
    meta: dict[str, Json] = {**(previous.meta if previous else {}), **facts}
    kept: dict[int, tuple[float, str]] = {}
    again: list[int] = []
    if previous is not None:
        before = previous.meta.get("options")
        old_epochs = cast(int, before.get("max_epochs", max_epochs)) if isinstance(before, dict) else max_epochs
        finished = [t for t in previous.trials if t.state is TrialState.FINISHED]
        again = [t.spec.number for t in previous.trials if t.state is TrialState.RUNNING]
        if max_epochs > old_epochs:
            again += [t.spec.number for t in finished]
        # The folder and not the list in the file: a study that was killed had no time to bring that up to date.
        folder = _weights_folder(store)
        for t in previous.trials if folder is not None else ():
            path = weights_file(folder, t.spec.number) if folder is not None else Path()
            if t.spec.number in again:
                path.unlink(missing_ok=True)
            elif t.state is TrialState.FINISHED and t.value is not None and path.exists():
                kept[t.spec.number] = (t.value, str(path))
        reopened = {n: TrialState.RUNNING for n in again}
        trials = [
            TrialRecord(t.spec, reopened.get(t.spec.number, t.state), None, 0, "", ())
            if t.spec.number in reopened
            else t
            for t in previous.trials
        ]
        previous = StudyRecord(previous.name, previous.direction, tuple(trials), previous.events, previous.meta)
        asker.restore(previous.trials)
        if store is not None and again:
            store.restart(again)
    weights = WeightStore(_weights_folder(store), 1.0 if way == "minimize" else -1.0, kept)
    name = store.name if store is not None else "shoal"
    study = Study(
        name=name,
        direction=way,
        define=define,
        data=data,
        asker=asker,
        store=store,
        weights=weights,
        meta=meta,
        previous=previous,
    )
    if store is not None:
        store.set_meta(meta)
    return study, [study._specs[n] for n in sorted(again)]


def _replay_rows(scheme: Scheduler, study: Study, sign: float) -> None:
    """Show the scheduler what earlier sessions saw, epoch by epoch."""
    from shoal.schedulers import Observation

    rows = sorted(
        (r for rs in study._rows.values() for r in rs if r.value == r.value), key=lambda r: (r.time_s, r.epoch)
    )
    for row in rows:
        scheme.observe([Observation(row.trial, row.epoch, sign * row.value)])


def _check_same(previous: StudyRecord, facts: Mapping[str, Json]) -> None:
    """Refuse to mix trials of other code, data or metric into a study."""
    advice = "Use the file that the study was started with, or another storage."
    if previous.meta.get("fingerprint") not in (None, facts["fingerprint"]):
        raise StorageError(
            f"study {previous.name!r} belongs to other code: define() has changed since it was started. {advice}"
        )
    if previous.meta.get("data") not in (None, facts["data"]):
        raise StorageError(f"study {previous.name!r} was started with other data (its fingerprint differs). {advice}")
    if previous.meta.get("metric") not in (None, facts["metric"]):
        raise StorageError(
            f"study {previous.name!r} is judged by {previous.meta['metric']!r}, not by {facts['metric']!r}. {advice}"
        )
    before, now = previous.meta.get("options"), facts["options"]
    if isinstance(before, dict) and isinstance(now, dict):
        for key in ("seed", "value"):
            if before.get(key) != now.get(key):
                raise StorageError(
                    f"study {previous.name!r} has {key}={before.get(key)!r}, not {now.get(key)!r}. {advice}"
                )
        if cast(int, now["max_epochs"]) < cast(int, before.get("max_epochs", 0)):
            raise UsageError(
                f"study {previous.name!r} trains up to {before['max_epochs']} epochs; it cannot go on with fewer."
            )


@contextmanager
def _opened(storage: str | Path | None, way: Direction) -> Iterator[tuple[StudyStore | None, StudyRecord | None]]:
    if storage is None:
        with nullcontext():
            yield None, None
        return
    from shoal.storage import StudyStore

    with StudyStore.open(str(storage), name="shoal", direction=way) as store:
        record = store.load()
        yield store, (record if record.trials or record.meta else None)


def _weights_folder(store: StudyStore | None) -> Path | None:
    return None if store is None else Path(store.path).with_suffix(".weights")


def _metrics(chosen: Metric | None, target: torch.Tensor | None) -> tuple[Metric, ...]:
    standard = [m for m in standard_metrics(target) if chosen is None or m.name != chosen.name]
    return tuple([*([chosen] if chosen else []), *standard])


def _to(data: Datasets, device: torch.device) -> Datasets:
    if device.type == "cpu":
        return data
    return Datasets(
        data.train.to(device), data.valid.to(device), data.test.to(device) if data.test else None, data.fingerprint
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device={name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _check_numbers(n_trials: int, max_epochs: int, timeout_s: float | None, seed: int) -> None:
    for name, number in (("n_trials", n_trials), ("max_epochs", max_epochs)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, not {number!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed must be a whole number of at least 0, not {seed!r}.")
    if timeout_s is not None and not timeout_s > 0:
        raise UsageError(f"timeout_s must be a positive number of seconds, not {timeout_s!r}.")


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


__all__ = ["ReplayError", "ShoalError", "Study", "resume", "tune"]
