"""``tune`` and ``resume``: arguments are checked, parts are put together, and a session runs."""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

import torch

from shoal import planner
from shoal.asking import Asker
from shoal.data import Datasets, load, load_whole
from shoal.devices import device_named
from shoal.engine import Engine, Rules
from shoal.errors import RecipeError, StorageError, StudyError, UsageError
from shoal.folds import FoldsArgument, facts_of, make_parts
from shoal.history import History
from shoal.judging import DirectionArgument, MetricArgument, check_together, judged_by
from shoal.lanes import native
from shoal.lanes.decisions import Decisions
from shoal.lanes.fleet import Work
from shoal.lanes.lane import Measured
from shoal.lanes.limits import at_most
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.together import Together
from shoal.lanes.workers import WorkerDied, n_workers, pools
from shoal.loggers import Logger
from shoal.loggers._base import Logging
from shoal.loggers._base import check as check_loggers
from shoal.measuring import hopeless
from shoal.metrics import Metric, further, standard_metrics
from shoal.moving import space_of
from shoal.objectives import Objectives
from shoal.preparing import PrepareArgument, Prepared, described
from shoal.progress import ProgressMode, stages_shown
from shoal.recipe import Recipe
from shoal.records import Direction, Json, ParamValue, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.refitting import keep_trained
from shoal.replay import Define, check_space, fingerprint, replay, run_define
from shoal.restoring import check_same, opened, recorded_pools, restore, show, warm_trials
from shoal.samplers import SamplerArgument
from shoal.schedulers import (
    Asha,
    Explorer,
    Fifo,
    Patience,
    PopulationBasedTrainingReplay,
    Promoter,
    Scheduler,
    Space,
    rungs_of,
)
from shoal.schedulers import resolve as resolve_scheduler
from shoal.session import Session, candidate, no_outputs
from shoal.signature import Signer
from shoal.spaces import check_points
from shoal.stopping import Limits
from shoal.study import Study
from shoal.weights import WeightStore, trained
from shoal.winner import score_winner

if TYPE_CHECKING:
    import optuna

    from shoal.storage import StudyStore

SchedulerArgument: TypeAlias = "str | Mapping[str, Any] | Scheduler | optuna.pruners.BasePruner | None"


