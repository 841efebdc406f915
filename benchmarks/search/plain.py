"""Wall time: Optuna's TPE and SuccessiveHalvingPruner round a careful plain loop, beside ``shoal.tune``, for the same epochs.

The plain loop has its data in tensors, draws batches by index, uses torch's fused optimizers and one thread per process. Two
processes share a study through Optuna's journal file. Shoal has both cores too, and they take turns: Shoal with an empty cache of
compiled code, Optuna, Shoal again with the cache that this left. CPU seconds count all processes, compilers included. Each search
is a process of its own, forked from one that has imported everything and trained nothing; imports are in ``whole_process.py``. A
search that is not over after ``limit_s`` is cut off and counts with the epochs that it had trained by then.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import optuna
import torch
from compare import search, trajectory_of
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from statistic import interval
from tasks import MAX_EPOCHS, Task, task_named

from shoal.lanes.workers import _import_ahead

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cores import cores_at_work, hold_to_cores

PROCESSES: Final = 2
# What a search may take beyond its limit, to end the epoch or trial that it is in.
_GRACE_S: Final = 30.0
_CONTEXT: Final = multiprocessing.get_context("fork")  # nothing is imported again


class Timed(NamedTuple):
    """One search: wall seconds, epochs of all trials, its best validation loss, and CPU seconds of all its processes."""

    wall_s: float
    epochs: int
    best: float
    cpu_s: float = math.nan

    def per_epoch(self) -> tuple[float, float]:
        """Wall and CPU seconds."""
        return self.wall_s / self.epochs, self.cpu_s / self.epochs


def train(task: Task, trial: optuna.Trial, seed: int) -> float:
    """One trial: its last validation loss. It reports after each epoch, and stops when told to.

    Raises:
        optuna.TrialPruned: The pruner says so.
    """
    (x, y), (x_valid, y_valid) = task.data()
    torch.manual_seed(1_000_003 * seed + trial.number)
    recipe = task.define(trial, fused=True)
    model, optimizer, loss_of = recipe.model, recipe.optimizer, recipe.loss
    value = float("nan")
    for epoch in range(1, MAX_EPOCHS + 1):
        model.train()
        for rows in torch.randperm(len(y)).split(recipe.batch_size):  # type: ignore[no-untyped-call]
            loss = loss_of(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if recipe.schedule is not None:
            recipe.schedule.step()
        model.eval()
        with torch.no_grad():
            value = loss_of(model(x_valid), y_valid).item()
        trial.report(value, epoch)
        if epoch < MAX_EPOCHS and trial.should_prune():
            raise optuna.TrialPruned
    return value


def _worker(name: str, journal: str, seed: int, process: int, budget: int, limit_s: float) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    task = task_named(name)
    assert task is not None
    splits = task.data()  # read once
    cached = Task(task.name, task.define, lambda: splits)
    study = optuna.load_study(
        study_name="s",
        storage=JournalStorage(JournalFileBackend(journal)),
        sampler=optuna.samplers.TPESampler(seed=PROCESSES * seed + process),
        pruner=optuna.pruners.SuccessiveHalvingPruner(),
    )
    spent = 0

    def objective(trial: optuna.Trial) -> float:
        return train(cached, trial, seed)

    def count(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal spent
        spent += len(trial.intermediate_values)
        if spent >= budget:
            study.stop()

    study.optimize(objective, callbacks=[count], timeout=limit_s)


def theirs(name: str, seed: int, budget: int, limit_s: float, folder: Path) -> Timed:
    """One study of Optuna's, from the start of its processes to their end."""
    journal = str(Path(tempfile.mkdtemp(dir=folder)) / "journal.log")
    study = optuna.create_study(study_name="s", storage=JournalStorage(JournalFileBackend(journal)))
    start = time.perf_counter()
    share = -(-budget // PROCESSES)
    workers = [
        _CONTEXT.Process(target=_worker, args=(name, journal, seed, k, share, limit_s)) for k in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wall_s = time.perf_counter() - start
    ended = study.get_trials(deepcopy=False)
    best = min((t.value for t in ended if t.value is not None), default=float("inf"))
    return Timed(wall_s, sum(len(t.intermediate_values) for t in ended), best)


def mine(name: str, seed: int, n_trials: int, limit_s: float, cache: Path) -> Timed:
    """One study of Shoal's default."""
    os.environ["SHOAL_CACHE"] = str(cache)
    task = task_named(name)
    assert task is not None
    splits = task.data()
    torch.set_num_threads(PROCESSES)
    start = time.perf_counter()
    study = search(task, splits, n_trials, seed, timeout_s=limit_s)
    wall_s = time.perf_counter() - start
    found = trajectory_of(study)
    return Timed(wall_s, sum(len(t.rows) for t in study.record.trials), found[-1][1] if found else float("inf"))


def _call(pipe: Any, function: Callable[..., Timed], args: Sequence[Any]) -> None:
    os.setpgrp()  # so that what it forks can be ended with it
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = function(*args)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    pipe.send(found._replace(cpu_s=sum(u.ru_utime + u.ru_stime for u in used)))


def alone(function: Callable[..., Timed], *args: Any, within_s: float) -> Timed | None:
    """What a search comes to in a process of its own; None if it failed, or hung and was killed."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    child = _CONTEXT.Process(target=_call, args=(sender, function, args))
    child.start()
    sender.close()
    try:
        if not receiver.poll(within_s):
            return None
        found: Timed = receiver.recv()
    except EOFError:
        return None
    else:
        return found
    finally:
        child.join(1.0)
        if child.is_alive():
            os.killpg(child.pid or 0, signal.SIGKILL)
        child.join()


def main(tasks: list[Task], sizes: Sequence[int], seeds: int, limit_s: float) -> None:
    """Print wall times of both, in turns, for the epochs that Shoal's default spends."""
    where = f"{hold_to_cores(PROCESSES)}, {platform.machine()}, torch {torch.__version__}"
    print(f"{where}; {PROCESSES} busy processes did {cores_at_work(PROCESSES):.1f} times the work of one before")
    heads = (
        "Optuna, s | Shoal, empty cache, s | Shoal, s | times, empty cache | times | CPU times, empty cache | CPU times"
    )
    print(f"| task | trials | epochs | {heads} | best loss, Optuna | best loss, Shoal |")
    print("| --- |" + " --- |" * 11)
    _import_ahead()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task in tasks:
            for n_trials in sizes:
                rows = [row for seed in range(seeds) if (row := turn(task.name, n_trials, seed, limit_s, folder))]
                columns = list(zip(*rows, strict=True))
                digits = (0, 1, 1, 1, 1, 1, 1, 1, 4, 4)
                cells = [interval(c, d) for c, d in zip(columns, digits, strict=bool(rows))]
                print(f"| {task.name} | {n_trials} | {' | '.join(cells)} |", flush=True)
    print(f"{PROCESSES} busy processes did {cores_at_work(PROCESSES):.1f} times the work of one after")


def turn(name: str, n_trials: int, seed: int, limit_s: float, folder: Path) -> tuple[float, ...] | None:
    """Shoal with an empty cache, Optuna, Shoal again; None, and said, if one of them did not end."""
    cache = folder / f"cache-{name}-{n_trials}-{seed}"
    within_s = limit_s + _GRACE_S
    cold = alone(mine, name, seed, n_trials, limit_s, cache, within_s=within_s)
    budget = cold.epochs if cold is not None else 0
    rival = alone(theirs, name, seed, budget, limit_s, folder, within_s=within_s) if budget else None
    warm = alone(mine, name, seed, n_trials, limit_s, cache, within_s=within_s) if rival else None
    if cold is None or rival is None or warm is None:
        print(f"{name}, {n_trials} trials, seed {seed}: left out, a search failed or hung", flush=True)
        return None
    n = cold.epochs  # for as many: a trial is not cut off where the budget ends
    walls, cpus = zip(*(found.per_epoch() for found in (rival, cold, warm)), strict=True)
    ratios = (walls[0] / walls[1], walls[0] / walls[2], cpus[0] / cpus[1], cpus[0] / cpus[2])
    return n, *(n * wall_s for wall_s in walls), *ratios, rival.best, cold.best
