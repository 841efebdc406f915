"""Searches compared: samplers and schedulers, recorded, replayed, simulated and for real.

usage: python benchmarks/search COMMAND [TASK ...] [options]

  record    train random configurations to the end and write their curves to curves/TASK.npz (--trials 2000)
  replay    every scheduler over random subsets of recorded curves (--repeats 50)
  compare   real searches at equal epochs: Shoal's default, Optuna's pruners, random, one epoch then top K (--seeds 10)
  wall      the default's wall time beside Optuna's with a plain loop, two processes (--trials 80 300 --seeds 3 --limit 120)
  widths    pausing and promoting at widths 8, 32 and 128, in simulated time over recorded curves (--seeds 20)
  simulate  variants of the default and Optuna's searches at equal epochs, in simulated time over recorded curves (--seeds 20)
  hpobench  regret on tables of trained networks, asked in waves (--seeds 10)

Tasks: digits, mnist, fashion, adult (tasks.py); those whose data are not installed are left out, and said to be.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import compare
import curves
import figures
import hpobench
import optuna
import plain
import replays
import torch
import variants
import widths
from simulated import Surrogate
from tasks import NAMES, Task, task_named

FOLDER = Path("curves")


def tasks_of(names: list[str]) -> list[Task]:
    """The tasks whose data are there."""
    found = {name: task_named(name) for name in names or NAMES}
    for name in (name for name, task in found.items() if task is None):
        print(f"{name}: left out, its data are not installed (see benchmarks/search/tasks.py)")
    return [task for task in found.values() if task is not None]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "replay", "compare", "wall", "widths", "simulate", "hpobench"))
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    parser.add_argument("--trials", type=int, nargs="+", help="recorded, or of Shoal's default; several sizes for wall")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that one search may take (wall)")
    parser.add_argument("--epochs", type=int, help="that the others may spend (compare: 810), or each (simulate: 650)")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--repeats", type=int, default=50, help="random draws (replay)")
    parser.add_argument("--out", type=Path, default=FOLDER / "compare.jsonl", help="results (compare)")
    parser.add_argument("--figure", type=Path, default=FOLDER / "search.png", help="loss against epochs (compare)")
    got = parser.parse_args()
    if unknown := set(got.tasks) - set(NAMES):
        parser.error(f"unknown task {unknown.pop()!r}: choose from {', '.join(NAMES)}")
    n_trials = got.trials[0] if got.trials else None
    warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if got.command == "hpobench":
        hpobench.main(got.seeds or 10, n_trials=100)
        return
    if got.command == "wall":
        torch.set_num_threads(1)  # what it forks could not use a team of threads
    tasks = tasks_of(got.tasks)
    names = [task.name for task in tasks]
    if got.command == "compare":
        for task in tasks:
            compare.compare(task, got.out, compare.METHODS, range(got.seeds or 10), n_trials or 80, got.epochs or 810)
        results = compare.load(got.out)
        figures.table(results, names)
        figures.figure(results, names, got.figure)
    elif got.command == "wall":
        plain.main(tasks, got.trials or (80, 300), got.seeds or 3, got.limit)
    else:
        for task in tasks:
            path = FOLDER / f"{task.name}.npz"
            if got.command == "record" or not path.exists():
                curves.record(task, path, (n_trials if got.command == "record" else None) or 2000)
            if got.command == "replay":
                replays.main(curves.load(path), n_trials or 200, 32, got.repeats)
            elif got.command == "widths":
                widths.main(task.name, Surrogate(curves.load(path)), (8, 32, 128), n_trials or 200, got.seeds or 20)
            elif got.command == "simulate":
                variants.main(task.name, Surrogate(curves.load(path)), got.epochs or 650, got.seeds or 20)


if __name__ == "__main__":
    main()