def tune(
    define: Define,
    *,
    train: Any,
    valid: Any = None,
    test: Any = None,
    metric: MetricArgument = None,
    direction: DirectionArgument = None,
    constraints: Sequence[str] = (),
    metrics: Sequence[str | Callable[..., float]] = (),
    value: Literal["last", "best"] = "last",
    folds: FoldsArgument = None,
    groups: Any = None,
    hyper_valid: Any = None,
    seeds: int = 1,
    prepare: PrepareArgument = None,
    n_trials: int = 100,
    max_epochs: int = 30,
    sampler: SamplerArgument = None,
    scheduler: SchedulerArgument = None,
    enqueue: Sequence[Mapping[str, ParamValue]] = (),
    warm_start: str | Path | Study | None = None,
    storage: str | Path | None = None,
    study_name: str | None = None,
    seed: int = 0,
    device: str = "auto",
    reproducible: bool = False,
    timeout_s: float | None = None,
    trial_timeout_s: float | None = None,
    max_total_epochs: int | None = None,
    target_value: float | Sequence[float] | None = None,
    patience_trials: int | None = None,
    loggers: Sequence[Logger] = (),
    progress: ProgressMode = True,
) -> Study:
    """Search for the best hyperparameters of ``define``, training many trials at once.

    Args:
        define: A function of an ``optuna.Trial`` that returns a ``shoal.Recipe``: ordinary PyTorch.
        train: A map-style ``Dataset``, or a tuple of tensors or arrays whose last one is the target.
        valid: Likewise, or the fraction of ``train`` to split off (default 0.2). Trials are judged on it.
        test: Likewise, or None. Touched once, for the winner.
        metric: A name ("accuracy", "f1", "loss", "rmse", ...) or a callable ``(outputs, targets) -> number``; by default accuracy
            for integer targets and the loss otherwise. A list makes several objectives: ``["accuracy", "n_parameters"]``.
        direction: "minimize" or "maximize", one for each metric; follows from a named metric.
        constraints: Bounds that a trial must keep to be best: ``["latency_ms <= 2", "accuracy >= 0.9"]``.
        metrics: Further metrics, by name or as callables, that are recorded beside it and decide nothing.
        value: Which epoch a trial is judged by, and whose weights are kept: its "last" or its "best".
        folds: Cross-validation in the place of ``valid``: a number of folds (stratified for a target of classes), a splitter of
            scikit-learn, or pairs of row indices. A trial trains in one lane per fold, and its value is the mean over them.
        groups: One group per row of ``train``; rows of a group stay in one fold.
        hyper_valid: What extensions such as ``shoal.extend.WeightDecay`` take their gradient on, as ``test``: data, or the fraction
            of ``train`` to split off. It is neither trained on nor reported, and in no fold.
        seeds: Training runs of each trial (of each fold), under seeds of their own; its value is the mean over all of them.
        prepare: An object with scikit-learn's ``fit`` and ``transform`` (a scaler, an imputer, a ``Pipeline``) for the inputs, or a
            dict of such objects by input. It is cloned and fitted to training rows only: of each fold, or of ``train``.
        n_trials: Trials in all. A study file that already has some is continued up to this number.
        max_epochs: Epochs of a trial that is not stopped early. A larger number than a study file was made with trains its
            finished trials again from the start, to the new length.
        sampler: "tpe" (default), "random", "grid", "qmc", "gp", "cmaes", "nsgaii", "nsgaiii", "brute_force",
            "gradient_refine"; a dict of a name and options (Optuna's own), such as ``{"name": "tpe", "n_startup_trials": 20}``; a
            `shoal.GradientRefine`; or an Optuna sampler.
        scheduler: "asha" (default from 4 epochs on; pauses and promotes), "asha_stop" (stops for good), "halving", "hyperband",
            "top_k", "freeze_thaw", "median", "patience", "none"; "pbt" and "pb2", which change hyperparameters on the way; a dict
            of a name and options, such as ``{"name": "asha", "eta": 4}``; an object of ``shoal.schedulers``, or an Optuna pruner.
        enqueue: Parameters to try first, one dict per trial; what a dict leaves out is sampled.
        warm_start: An earlier study of the same metric, or its file: the sampler ("tpe" or "gp") learns from its trials.
        storage: An SQLite file (``sqlite:///digits.db`` or a path) or a PostgreSQL database (``postgresql://user@host/db``); Optuna
            can open both. None keeps all in memory.
        study_name: The study's name, if ``storage`` is to hold several; by default "shoal".
        seed: Everything random follows from it.
        device: "auto", "cpu", "cuda", ...
        reproducible: Never choose by measured time: what can be fused is, at widths that follow from counts alone.
        timeout_s: Start no further epoch after this many seconds. The study can be continued.
        trial_timeout_s: How long one call of ``define``, or one epoch of a trial, may take. What takes longer is cut off, and its
            trial fails; a fleet has that long for each of its lanes. Python code only: a single call into compiled code ends first.
        max_total_epochs: Start no further round once all trials together have trained so many epochs.
        target_value: Stop once a finished trial is as good as this value, or better; of several objectives a list, one for each.
        patience_trials: Stop once so many trials in a row have ended, or been paused, without the best getting better (of several
            objectives, without a new one on the Pareto front).
        loggers: Where else to record the trials, such as ``shoal.loggers.TensorBoard("runs")``.
        progress: True for a live table (plain lines where there is no terminal), False for silence, "json", or a callable.

    Returns:
        The study, finished, or interrupted in a state that ``resume`` continues.

    Raises:
        UsageError: If an argument makes no sense.
        StorageError: If the study file cannot be used, or belongs to other code or data.
        StudyError: If the first five trials all fail.
    """
    _check_numbers(n_trials, max_epochs, timeout_s, seed)
    check_loggers(loggers)
    _check_seconds("trial_timeout_s", trial_timeout_s)
    if value not in ("last", "best"):
        raise UsageError(f"value must be 'last' or 'best', not {value!r}.")
    if not callable(define):
        raise UsageError(f"define must be a function of a trial, not {type(define).__qualname__}.")
    where = device_named(device)
    if where.type == "cpu" and not reproducible:
        native.prepare()  # first of all: a compiler takes a second, and so does what comes next
    with stages_shown(progress):
        data = (
            load(train, valid, test, seed=seed, hyper_valid=hyper_valid, raw=prepare is not None)
            if folds is None
            else _load_whole(train, valid, test, seed, folds, groups, hyper_valid, raw=prepare is not None)
        )
    given_parts = make_parts(folds, seeds, groups, data.train, seed)
    with stages_shown(progress, "preparing the data") if prepare is not None else nullcontext():
        prepared = Prepared.of(prepare, data, given_parts, seed)
    data, whole, parts = prepared.data, prepared.whole, prepared.parts
    targets = whole.train.target
    judged = judged_by(metric, direction, constraints, targets=targets)
    chosen, objectives = judged.lead, judged.objectives
    others = (*judged.others, *further(metrics, targets=targets))
    metric_name, way = objectives.names[0], objectives.directions[0]
    limits = Limits(max_total_epochs, target_value, patience_trials)
    check_together(objectives, limits, reproducible=reproducible)

    scheme = _scheduler(scheduler, max_epochs, n_trials, objectives)
    space: Space | None = None
    if isinstance(scheme, Explorer):
        if folds is not None:
            raise UsageError(
                f"scheduler {scheme.name!r} has no winner to train again on all folds: its hyperparameters were changed on the "
                "way. Leave folds= out and judge by valid=; seeds= can stay."
            )
        space = space_of(lambda trial: run_define(define, trial, 0, whole.train.n))
        if isinstance(scheme, PopulationBasedTrainingReplay) and not enqueue:
            enqueue = [scheme.first] * n_trials

    def make_scheme() -> Scheduler:
        made = _scheduler(scheduler, max_epochs, n_trials, objectives)
        if space is not None and isinstance(made, Explorer):
            made.begin(space, seed)
        return made

    def make_asker() -> Asker:
        return _asker(sampler, objectives, seed, enqueue, warm_start, define, whole.train.n)

    scheme, asker = make_scheme(), make_asker()
    refine = asker.plan.refine
    if refine is not None and given_parts is not None:
        raise UsageError(
            "sampler='gradient_refine' measures on one validation split, in one lane per trial: leave folds= and seeds= out, or "
            "use 'tpe'."
        )
    options: dict[str, Json] = {
        "metric": judged.as_json,
        "direction": list[Json](objectives.directions) if objectives.several else way,
        "metrics": None if any(callable(m) for m in metrics) else list(cast("Sequence[str]", metrics)),
        "value": value,
        "folds": folds if folds is None or (isinstance(folds, int) and groups is None) else False,
        "hyper_valid": hyper_valid if hyper_valid is None or isinstance(hyper_valid, float) else False,
        "seeds": seeds,
        "prepare": None if prepare is None else described(prepare),
        "n_trials": n_trials,
        "max_epochs": max_epochs,
        "sampler": asker.plan.as_json,
        "scheduler": _as_json(scheduler),
        "enqueue": [dict(point) for point in enqueue],
        "warm_start": _warm_path(warm_start),
        "max_total_epochs": max_total_epochs,
        "target_value": list(target_value) if isinstance(target_value, Sequence) else target_value,
        "patience_trials": patience_trials,
        "seed": seed,
        "device": device,
        "reproducible": reproducible,
        "trial_timeout_s": trial_timeout_s,
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
    if given_parts is not None:
        facts["folds"] = facts_of(given_parts, folds)
    if objectives.several:
        facts["objectives"] = list[Json](objectives.names)
    if objectives.constraints:
        facts["constraints"] = options["constraints"] = [c.key for c in objectives.constraints]
    n_parts = 1 if parts is None else len(parts)
    there = prepared.to(where)
    if refine is not None and data.held_out is None:  # a sampler may look at the data that trials are judged on
        data, there = (
            replace(data, held_out=data.valid),
            replace(there, data=replace(there.data, held_out=there.data.valid)),
        )
    work = Work(there.data, _metrics(chosen, others, targets), where, parts)
    winning = replace(work, data=there.whole, parts=None)  # what becomes of the winner
    # A population is compared among itself, so all of it trains at once.
    learns = asker.learns and space is None
    lanes = planner.total_lanes(
        n_trials, learns=learns, cheap=where.type != "cpu", limit=planner.widest(where.type), parts=n_parts
    )
    if refine is not None:  # with more of them, trials would be drawn that could be moves
        lanes = min(lanes, refine.wave)
    sizes = () if parts is None else [parts.n_train(part, data.train.n) for part in range(n_parts)]
    signer = Signer(data.train.tensors, sizes)  # where `define` makes its models, whatever device they train on

    trained_by = define if refine is None else refine.measuring(define, asker.followed, data.train.n)
    limited = _limited(trained_by, trial_timeout_s)

    def rebuild(spec: TrialSpec) -> Recipe:
        n = data.train.n if parts is None else parts.n_train(spec.part, data.train.n)
        return replay(limited, spec, n, data.train.form)

    def rebuild_whole(spec: TrialSpec) -> Recipe:
        return replay(define, spec, whole.train.n, whole.train.form)

    def admission(spec: TrialSpec) -> Candidate:
        return candidate(spec, rebuild(spec), signer, data.train.tensors[-1], parts, trial_timeout_s)

    # "none" trains all to the end, and a population has better to copy.
    unlikely = None if isinstance(scheme, Fifo | Explorer) else hopeless(objectives.constraints, rebuild)

    stops = not isinstance(scheme, Fifo | Patience | Explorer)
    opening = planner.opening(n_trials, max_epochs, data.train.n, lanes, stops=stops)
    n_pools = n_workers(lanes * n_parts, device=where, reproducible=reproducible)

    def make_pool() -> Pool:
        return Pool(
            work,
            rebuild,
            measure=not reproducible,
            native=not reproducible,
            lane_epochs=n_trials * max_epochs * n_parts / n_pools,
            limit_s=trial_timeout_s,
        )

    def run(earlier: Study | None, left_s: float | None) -> Study:
        """One session. ``earlier`` is the last one of a study without a file, if a worker of it died."""
        scheme, asker = make_scheme(), make_asker()
        count = recorded_pools(storage, study_name) or n_pools
        # Workers are forked before the study file is opened: its writer is a thread, and a fork is simplest without.
        with (
            pools(make_pool, admission, count, opening) as pool,
            opened(storage, objectives.directions, study_name) as (store, previous),
            Logging(loggers, metric_name) as logging,
        ):
            if previous is not None:
                check_same(previous, facts)
                asked = [t.spec for t in previous.trials if t.state is not TrialState.FAILED]
                check_space(define, asked[:1], whole.train.n)
            start = restore(
                previous if earlier is None else earlier.record,
                facts,
                asker=asker,
                store=store,
                directions=objectives.directions,
                max_epochs=max_epochs,
                pauses=isinstance(scheme, Promoter),
                best_epoch=value == "best",
                rungs=rungs_of(scheme),
                weights=None if earlier is None else earlier.weights,
            )
            history, weights = start.history, start.weights
            show(scheme, history)
            rules = Rules(max_epochs, history.sign, _value_of(chosen), value == "best", unlikely)
            trainer = pool if parts is None else Together(pool, parts, rules.value_of, admission)
            if start.snapshot is not None and start.snapshots is not None and start.snapshot.pool is not None:
                trainer.restore(start.snapshots.folder, start.snapshot.pool, history.current, start.standing.tick)
            pool.recall(Decisions.of(start.events_before, start.rounds_before, pool.n_pools))
            study = Study(
                history, define=define, prepared=there, asker=asker, store=store, weights=weights, work=winning
            )
            session = Session(
                define=limited,
                data=data,
                asker=asker,
                store=store,
                signer=signer,
                n_trials=n_trials,
                max_epochs=max_epochs,
                start=start,
                best_epoch=value == "best",
                limits=limits,
                objectives=objectives,
                device=where,
                parts=parts,
                trial_timeout_s=trial_timeout_s,
                logging=logging,
            )
            engine = Engine(session, trainer, scheme, rules, lanes, start.standing, history.rows)
            nobody_chose = sampler is None and scheduler is None
            picked = (
                _said_first(asker, scheme, lanes, n_trials, max_epochs, several=objectives.several)
                if nobody_chose
                else ""
            )
            try:
                session.run(engine, left_s, progress, picked)
            except WorkerDied as error:
                study.died = error
                return study
            study.interrupted, study.timed_out = session.interrupted, session.timed_out
            study.terminated, study.stop_reason = session.terminated, session.stop_reason
            if not study.interrupted:
                if start.snapshots is not None and not study.stop_reason:
                    start.snapshots.end()
                best = history.record.best()
                if parts is not None and parts.folds and best is not None:
                    with stages_shown(progress, "training the winner on all folds"):
                        keep_trained(best, define, winning, weights)
                with stages_shown(progress, "scoring the winner"):
                    score_winner(history, winning, lambda spec: trained(spec, rebuild_whole, weights))
            if start.snapshots is not None:
                history.meta["snapshots"] = start.snapshots.as_json()
            _write_down(history, weights, store)
            if start.snapshots is not None:
                start.snapshots.tidy()
        return study

    return _outliving_workers(run, timeout_s, in_memory=storage is None)


# So often may workers die, with nothing getting further between, before it is not for want of luck.
_DEATHS = 3


def _outliving_workers(
    run: Callable[[Study | None, float | None], Study], timeout_s: float | None, *, in_memory: bool
) -> Study:
    """Run a study, again from its last snapshot whenever one of its worker processes dies.

    Raises:
        WorkerDied: Workers die again and again without getting any further.
    """
    started = time.monotonic()
    earlier: Study | None = None
    furthest, deaths = -1, 0
    while True:
        left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - started))
        died: StudyError
        try:
            study = run(earlier, left_s)
        except WorkerDied as error:  # before there was anything to train
            died, reached = error, furthest
        else:
            if study.died is None:
                return study
            died, reached = study.died, sum(len(t.rows) for t in study.record.trials)
            earlier = study if in_memory else None
        deaths = 1 if reached > furthest else deaths + 1
        furthest = max(furthest, reached)
        if deaths >= _DEATHS:
            raise died
        warnings.warn(f"{died} It goes on by itself now.", RuntimeWarning, stacklevel=3)


