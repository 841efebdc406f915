"""Variants of the default and Optuna's searches at equal epochs, in simulated time over recorded curves.

Each variant gets as many trials as make it spend the budget, found on seeds of their own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rivals import RIVALS
from simulated import Surrogate, at, optuna_search, shoal_search
from statistic import interval
from tasks import MAX_EPOCHS

from shoal.samplers import SamplerArgument
from shoal.schedulers import SCHEDULERS, Asha, Scheduler


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to search: trials in all -> scheduler, trials at a time, sampler."""

    scheduler: Callable[[int], Scheduler]
    lanes: int = 32
    sampler: SamplerArgument = "tpe"


def _asha(**options: Any) -> Callable[[int], Scheduler]:
    return lambda n: Asha(MAX_EPOCHS, n_trials=n, **options)


VARIANTS: Final[Mapping[str, Variant]] = {
    "the default": Variant(_asha()),
    "16 lanes": Variant(_asha(), lanes=16),
    "8 lanes": Variant(_asha(), lanes=8),
    "eta 4": Variant(_asha(eta=4)),
    "from 1 up": Variant(_asha(min_epochs=1)),
    "from 1 up, eta 4": Variant(_asha(min_epochs=1, eta=4)),
    "from 1 up, 16 lanes": Variant(_asha(min_epochs=1), lanes=16),
    "from 1 up, eta 4, 16 lanes": Variant(_asha(min_epochs=1, eta=4), lanes=16),
    "random": Variant(_asha(), sampler="random"),
    "one epoch, then top K": Variant(lambda n: SCHEDULERS["top_k"](MAX_EPOCHS, n), sampler="random"),
    "one epoch, then top K, TPE": Variant(lambda n: SCHEDULERS["top_k"](MAX_EPOCHS, n)),
}


def _search(surrogate: Surrogate, variant: Variant, n_trials: int, seed: int) -> tuple[int, float]:
    found = shoal_search(
        surrogate,
        variant.scheduler(n_trials),
        n_trials=n_trials,
        lanes=min(variant.lanes, n_trials),
        seed=seed,
        max_epochs=MAX_EPOCHS,
        sampler=variant.sampler,
    )
    return found.trajectory[-1]


def _trials_for(surrogate: Surrogate, variant: Variant, budget: int, seeds: range) -> int:
    """How many trials cost the budget, within a hundredth or three tries."""
    n = 80
    for _ in range(3):
        spent = statistics.fmean(_search(surrogate, variant, n, seed)[0] for seed in seeds)
        n = max(4, round(n * budget / spent))
        if abs(spent - budget) < budget / 100:
            break
    return n


def main(name: str, surrogate: Surrogate, budget: int, seeds: int, only: str = "") -> None:
    """Print what each variant comes to."""
    print(f"\n{name}: {budget} epochs in simulated time, {seeds} seeds\n")
    print("| search | trials | epochs | best loss | less the default |\n| --- | --- | --- | --- | --- |")
    base: list[float] = []
    for words, variant in VARIANTS.items():
        if only and words != "the default" and only not in words:
            continue
        n = _trials_for(surrogate, variant, budget, range(1000, 1006))
        found = [_search(surrogate, variant, n, seed) for seed in range(seeds)]
        best = [value for _, value in found]
        base = base or best
        less = interval([b - a for a, b in zip(base, best, strict=True)], sign="+")
        print(
            f"| {words} | {n} | {statistics.fmean(e for e, _ in found):.0f} | {interval(best)} | {less} |", flush=True
        )
    for words, make in RIVALS.items():
        if only and only not in words:
            continue
        best = []
        for seed in range(seeds):
            sampler, pruner = make(seed)
            got = optuna_search(surrogate, sampler, pruner, budget=budget, max_epochs=MAX_EPOCHS)
            best.append(at(got, budget))
        less = interval([b - a for a, b in zip(base, best, strict=True)], sign="+")
        print(f"| {words} | | {budget} | {interval(best)} | {less} |", flush=True)
