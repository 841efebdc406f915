"""Whole-process wall time: Shoal against Optuna with a plain loop, on the same work, in the same run, taking turns.

Every run is a new process with empty compiler caches; imports, tracing, compiling, asking, training, evaluating and
writing the study file all count. Both train every trial to the last epoch. The baseline uses two processes of one
thread, so both sides are held to the same two cores where the system lets us.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cores import cores_at_work, hold_to_cores

HERE = Path(__file__).resolve().parent
PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Run:
    """One process: who ran, under which seed, its wall seconds, its trial-epochs and its best validation accuracy."""

    who: str
    seed: int
    wall_s: float
    epochs: int
    best: float


def command(who: str, n_trials: int, max_epochs: int, seed: int, folder: Path) -> list[str]:
    """The command line of one side."""
    storage = f"sqlite:///{folder / 'study.db'}"
    if who == "shoal":
        return [sys.executable, str(HERE / "shoal_digits.py"), str(n_trials), str(max_epochs), storage, str(seed)]
    script = str(HERE / "optuna_digits.py")
    return [sys.executable, script, "tensor", str(n_trials), str(max_epochs), storage, str(PROCESSES), str(seed)]


def measure(who: str, n_trials: int, max_epochs: int, seed: int) -> Run:
    """Run one side in a new process with empty caches.

    Raises:
        RuntimeError: the process failed, or did not run every trial: then its time means nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "XDG_CACHE_HOME": "xdg"}
        # PRUNE is the baseline's own switch for early stopping.
        env = os.environ | {key: str(folder / sub) for key, sub in caches.items()} | {"PRUNE": "0"}
        line = command(who, n_trials, max_epochs, seed, folder)
        start = time.perf_counter()
        child = subprocess.run(line, env=env, cwd=folder, capture_output=True, text=True)
        wall_s = time.perf_counter() - start
    if child.returncode:
        raise RuntimeError(f"{' '.join(line)} exited with {child.returncode}:\n{child.stderr}")
    found = re.search(r"trials=(\d+) epochs=(\d+) .*best=(\S+)", child.stdout)
    if found is None or int(found[1]) != n_trials:
        raise RuntimeError(f"{' '.join(line)} must run {n_trials} trials, but printed:\n{child.stdout}\n{child.stderr}")
    return Run(who, seed, wall_s, int(found[2]), float(found[3]))


def table(runs: list[Run]) -> str:
    """The runs as a Markdown table, with the medians, means and ratio that a claim may quote."""
    lines = ["| | seed | wall s | trial-epochs | best accuracy |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r.who} | {r.seed} | {r.wall_s:.1f} | {r.epochs} | {r.best:.4f} |" for r in runs]
    walls = {who: statistics.median(r.wall_s for r in runs if r.who == who) for who in ("optuna", "shoal")}
    bests = {who: statistics.fmean(r.best for r in runs if r.who == who) for who in walls}
    lines += [f"| **{who}: median, mean** | | {walls[who]:.1f} | | {bests[who]:.4f} |" for who in walls]
    ratio = walls["optuna"] / walls["shoal"]
    return "\n".join([*lines, "", f"Shoal takes 1/{ratio:.2f} of the time (median over median)."])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="trials; even, because the baseline halves them")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of every trial")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="for example: --seeds 0 1 2 3 4")
    args = parser.parse_args()
    if args.n < PROCESSES or args.n % PROCESSES:
        parser.error(f"--n must be a positive multiple of {PROCESSES}, the baseline's processes; got {args.n}")
    where = f"{hold_to_cores(PROCESSES)}, {platform.machine()}, Python {platform.python_version()}"
    print(f"{args.n} trials of {args.epochs} epochs, no early stopping; {where}")
    before = cores_at_work(PROCESSES)
    runs: list[Run] = []
    for seed in args.seeds:
        for repeat in range(args.repeats):
            # Who goes first changes, so that a machine that slows down does so for both.
            for who in ("optuna", "shoal") if repeat % 2 == 0 else ("shoal", "optuna"):
                runs.append(measure(who, args.n, args.epochs, seed))
                print(f"{who} seed {seed}: {runs[-1].wall_s:.1f} s", file=sys.stderr, flush=True)
    after = cores_at_work(PROCESSES)
    print(f"{PROCESSES} busy processes did {before:.1f} (before) and {after:.1f} (after) times the work of one\n")
    print(table(runs))


if __name__ == "__main__":
    main()