def _limited(define: Define, limit_s: float | None) -> Define:
    """``define``, cut off when it takes too long."""
    if limit_s is None:
        return define

    def limited(trial: Any) -> Recipe:
        with at_most(limit_s):
            return define(trial)

    return limited


def resume(
    storage: str | Path,
    define: Define,
    *,
    train: Any,
    valid: Any = None,
    test: Any = None,
    hyper_valid: Any = None,
    prepare: PrepareArgument = None,
    study_name: str | None = None,
    n_trials: int | None = None,
    max_epochs: int | None = None,
    timeout_s: float | None = None,
    max_total_epochs: int | None = None,
    target_value: float | Sequence[float] | None = None,
    patience_trials: int | None = None,
    loggers: Sequence[Logger] = (),
    progress: ProgressMode = True,
) -> Study:
    """Continue a study from its file, with the options it was started with.

    Trials that had ended stay as they are. Trials that were running when the study was interrupted go on from its last
    snapshot, and give what they would have given.

    Args:
        storage: The study file or database.
        define: The code that made the study; the file holds none.
        train, valid, test: The data the study was started with.
        hyper_valid: Likewise, unless it was a fraction.
        prepare: The object that the study was started with, if any; the file holds none.
        study_name: Which study of ``storage``; None is the only one.
        n_trials, max_epochs: Larger numbers than before, or None to complete what was asked for.
        max_total_epochs, target_value, patience_trials: Limits to go on to, or None for those that the study was started with.
        timeout_s, loggers, progress: As for ``tune``.

    Raises:
        StorageError: If the file is missing, is no study, or belongs to other code or data.
        UsageError: If the study was started with an object (a metric, sampler or scheduler of your own) that no file can hold;
            call ``tune`` again with the same arguments instead.
    """
    from shoal.storage import load_meta, shown

    study_name, meta = load_meta(storage, study_name)
    options = meta.get("options")
    if not isinstance(options, dict):
        raise StorageError(f"{shown(storage)} holds no options to resume with; call tune() with this storage instead.")
    objects = any(options.get(key) is None for key in ("metric", "sampler")) or options.get("metrics", []) is None
    if objects or options.get("scheduler") is False:
        raise UsageError(
            "this study was started with a metric, sampler or scheduler object, which no file can hold; call tune() again with "
            "the same arguments and this storage, which continues it."
        )
    _check_stored(options, shown(storage))
    kept = {k: v for k, v in options.items() if k not in ("n_trials", "max_epochs", "prepare")}
    if kept.get("folds") is False:
        raise UsageError(
            "this study was started with a splitter, row indices or groups, which no file holds; call tune() again with the same "
            "arguments and this storage, which continues it."
        )
    if hyper_valid is not None:
        kept["hyper_valid"] = hyper_valid
    elif kept.get("hyper_valid") is False:
        raise UsageError(
            "this study was started with hyper-validation data, which no file holds; give resume(hyper_valid=...)."
        )
    if kept.get("warm_start") is False:
        raise UsageError(
            "this study was started warm from a study in memory, which no file can hold; call tune() again with the same "
            "arguments and this storage, which continues it."
        )
    limits: dict[str, Any] = {
        "max_total_epochs": max_total_epochs,
        "target_value": target_value,
        "patience_trials": patience_trials,
    }
    kept |= {name: limit for name, limit in limits.items() if limit is not None}
    if max_epochs is not None and max_epochs < cast(int, options["max_epochs"]):
        raise UsageError(f"max_epochs={max_epochs} is less than the study's {options['max_epochs']}.")
    return tune(
        define,
        train=train,
        valid=valid,
        test=test,
        prepare=prepare,
        n_trials=cast(int, options["n_trials"]) if n_trials is None else n_trials,
        max_epochs=cast(int, options["max_epochs"]) if max_epochs is None else max_epochs,
        storage=storage,
        study_name=study_name,
        timeout_s=timeout_s,
        loggers=loggers,
        progress=progress,
        **cast("dict[str, Any]", kept),
    )


