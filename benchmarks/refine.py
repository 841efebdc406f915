"""GradientRefine against TPE and random search: trials until the best validation loss so far is as low as a target.

An MLP 64-64-10 with dropout on scikit-learn's digits, Adam; the learning rate, weight decay, dropout rate and label smoothing are
sampled. Every trial trains to the end, since a stopped one is not comparable by its loss alone. The target is what the best
of 20 random trials (under other seeds) has in the median; a study that never gets there counts as one
trial more than it had.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import shoal

Pair = tuple[Tensor, Tensor]


def digits(n: int) -> tuple[Pair, Pair]:
    """``n`` samples to train on and 600 to judge by."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    return (x[order[:n]], y[order[:n]]), (x[order[-600:]], y[order[-600:]])


def define(trial: optuna.Trial) -> shoal.Recipe:
    """One trial."""
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(trial.suggest_float("dropout", 0.0, 0.8)), nn.Linear(64, 10)
    )
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=lr, weight_decay=trial.suggest_float("decay", 1e-6, 1e-1, log=True)
    )
    loss = nn.CrossEntropyLoss(label_smoothing=trial.suggest_float("smoothing", 0.0, 0.3))
    return shoal.Recipe(model, optimizer, loss, 32)


def losses(args: argparse.Namespace, sampler: Any, seed: int) -> tuple[list[float], float]:
    """The plain validation loss of each trial of a study, in their order, and the seconds that it took."""
    train, valid = digits(args.samples)
    before = time.perf_counter()
    study = shoal.tune(
        define,
        train=train,
        valid=valid,
        metric=_cross_entropy,
        direction="minimize",
        n_trials=args.trials,
        max_epochs=args.max_epochs,
        sampler=sampler,
        scheduler="none",
        seed=seed,
        progress=False,
    )
    values = [float("inf") if t.value is None else t.value for t in study.record.trials]
    return values, time.perf_counter() - before


def _cross_entropy(outputs: Tensor, targets: Tensor) -> float:
    """Without smoothing, so that trials compare."""
    return float(nn.functional.cross_entropy(outputs, targets))


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--max-epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=400, help="to train on")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--target-trials", type=int, default=20, help="random trials whose best is the target")
    args = parser.parse_args()
    samplers: dict[str, Any] = {
        "random": "random",
        "tpe": "tpe",
        "gradient_refine": shoal.GradientRefine(),
        "gradient_refine, unrolled": shoal.GradientRefine(method="unrolled", unroll=10),
    }
    found = [losses(args, "random", 1000 + s)[0][: args.target_trials] for s in range(args.seeds)]
    target = statistics.median(min(values) for values in found)
    print(f"target {target:.4f}\n\n| sampler | trials to the target | best loss | seconds |\n|" + " --- |" * 4)
    for name, sampler in samplers.items():
        needed, best, seconds = [], [], []
        for seed in range(args.seeds):
            values, spent = losses(args, sampler, seed)
            so_far = np.minimum.accumulate(values)
            needed.append(int(np.argmax(so_far <= target)) + 1 if so_far[-1] <= target else args.trials + 1)
            best.append(so_far[-1])
            seconds.append(spent)
        said = f"{statistics.median(needed):.0f} ({', '.join(map(str, sorted(needed)))})"
        error = statistics.stdev(best) / len(best) ** 0.5
        print(
            f"| {name} | {said} | {statistics.mean(best):.4f} ± {error:.4f} | {statistics.median(seconds):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
