"""Schedulers compared: learning curves recorded once, then replayed in simulated time; and real searches over seeds.

usage:
  search.py record OUT.npz [--trials 2000] [--epochs 30] [--seed 0]
  search.py replay CURVES.npz [--trials 200] [--lanes 32] [--repeats 50] [--metric loss]
  search.py run [--trials 200] [--epochs 30] [--seeds 10] [--sampler tpe] [SCHEDULER ...]

``record`` trains random configurations of examples/digits.py to the end. ``replay`` shows every scheduler random subsets
of them in a random order: what it spent, how good the best trial was that it finished, and that at equal epochs.
``run`` searches for real, since a sampler that learns cannot be replayed. Intervals are 95 % of the mean (Student's t).

An ``npz`` of curves holds ``loss`` and ``accuracy`` (trials, epochs) as float32, NaN from where a trial diverged, ``params``
(trials,) as JSON, and ``task``. ``numpy.load`` opens it without pickle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from shoal.schedulers import SCHEDULERS, Asha, Scheduler, SuccessiveHalving, TopK
from shoal.schedulers.simulation import simulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

# What is replayed beyond the schedulers by name: (max_epochs, n_trials) -> scheduler.
VARIANTS: dict[str, Callable[[int, int], Scheduler]] = {
    **SCHEDULERS,
    "asha from 1 up": lambda r, n: Asha(r, min_epochs=1, n_trials=n),
    "asha from 3 up": lambda r, n: Asha(r, min_epochs=3, n_trials=n),
    "asha from 1 up, eta 2": lambda r, n: Asha(r, min_epochs=1, eta=2, n_trials=n),
    "asha_stop from 1 up": lambda r, n: Asha(r, min_epochs=1, promote=False),
    "halving from 1 up": lambda r, n: SuccessiveHalving(r, min_epochs=1),
    "top_k, k = 10": lambda r, n: TopK(10),
}


def record(out: Path, n_trials: int, max_epochs: int, seed: int) -> None:
    """Train random configurations of the digits example to the end and write their curves down."""
    import digits
    import shoal

    train, valid, _ = digits.data()
    start = time.perf_counter()
    study = shoal.tune(
        digits.define,
        train=train,
        valid=valid,
        metric="accuracy",
        n_trials=n_trials,
        max_epochs=max_epochs,
        sampler="random",
        scheduler="none",
        seed=seed,
    )
    trials = study.record.trials
    curves = {name: np.full((len(trials), max_epochs), np.nan, dtype=np.float32) for name in ("loss", "accuracy")}
    for t in trials:
        for row in t.rows:
            for name, array in curves.items():
                array[t.spec.number, row.epoch - 1] = row.metrics[name]
    params = np.array([json.dumps(dict(t.spec.params)) for t in trials])
    np.savez_compressed(out, task=np.array("digits"), params=params, **curves)  # type: ignore[arg-type]
    print(f"{out}: {len(trials)} trials of {max_epochs} epochs, {time.perf_counter() - start:.0f} s")


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % confidence interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.4f} ± {half:.4f}"


def replay(curves: Path, n_trials: int, lanes: int, repeats: int, metric: str) -> None:
    """Every scheduler over the same random subsets of recorded curves."""
    with np.load(curves, allow_pickle=False) as data:
        values: NDArray[np.float64] = data[metric].astype(np.float64)
    sign = 1.0 if metric == "loss" else -1.0
    values = np.nan_to_num(sign * values, nan=np.inf)
    max_epochs = values.shape[1]
    budget = n_trials * max_epochs // 10
    print(
        f"{len(values)} recorded trials of {max_epochs} epochs, {n_trials} at a time in {lanes} lanes, {repeats} draws"
    )
    print(f"{'scheduler':24} {'epochs':>8} {'finished':>8}   {'best ' + metric:18} best {metric} after {budget} epochs")
    rng = np.random.default_rng(0)
    draws = [rng.permutation(len(values)) for _ in range(repeats)]
    for name, make in VARIANTS.items():
        spent, finished, best, at_budget = [], [], [], []
        for order in draws:
            outcome = simulate(make(max_epochs, n_trials), values[order[:n_trials]].tolist(), lanes=lanes)
            spent.append(outcome.spent[-1])
            finished.append(len(outcome.finished))
            best.append(sign * outcome.best[-1])
            # At equal epochs: as many trials as the budget is good for, by the share that this scheduler spends of one.
            n = min(len(order), max(1, round(n_trials * budget / outcome.spent[-1])))
            again = simulate(make(max_epochs, n), values[order[:n]].tolist(), lanes=lanes)
            at_budget.append(sign * again.best[-1])
        print(
            f"{name:24} {statistics.fmean(spent):8.0f} {statistics.fmean(finished):8.1f}   {interval(best):18} "
            f"{interval(at_budget)}",
            flush=True,
        )


def run(schedulers: Sequence[str], n_trials: int, max_epochs: int, seeds: int, sampler: str, metric: str) -> None:
    """Search for real: epochs, wall time and the best value on the validation split, over seeds."""
    import digits
    import shoal

    train, valid, _ = digits.data()
    print(f"digits, {n_trials} trials of at most {max_epochs} epochs, sampler {sampler}, {seeds} seeds")
    print(f"{'scheduler':24} {'epochs':>8} {'finished':>8} {'wall s':>7}   best {metric}")
    for name in schedulers:
        epochs, wall, best, finished = [], [], [], []
        for seed in range(seeds):
            start = time.perf_counter()
            study = shoal.tune(
                digits.define,
                train=train,
                valid=valid,
                metric=metric,
                n_trials=n_trials,
                max_epochs=max_epochs,
                sampler=sampler,
                scheduler=VARIANTS[name](max_epochs, n_trials),
                seed=seed,
                progress=False,
            )
            wall.append(time.perf_counter() - start)
            epochs.append(sum(len(t.rows) for t in study.record.trials))
            best.append(study.best_value)
            finished.append(sum(len(t.rows) == max_epochs for t in study.record.trials))
        print(
            f"{name:24} {statistics.fmean(epochs):8.0f} {statistics.fmean(finished):8.1f} {statistics.median(wall):7.1f}   "
            f"{interval(best)}",
            flush=True,
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record")
    one.add_argument("out", type=Path)
    one.add_argument("--trials", type=int, default=2000)
    one.add_argument("--epochs", type=int, default=30)
    one.add_argument("--seed", type=int, default=0)
    two = commands.add_parser("replay")
    two.add_argument("curves", type=Path)
    two.add_argument("--trials", type=int, default=200)
    two.add_argument("--lanes", type=int, default=32)
    two.add_argument("--repeats", type=int, default=50)
    two.add_argument("--metric", choices=("loss", "accuracy"), default="loss")
    three = commands.add_parser("run")
    three.add_argument("schedulers", nargs="*", default=["none", "asha", "hyperband", "top_k"], metavar="SCHEDULER")
    three.add_argument("--trials", type=int, default=200)
    three.add_argument("--epochs", type=int, default=30)
    three.add_argument("--seeds", type=int, default=10)
    three.add_argument("--sampler", default="tpe")
    three.add_argument("--metric", choices=("loss", "accuracy"), default="loss")
    got = parser.parse_args()
    if got.command == "record":
        record(got.out, got.trials, got.epochs, got.seed)
    elif got.command == "replay":
        replay(got.curves, got.trials, got.lanes, got.repeats, got.metric)
    else:
        run(got.schedulers, got.trials, got.epochs, got.seeds, got.sampler, got.metric)


if __name__ == "__main__":
    main()