_NONE: Final = type(None)
# Arguments of `tune` that a study file holds, and as what: all others come from whoever calls.
_STORED: Final[Mapping[str, tuple[type, ...]]] = {
    "metric": (str, list, dict, _NONE),
    "direction": (str, list, _NONE),
    "constraints": (list,),
    "metrics": (list, _NONE),
    "value": (str,),
    "folds": (int, bool, _NONE),
    "hyper_valid": (float, bool, _NONE),
    "seeds": (int,),
    "prepare": (str, _NONE),
    "n_trials": (int,),
    "max_epochs": (int,),
    "sampler": (str, dict, _NONE),
    "scheduler": (str, dict, bool, _NONE),
    "enqueue": (list,),
    "warm_start": (str, bool, _NONE),
    "max_total_epochs": (int, _NONE),
    "target_value": (float, int, list, _NONE),
    "patience_trials": (int, _NONE),
    "seed": (int,),
    "device": (str, _NONE),
    "reproducible": (bool,),
    "trial_timeout_s": (float, int, _NONE),
}


def _check_stored(options: Mapping[str, Json], where: str) -> None:
    """Raise `StorageError` unless a study file's options are such as `tune` stores."""
    wrong = [key for key, held in options.items() if type(held) not in _STORED.get(key, ())]
    wrong += [key for key in ("n_trials", "max_epochs") if key not in options]
    if wrong:
        raise StorageError(
            f"{where} holds {wrong[0]!r:.40}={options.get(wrong[0])!r:.40} as an option, which tune() does not store: it is "
            "damaged, or from another version of Shoal. Call tune() with this storage instead."
        )


