"""Pausing and promoting at several widths, in simulated time: which trials the sampler's model chose, and what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from simulated import Surrogate, shoal_search
from statistic import interval
from tasks import MAX_EPOCHS

from shoal.schedulers import Asha

SHOWS: Final = {"paused and passed": "rungs", "paused": "paused", "neither": "nothing"}


def main(name: str, surrogate: Surrogate, widths: Sequence[int], n_trials: int, seeds: int) -> None:
    """Print one row per width and per what the sampler sees of unfinished trials."""
    print(f"\n{name}: {n_trials} trials, ASHA and TPE in simulated time, {seeds} seeds\n")
    print(
        "| width | TPE is shown trials that are | chosen by its model | epochs | best loss | after 400 epochs | after 800 |"
    )
    print("| --- |" + " --- |" * 6)
    for width in widths:
        for words, shows in SHOWS.items():
            found = [
                shoal_search(
                    surrogate,
                    Asha(MAX_EPOCHS, n_trials=n_trials),
                    n_trials=n_trials,
                    lanes=width,
                    seed=seed,
                    max_epochs=MAX_EPOCHS,
                    shows=shows,
                )
                for seed in range(seeds)
            ]
            share = 100 * statistics.fmean(f.modelled / n_trials for f in found)
            spent = statistics.fmean(f.trajectory[-1][0] for f in found)
            best = interval([f.trajectory[-1][1] for f in found])
            after = [
                interval([min((v for e, v in f.trajectory if e <= n), default=float("inf")) for f in found])
                for n in (400, 800)
            ]
            print(f"| {width} | {words} | {share:.0f} % | {spent:.0f} | {best} | {' | '.join(after)} |", flush=True)
