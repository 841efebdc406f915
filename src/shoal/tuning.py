"""``tune`` and ``resume``: arguments are checked, parts are put together, and a session runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from shoal.asking import Asker, SamplerArgument
from shoal.data import Datasets, load
from shoal.engine import Engine, Rules
from shoal.errors import RecipeError, StorageError, UsageError
from shoal.history import History
from shoal.lanes import native
from shoal.lanes.fleet import Work
from shoal.lanes.lane import Measured
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.workers import n_workers, pools
from shoal.metrics import Metric, further, resolve, standard_metrics
from shoal.planner import total_lanes
from shoal.progress import ProgressMode
from shoal.recipe import Recipe
from shoal.records import Direction, Json, TrialSpec, TrialState
from shoal.replay import Define, check_space, fingerprint, replay
from shoal.restoring import check_same, opened, restore, show
from shoal.schedulers import Promoter, Scheduler
from shoal.schedulers import resolve as resolve_scheduler
from shoal.session import Session, candidate
from shoal.signature import Signer
from shoal.study import Study, trained
from shoal.weights import WeightStore
from shoal.winner import score_winner

if TYPE_CHECKING:
    from shoal.storage import StudyStore


def tune(
    define: Define,
    *,
    train: Any,
    valid: Any = None,
    test: Any = None,
    metric: str | Callable[..., float] | None = None,
    direction: Direction | None = None,
    metrics: Sequence[str | Callable[..., float]] = (),
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
        metrics: Further metrics, by name or as callables, that are recorded beside it and decide nothing.
        value: Which epoch a trial is judged by, and whose weights are kept: its "last" or its "best".
        n_trials: Trials in all. A study file that already has some is continued up to this number.
        max_epochs: Epochs of a trial that is not stopped early. A larger number than a study file was made with trains its
            finished trials again from the start, to the new length.
        sampler: "tpe" (default), "random", or an Optuna sampler.
        scheduler: "asha" (default from 4 epochs on; pauses and promotes), "asha_stop" (stops for good), "halving", "hyperband",
            "top_k", "median", "patience", "none", or an object of ``shoal.schedulers``.
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
    if where.type == "cpu" and not reproducible:
        native.prepare()  # first of all: a compiler takes a second, and so does what comes next
    data = load(train, valid, test, seed=seed)
    target = data.train.tensors[-1] if len(data.train.tensors) > 1 else None
    chosen = resolve(metric, targets=target, direction=direction)
    others = further(metrics, targets=target)
    way: Direction = chosen.direction if chosen is not None else (direction or "minimize")
    metric_name = chosen.name if chosen is not None else "loss"
    scheme = resolve_scheduler(scheduler, max_epochs=max_epochs, n_trials=n_trials)
    asker = Asker(sampler, way, seed)
    options: dict[str, Json] = {
        "metric": metric_name if not callable(metric) else None,
        "direction": way,
        "metrics": None if any(callable(m) for m in metrics) else list(cast("Sequence[str]", metrics)),
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
    work = Work(_to(data, where), _metrics(chosen, others, target), where)
    lanes = total_lanes(n_trials, learns=asker.learns)
    signer = Signer(work.data.train.tensors)

    def rebuild(spec: TrialSpec) -> Recipe:
        return replay(define, spec, data.train.n)

    def admission(spec: TrialSpec) -> Candidate:
        return candidate(spec, rebuild(spec), signer, data.train.tensors[-1])

    def make_pool() -> Pool:
        return Pool(work, rebuild, measure=not reproducible, native=not reproducible)

    count = n_workers(lanes, device=where, reproducible=reproducible)
    # Workers are forked before the study file is opened: its writer is a thread, and a fork is simplest without.
    with pools(make_pool, admission, count) as pool, opened(storage, way) as (store, previous):
        if previous is not None:
            check_same(previous, facts)
            check_space(define, [t.spec for t in previous.trials if t.state is not TrialState.FAILED][:1], data.train.n)
        start = restore(
            previous,
            facts,
            asker=asker,
            store=store,
            direction=way,
            max_epochs=max_epochs,
            pauses=isinstance(scheme, Promoter),
        )
        history, weights = start.history, start.weights
        show(scheme, history)
        study = Study(history, define=define, data=data, asker=asker, store=store, weights=weights)
        session = Session(
            history,
            define=define,
            data=data,
            asker=asker,
            store=store,
            weights=weights,
            signer=signer,
            n_trials=n_trials,
            pending=start.pending,
            best_epoch=value == "best",
        )
        rules = Rules(max_epochs, history.sign, _value_of(chosen), value == "best")
        session.run(Engine(session, pool, scheme, rules, lanes, history.tick, start.paused), timeout_s, progress)
        study.interrupted, study.timed_out = session.interrupted, session.timed_out
        if not study.interrupted:
            score_winner(history, work, lambda spec: trained(spec, rebuild, weights))
        _write_down(history, weights, store)
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
    if any(options.get(key) is None for key in ("metric", "sampler")) or options.get("metrics", []) is None:
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


def _write_down(history: History, weights: WeightStore, store: StudyStore | None) -> None:
    """Say in the study file where everything lies, and commit it."""
    history.meta["weights"] = {str(n): file for n, file in sorted(weights.files.items())}
    history.meta["space"] = {k: v for spec in history.specs.values() for k, v in spec.distributions.items()}
    if store is not None:
        store.set_meta(history.meta)
        store.flush()


def _metrics(chosen: Metric | None, others: Sequence[Metric], target: torch.Tensor | None) -> tuple[Metric, ...]:
    """What is measured every epoch: what decides, what was asked for beside it, and what is standard; each name once."""
    found = {m.name: m for m in (*standard_metrics(target), *others, *([chosen] if chosen else []))}
    first = [chosen.name] if chosen else []
    return tuple(found[name] for name in dict.fromkeys([*first, *(m.name for m in others), *found]))


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


__all__ = ["Study", "resume", "tune"]