def _scheduler(scheduler: SchedulerArgument, max_epochs: int, n_trials: int, objectives: Objectives) -> Scheduler:
    """The scheduler that the user meant.

    Raises:
        UsageError: It makes no sense, or ranks trials by one metric where there are several objectives.
    """
    if not objectives.several:
        return _named_scheduler(scheduler, max_epochs, n_trials, objectives.directions[0])
    found = _named_scheduler("none" if scheduler is None else scheduler, max_epochs, n_trials, objectives.directions[0])
    if type(found).__module__.startswith("shoal.") and not isinstance(found, Fifo | Patience):
        raise UsageError(
            f"scheduler={found.name!r} ranks trials by one metric, and would stop what leads in another, such as small models. "
            "With several objectives use 'none' (the default) or 'patience', which compares a trial with itself."
        )
    return found


def _as_json(scheduler: SchedulerArgument) -> Json:
    """What a study file says of a scheduler: False for an object, which it cannot hold."""
    if isinstance(scheduler, Mapping):
        try:
            held: Json = json.loads(json.dumps(dict(scheduler)))
        except TypeError:  # a callable among the options
            return False
        return held
    return scheduler if scheduler is None or isinstance(scheduler, str) else False


def _named_scheduler(scheduler: SchedulerArgument, max_epochs: int, n_trials: int, direction: Direction) -> Scheduler:
    """A scheduler by its name, or an object; Optuna's pruners are made into one."""
    if scheduler is not None and not isinstance(scheduler, str | Mapping | Scheduler):
        import optuna

        from shoal.pruning import PrunerScheduler

        if isinstance(scheduler, optuna.pruners.BasePruner):
            return PrunerScheduler(scheduler, direction, max_epochs)
    return resolve_scheduler(scheduler, max_epochs=max_epochs, n_trials=n_trials)


