"""What extensions cost and what they gain: CPU time of training with and without, and the share of poor starts that end well.

``cost``: the same 32 trials of an MLP 64-64-64-10 in one process, with few epochs and with many; the difference of the CPU times is
steady state, evaluation included. ``starts``: scikit-learn's digits, learning rates from 1e-5 to 1, with each way of moving them; a
start ends well if its accuracy is within 0.01 of the best of its optimizer.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import shoal
from shoal.extend import Extension, LearningRate

Parameters = Any
BASE = "adam"

# name -> (optimizer, extensions): what training is compared with is ``BASE``.
COSTS: dict[str, tuple[Callable[[Parameters], torch.optim.Optimizer], Sequence[Extension]]] = {
    BASE: (lambda p: torch.optim.Adam(p, lr=1e-3), []),
    "adam, learning rate, additive": (
        lambda p: torch.optim.Adam(p, lr=1e-3),
        [LearningRate(rule="additive", step=1e-6)],
    ),
    "adam, learning rate, multiplicative": (lambda p: torch.optim.Adam(p, lr=1e-3), [LearningRate(step=0.02)]),
    "AdamWScheduleFree": (lambda p: shoal.optim.AdamWScheduleFree(p), []),
    "Prodigy": (lambda p: shoal.optim.Prodigy(p), []),
    "DAdaptAdam": (lambda p: shoal.optim.DAdaptAdam(p), []),
}

OPTIMIZERS: dict[str, Callable[[Parameters, float], torch.optim.Optimizer]] = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "AdamWScheduleFree": lambda p, lr: shoal.optim.AdamWScheduleFree(p, lr=lr),
    "SGDScheduleFree": lambda p, lr: shoal.optim.SGDScheduleFree(p, lr=lr),
    "Prodigy": lambda p, lr: shoal.optim.Prodigy(p, d0=1e-6 * lr / 1e-3),
    "DAdaptAdam": lambda p, lr: shoal.optim.DAdaptAdam(p, d0=1e-6 * lr / 1e-3),
}
MOVES: dict[str, Callable[[str], Sequence[Extension]]] = {
    "fixed": lambda optimizer: [],
    "additive": lambda optimizer: [
        LearningRate(rule="additive", step=1e-6 if optimizer == "adam" else 1e-2, bounds=(0, 2))
    ],
    "multiplicative": lambda optimizer: [LearningRate(step=0.05, bounds=(0, 2))],
}
MOVABLE = ("sgd", "momentum", "adam")


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def blobs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples (n, 64) with the labels that a linear map gives."""
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))
    rule = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    return x, (x @ rule).argmax(1)


def training_s(name: str, epochs: int, n_trials: int) -> float:
    """CPU seconds of one study in which every trial trains so many epochs."""
    make, extensions = COSTS[name]

    def define(trial: optuna.Trial) -> shoal.Recipe:
        trial.suggest_float("nothing", 0, 1)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        return shoal.Recipe(model, make(model.parameters()), nn.CrossEntropyLoss(), 32, extensions=extensions)

    before = cpu_s()
    shoal.tune(
        define,
        train=blobs(2048, 1),
        valid=blobs(256, 2),
        n_trials=n_trials,
        max_epochs=epochs,
        sampler="random",
        scheduler="none",
        progress=False,
    )
    return cpu_s() - before


def cost(args: argparse.Namespace) -> None:
    """Print the table of costs."""
    torch.set_num_threads(1)
    few, many = args.epochs
    training_s(BASE, 1, args.trials)  # whatever a process loads and builds is there for all that count
    per_step: dict[str, list[float]] = {name: [] for name in COSTS}
    for _ in range(args.repeats):
        for name in COSTS:
            spent = training_s(name, many, args.trials) - training_s(name, few, args.trials)
            per_step[name].append(1e6 * spent / ((many - few) * args.trials * 64))
    base = statistics.median(per_step[BASE])
    print("| | CPU us per lane-step | times |\n| --- | --- | --- |")
    for name, values in per_step.items():
        us = statistics.median(values)
        print(f"| {name} | {us:.1f} | {us / base:.2f} |", flush=True)


def starts(args: argparse.Namespace) -> None:
    """Print the table of starts."""
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x / 16.0, dtype=torch.float32)
    y = torch.tensor(y)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    train, valid = order[:1437], order[1437:]
    rates = [10.0**e for e in np.linspace(-5, 0, args.rates)]
    cases = [f"{o}, {m}" for o in OPTIMIZERS for m in (MOVES if o in MOVABLE else ["fixed"])]

    def define(trial: optuna.Trial) -> shoal.Recipe:
        optimizer, _, moves = trial.suggest_categorical("case", cases).partition(", ")
        lr = trial.suggest_categorical("lr", rates)
        trial.suggest_categorical("replica", list(range(args.replicas)))  # the trial's seed makes other weights
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        made = OPTIMIZERS[optimizer](model.parameters(), lr)
        return shoal.Recipe(model, made, nn.CrossEntropyLoss(), 32, extensions=MOVES[moves](optimizer))

    study = shoal.tune(
        define,
        train=(x[train], y[train]),
        valid=(x[valid], y[valid]),
        metric="accuracy",
        n_trials=len(cases) * len(rates) * args.replicas,
        max_epochs=args.max_epochs,
        sampler="grid",
        scheduler="none",
        progress=False,
    )
    found: dict[str, dict[float, list[float]]] = {c: {r: [] for r in rates} for c in cases}
    for t in study.record.trials:
        value = t.value if t.value is not None and t.state == "finished" else math.nan
        found[str(t.spec.params["case"])][float(t.spec.params["lr"] or 0)].append(value)
    print("| optimizer | learning rate | starts within 0.01 of the best | best | worst |\n|" + " --- |" * 5)
    for case in cases:
        optimizer, _, moves = case.partition(", ")
        peers = [v for c in cases if c.startswith(f"{optimizer},") for vs in found[c].values() for v in vs]
        best = np.nanmax(peers)
        mine = [v for vs in found[case].values() for v in vs]
        good = sum(v >= best - 0.01 for v in mine)
        worst = min(0.0 if math.isnan(v) else v for v in mine)
        print(f"| {optimizer} | {moves} | {good} of {len(mine)} | {np.nanmax(mine):.3f} | {worst:.3f} |")


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "starts"])
    parser.add_argument("--trials", type=int, default=32, help="cost: lanes")
    parser.add_argument("--epochs", type=int, nargs=2, default=[2, 22], help="cost: epochs of the two runs")
    parser.add_argument("--repeats", type=int, default=3, help="cost: how often; the median counts")
    parser.add_argument("--rates", type=int, default=11, help="starts: learning rates from 1e-5 to 1")
    parser.add_argument("--replicas", type=int, default=2, help="starts: trials per learning rate")
    parser.add_argument("--max-epochs", type=int, default=20, help="starts: epochs of a trial")
    args = parser.parse_args()
    {"cost": cost, "starts": starts}[args.what](args)


if __name__ == "__main__":
    main()
