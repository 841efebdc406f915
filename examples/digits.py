"""Scikit-learn's handwritten digits: a small classifier whose shape, optimizer and batch size are searched together.

Run it with ``shoal tune examples/digits.py``. The search space is that of ``benchmarks/optuna_digits.py``.
"""

from __future__ import annotations

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn, optim

import shoal

options = {"metric": "accuracy", "n_trials": 200, "max_epochs": 30}


def define(trial: optuna.Trial) -> shoal.Recipe:
    """One trial, as the PyTorch one would write without a tuner."""
    width = trial.suggest_categorical("width", [32, 64])
    activations = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
    activation = activations[trial.suggest_categorical("activation", list(activations))]
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)
    batch_size = trial.suggest_categorical("batch_size", [32, 64])
    kind = trial.suggest_categorical("optimizer", ["sgd", "momentum", "rmsprop", "adam"])

    model = nn.Sequential(
        nn.Linear(64, width),
        activation(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, 10),
    )
    optimizer: optim.Optimizer
    match kind:
        case "sgd":
            optimizer = optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
        case "momentum":
            optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
        case "rmsprop":
            optimizer = optim.RMSprop(model.parameters(), lr=lr, weight_decay=weight_decay)
        case _:
            optimizer = optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=batch_size)


def data() -> tuple[tuple[Tensor, Tensor], ...]:
    """Train, valid and test: 15 % of the 1,797 images are the test set, a fifth of the others the validation set."""
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(len(labels)), test_size=0.15, random_state=0, stratify=labels)
    train, valid = train_test_split(rest, test_size=0.2, random_state=0, stratify=labels[rest])
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    return (x[train], y[train]), (x[valid], y[valid]), (x[test], y[test])