def _asker(
    sampler: SamplerArgument,
    objectives: Objectives,
    seed: int,
    enqueue: Sequence[Mapping[str, ParamValue]],
    warm_start: str | Path | Study | None,
    define: Define,
    n_train: int,
) -> Asker:
    def dry(trial: Any) -> Recipe:
        return run_define(define, trial, 0, n_train)

    if isinstance(enqueue, str | Mapping) or not isinstance(enqueue, Sequence):
        raise UsageError(f"enqueue must be a list of dicts, one per trial, not {enqueue!r}.")
    check_points(dry, enqueue)
    warm: list[TrialRecord] = []
    if warm_start is not None:
        warm = warm_trials(warm_start.record if isinstance(warm_start, Study) else _read(warm_start), objectives)
    return Asker(sampler, objectives.directions, seed, enqueue=enqueue, warm=warm, define=dry)


def _read(storage: str | Path) -> StudyRecord:
    from shoal.storage import load_study

    return load_study(storage)


def _warm_path(warm_start: str | Path | Study | None) -> Json:
    """Where ``resume`` finds the study to start warm from; False when it is nowhere."""
    if isinstance(warm_start, Study):
        return str(warm_start.path) if warm_start.path is not None else False
    from shoal.storage import shown

    return None if warm_start is None else shown(warm_start)  # a password stays out of the study


