"""Wall time: Optuna's TPE and SuccessiveHalvingPruner round a careful plain loop, beside ``shoal.tune``, for the same epochs.

The plain loop has its data in tensors, draws batches by index, uses torch's fused optimizers and one thread per process. Two
processes share a study through Optuna's journal file. Shoal has both cores too, and they take turns.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Final

import optuna
import torch
from compare import DEFAULT, ours
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from statistic import interval
from tasks import MAX_EPOCHS, Task, task_named

PROCESSES: Final = 2


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


def _worker(name: str, journal: str, seed: int, process: int, budget: int) -> None:
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

    study.optimize(objective, callbacks=[count])


def theirs(task: Task, seed: int, budget: int) -> tuple[float, int, float]:
    """Wall seconds, epochs and the best value of one study of Optuna's, from the start of its processes to their end."""
    with tempfile.TemporaryDirectory() as folder:
        journal = str(Path(folder) / "journal.log")
        optuna.create_study(study_name="s", storage=JournalStorage(JournalFileBackend(journal)))
        start = time.perf_counter()
        context = multiprocessing.get_context("fork")  # nothing is imported again
        workers = [
            context.Process(target=_worker, args=(task.name, journal, seed, k, budget // PROCESSES))
            for k in range(PROCESSES)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        wall_s = time.perf_counter() - start
        study = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(journal)))
        return wall_s, sum(len(t.intermediate_values) for t in study.trials), study.best_value


def main(tasks: list[Task], n_trials: int, seeds: int) -> None:
    """Print wall times of both, in turns, for the epochs that Shoal's default spends."""
    print(
        f"| task | epochs | Optuna, {PROCESSES} processes, s | Shoal, s | times | best loss, Optuna | best loss, Shoal |"
    )
    print("| --- |" + " --- |" * 6)
    for task in tasks:
        ours(task, DEFAULT, 8, 0)  # compilers' caches are warm from here on; cold ones are in whole_process.py
        rows = []
        for seed in range(seeds):
            start = time.perf_counter()
            mine = ours(task, DEFAULT, n_trials, seed)
            wall_s = time.perf_counter() - start
            their_s, their_epochs, their_best = theirs(task, seed, mine.epochs)
            scaled = their_s * mine.epochs / their_epochs  # a trial is not cut off where the budget ends
            rows.append((mine.epochs, scaled, wall_s, scaled / wall_s, their_best, mine.at(float("inf"))))
        columns = list(zip(*rows, strict=True))
        cells = [interval(c, 0 if i == 0 else 1 if i < 4 else 4) for i, c in enumerate(columns)]
        print(f"| {task.name} | {' | '.join(cells)} |", flush=True)
