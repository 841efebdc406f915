"""Every scheduler over the same random subsets of recorded curves, in simulated time: seconds instead of hours.

A sampler that learns cannot be replayed; ``simulated.py`` and ``compare.py`` are for those. Freeze-thaw, which fits every curve
again and again, takes seconds where the others take hundredths, and gets a tenth of the draws.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from curves import Curves
from statistic import interval

from shoal.schedulers import SCHEDULERS, Asha, Scheduler, SuccessiveHalving, TopK
from shoal.schedulers.simulation import simulate

# What is replayed: (max_epochs, n_trials) -> scheduler. Those that change hyperparameters have no curves to replay.
VARIANTS: Final[Mapping[str, Callable[[int, int], Scheduler]]] = {
    **{name: make for name, make in SCHEDULERS.items() if name not in ("pbt", "pb2")},
    "asha from 1 up": lambda r, n: Asha(r, min_epochs=1, n_trials=n),
    "asha from 3 up": lambda r, n: Asha(r, min_epochs=3, n_trials=n),
    "asha from 1 up, eta 2": lambda r, n: Asha(r, min_epochs=1, eta=2, n_trials=n),
    "asha from 1 up, eta 4": lambda r, n: Asha(r, min_epochs=1, eta=4, n_trials=n),
    "asha_stop from 1 up": lambda r, n: Asha(r, min_epochs=1, promote=False),
    "halving from 1 up": lambda r, n: SuccessiveHalving(r, min_epochs=1),
    "top_k, k = 3": lambda r, n: TopK(3),
    "top_k, k = 10": lambda r, n: TopK(10),
}


def main(curves: Curves, n_trials: int, lanes: int, repeats: int) -> None:
    """Print what each scheduler spent, the best it finished, and that at equal epochs: a tenth of full training."""
    values = curves.loss
    max_epochs = values.shape[1]
    budget = n_trials * max_epochs // 10
    print(f"\n{curves.task}: {len(values)} recorded, {n_trials} at a time in {lanes} lanes, {repeats} draws\n")
    print(f"| scheduler | draws | epochs | finished | best loss | after {budget} epochs |")
    print("| --- |" + " --- |" * 5)
    rng = np.random.default_rng(0)
    draws = [rng.permutation(len(values)) for _ in range(repeats)]
    for name, make in VARIANTS.items():
        spent, finished, best, at_budget = [], [], [], []
        some = draws[: max(2, repeats // 10)] if name == "freeze_thaw" else draws
        for order in some:
            outcome = simulate(make(max_epochs, n_trials), values[order[:n_trials]].tolist(), lanes=lanes)
            spent.append(outcome.spent[-1])
            finished.append(len(outcome.finished))
            best.append(outcome.best[-1])
            # As many trials as the budget is good for, by the share that this scheduler spends of one.
            n = min(len(order), max(1, round(n_trials * budget / outcome.spent[-1])))
            at_budget.append(simulate(make(max_epochs, n), values[order[:n]].tolist(), lanes=lanes).best[-1])
        cells = [str(len(some)), f"{statistics.fmean(spent):.0f}", f"{statistics.fmean(finished):.1f}", interval(best)]
        print(f"| {name} | {' | '.join(cells)} | {interval(at_budget)} |", flush=True)