def _said_first(asker: Asker, scheme: Scheduler, lanes: int, n_trials: int, max_epochs: int, *, several: bool) -> str:
    """What was picked for a user who named neither sampler nor scheduler, and why."""
    if lanes >= n_trials:
        every = f"all {n_trials} trials start at once, so it draws them" if n_trials > 1 else "it draws a single trial"
        sampler = f"sampler {asker.name} ({every} at random)"
    else:
        sampler = f"sampler {asker.name} (learns from trials as they end, {lanes} at a time)"
    if isinstance(scheme, Asha):
        at = ", ".join(map(str, scheme.rungs))
        judge = (
            f"scheduler {scheme.name} (at epochs {at} of {max_epochs} the best 1 in {scheme.eta} go on; others wait, and go on "
            "if their turn comes)"
        )
    elif several:
        judge = f"scheduler {scheme.name} (a trial that trails in one objective may lead in another)"
    else:
        judge = f"scheduler {scheme.name} (nothing to save with {_counted(n_trials, 'trial')} of {_counted(max_epochs, 'epoch')})"
    return f"picked {sampler} and {judge}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _value_of(chosen: Metric | None) -> Callable[[Measured], float]:
    if chosen is None:
        return lambda m: m.valid_loss
    name = chosen.name

    def value_of(m: Measured) -> float:
        if name == "loss":
            return m.metrics.get(name, m.valid_loss)
        if name not in m.metrics:
            raise RecipeError(no_outputs(name), trial=m.trial)
        return m.metrics[name]

    return value_of


