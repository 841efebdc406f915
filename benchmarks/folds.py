"""What five folds under three seeds cost, against one lane: the same small network on digits, one trial each.

usage: folds.py [--epochs 30] [--repeats 5]

Each study has one trial, so that nothing but its own parts can fill lanes. A warm-up of each comes first (imports, native kernels).
The first time is that of the search: signing, tracing, measuring, training. The second is of the whole call of ``tune``, with
reading, scoring and, where there are folds, the winner's last training in a plain loop. Fastest of all repeats, since other
programs only ever add to a time.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import shoal

INPUTS, CLASSES = load_digits(return_X_y=True)
DATA = torch.tensor(INPUTS / 16.0, dtype=torch.float32), torch.tensor(CLASSES)
STUDIES: dict[str, dict[str, Any]] = {
    "one lane": {"valid": 0.2},
    "5 folds": {"folds": 5},
    "3 seeds": {"valid": 0.2, "seeds": 3},
    "5 folds x 3 seeds": {"folds": 5, "seeds": 3},
}


def define(trial: Any) -> shoal.Recipe:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-3))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size=32)


def seconds(epochs: int, options: dict[str, Any]) -> tuple[float, float]:
    """(of the search, of the whole call)."""
    started = time.perf_counter()
    study = shoal.tune(define, train=DATA, n_trials=1, max_epochs=epochs, scheduler="none", progress=False, **options)
    return float(str(study.record.meta["elapsed_s"])), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for options in STUDIES.values():
        seconds(2, options)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STUDIES}
    for _ in range(args.repeats):  # in turns, so that a busy machine is busy for all
        for name, options in STUDIES.items():
            found[name].append(seconds(args.epochs, options))
    best = {name: [min(times) for times in zip(*both, strict=True)] for name, both in found.items()}
    for name, (search_s, whole_s) in best.items():
        one = best["one lane"]
        ratios = f"{search_s / one[0]:.2f} and {whole_s / one[1]:.2f} times one lane"
        print(f"{name:<18} search {search_s:6.2f} s, whole call {whole_s:6.2f} s: {ratios}")


if __name__ == "__main__":
    main()
