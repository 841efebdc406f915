"""A study of many trials: how long it takes to open it, to read it, to go on with it, and to write its report.

    python benchmarks/large_study.py                        # 100,000 trials in an SQLite file
    python benchmarks/large_study.py --trials 10000 --storage postgresql://ann@localhost/tuning

The study is made up as ASHA would leave it: all trials see one epoch, a third of them three, a ninth nine. Going on with
it is `shoal.resume` for eight more trials of one epoch each, so what it takes beyond a second is the size of the study.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from torch import nn, optim

import shoal
from shoal.importances import importances
from shoal.records import EpochRow, Event, TrialResult, TrialSpec, TrialState
from shoal.report import write_report
from shoal.storage import StudyStore, load_study

SPACE = {
    "lr": distribution_to_json(FloatDistribution(1e-4, 1e-1, log=True)),
    "depth": distribution_to_json(IntDistribution(1, 4)),
    "act": distribution_to_json(CategoricalDistribution(["relu", "tanh", "gelu"])),
}
DATA = (torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3)
T = TypeVar("T")


def define(trial: optuna.Trial) -> shoal.Recipe:
    """The smallest model that uses the parameters of the made-up study."""
    trial.suggest_int("depth", 1, 4)
    act = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[
        trial.suggest_categorical("act", ["relu", "tanh", "gelu"])
    ]
    model = nn.Sequential(nn.Linear(8, 8), act(), nn.Linear(8, 3))
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size=32)


def fill(storage: str, n_trials: int) -> int:
    """Make the study up after a start that is real; returns the number of epochs."""
    keywords = {"n_trials": 1, "max_epochs": 9, "sampler": "random", "scheduler": "none", "progress": False}
    shoal.tune(define, train=DATA, metric="accuracy", storage=storage, **keywords)  # type: ignore[arg-type]
    draw, n_epochs = random.Random(0), 0
    with StudyStore.open(storage, name="shoal", direction="maximize") as store:
        for start in range(1, n_trials, 2000):
            numbers = range(start, min(start + 2000, n_trials))
            params: list[dict[str, Any]] = [
                {
                    "lr": 10 ** draw.uniform(-4, -1),
                    "depth": draw.randint(1, 4),
                    "act": draw.choice(["relu", "tanh", "gelu"]),
                }
                for _ in numbers
            ]
            store.asked([TrialSpec(n, n, p, SPACE) for n, p in zip(numbers, params, strict=True)])
            results, events = [], []
            for n in numbers:
                epochs = draw.choices((1, 3, 9), (6, 2, 1))[0]
                seen = ((e, {"loss": 1 / e, "accuracy": 0.5}) for e in range(1, epochs + 1))
                rows = [EpochRow(n, e, 1 / e, draw.random(), metrics, n / 50) for e, metrics in seen]
                store.recorded(rows)
                n_epochs += epochs
                state = TrialState.FINISHED if epochs == 9 else TrialState.STOPPED
                results.append(TrialResult(n, state, rows[-1].value, epochs, "", n / 50))
                events += [
                    Event(n // 50 + i, kind, n, 0, n % 64, {}, n / 50) for i, kind in enumerate(("admitted", "left"))
                ]
            store.ended(results)
            store.happened(events)
            store.flush()
    return n_epochs


def timed(what: str, work: Callable[[], T]) -> T:
    """Do it, and print how long it took and how much memory the process has held at most."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:<20}{wall_s:8.1f} s   computing {cpu_s:6.1f} s   peak memory {peak:5.2f} GiB", flush=True)
    return result


def main() -> None:
    """Make the study and use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--storage", default=None)
    parser.add_argument("--sampler", default="random")
    arguments = parser.parse_args()
    n: int = arguments.trials
    with tempfile.TemporaryDirectory() as folder:
        storage = arguments.storage or str(Path(folder) / "large.db")
        n_epochs = timed("make it up", lambda: fill(storage, n))
        print(f"{n:,} trials, {n_epochs:,} epochs")
        timed("open and close", lambda: StudyStore.open(storage, name="shoal", direction="maximize").close())
        record = timed("read", lambda: load_study(storage))
        shares = timed("importances", lambda: importances(record))
        page = timed("write the report", lambda: write_report(record, Path(folder) / "large.html", shares))
        print(f"report: {page.stat().st_size / 2**20:.1f} MiB")
        timed("go on for 8 trials", lambda: shoal.resume(storage, define, train=DATA, n_trials=n + 8, progress=False))


if __name__ == "__main__":
    main()