def _write_down(history: History, weights: WeightStore, store: StudyStore | None) -> None:
    """Say in the study file where everything lies, and commit it."""
    history.meta["weights"] = {str(n): file for n, file in sorted(weights.files.items())}
    history.meta["space"] = {k: v for spec in history.specs.values() for k, v in spec.distributions.items()}
    if store is not None:
        weights.sync()
        store.set_meta(history.meta)
        store.flush()


def _metrics(chosen: Metric | None, others: Sequence[Metric], target: torch.Tensor | None) -> tuple[Metric, ...]:
    """What is measured every epoch: what decides, what was asked for beside it, and what is standard; each name once."""
    found = {m.name: m for m in (*standard_metrics(target), *others, *([chosen] if chosen else []))}
    first = [chosen.name] if chosen else []
    return tuple(found[name] for name in dict.fromkeys([*first, *(m.name for m in others), *found]))


def _load_whole(
    train: Any, valid: Any, test: Any, seed: int, folds: object, groups: object, hyper_valid: Any, *, raw: bool
) -> Datasets:
    """The data of a study with folds.

    Raises:
        UsageError: If a part of the data would be split off in a way that the folds are not.
    """
    if valid is not None:
        raise UsageError(
            "folds= takes the place of valid=: every row is validated on in its fold. Leave one of the two out."
        )
    drawn = isinstance(hyper_valid, Real) and not isinstance(hyper_valid, bool)
    if drawn and (groups is not None or not isinstance(folds, int)):
        raise UsageError(
            f"hyper_valid={hyper_valid} draws rows at random, and what is left are other rows than folds= and groups= speak of; "
            "split them off yourself and pass them as hyper_valid=."
        )
    if isinstance(test, Real) and not isinstance(test, bool):
        ordered = type(folds).__name__ == "TimeSeriesSplit"
        if groups is not None or ordered:
            kept = "an order in time" if ordered else "groups"
            raise UsageError(
                f"test={test} draws rows at random, which breaks up {kept}; split them off yourself and pass them as test=."
            )
    return load_whole(train, test, seed=seed, hyper_valid=hyper_valid, raw=raw)


def _check_numbers(n_trials: int, max_epochs: int, timeout_s: float | None, seed: int) -> None:
    for name, number in (("n_trials", n_trials), ("max_epochs", max_epochs)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, not {number!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed must be a whole number of at least 0, not {seed!r}.")
    _check_seconds("timeout_s", timeout_s)


def _check_seconds(name: str, limit_s: float | None) -> None:
    if limit_s is not None and not limit_s > 0:
        raise UsageError(f"{name} must be a positive number of seconds, not {limit_s!r}.")


__all__ = ["Study", "resume", "tune"]
