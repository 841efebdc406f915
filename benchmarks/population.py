"""Population-based training against the best of as many fixed learning rates, with the same number of epochs.

usage: population.py [--seeds 10] [--population 16] [--epochs 20] [TASK ...]

Tasks: ``digits`` (scikit-learn's, a network of 32 hidden units), ``teacher`` (noisy regression). Both are trained by plain SGD in
small batches, where a large rate is fast and a small one ends lower, so that a schedule matters. ``fixed`` draws learning rate and
dropout for every trial at random, as the population's first ones are drawn, and keeps them. Each method's winner is chosen on the
validation split; the test split was never looked at before. Intervals are 95 % of the mean (Student's t), and of the paired
differences to ``fixed``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import nn

import shoal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

Split = tuple[torch.Tensor, torch.Tensor]


def digits_task() -> tuple[Callable[[Any], shoal.Recipe], tuple[Split, Split, Split]]:
    import digits

    def define(trial: Any) -> shoal.Recipe:
        p = trial.suggest_float("dropout", 0.0, 0.5)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(p), nn.Linear(32, 10))
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        return shoal.Recipe(model, torch.optim.SGD(model.parameters(), lr=lr), nn.CrossEntropyLoss(), 8)

    train, valid, test = digits.data()
    return define, (train, valid, test)


def teacher_task() -> tuple[Callable[[Any], shoal.Recipe], tuple[Split, Split, Split]]:
    made = torch.Generator().manual_seed(0)
    teacher = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for p in teacher.parameters():
            p.copy_(torch.randn(p.shape, generator=made))

    def split(n: int) -> Split:
        x = torch.randn(n, 12, generator=made)
        with torch.no_grad():
            return x, teacher(x) + torch.randn(n, 1, generator=made)

    def define(trial: Any) -> shoal.Recipe:
        p = trial.suggest_float("dropout", 0.0, 0.5)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Dropout(p), nn.Linear(16, 1))
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        return shoal.Recipe(model, torch.optim.SGD(model.parameters(), lr=lr), nn.MSELoss(), 4)

    return define, (split(800), split(2000), split(2000))


TASKS = {"digits": digits_task, "teacher": teacher_task}
METHODS = {"fixed": "none", "pbt": "pbt", "pb2": "pb2"}


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % confidence interval."""
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):+.4f} ± {half:.4f}"


def main(tasks: Sequence[str], seeds: int, population: int, epochs: int) -> None:
    for task in tasks:
        define, (train, valid, test) = TASKS[task]()
        print(f"{task}: {population} trials of {epochs} epochs, {seeds} seeds")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
        for seed in range(seeds):
            for name, scheduler in METHODS.items():
                start = time.perf_counter()
                study = shoal.tune(
                    define,
                    train=train,
                    valid=valid,
                    test=test,
                    metric="loss",
                    n_trials=population,
                    max_epochs=epochs,
                    sampler="random",
                    scheduler=scheduler,
                    seed=seed,
                    progress=False,
                )
                found[name].append((study.best_value, study.test_metrics["loss"]))
                took = time.perf_counter() - start
                print(
                    f"  seed {seed} {name:6} {found[name][-1][0]:.4f} {found[name][-1][1]:.4f} {took:.1f} s", flush=True
                )
        print(f"{'method':8} {'valid loss':20} {'test loss':20} {'valid, less fixed':20} test, less fixed")
        for name, pairs in found.items():
            valid_, test_ = zip(*pairs, strict=True)
            less = [
                [a - b for a, b in zip(mine, fixed, strict=True)]
                for mine, fixed in zip((valid_, test_), zip(*found["fixed"], strict=True), strict=True)
            ]
            print(f"{name:8} {interval(valid_):20} {interval(test_):20} {interval(less[0]):20} {interval(less[1])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    main(arguments.tasks, arguments.seeds, arguments.population, arguments.epochs)
